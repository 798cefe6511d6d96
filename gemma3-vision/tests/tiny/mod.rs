//! The tiny multimodal checkpoint of the goldens: its encoder, its images, its prompts.
#![allow(dead_code)] // Each test file uses a part.

use gemma3_core::checkpoint::Checkpoint;
use gemma3_core::ops::Precision;
use gemma3_core::{Device, Threads};
use gemma3_vision::preprocess::PreprocessorConfig;
use gemma3_vision::{SoftTokens, VisionLoadOptions, VisionModel, VisionWeights};
use serde_json::Value;

use super::common::{Tensors, golden, golden_json};

pub struct Tiny {
    pub checkpoint: Checkpoint,
    pub index: Value,
    pub tensors: Tensors,
}

impl Tiny {
    /// `None` (and a named skip) without the goldens.
    pub fn open() -> Option<Self> {
        let folder = golden("tiny-multimodal")?;
        Some(Self {
            index: golden_json("tiny-multimodal.json")?,
            tensors: Tensors::open("tiny-multimodal.safetensors")?,
            checkpoint: Checkpoint::open(folder).expect("the tiny checkpoint"),
        })
    }

    pub fn vision(&self, device: &Device) -> VisionModel {
        self.vision_in(device, Precision::Exact)
    }

    pub fn vision_in(&self, device: &Device, precision: Precision) -> VisionModel {
        let weights = VisionWeights::in_checkpoint(&self.checkpoint).expect("an encoder");
        load(&weights, device, precision)
    }

    pub fn cases(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.index["cases"].as_object().expect("cases").iter()
    }

    pub fn placeholder(&self) -> u32 {
        self.index["ids"]["image"].as_u64().expect("the image id") as u32
    }

    /// Pixel values of some of the golden's images, \[images, 3, side, side\].
    pub fn pixel_values(&self, images: &[u32]) -> Vec<f32> {
        let (shape, values) = self.tensors.get("pixel_values").expect("pixel values");
        let one = values.len() / shape[0];
        images.iter().flat_map(|i| values[*i as usize * one..][..one].iter().copied()).collect()
    }
}

pub fn load(weights: &VisionWeights<'_>, device: &Device, precision: Precision) -> VisionModel {
    load_with(weights, device, VisionLoadOptions { precision, ..VisionLoadOptions::default() })
}

pub fn load_with(
    weights: &VisionWeights<'_>,
    device: &Device,
    options: VisionLoadOptions<'_>,
) -> VisionModel {
    let preprocessor =
        PreprocessorConfig { image_size: weights.config().image_size, ..PreprocessorConfig::gemma3() };
    let threads = Threads::new(device, None).expect("threads");
    VisionModel::load(weights, preprocessor, device, &threads, options)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The soft tokens of all images, one after the other.
pub fn to_vec(images: &[SoftTokens]) -> Vec<f32> {
    images.iter().flat_map(|image| image.to_vec().expect("soft tokens")).collect()
}
