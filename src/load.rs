//! The tokenizer that belongs to a checkpoint, and what of it the model may say.

use std::path::Path;
use std::sync::Arc;

use gemma3_core::checkpoint::{Checkpoint, CheckpointError, GgufMetadata, Warning, WarningKind};
use gemma3_core::config::{self, ConfigError, ModelConfig, VisionConfig};
use gemma3_core::model::LoadProgress;
use gemma3_tokenizer::{GgufVocabulary, ImageTokens, Tokenizer, special};
use gemma3_vision::{Mmproj, PreprocessorConfig, VisionWeights};
use serde_json::Value;

use crate::Error;
use crate::chat_template::{self, Template};
use crate::neighbours::{Neighbour, invalid, path_beside};

/// The tokenizer of a GGUF file, or the `tokenizer.json` beside the weights. What lies beside a GGUF file that has
/// a vocabulary is not looked at.
pub(crate) fn tokenizer(path: &Path, checkpoint: &Checkpoint) -> Result<Tokenizer, Error> {
    let source = checkpoint.source();
    let from_gguf = checkpoint.gguf().map(gguf_vocabulary).transpose();
    let from_gguf = from_gguf.map_err(|error| match error {
        Error::Config(error) => CheckpointError::Config { file: source.to_owned(), source: error }.into(),
        other => other,
    })?;
    if let Some(vocabulary) = from_gguf.flatten() {
        return Ok(Tokenizer::from_gguf(vocabulary).map_err(|error| error.in_file(source))?);
    }
    let file = path_beside(path, "tokenizer.json");
    if !file.is_file() {
        return Err(Error::NoTokenizer { path: path.to_owned(), advice: advice_without_tokenizer(path) });
    }
    Ok(Tokenizer::from_file(file)?)
}

/// What to do about a missing tokenizer.json: `tokenizer.model` holds the same vocabulary in a form that isn't read.
fn advice_without_tokenizer(path: &Path) -> &'static str {
    match path_beside(path, "tokenizer.model").is_file() {
        true => {
            "`tokenizer.model` is the SentencePiece form of it, which isn't read: take tokenizer.json from the \
             model's page, or write it with transformers (`AutoTokenizer.from_pretrained(folder)`, then \
             `save_pretrained(folder)`)"
        }
        false => "take it from the model's page, or give a tokenizer with `Gemma3::loader_of`",
    }
}

/// The chat template of a GGUF file, which is the one in it or none, or the one beside the weights of a folder.
pub(crate) fn chat_template(path: &Path, checkpoint: &Checkpoint) -> Result<Option<Template>, Error> {
    let Some(metadata) = checkpoint.gguf() else { return chat_template::in_folder(path) };
    let template = gguf_template(metadata).map_err(|source| in_file(path, source))?;
    Ok(template.map(|source| Template { source: source.to_owned(), special_tokens: Vec::new() }))
}

/// The chat template inside of a GGUF file. Named templates (`tokenizer.chat_templates`) are for other uses, but for
/// one of this name.
fn gguf_template(metadata: &GgufMetadata) -> Result<Option<&str>, ConfigError> {
    match metadata.str("tokenizer.chat_template")? {
        Some(template) => Ok(Some(template)),
        None => metadata.str("tokenizer.chat_template.default"),
    }
}

/// A warning where the tokenizer comes from beside a GGUF file, and a chat template that lies there too does not
/// count.
pub(crate) fn ignored_template(path: &Path, checkpoint: &Checkpoint) -> Option<Warning> {
    let metadata = checkpoint.gguf()?;
    let has = |key| metadata.keys().any(|other| other == key);
    if has("tokenizer.ggml.tokens") || gguf_template(metadata).is_ok_and(|template| template.is_some()) {
        return None;
    }
    let files = chat_template::FILES.into_iter().map(|name| path_beside(path, name));
    let file = files.into_iter().find(|file| file.exists())?;
    let problem = "not read, because the chat template of a GGUF file is the one in it";
    let effect = "the model counts as one without a chat template";
    Some(Warning::new(WarningKind::IgnoredFile, file.display().to_string(), problem, effect))
}

