//! Random weights of an image encoder of a test's own sizes.

use gemma3_core::checkpoint::{Checkpoint, TensorFormat};
use gemma3_core::config::{ImageTokens, ModelConfig, TextConfig, VisionConfig};
use gemma3_vision::weights::random_tensors;

/// A checkpoint with this encoder, whose weights have the format, and a decoder of which only the width matters.
pub fn checkpoint(
    vision: VisionConfig,
    mm_tokens_per_image: usize,
    text_hidden_size: usize,
    format: TensorFormat,
) -> Checkpoint {
    let text = TextConfig {
        vocab_size: 512,
        hidden_size: text_hidden_size,
        intermediate_size: 64,
        num_hidden_layers: 1,
        layer_types: TextConfig::gemma3_4b().layer_types[..1].to_vec(),
        ..TextConfig::gemma3_4b()
    };
    let tensors = random_tensors(&vision, text_hidden_size, format);
    let config = ModelConfig {
        vision: Some(vision),
        image_tokens: Some(ImageTokens { boi: 500, eoi: 501, image: 502, mm_tokens_per_image }),
        ..ModelConfig::from_text(text)
    };
    Checkpoint::random_with(config, TensorFormat::BF16, tensors, 1).expect("random weights")
}
