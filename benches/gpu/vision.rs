//! The image encoder of the 4B, 12B and 27B at its published size, with random bf16 weights.

use std::time::Instant;

use gemma3::core::Threads;
use gemma3::core::checkpoint::{Checkpoint, TensorFormat};
use gemma3::core::config::{ImageTokens, ModelConfig, TextConfig, VisionConfig};
use gemma3::vision::weights::random_tensors;
use gemma3::vision::{
    PreprocessorConfig, SoftTokens, VisionError, VisionLoadOptions, VisionModel, VisionWeights,
};
use gemma3::{Device, EncodeOptions, Image};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::limits::Limits;
use crate::report::{Figure, Subject, median, percent, rounded};
use crate::work::{Work, image_flops};
use crate::{Failure, child, models};

/// An image's way through the encoder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Encoded {
    /// Pixels along a side.
    pub side: usize,
    /// Milliseconds from pixel values to soft tokens, of each repetition, until the host has read them.
    pub forward_ms: Vec<f64>,
    /// The same from an [`Image`] of that size, as sessions do it: resized and normalized on the CPU first.
    pub encode_ms: Vec<f64>,
    pub work: Work,
}

impl Encoded {
    fn share(&self, limits: &Limits) -> Option<f64> {
        self.work.share(1e3 / median(&self.forward_ms), limits)
    }
}

impl Figure for Encoded {
    const LIST: &'static str = "rows";

    fn text(&self, _subject: &Subject, limits: &Limits) -> String {
        let ms = median(&self.forward_ms);
        let share = self
            .share(limits)
            .map_or_else(String::new, |share| format!(", {} of the product's limit", percent(Some(share))));
        format!(
            "one image of {0} x {0}: {ms:.1} ms ({1:.1} img/s){share}; with resizing {2:.1} ms",
            self.side,
            1e3 / ms,
            median(&self.encode_ms)
        )
    }

    fn json(&self, limits: &Limits) -> Value {
        let ms = median(&self.forward_ms);
        json!({
            "images": 1,
            "side": self.side,
            "ms_per_image": rounded(ms, 2),
            "images_s": rounded(1e3 / ms, 2),
            "ms_per_image_with_resizing": rounded(median(&self.encode_ms), 2),
            "share_of_limit": self.share(limits).map(|share| rounded(share, 3)),
        })
    }
}

/// Width of the 4B's decoder.
const TEXT_HIDDEN_SIZE: usize = 2560;
/// An image takes so little time that more repetitions cost nothing.
const REPETITIONS: usize = 20;

/// [`Part::Vision`](crate::arguments::Part::Vision).
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    let begun = Instant::now();
    let model = load(&device, arguments)?;
    eprintln!("image encoder: made and loaded in {:.1} s", begun.elapsed().as_secs_f64());
    let config = model.config().clone();
    let side = config.image_size;
    let repetitions = if arguments.tiny { 2 } else { REPETITIONS };

    let pixels = pixels(side);
    let forward_ms = milliseconds(repetitions, || read(&model.forward(pixels.clone(), 1)?))?;

    let bytes: Vec<u8> = (0..3 * side * side).map(|i| (i.wrapping_mul(2_654_435_761) % 251) as u8).collect();
    let image = Image::from_rgb8(side as u32, side as u32, bytes)?;
    let options = EncodeOptions::default();
    let encode_ms = milliseconds(repetitions, || read(model.encode_one(&image, &options)?.views()))?;

    let work = Work::Flops(image_flops(&config, model.tokens_per_image(), TEXT_HIDDEN_SIZE));
    child::answer(&Encoded { side, forward_ms, encode_ms, work })
}

/// Values of an image's pixels that look random and are the same every time.
pub fn pixels(side: usize) -> Vec<f32> {
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) % 1999) as f32 / 1000.0 - 1.0;
    (0..3 * side * side).map(value).collect()
}

/// Waits until the device has made the soft tokens.
pub fn read(images: &[SoftTokens]) -> Result<(), VisionError> {
    images.iter().try_for_each(|image| Ok(image.to_vec().map(drop)?))
}

/// Of each repetition; kernels have been compiled before.
fn milliseconds(repetitions: usize, run: impl Fn() -> Result<(), VisionError>) -> Result<Vec<f64>, Failure> {
    run()?;
    let mut all = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let begun = Instant::now();
        run()?;
        all.push(1e3 * begun.elapsed().as_secs_f64());
    }
    Ok(all)
}

/// The image encoder on a device.
pub fn load(device: &Device, arguments: &Arguments) -> Result<VisionModel, Failure> {
    let (vision, tokens) = encoder(arguments.tiny);
    let preprocessor = PreprocessorConfig { image_size: vision.image_size, ..PreprocessorConfig::gemma3() };
    let tensors = random_tensors(&vision, TEXT_HIDDEN_SIZE, TensorFormat::BF16);
    // A decoder of which only the width matters.
    let text = TextConfig { hidden_size: TEXT_HIDDEN_SIZE, ..models::tiny() };
    let config = ModelConfig {
        vision: Some(vision),
        image_tokens: Some(ImageTokens { boi: 500, eoi: 501, image: 502, mm_tokens_per_image: tokens }),
        ..ModelConfig::from_text(text)
    };
    let checkpoint = Checkpoint::random_with(config, TensorFormat::BF16, tensors, 1)?;
    let weights = VisionWeights::in_checkpoint(&checkpoint).ok_or("a checkpoint without an encoder")?;
    let threads = Threads::new(device, None)?;
    let options = VisionLoadOptions { precision: arguments.precision(), ..VisionLoadOptions::default() };
    Ok(VisionModel::load(&weights, preprocessor, device, &threads, options)?)
}

/// Sizes, and soft tokens of an image.
fn encoder(tiny: bool) -> (VisionConfig, usize) {
    let whole = VisionConfig::siglip_so400m_896();
    match tiny {
        true => (VisionConfig { num_hidden_layers: 2, image_size: 224, ..whole }, 16),
        false => (whole, 256),
    }
}