/// The settings of preprocessing beside the weights of a model that sees, in the two places where they have been
/// put; `None` if there are none. Beside a model that takes text only they are not looked at.
pub(crate) fn preprocessor(
    path: &Path,
    checkpoint: &Checkpoint,
) -> Result<Option<PreprocessorConfig>, Error> {
    let Some(encoder) = VisionWeights::in_checkpoint(checkpoint) else { return Ok(None) };
    // transformers 5 writes one file for text and images, and where it did, reads no other.
    if let Some(file) = Neighbour::find(path, "processor_config.json")? {
        match file.json()?.get("image_processor") {
            None | Some(Value::Null) => {}
            Some(settings @ Value::Object(_)) => {
                return Ok(Some(settings_in(&file, &settings.to_string(), &encoder)?));
            }
            Some(other) => return Err(file.refused(invalid("image_processor", "an object", other))),
        }
    }
    let Some(file) = Neighbour::find(path, "preprocessor_config.json")? else { return Ok(None) };
    Ok(Some(settings_in(&file, &file.text, &encoder)?))
}

/// The settings in (a part of) a file, which must be those of the encoder.
fn settings_in(
    file: &Neighbour,
    json: &str,
    encoder: &VisionWeights<'_>,
) -> Result<PreprocessorConfig, Error> {
    let settings = PreprocessorConfig::from_json(json).map_err(|source| file.refused(source))?;
    let expected = encoder.config().image_size;
    if settings.image_size != expected {
        return Err(file.refused(ConfigError::InvalidField {
            field: "size".to_owned(),
            expected: format!("{expected}x{expected} pixels, for which the image encoder is made"),
            found: format!("{0}x{0}", settings.image_size),
        }));
    }
    Ok(settings)
}

/// An error about what a file says, with its name.
fn in_file(path: &Path, source: ConfigError) -> Error {
    CheckpointError::Config { file: path.display().to_string(), source }.into()
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
    // An id that is none of these tokens is a warning of the checkpoint. The token of Gemma's name is then meant: a
    // text without `<bos>` would be continued badly.
    let id = |name: &str, gemmas: &str| {
        let id = metadata.u32(&format!("tokenizer.ggml.{name}")).ok().flatten();
        let named = id.filter(|id| usize::try_from(*id).is_ok_and(|id| id < tokens.len()));
        named.or_else(|| (0..).zip(tokens.clone()).find(|(_, token)| *token == gemmas).map(|(id, _)| id))
    };
    Ok(Some(GgufVocabulary {
        model: metadata.str("tokenizer.ggml.model")?.unwrap_or_default().to_owned(),
        tokens: tokens.clone().map(str::to_owned).collect(),
        scores: metadata.f32s("tokenizer.ggml.scores")?.unwrap_or_default(),
        token_types: metadata.i32s("tokenizer.ggml.token_type")?.unwrap_or_default(),
        bos: id("bos_token_id", special::BOS),
        eos: id("eos_token_id", special::EOS),
        unknown: id("unknown_token_id", special::UNKNOWN),
        padding: id("padding_token_id", special::PAD),
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(true),
        chat_template: gguf_template(metadata)?.map(str::to_owned),
    }))
}

/// What there is to say if text could give ids that the embedding has no row for: tokens that were added to
/// the tokenizer and not to the model. A prompt with one is refused when it is appended.
///
/// The soft token of images is one id beyond the vocabulary of the text-only models, whose tokenizer
/// nevertheless has it.
pub(crate) fn tokens_without_rows(tokenizer: &Tokenizer, checkpoint: &Checkpoint) -> Option<Warning> {
    let rows = checkpoint.config().text.vocab_size;
    let soft_token = tokenizer.token_to_id(special::IMAGE_SOFT_TOKEN);
    let has_row = |id: u32| (id as usize) < rows;
    let without_row = || tokenizer.ids().filter(|id| !has_row(*id) && Some(*id) != soft_token);
    let (count, last) = (without_row().count(), without_row().max()?);
    let text = tokenizer.id_to_token(last).unwrap_or_default();
    Some(Warning::new(
        WarningKind::TokensWithoutRows,
        checkpoint.source(),
        format!(
            "the embedding has {rows} rows, the tokenizer {count} tokens beyond them, up to id {last} (`{}`)",
            text.escape_debug()
        ),
        "text with one of them is refused; give the tokenizer that belongs to the model",
    ))
}

/// The ids that must never be generated: rows of the embedding that have no token, and the soft token of
/// images, which stands for a vector.
pub(crate) fn unspeakable_ids(tokenizer: &Tokenizer, config: &ModelConfig) -> Arc<[u32]> {
    let image = config.image_tokens.as_ref().map(|ids| ids.image);
    (0..config.text.vocab_size as u32).filter(|id| !tokenizer.is_known(*id) || Some(*id) == image).collect()
}
