//! `config.json` in all the layouts in circulation -> [`ModelConfig`].
//!
//! Absent fields take the defaults of transformers' `Gemma3TextConfig`, `SiglipVisionConfig` and
//! `Gemma3Config`: the published 4B, 12B and 27B files rely on them.

use std::collections::HashSet;

use serde_json::Value;

use super::json::{self, Fields, brief};
use super::model::{DEFAULT_BOS, DEFAULT_EOS, DEFAULT_PAD};
use super::rope::rope_parameters;
use super::text::{MAX_LAYERS, layer_types_from_pattern};
use super::{ConfigError, ImageTokens, LayerType, ModelConfig, Note, TextConfig, Topic, VisionConfig};

const TEXT_ONLY: &str = "gemma3_text";
const WITH_IMAGES: &str = "gemma3";
/// The one activation of decoder and encoder.
const GELU_TANH: &str = "gelu_pytorch_tanh";

/// What a `config.json` says: the configuration, and what a checkpoint needs beyond it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ConfigFile {
    pub(crate) model: ModelConfig,
    pub(crate) ties: TieFlags,
    pub(crate) notes: Vec<Note>,
}

/// `tie_word_embeddings` in the places where a file can have it; `None` where it doesn't.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TieFlags {
    /// At the top level. transformers follows this one, and takes silence for `true`.
    pub(crate) top: Option<bool>,
    /// In `text_config`.
    pub(crate) text: Option<bool>,
}

impl TieFlags {
    /// What the file says, the top level first.
    pub(crate) fn stated(self) -> Option<bool> {
        self.top.or(self.text)
    }

    /// Whether the two places contradict each other.
    pub(crate) fn disagree(self) -> bool {
        matches!((self.top, self.text), (Some(top), Some(text)) if top != text)
    }
}

