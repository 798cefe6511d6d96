//! How much a decode has to read, and how much a prefill and the image encoder have to compute. A share of a limit is
//! this over the limit, over the time that it took.
//!
//! - A decode step reads the weights once, and of each sequence the keys and values that it sees halfway through the
//!   decode: bytes, over the copy bandwidth.
//! - A prefill of n tokens multiplies every matrix of the layers with n vectors and the head with one: 2 flops for each
//!   weight and vector; embeddings are looked up. A pair of a query and a key that it sees takes 4 flops for each number
//!   of each head, in two products. Norms, rotations and the softmax do not count.
//! - The encoder of images likewise, where every patch sees every patch.

use gemma3::core::config::{LayerType, TextConfig, VisionConfig};
use gemma3::core::model::Model;
use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::measure::Case;

/// What one decode step, or one prefill, or one image, needs of the device at least.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Work {
    Bytes(f64),
    Flops(f64),
}

impl Work {
    /// Of a decode step of all sequences, or of a whole prefill.
    pub fn of(model: &Model, case: &Case) -> Self {
        match case.n_gen {
            0 => Self::Flops(prefill_flops(model.text_config(), case.n_prompt)),
            _ => Self::Bytes(step_bytes(model, case)),
        }
    }

    /// Of the limit, if it is done so many times a second; `None` where the limit is not known.
    pub fn share(self, times_a_second: f64, limits: &Limits) -> Option<f64> {
        match self {
            Self::Bytes(bytes) => Some(bytes * times_a_second / 1e9 / limits.copy_gb_s),
            Self::Flops(flops) => Some(flops * times_a_second / 1e12 / limits.gemm_tflop_s()?),
        }
    }
}

fn step_bytes(model: &Model, case: &Case) -> f64 {
    let config = model.text_config();
    let length = case.n_depth + case.n_gen / 2;
    let seen = |kind: &LayerType| match kind {
        LayerType::FullAttention => length,
        LayerType::SlidingAttention => length.min(config.sliding_window),
    };
    let positions: usize = config.layer_types.iter().map(seen).sum();
    let bytes_per_value = model.cache_dtype().bytes() as usize;
    let cache = case.batch * positions * 2 * config.key_value_width() * bytes_per_value;
    model.weight_bytes() as f64 + cache as f64
}

fn prefill_flops(config: &TextConfig, tokens: usize) -> f64 {
    let hidden = config.hidden_size;
    let attention = 2 * (config.query_width() + config.key_value_width());
    let layer_weights = hidden * (attention + 3 * config.intermediate_size);
    let layers = 2.0 * (config.num_hidden_layers * layer_weights) as f64 * tokens as f64;
    let head = 2.0 * (hidden * config.vocab_size) as f64;
    let pairs = |kind: &LayerType| match kind {
        LayerType::FullAttention => pairs(tokens, tokens),
        LayerType::SlidingAttention => pairs(tokens, config.sliding_window),
    };
    let pairs: f64 = config.layer_types.iter().map(pairs).sum();
    layers + head + 4.0 * config.query_width() as f64 * pairs
}

/// Keys that `tokens` queries see together, each itself and those before it, at most `window`.
fn pairs(tokens: usize, window: usize) -> f64 {
    let growing = tokens.min(window) as f64;
    growing * (growing + 1.0) / 2.0 + (tokens as f64 - growing) * window as f64
}

/// Of one image, with the projector into a decoder of a width.
pub fn image_flops(config: &VisionConfig, tokens_per_image: usize, text_hidden_size: usize) -> f64 {
    let patches = config.patches_per_side().pow(2) as f64;
    let (hidden, intermediate) = (config.hidden_size as f64, config.intermediate_size as f64);
    let layer =
        2.0 * patches * hidden * (4.0 * hidden + 2.0 * intermediate) + 4.0 * patches * patches * hidden;
    let patch = (config.num_channels * config.patch_size.pow(2)) as f64;
    let embedding = 2.0 * patches * hidden * patch;
    let projection = 2.0 * tokens_per_image as f64 * hidden * text_hidden_size as f64;
    config.num_hidden_layers as f64 * layer + embedding + projection
}
