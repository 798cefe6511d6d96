//! GGUF metadata of the architecture `gemma3` -> [`ModelConfig`].
//!
//! The metadata says less than a `config.json`: the local rope base, the layer pattern, the
//! vocabulary's size and the attention scale follow from rules that llama.cpp has in its code.

use super::{GgufFile, GgufMetadata};
use crate::checkpoint::tensors::TensorTable;
use crate::checkpoint::{TextTensor, main_format};
use crate::config::{ConfigError, LayerType, ModelConfig, TextConfig, layer_types_from_pattern};
use crate::config::{DEFAULT_BOS, DEFAULT_EOS, DEFAULT_PAD, MAX_LAYERS};

/// Layers of the 27B, the only size whose attention scale isn't that of its head width.
const LAYERS_27B: usize = 62;
/// Layers of the sizes whose full-attention layers are scaled by [`LONG_CONTEXT_FACTOR`] (4B, 12B,
/// 27B): some of their files lack the key that says so.
const LAYERS_OF_LONG_CONTEXT: [usize; 3] = [34, 48, LAYERS_27B];
const LONG_CONTEXT_FACTOR: f64 = 8.0;

/// Reads the configuration out of a file's metadata and its embedding's shape.
pub(in crate::checkpoint) fn model_config(file: &GgufFile) -> Result<ModelConfig, ConfigError> {
    let metadata = file.metadata();
    reject_other_files(metadata)?;
    let text = text_config(file)?;
    let config = ModelConfig {
        text,
        vision: None,
        image_tokens: None,
        bos_token_id: token(metadata, "bos_token_id")?.unwrap_or(DEFAULT_BOS),
        pad_token_id: token(metadata, "padding_token_id")?.unwrap_or(DEFAULT_PAD),
        eos_token_ids: eos_token_ids(metadata)?,
    };
    config.validate()?;
    Ok(config)
}

/// `"GGUF Q4_K_M"`: the mix that the file names, else the format with most bytes.
pub(in crate::checkpoint) fn format_name(metadata: &GgufMetadata, table: &TensorTable) -> String {
    let mix = match metadata.u64("general.file_type") {
        Ok(Some(id)) => file_type_name(id),
        _ => None,
    };
    match mix {
        Some(name) => format!("GGUF {name}"),
        None => format!("GGUF {}", main_format(table)),
    }
}

fn reject_other_files(metadata: &GgufMetadata) -> Result<(), ConfigError> {
    const ARCHITECTURE: &str = "general.architecture";
    match metadata.str(ARCHITECTURE)? {
        Some("gemma3") => {}
        Some("clip") => {
            return Err(ConfigError::unsupported(
                ARCHITECTURE,
                "\"gemma3\"",
                "\"clip\" (the image encoder's file: open the language model's)",
            ));
        }
        Some(other) => {
            let found = format!("\"{}\"", other.escape_debug());
            return Err(ConfigError::unsupported(ARCHITECTURE, "\"gemma3\"", found));
        }
        None => {
            return Err(ConfigError::MissingField {
                field: ARCHITECTURE.to_owned(),
                expected: "\"gemma3\"",
                advice: "convert the model anew",
            });
        }
    }
    for name in ["final_logit_softcapping", "attn_logit_softcapping"] {
        let key = format!("gemma3.{name}");
        if let Some(cap) = metadata.f64(&key)?.filter(|cap| *cap != 0.0) {
            return Err(ConfigError::unsupported(key, "0 (no cap)", cap));
        }
    }
    Ok(())
}

fn text_config(file: &GgufFile) -> Result<TextConfig, ConfigError> {
    let metadata = file.metadata();
    let layers = required(metadata, "block_count")?;
    let hidden_size = required(metadata, "embedding_length")?;
    let heads = required(metadata, "attention.head_count")?;
    let head_dim = required(metadata, "attention.key_length")?;
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = optional(metadata, name)?.filter(|length| *length != head_dim) {
            return Err(ConfigError::unsupported(
                format!("gemma3.{name}"),
                format!("attention.key_length ({head_dim})"),
                other,
            ));
        }
    }
    let query_pre_attn_scalar = match layers {
        LAYERS_27B => hidden_size as f64 / heads.max(1) as f64,
        _ => head_dim as f64,
    };
    let embedding = TextTensor::Embedding.gguf_name();
    let Some([vocab_size, _]) = file.shape(&embedding) else {
        return Err(ConfigError::MissingField {
            field: embedding,
            expected: "a matrix with one row a token",
            advice: "convert the model anew",
        });
    };
    let number = |name: &str, default: f64| -> Result<f64, ConfigError> {
        let value = metadata.f64(&format!("gemma3.{name}"))?;
        Ok(value.unwrap_or(default))
    };
    Ok(TextConfig {
        vocab_size: *vocab_size,
        hidden_size,
        intermediate_size: required(metadata, "feed_forward_length")?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: required(metadata, "attention.head_count_kv")?,
        head_dim,
        query_pre_attn_scalar,
        rms_norm_eps: number("attention.layer_norm_rms_epsilon", 1e-6)?,
        sliding_window: required(metadata, "attention.sliding_window")?,
        max_position_embeddings: required(metadata, "context_length")?,
        rope_theta: number("rope.freq_base", 1e6)?,
        rope_local_base_freq: number("rope.freq_base_swa", 1e4)?,
        rope_scaling_factor: rope_scaling_factor(metadata, layers)?,
        layer_types: layer_types(metadata, layers)?,
        tie_word_embeddings: file.shape(&TextTensor::Head.gguf_name()).is_none(),
    })
}

