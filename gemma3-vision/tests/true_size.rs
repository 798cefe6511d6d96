//! The published encoder's size with random weights: shape, finiteness, and the documented bound of memory.
//!
//! Alone in its process, because it looks at the process's memory.

#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;

use gemma3_core::Threads;
use gemma3_core::checkpoint::{Checkpoint, TensorFormat};
use gemma3_core::config::{ImageTokens, ModelConfig, TextConfig, VisionConfig};
use gemma3_vision::weights::random_tensors;
use gemma3_vision::{
    EncodeOptions, Image, PreprocessorConfig, VisionLoadOptions, VisionModel, VisionWeights,
};

/// Resident bytes now, and the most since the last reset; `None` where the system does not say.
fn resident(reset: bool) -> Option<(u64, u64)> {
    if reset {
        std::fs::write("/proc/self/clear_refs", "5").ok()?;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = |name: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    Some((kilobytes("VmRSS:")? * 1024, kilobytes("VmHWM:")? * 1024))
}

#[test]
fn the_true_size_gives_finite_soft_tokens_within_its_memory() {
    // A software GPU would take hours, and ndarray is several times slower than flex.
    let Some((_, device)) = common::devices().into_iter().find(|(name, _)| *name == "flex") else { return };
    let vision = VisionConfig::siglip_so400m_896();
    // A decoder of the 4B's width, of which only the width matters.
    let text = TextConfig {
        num_hidden_layers: 1,
        layer_types: TextConfig::gemma3_4b().layer_types[..1].to_vec(),
        vocab_size: 512,
        intermediate_size: 64,
        ..TextConfig::gemma3_4b()
    };
    let tensors = random_tensors(&vision, text.hidden_size, TensorFormat::BF16);
    let config = ModelConfig {
        vision: Some(vision),
        image_tokens: Some(ImageTokens { boi: 500, eoi: 501, image: 502, mm_tokens_per_image: 256 }),
        ..ModelConfig::from_text(text)
    };
    let checkpoint = Checkpoint::random_with(config, TensorFormat::BF16, tensors, 1).expect("random weights");
    let weights = VisionWeights::in_checkpoint(&checkpoint).expect("an encoder");
    let threads = Threads::new(&device, None).expect("threads");
    let preprocessor = PreprocessorConfig::gemma3();
    let model = VisionModel::load(&weights, preprocessor, &device, &threads, VisionLoadOptions::default())
        .expect("an encoder");

    let pixels: Vec<u8> =
        (0..640 * 480 * 3_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let image = Image::from_rgb8(640, 480, pixels).expect("an image");
    let before = resident(true);
    let encoded = model.encode_one(&image, &EncodeOptions::default()).expect("soft tokens");
    let after = resident(false);
    assert_eq!(encoded.views().len(), 1);
    assert_eq!((encoded.views()[0].len(), encoded.views()[0].width()), (256, 2560));
    let values = encoded.views()[0].to_vec().expect("soft tokens");
    assert!(values.iter().all(|x| x.is_finite()));
    let first = values[0];
    assert!(values.iter().any(|x| (x - first).abs() > 0.1), "the soft tokens are all the same");
    if let (Some((before, _)), Some((_, peak))) = (before, after) {
        let used = peak.saturating_sub(before);
        let bound = model.working_bytes(1);
        println!("working memory {} MB of at most {} MB", used / 1_000_000, bound / 1_000_000);
        assert!(used <= bound, "{used} bytes, more than the bound of {bound}");
    }
}
