//! GGUF metadata of the architecture `gemma3` -> [`ModelConfig`].
//!
//! The metadata says less than a `config.json`: the local rope base, the layer pattern, the
//! vocabulary's size and the attention scale follow from rules that llama.cpp has in its code.

use super::special_tokens::SpecialTokens;
use super::{GgufFile, GgufMetadata};
use crate::checkpoint::tensors::TensorTable;
use crate::checkpoint::{TextTensor, Warning, WarningKind, main_format};
use crate::config::{ConfigError, LayerType, ModelConfig, TextConfig, layer_types_from_pattern};
use crate::config::{DEFAULT_BOS, DEFAULT_PAD, MAX_LAYERS};

/// Layers of the 27B, the only size whose attention scale isn't that of its head width.
const LAYERS_27B: usize = 62;
/// Layers of the sizes whose full-attention layers are scaled by [`LONG_CONTEXT_FACTOR`] (4B, 12B,
/// 27B): some of their files lack the key that says so.
const LAYERS_OF_LONG_CONTEXT: [usize; 3] = [34, 48, LAYERS_27B];
const LONG_CONTEXT_FACTOR: f64 = 8.0;

/// Reads the configuration out of a file's metadata and its embedding's shape, and what is odd about it;
/// `label` names the file in warnings.
pub(in crate::checkpoint) fn model_config(
    label: &str,
    file: &GgufFile,
) -> Result<(ModelConfig, Vec<Warning>), ConfigError> {
    let metadata = file.metadata();
    reject_other_files(file)?;
    let text = text_config(file)?;
    let mut warnings = ignored_caps(label, metadata, &text)?;
    let mut tokens = SpecialTokens::new(label, metadata, text.vocab_size)?;
    let config = ModelConfig {
        text,
        vision: None,
        image_tokens: None,
        bos_token_id: tokens.one("bos_token_id").unwrap_or(DEFAULT_BOS),
        pad_token_id: tokens.one("padding_token_id").unwrap_or(DEFAULT_PAD),
        eos_token_ids: tokens.ends()?,
    };
    warnings.extend(tokens.warnings);
    config.validate()?;
    Ok((config, warnings))
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

fn reject_other_files(file: &GgufFile) -> Result<(), ConfigError> {
    const ARCHITECTURE: &str = "general.architecture";
    let metadata = file.metadata();
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
    // Ollama gives its EmbeddingGemma the architecture of the generating models.
    if file.names().any(|name| name.starts_with("dense.")) {
        let found = "\"gemma3\" with dense layers (EmbeddingGemma, which generates no text)";
        return Err(ConfigError::unsupported(ARCHITECTURE, "a Gemma 3 that generates text", found));
    }
    Ok(())
}

/// Caps that a file states and that aren't applied.
///
/// Gemma 3 caps nothing; its `config.json` files have null. Files of the Ollama library nevertheless say
/// `final_logit_softcapping` 30, a slip of its converter, and Ollama takes such a cap for none. llama.cpp
/// applies one since it runs Rnj-1, a model of this architecture with a cap and without sliding layers.
/// So the layers tell a slip from a cap: where none slides, or the window is the whole context, the cap is
/// the model's, and this crate doesn't compute it. (A cap of the final logits moves no token past another:
/// what is chosen greedily is the same with and without it.)
fn ignored_caps(
    label: &str,
    metadata: &GgufMetadata,
    text: &TextConfig,
) -> Result<Vec<Warning>, ConfigError> {
    let slides = text.layer_types.contains(&LayerType::SlidingAttention)
        && text.sliding_window < text.max_position_embeddings;
    let mut warnings = Vec::new();
    for name in ["final_logit_softcapping", "attn_logit_softcapping"] {
        let key = format!("gemma3.{name}");
        let Some(cap) = metadata.f64(&key)?.filter(|cap| *cap != 0.0) else {
            continue;
        };
        if !slides {
            return Err(ConfigError::unsupported(key, "0 (no cap) in a model without sliding layers", cap));
        }
        warnings.push(Warning::new(
            WarningKind::IgnoredField,
            label,
            format!("`{key}` is {cap}, a slip of some converters: Gemma 3 was trained without a cap"),
            "it is not applied",
        ));
    }
    Ok(warnings)
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
        // The second names are those of the Ollama library.
        rope_theta: number("rope.freq_base", number("rope.global.freq_base", 1e6)?)?,
        rope_local_base_freq: number("rope.freq_base_swa", number("rope.local.freq_base", 1e4)?)?,
        rope_scaling_factor: rope_scaling_factor(metadata, layers)?,
        layer_types: layer_types(metadata, layers)?,
        // The checkpoint decides when it has compared the two.
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
