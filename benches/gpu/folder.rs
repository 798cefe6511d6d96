//! Random weights as a folder of Hugging Face's: what a user loads.

use std::borrow::Cow;
use std::path::Path;

use gemma3::core::checkpoint::{Checkpoint, TensorFormat};
use gemma3::core::config::TextConfig;
use safetensors::{Dtype, View};
use serde_json::{Value, json};

use crate::Failure;

/// Writes `config.json` and `model.safetensors`. One tensor at a time is in memory.
///
/// # Errors
///
/// A format that safetensors files don't have, and a disk that is full.
pub fn write(checkpoint: &Checkpoint, folder: &Path) -> Result<(), Failure> {
    let config = config_json(&checkpoint.config().text);
    std::fs::write(folder.join("config.json"), format!("{config:#}"))?;
    let tensors = checkpoint.names().map(|name| Ok((name, LateTensor::new(checkpoint, name)?)));
    let tensors = tensors.collect::<Result<Vec<_>, Failure>>()?;
    safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors"))?;
    Ok(())
}

/// A tensor whose bytes are made when they are written.
struct LateTensor<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
}

impl<'a> LateTensor<'a> {
    /// Makes the bytes once to see what they are.
    fn new(checkpoint: &'a Checkpoint, name: &'a str) -> Result<Self, Failure> {
        let view = checkpoint.raw(name)?;
        let dtype = match view.format {
            TensorFormat::F32 => Dtype::F32,
            TensorFormat::F16 => Dtype::F16,
            TensorFormat::BF16 => Dtype::BF16,
            other => return Err(format!("a safetensors file has no {other}; f32, f16 or bf16").into()),
        };
        Ok(Self { checkpoint, name, dtype, shape: view.shape, bytes: view.bytes.len() })
    }
}

impl View for LateTensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.checkpoint.raw(self.name).expect("it was there before").bytes
    }

    fn data_len(&self) -> usize {
        self.bytes
    }
}

fn config_json(config: &TextConfig) -> Value {
    let layer_types: Vec<&str> = config.layer_types.iter().map(|kind| kind.name()).collect();
    json!({
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": config.query_pre_attn_scalar,
        "rms_norm_eps": config.rms_norm_eps,
        "sliding_window": config.sliding_window,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": config.rope_local_base_freq,
        "rope_scaling": { "rope_type": "linear", "factor": config.rope_scaling_factor },
        "layer_types": layer_types,
        "tie_word_embeddings": config.tie_word_embeddings,
    })
}