impl ConfigFile {
    /// Reads the text of a `config.json`, as [`ModelConfig::from_json`] describes it.
    pub(crate) fn read(json: &str) -> Result<Self, ConfigError> {
        let value = json::parse(json)?;
        let top = Fields::new(&value, "")?;
        reject_other_architectures(&top)?;
        let file = match top.string("model_type")? {
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
        file.model.validate()?;
        Ok(file)
    }
}

/// The 270M and the 1B: everything at the top.
fn flat_config(top: &Fields<'_>) -> Result<ConfigFile, ConfigError> {
    let ties = TieFlags { top: top.flag("tie_word_embeddings")?, text: None };
    let mut notes = Vec::new();
    let model = ModelConfig {
        text: text_config(top, ties, &mut notes)?,
        vision: None,
        image_tokens: None,
        bos_token_id: top.special_token("bos_token_id", &mut notes).unwrap_or(DEFAULT_BOS),
        pad_token_id: top.special_token("pad_token_id", &mut notes).unwrap_or(DEFAULT_PAD),
        eos_token_ids: end_ids(&[*top], &mut notes),
    };
    Ok(ConfigFile { model, ties, notes })
}

/// The 4B, 12B and 27B: decoder and encoder in objects of their own, token ids at the top (the
/// ordinary ones sometimes inside `text_config`).
fn wrapped_config(top: &Fields<'_>) -> Result<ConfigFile, ConfigError> {
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
    let ties = TieFlags { top: top.flag("tie_word_embeddings")?, text: text.flag("tie_word_embeddings")? };
    let vision = match top.get("vision_config") {
        Some(value) => Some(vision_config(&Fields::new(value, "vision_config")?)?),
        None => None,
    };
    let image_tokens = match vision {
        Some(_) => Some(image_tokens(top)?),
        None => None,
    };
    let mut notes = Vec::new();
    let token = |name: &str, default: u32, notes: &mut Vec<Note>| {
        let outer = top.special_token(name, notes);
        outer.or_else(|| text.special_token(name, notes)).unwrap_or(default)
    };
    let model = ModelConfig {
        text: text_config(&text, ties, &mut notes)?,
        vision,
        image_tokens,
        bos_token_id: token("bos_token_id", DEFAULT_BOS, &mut notes),
        pad_token_id: token("pad_token_id", DEFAULT_PAD, &mut notes),
        eos_token_ids: end_ids(&[*top, text], &mut notes),
    };
    Ok(ConfigFile { model, ties, notes })
}

/// The ids that end a text, wherever they stand: a text that goes on after its end is worse than one
/// that ends at an id of the one place and not of the other.
fn end_ids(places: &[Fields<'_>], notes: &mut Vec<Note>) -> Vec<u32> {
    let mut seen = HashSet::new();
    let mut ids = Vec::new();
    for place in places {
        let more = place.special_tokens("eos_token_id", Topic::SpecialToken, notes);
        ids.extend(more.into_iter().filter(|id| seen.insert(*id)));
    }
    if ids.is_empty() {
        ids.push(DEFAULT_EOS);
    }
    ids
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

fn text_config(
    fields: &Fields<'_>,
    ties: TieFlags,
    notes: &mut Vec<Note>,
) -> Result<TextConfig, ConfigError> {
    reject_other_mathematics(fields)?;
    note_ignored_activation(fields, notes);
    let num_hidden_layers = fields.size_or("num_hidden_layers", 26)?;
    let rope = rope_parameters(fields)?;
    let layer_types = layer_types(fields, num_hidden_layers)?;
    Ok(TextConfig {
        vocab_size: fields.size_or("vocab_size", 262_208)?,
        hidden_size: fields.size_or("hidden_size", 2304)?,
        intermediate_size: fields.size_or("intermediate_size", 9216)?,
        num_hidden_layers,
        num_attention_heads: fields.size_or("num_attention_heads", 8)?,
        num_key_value_heads: fields.size_or("num_key_value_heads", 4)?,
        head_dim: fields.size_or("head_dim", 256)?,
        query_pre_attn_scalar: fields.number_or("query_pre_attn_scalar", 256.0)?,
        rms_norm_eps: fields.number_or("rms_norm_eps", 1e-6)?,
        sliding_window: sliding_window(fields, &layer_types)?,
        max_position_embeddings: fields.size_or("max_position_embeddings", 131_072)?,
        rope_theta: rope.global_theta,
        rope_local_base_freq: rope.local_theta,
        rope_scaling_factor: rope.global_factor,
        layer_types,
        tie_word_embeddings: ties.stated().unwrap_or(true),
    })
}

/// The window of the sliding layers. transformers takes null for "no window": the sliding layers then see
/// everything, which no Gemma 3 does. Where no layer slides, null means nothing.
fn sliding_window(fields: &Fields<'_>, layer_types: &[LayerType]) -> Result<usize, ConfigError> {
    if layer_types.contains(&LayerType::SlidingAttention) {
        const EXPECTED: &str = "the window of the sliding layers, a positive integer (512 in the 270M and the \
                                1B, 1024 in the larger models)";
        fields.refuse_null("sliding_window", EXPECTED)?;
    }
    Ok(fields.size("sliding_window")?.unwrap_or(4096))
}

/// Variants whose logits would silently be wrong here. A cap is one of them: Gemma 3's own files leave both
/// null, so a file that states one describes a model that was trained with it. transformers applies
/// `final_logit_softcapping` in its text models. (It passes over that of an image-text model and over
/// `attn_logit_softcapping`; which of the two is meant there, nobody can tell. For GGUF files, where a cap
/// is known to be a slip, see `checkpoint/gguf/config.rs`.)
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
    reject_other_activation(fields, "hidden_activation")
}

/// `hidden_act` is the field of other models, and of Gemma 3's encoder; its decoder has
/// `hidden_activation`.
fn note_ignored_activation(fields: &Fields<'_>, notes: &mut Vec<Note>) {
    const NAME: &str = "hidden_act";
    if let Some(value) = fields.get(NAME).filter(|value| value.as_str() != Some(GELU_TANH)) {
        notes.push(Note::on(
            Topic::IgnoredField,
            &fields.field(NAME),
            &format!("\"{GELU_TANH}\""),
            &brief(value),
            "Gemma 3 doesn't use the field, only `hidden_activation`",
        ));
    }
}

fn reject_other_activation(fields: &Fields<'_>, name: &str) -> Result<(), ConfigError> {
    fields.refuse_null(name, "the name of an activation")?;
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
    match fields.size_or(name, 6)? {
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
    Ok(VisionConfig {
        hidden_size: fields.size_or("hidden_size", 768)?,
        intermediate_size: fields.size_or("intermediate_size", 3072)?,
        num_hidden_layers: fields.size_or("num_hidden_layers", 12)?,
        num_attention_heads: fields.size_or("num_attention_heads", 12)?,
        num_channels: fields.size_or("num_channels", 3)?,
        image_size: fields.size_or("image_size", 224)?,
        patch_size: fields.size_or("patch_size", 16)?,
        layer_norm_eps: fields.number_or("layer_norm_eps", 1e-6)?,
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
        mm_tokens_per_image: top.size_or("mm_tokens_per_image", 256)?,
    })
}
