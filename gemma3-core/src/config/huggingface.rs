//! `config.json` in all the layouts in circulation -> [`ModelConfig`].
//!
//! Absent fields take the defaults of transformers' `Gemma3TextConfig`, `SiglipVisionConfig` and
//! `Gemma3Config`: the published 4B, 12B and 27B files rely on them.

use serde_json::Value;

use super::json::{self, Fields, brief};
use super::model::{DEFAULT_BOS, DEFAULT_EOS, DEFAULT_PAD};
use super::rope::rope_parameters;
use super::text::{MAX_LAYERS, layer_types_from_pattern};
use super::{ConfigError, ImageTokens, LayerType, ModelConfig, TextConfig, VisionConfig};

const TEXT_ONLY: &str = "gemma3_text";
const WITH_IMAGES: &str = "gemma3";

pub(super) fn model_config(json: &str) -> Result<ModelConfig, ConfigError> {
    let value = json::parse(json)?;
    let top = Fields::new(&value, "")?;
    reject_other_architectures(&top)?;
    let config = match top.string("model_type")? {
        Some(TEXT_ONLY) => flat_config(&top)?,
        Some(WITH_IMAGES) => wrapped_config(&top)?,
        Some(other) => {
            let expected = format!("\"{TEXT_ONLY}\" or \"{WITH_IMAGES}\"");
            return Err(ConfigError::unsupported("model_type", expected, other));
        }
        None => {
            return Err(ConfigError::MissingField {
                field: "model_type".to_owned(),
                expected: "\"gemma3_text\" or \"gemma3\"",
                advice: "take the config.json that belongs to the weights",
            });
        }
    };
    config.validate()?;
    Ok(config)
}

/// The 270M and the 1B: everything at the top.
fn flat_config(top: &Fields<'_>) -> Result<ModelConfig, ConfigError> {
    let tied = top.flag("tie_word_embeddings")?.unwrap_or(true);
    Ok(ModelConfig {
        text: text_config(top, tied)?,
        vision: None,
        image_tokens: None,
        bos_token_id: top.token("bos_token_id")?.unwrap_or(DEFAULT_BOS),
        pad_token_id: top.token("pad_token_id")?.unwrap_or(DEFAULT_PAD),
        eos_token_ids: top.tokens("eos_token_id")?.unwrap_or_else(|| vec![DEFAULT_EOS]),
    })
}

/// The 4B, 12B and 27B: decoder and encoder in objects of their own, token ids at the top (the
/// ordinary ones sometimes inside `text_config`).
fn wrapped_config(top: &Fields<'_>) -> Result<ModelConfig, ConfigError> {
    let Some(text_value) = top.get("text_config") else {
        return Err(ConfigError::MissingField {
            field: "text_config".to_owned(),
            expected: "an object with the decoder's sizes",
            advice: "take the config.json that belongs to the weights",
        });
    };
    let text = Fields::new(text_value, "text_config")?;
    if let Some(other) = text.string("model_type")?.filter(|name| *name != TEXT_ONLY) {
        return Err(ConfigError::unsupported(text.field("model_type"), format!("\"{TEXT_ONLY}\""), other));
    }
    let tied = match top.flag("tie_word_embeddings")? {
        Some(tied) => tied,
        None => text.flag("tie_word_embeddings")?.unwrap_or(true),
    };
    let vision = match top.get("vision_config") {
        Some(value) => Some(vision_config(&Fields::new(value, "vision_config")?)?),
        None => None,
    };
    let image_tokens = match vision {
        Some(_) => Some(image_tokens(top)?),
        None => None,
    };
    let token = |name: &str, default: u32| -> Result<u32, ConfigError> {
        Ok(match top.token(name)? {
            Some(id) => id,
            None => text.token(name)?.unwrap_or(default),
        })
    };
    Ok(ModelConfig {
        text: text_config(&text, tied)?,
        vision,
        image_tokens,
        bos_token_id: token("bos_token_id", DEFAULT_BOS)?,
        pad_token_id: token("pad_token_id", DEFAULT_PAD)?,
        eos_token_ids: match top.tokens("eos_token_id")? {
            Some(ids) => ids,
            None => text.tokens("eos_token_id")?.unwrap_or_else(|| vec![DEFAULT_EOS]),
        },
    })
}

fn reject_other_architectures(top: &Fields<'_>) -> Result<(), ConfigError> {
    const KNOWN: [&str; 4] =
        ["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Gemma3TextModel", "Gemma3Model"];
    if let Some(Value::Array(names)) = top.get("architectures") {
        let known = |name: &Value| name.as_str().is_some_and(|name| KNOWN.contains(&name));
        if let Some(other) = names.first().filter(|name| !known(name)) {
            return Err(ConfigError::unsupported("architectures", KNOWN.join(", "), brief(other)));
        }
    }
    if let Some(value) = top.get("quantization_config") {
        let fields = Fields::new(value, "quantization_config")?;
        let method = fields.string("quant_method")?.unwrap_or("(unnamed)");
        return Err(ConfigError::unsupported(
            fields.field("quant_method"),
            "unquantized safetensors (F32, BF16, F16) or a GGUF file",
            method,
        ));
    }
    Ok(())
}