fn rope_scaling_factor(metadata: &GgufMetadata, layers: usize) -> Result<f64, ConfigError> {
    const TYPE: &str = "gemma3.rope.scaling.type";
    const FACTOR: &str = "gemma3.rope.scaling.factor";
    // The key of files made before the type existed.
    const OLD_FACTOR: &str = "gemma3.rope.scale_linear";
    let factor = match metadata.f64(FACTOR)? {
        Some(factor) => Some(factor),
        None => metadata.f64(OLD_FACTOR)?,
    };
    match (metadata.str(TYPE)?, factor) {
        (Some("none"), _) => Ok(1.0),
        (Some("linear") | None, Some(factor)) => Ok(factor),
        (Some("linear"), None) => Err(ConfigError::MissingField {
            field: FACTOR.to_owned(),
            expected: "the factor of linear rope scaling",
            advice: "convert the model anew",
        }),
        (Some(other), _) => {
            Err(ConfigError::unsupported(TYPE, "\"linear\" or \"none\"", other.escape_debug()))
        }
        (None, None) if LAYERS_OF_LONG_CONTEXT.contains(&layers) => Ok(LONG_CONTEXT_FACTOR),
        (None, None) => Ok(1.0),
    }
}

/// The pattern is a period, or a list that marks the sliding layers; most files have neither.
fn layer_types(metadata: &GgufMetadata, layers: usize) -> Result<Vec<LayerType>, ConfigError> {
    const KEY: &str = "gemma3.attention.sliding_window_pattern";
    if layers > MAX_LAYERS {
        // Before a number of the file decides how much is allocated.
        return Err(ConfigError::invalid(
            "gemma3.block_count",
            format!("a number from 1 to {MAX_LAYERS}"),
            layers,
        ));
    }
    if metadata.is_array(KEY) {
        let sliding = metadata.bools(KEY)?.unwrap_or_default();
        if sliding.len() != layers {
            return Err(ConfigError::invalid(
                KEY,
                format!("one entry for each of {layers} layers"),
                format!("{} entries", sliding.len()),
            ));
        }
        return Ok(sliding
            .into_iter()
            .map(|sliding| match sliding {
                true => LayerType::SlidingAttention,
                false => LayerType::FullAttention,
            })
            .collect());
    }
    match metadata.u32(KEY)? {
        Some(0) => Err(ConfigError::invalid(KEY, "a positive integer", 0)),
        Some(pattern) => Ok(layer_types_from_pattern(layers, pattern as usize)),
        None => Ok(layer_types_from_pattern(layers, 6)),
    }
}

/// All ids that end a text: those that the file names, `<eos>`, and `<end_of_turn>` where the file
/// has a chat template. Files of tuned models name only one of the two.
fn eos_token_ids(metadata: &GgufMetadata) -> Result<Vec<u32>, ConfigError> {
    let mut ids = Vec::new();
    for name in ["eos_token_id", "eot_token_id"] {
        ids.extend(token(metadata, name)?);
    }
    let mut ends = vec!["<eos>"];
    if metadata.str("tokenizer.chat_template")?.is_some() {
        ends.push("<end_of_turn>");
    }
    // Both are among the first few hundred in every Gemma vocabulary.
    const SPECIAL_TOKENS: usize = 512;
    if let Some(tokens) = metadata.strings("tokenizer.ggml.tokens")? {
        for (id, token) in (0..).zip(tokens.take(SPECIAL_TOKENS)) {
            if ends.contains(&token) {
                ids.push(id);
            }
        }
    }
    if ids.is_empty() {
        ids.push(DEFAULT_EOS);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn token(metadata: &GgufMetadata, name: &str) -> Result<Option<u32>, ConfigError> {
    metadata.u32(&format!("tokenizer.ggml.{name}"))
}

fn required(metadata: &GgufMetadata, name: &str) -> Result<usize, ConfigError> {
    optional(metadata, name)?.ok_or_else(|| ConfigError::MissingField {
        field: format!("gemma3.{name}"),
        expected: "a positive integer",
        advice: "convert the model anew",
    })
}

/// A size; a list with one entry a layer counts where all entries agree.
fn optional(metadata: &GgufMetadata, name: &str) -> Result<Option<usize>, ConfigError> {
    let key = format!("gemma3.{name}");
    let number = if metadata.is_array(&key) {
        let values = metadata.u32s(&key)?.unwrap_or_default();
        match values.split_first() {
            Some((first, rest)) if rest.iter().all(|value| value == first) => Some(u64::from(*first)),
            _ => {
                return Err(ConfigError::unsupported(
                    key,
                    "the same value for every layer",
                    format!("a list of {} values", values.len()),
                ));
            }
        }
    } else {
        metadata.u64(&key)?
    };
    number
        .map(|number| {
            usize::try_from(number)
                .map_err(|_| ConfigError::invalid(key, "a number within the address space", number))
        })
        .transpose()
}

/// llama.cpp's numbers of quantization mixes.
fn file_type_name(id: u64) -> Option<&'static str> {
    Some(match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        32 => "BF16",
        _ => return None,
    })
}
