//! The tokenizer that belongs to a checkpoint, and what of it the model may say.

use std::path::Path;
use std::sync::Arc;

use gemma3_core::checkpoint::{Checkpoint, GgufMetadata};
use gemma3_core::config::{self, ModelConfig, VisionConfig};
use gemma3_core::model::LoadProgress;
use gemma3_tokenizer::{GgufVocabulary, ImageTokens, Tokenizer, special};
use gemma3_vision::{Mmproj, PreprocessorConfig};

use crate::Error;

/// The tokenizer of a GGUF file, or the `tokenizer.json` beside the weights.
pub(crate) fn tokenizer(path: &Path, checkpoint: &Checkpoint) -> Result<Tokenizer, Error> {
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    let file = folder.map(|folder| folder.join("tokenizer.json")).filter(|file| file.is_file());
    let from_gguf = checkpoint.gguf().map(gguf_vocabulary).transpose()?.flatten();
    match (from_gguf, file) {
        (Some(vocabulary), _) => Ok(Tokenizer::from_gguf(vocabulary)?),
        (None, Some(file)) => Ok(Tokenizer::from_file(file)?),
        (None, None) => Err(Error::NoTokenizer { path: path.to_owned() }),
    }
}

/// The chat template beside the weights of a folder, in the three places where it has been put.
pub(crate) fn chat_template(path: &Path) -> Option<String> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    if let Ok(template) = std::fs::read_to_string(folder.join("chat_template.jinja")) {
        return Some(template);
    }
    ["tokenizer_config.json", "chat_template.json"].into_iter().find_map(|name| {
        let text = std::fs::read_to_string(folder.join(name)).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        json.get("chat_template")?.as_str().map(str::to_owned)
    })
}

/// The settings of preprocessing beside the weights, in the two places where they have been put; `None` if
/// there are none.
pub(crate) fn preprocessor(path: &Path) -> Result<Option<PreprocessorConfig>, Error> {
    let Some(folder) = (if path.is_dir() { Some(path) } else { path.parent() }) else { return Ok(None) };
    if let Ok(text) = std::fs::read_to_string(folder.join("preprocessor_config.json")) {
        return Ok(Some(PreprocessorConfig::from_json(&text)?));
    }
    // transformers 5 writes one file for text and images.
    let Ok(text) = std::fs::read_to_string(folder.join("processor_config.json")) else { return Ok(None) };
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let settings = json.as_ref().and_then(|json| json.get("image_processor"));
    Ok(settings.map(|settings| PreprocessorConfig::from_json(&settings.to_string())).transpose()?)
}

/// The published models' preprocessing, at the encoder's size.
pub(crate) fn default_preprocessor(config: &VisionConfig) -> PreprocessorConfig {
    PreprocessorConfig { image_size: config.image_size, ..PreprocessorConfig::gemma3() }
}

/// The checkpoint with the image encoder of an mmproj file in its configuration; `None` without one.
pub(crate) fn with_mmproj(
    checkpoint: &Checkpoint,
    mmproj: Option<&Mmproj>,
    tokenizer: &Tokenizer,
) -> Result<Option<Checkpoint>, Error> {
    let Some(mmproj) = mmproj else { return Ok(None) };
    let count = mmproj.tokens_per_image();
    // The vocabularies of language models in GGUF often end before the soft token, whose embedding is never
    // looked up; the published id then stands for it.
    let id = |token, published| tokenizer.token_to_id(token).unwrap_or(published);
    let tokens = config::ImageTokens {
        boi: id(special::START_OF_IMAGE, 255_999),
        eoi: id(special::END_OF_IMAGE, 256_000),
        image: id(special::IMAGE_SOFT_TOKEN, 262_144),
        mm_tokens_per_image: count,
    };
    Ok(Some(checkpoint.with_vision(Some((mmproj.config().clone(), tokens)))?))
}

/// How images are written into prompts.
pub(crate) fn image_tokens(config: &ModelConfig) -> Option<ImageTokens> {
    let tokens = config.image_tokens?;
    Some(ImageTokens {
        start_of_image: tokens.boi,
        soft_token: tokens.image,
        end_of_image: tokens.eoi,
        count: tokens.mm_tokens_per_image,
    })
}

/// One progress over several parts.
pub(crate) struct Progress<'a> {
    report: Option<&'a mut (dyn FnMut(LoadProgress) + Send)>,
    total_bytes: u64,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(report: Option<&'a mut (dyn FnMut(LoadProgress) + Send)>, total_bytes: u64) -> Self {
        Self { report, total_bytes }
    }

    /// What a part reports to that comes after `done` bytes.
    pub(crate) fn after(&mut self, done: u64) -> impl FnMut(LoadProgress) + Send {
        let total_bytes = self.total_bytes;
        let report = &mut self.report;
        move |part: LoadProgress| {
            if let Some(report) = report {
                report(LoadProgress { loaded_bytes: done + part.loaded_bytes, total_bytes });
            }
        }
    }
}

/// The vocabulary inside of a GGUF file; `None` if it holds no tokens.
///
/// # Errors
///
/// Metadata of the wrong type.
pub fn gguf_vocabulary(metadata: &GgufMetadata) -> Result<Option<GgufVocabulary>, Error> {
    let Some(tokens) = metadata.strings("tokenizer.ggml.tokens")? else {
        return Ok(None);
    };
    let id = |name: &str| metadata.u32(&format!("tokenizer.ggml.{name}"));
    Ok(Some(GgufVocabulary {
        model: metadata.str("tokenizer.ggml.model")?.unwrap_or_default().to_owned(),
        tokens: tokens.into_iter().map(str::to_owned).collect(),
        scores: metadata.f32s("tokenizer.ggml.scores")?.unwrap_or_default(),
        token_types: metadata.i32s("tokenizer.ggml.token_type")?.unwrap_or_default(),
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        unknown: id("unknown_token_id")?,
        padding: id("padding_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(true),
        chat_template: metadata.str("tokenizer.chat_template")?.map(str::to_owned),
    }))
}

/// Fails if ordinary text could give an id that the model lacks.
///
/// The soft token of images is one id beyond the vocabulary of the text-only models, whose tokenizer
/// nevertheless has it.
pub(crate) fn check_vocabulary(tokenizer: &Tokenizer, vocab_size: usize) -> Result<(), Error> {
    match tokenizer.ids().rev().find(|id| !tokenizer.is_special(*id)) {
        Some(max_id) if max_id as usize >= vocab_size => Err(Error::TokenizerMismatch { max_id, vocab_size }),
        _ => Ok(()),
    }
}

/// The ids that must never be generated: rows of the embedding that have no token, and the soft token of
/// images, which stands for a vector.
pub(crate) fn unspeakable_ids(tokenizer: &Tokenizer, config: &ModelConfig) -> Arc<[u32]> {
    let image = config.image_tokens.as_ref().map(|ids| ids.image);
    (0..config.text.vocab_size as u32).filter(|id| !tokenizer.is_known(*id) || Some(*id) == image).collect()
}