fn text_config(fields: &Fields<'_>, tied: bool) -> Result<TextConfig, ConfigError> {
    reject_other_mathematics(fields)?;
    let size = |name: &str, default: usize| -> Result<usize, ConfigError> {
        Ok(fields.size(name)?.unwrap_or(default))
    };
    let num_hidden_layers = size("num_hidden_layers", 26)?;
    let rope = rope_parameters(fields)?;
    Ok(TextConfig {
        vocab_size: size("vocab_size", 262_208)?,
        hidden_size: size("hidden_size", 2304)?,
        intermediate_size: size("intermediate_size", 9216)?,
        num_hidden_layers,
        num_attention_heads: size("num_attention_heads", 8)?,
        num_key_value_heads: size("num_key_value_heads", 4)?,
        head_dim: size("head_dim", 256)?,
        query_pre_attn_scalar: fields.number("query_pre_attn_scalar")?.unwrap_or(256.0),
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
        sliding_window: size("sliding_window", 4096)?,
        max_position_embeddings: size("max_position_embeddings", 131_072)?,
        rope_theta: rope.global_theta,
        rope_local_base_freq: rope.local_theta,
        rope_scaling_factor: rope.global_factor,
        layer_types: layer_types(fields, num_hidden_layers)?,
        tie_word_embeddings: tied,
    })
}

/// Variants whose logits would silently be wrong here.
fn reject_other_mathematics(fields: &Fields<'_>) -> Result<(), ConfigError> {
    for name in ["final_logit_softcapping", "attn_logit_softcapping"] {
        if let Some(value) = fields.get(name) {
            return Err(ConfigError::unsupported(
                fields.field(name),
                "null (Gemma 3 caps no logits)",
                brief(value),
            ));
        }
    }
    for name in ["attention_bias", "use_bidirectional_attention"] {
        if fields.flag(name)? == Some(true) {
            return Err(ConfigError::unsupported(fields.field(name), "false", true));
        }
    }
    for name in ["hidden_activation", "hidden_act"] {
        reject_other_activation(fields, name)?;
    }
    Ok(())
}

fn reject_other_activation(fields: &Fields<'_>, name: &str) -> Result<(), ConfigError> {
    const GELU_TANH: &str = "gelu_pytorch_tanh";
    match fields.string(name)? {
        Some(other) if other != GELU_TANH => {
            Err(ConfigError::unsupported(fields.field(name), format!("\"{GELU_TANH}\""), other))
        }
        _ => Ok(()),
    }
}

/// `layer_types` where present (newer files), else every sixth (or `sliding_window_pattern`-th)
/// layer is full.
fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Vec<LayerType>, ConfigError> {
    if layers > MAX_LAYERS {
        // Before a number of the file decides how much is allocated.
        return Err(ConfigError::invalid(
            fields.field("num_hidden_layers"),
            format!("a number from 1 to {MAX_LAYERS}"),
            layers,
        ));
    }
    if let Some(value) = fields.get("layer_types") {
        let field = fields.field("layer_types");
        let Value::Array(names) = value else {
            return Err(ConfigError::invalid(field, "a list", brief(value)));
        };
        if names.len() != layers {
            return Err(ConfigError::invalid(
                field,
                format!("one entry for each of {layers} layers"),
                brief(value),
            ));
        }
        return names.iter().map(|name| layer_type(&field, name)).collect();
    }
    let names = ["sliding_window_pattern", "_sliding_window_pattern"];
    let name = fields.first(&names).map_or(names[0], |(name, _)| name);
    match fields.size(name)?.unwrap_or(6) {
        0 => Err(ConfigError::invalid(fields.field(name), "a positive integer", 0)),
        pattern => Ok(layer_types_from_pattern(layers, pattern)),
    }
}

fn layer_type(field: &str, name: &Value) -> Result<LayerType, ConfigError> {
    [LayerType::SlidingAttention, LayerType::FullAttention]
        .into_iter()
        .find(|layer| name.as_str() == Some(layer.name()))
        .ok_or_else(|| {
            ConfigError::unsupported(field, "\"sliding_attention\" or \"full_attention\"", brief(name))
        })
}

fn vision_config(fields: &Fields<'_>) -> Result<VisionConfig, ConfigError> {
    reject_other_activation(fields, "hidden_act")?;
    const SIGLIP: &str = "siglip_vision_model";
    if let Some(other) = fields.string("model_type")?.filter(|name| *name != SIGLIP) {
        return Err(ConfigError::unsupported(fields.field("model_type"), format!("\"{SIGLIP}\""), other));
    }
    let size = |name: &str, default: usize| -> Result<usize, ConfigError> {
        Ok(fields.size(name)?.unwrap_or(default))
    };
    Ok(VisionConfig {
        hidden_size: size("hidden_size", 768)?,
        intermediate_size: size("intermediate_size", 3072)?,
        num_hidden_layers: size("num_hidden_layers", 12)?,
        num_attention_heads: size("num_attention_heads", 12)?,
        num_channels: size("num_channels", 3)?,
        image_size: size("image_size", 224)?,
        patch_size: size("patch_size", 16)?,
        layer_norm_eps: fields.number("layer_norm_eps")?.unwrap_or(1e-6),
    })
}

fn image_tokens(top: &Fields<'_>) -> Result<ImageTokens, ConfigError> {
    // `..._index` in the published files, `..._id` in those that transformers 5 writes.
    let token = |names: [&str; 2], default: u32| -> Result<u32, ConfigError> {
        match top.first(&names) {
            Some((name, _)) => Ok(top.token(name)?.unwrap_or(default)),
            None => Ok(default),
        }
    };
    Ok(ImageTokens {
        boi: token(["boi_token_index", "boi_token_id"], 255_999)?,
        eoi: token(["eoi_token_index", "eoi_token_id"], 256_000)?,
        image: token(["image_token_index", "image_token_id"], 262_144)?,
        mm_tokens_per_image: top.size("mm_tokens_per_image")?.unwrap_or(256),
    })
}
