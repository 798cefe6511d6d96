//! What soft tokens on flex depend on: the image, and not the number of threads or the images encoded beside it, bit
//! for bit.

#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;
mod random_encoder;

use gemma3_core::checkpoint::{Checkpoint, TensorFormat};
use gemma3_core::config::VisionConfig;
use gemma3_core::ops::Precision;
use gemma3_core::{Device, Threads};
use gemma3_vision::{
    EncodeOptions, EncodedImage, Image, PreprocessorConfig, VisionLoadOptions, VisionModel, VisionWeights,
};

/// 18 x 18 patches: tiles of attention that end differently with every number of threads.
const SIDE: usize = 252;

fn checkpoint(format: TensorFormat) -> Checkpoint {
    let vision = VisionConfig {
        hidden_size: 144,
        intermediate_size: 272,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        image_size: SIDE,
        ..VisionConfig::siglip_so400m_896()
    };
    random_encoder::checkpoint(vision, 36, 96, format)
}

fn image(seed: u32) -> Image {
    let pixels: Vec<u8> =
        (0..300 * 200 * 3_u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    Image::from_rgb8(300, 200, pixels).expect("an image")
}

/// The vectors of each image, encoded as many together as the bytes allow.
fn encode(model: &VisionModel, images: &[Image], working_bytes: u64) -> Vec<Vec<u32>> {
    let options = EncodeOptions { working_bytes, ..EncodeOptions::default() };
    let encoded = model.encode(images, &options).expect("soft tokens");
    let values = |image: &EncodedImage| -> Vec<u32> {
        let values = image.views()[0].to_vec().expect("soft tokens");
        assert_eq!(values.len(), 36 * 96);
        values.iter().map(|value| value.to_bits()).collect()
    };
    encoded.iter().map(values).collect()
}

#[test]
fn threads_and_neighbours_do_not_matter() {
    let Some((_, device)) = common::devices().into_iter().find(|(name, _)| *name == "flex") else { return };
    let images = [image(1), image(2), image(3)];
    for format in [TensorFormat::F32, TensorFormat::F16, TensorFormat::BF16] {
        for precision in [Precision::Exact, Precision::Fast] {
            let checkpoint = checkpoint(format);
            let expected = encode(&load(&checkpoint, &device, precision, 1), &images, 1);
            assert_ne!(expected[0], expected[1]);
            for threads in [1, 2, 3, 5] {
                let model = load(&checkpoint, &device, precision, threads);
                for working_bytes in [1, u64::MAX] {
                    let found = encode(&model, &images, working_bytes);
                    assert!(found == expected, "{threads} threads, {format}, {precision:?}");
                }
            }
        }
    }
}

fn load(checkpoint: &Checkpoint, device: &Device, precision: Precision, threads: usize) -> VisionModel {
    let weights = VisionWeights::in_checkpoint(checkpoint).expect("an encoder");
    let preprocessor = PreprocessorConfig { image_size: SIDE, ..PreprocessorConfig::gemma3() };
    let threads = Threads::new(device, Some(threads)).expect("threads");
    let options = VisionLoadOptions { precision, ..VisionLoadOptions::default() };
    VisionModel::load(&weights, preprocessor, device, &threads, options).expect("an encoder")
}
