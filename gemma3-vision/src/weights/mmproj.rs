//! The image encoder beside a GGUF language model: a GGUF file of the architecture `clip`, usually called
//! `mmproj-….gguf`.

use std::path::Path;

use gemma3_core::checkpoint::{CheckpointBytes, GgufFile, GgufMetadata};
use gemma3_core::config::{ConfigError, VisionConfig};

use super::MmprojError;
use super::names::{EncoderTensor, Parameter, VisionNames, VisionTensor};
use crate::preprocess::PreprocessorConfig;

const ARCHITECTURE: &str = "general.architecture";

/// An opened mmproj file. Its tensors are memory-mapped.
#[derive(Debug)]
pub struct Mmproj {
    file: GgufFile,
    config: VisionConfig,
    tokens_per_image: usize,
    preprocessor: PreprocessorConfig,
    names: VisionNames,
}

impl Mmproj {
    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// A file that is not GGUF, is damaged, or holds something else than Gemma 3's image encoder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, MmprojError> {
        let label = path.as_ref().display().to_string();
        Self::parse(label, GgufFile::open(path)?)
    }

    /// Opens a file that is already in memory.
    ///
    /// # Errors
    ///
    /// As for [`Mmproj::open`].
    pub fn from_bytes(bytes: impl Into<CheckpointBytes>) -> Result<Self, MmprojError> {
        Self::parse("GGUF in memory".to_owned(), GgufFile::from_bytes(bytes)?)
    }

    fn parse(label: String, file: GgufFile) -> Result<Self, MmprojError> {
        if file.metadata().str(ARCHITECTURE) == Ok(Some("gemma3")) {
            return Err(MmprojError::LanguageModel { file: label });
        }
        let refused = |source| MmprojError::Config { file: label.clone(), source };
        let (config, tokens_per_image) = read_config(file.metadata()).map_err(refused)?;
        let preprocessor = read_preprocessor(file.metadata(), &config).map_err(refused)?;
        let names = VisionNames::Gguf { is_ffn_swapped: is_ffn_swapped(&file, &config) };
        Ok(Self { file, config, tokens_per_image, preprocessor, names })
    }

    /// Sizes of the encoder.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Soft tokens an image.
    pub fn tokens_per_image(&self) -> usize {
        self.tokens_per_image
    }

    /// What pixels go through before the encoder: its size, and the file's mean and deviation or, where it has
    /// none, the published models'.
    pub fn preprocessor(&self) -> &PreprocessorConfig {
        &self.preprocessor
    }

    pub(super) fn file(&self) -> &GgufFile {
        &self.file
    }

    pub(super) fn names(&self) -> VisionNames {
        self.names
    }
}

/// Older converters took the halves of the feed-forward layer for each other; their shapes tell.
fn is_ffn_swapped(file: &GgufFile, config: &VisionConfig) -> bool {
    let fc1 = VisionTensor::Layer(0, EncoderTensor::Fc1, Parameter::Weight);
    let name = VisionNames::Gguf { is_ffn_swapped: false }.of(fc1);
    let narrowing = [config.hidden_size, config.intermediate_size];
    file.tensor(&name).is_ok_and(|view| view.shape == narrowing && narrowing[0] != narrowing[1])
}

fn read_config(metadata: &GgufMetadata) -> Result<(VisionConfig, usize), ConfigError> {
    reject_other_files(metadata)?;
    let number = |name: &str| -> Result<usize, ConfigError> {
        let field = format!("clip.vision.{name}");
        match metadata.u32(&field)? {
            Some(value) => Ok(value as usize),
            None => Err(missing(field)),
        }
    };
    let config = VisionConfig {
        hidden_size: number("embedding_length")?,
        intermediate_size: number("feed_forward_length")?,
        num_hidden_layers: number("block_count")?,
        num_attention_heads: number("attention.head_count")?,
        num_channels: 3,
        image_size: number("image_size")?,
        patch_size: number("patch_size")?,
        layer_norm_eps: metadata.f64("clip.vision.attention.layer_norm_epsilon")?.unwrap_or(1e-6),
    };
    config.validate()?;
    const FACTOR: &str = "clip.vision.projector.scale_factor";
    let factor = metadata.u32(FACTOR)?.unwrap_or(4) as usize;
    let side = config.patches_per_side();
    if factor == 0 || !side.is_multiple_of(factor) {
        return Err(ConfigError::InvalidField {
            field: FACTOR.to_owned(),
            expected: format!("a divisor of the {side} patches of an image's side"),
            found: factor.to_string(),
        });
    }
    let tokens_per_side = side / factor;
    Ok((config, tokens_per_side * tokens_per_side))
}

fn read_preprocessor(
    metadata: &GgufMetadata,
    encoder: &VisionConfig,
) -> Result<PreprocessorConfig, ConfigError> {
    let channels = |name: &str| -> Result<Option<[f32; 3]>, ConfigError> {
        let field = format!("clip.vision.{name}");
        let Some(values) = metadata.f32s(&field)? else { return Ok(None) };
        let channels = values.as_slice().try_into().map_err(|_| ConfigError::InvalidField {
            field,
            expected: "three numbers".to_owned(),
            found: format!("{} numbers", values.len()),
        })?;
        Ok(Some(channels))
    };
    let published = PreprocessorConfig::gemma3();
    let preprocessor = PreprocessorConfig {
        image_size: encoder.image_size,
        image_mean: channels("image_mean")?.unwrap_or(published.image_mean),
        image_std: channels("image_std")?.unwrap_or(published.image_std),
        ..published
    };
    preprocessor.validate()?;
    Ok(preprocessor)
}

fn reject_other_files(metadata: &GgufMetadata) -> Result<(), ConfigError> {
    let expect = |key: &str, expected: &str, found: Option<&str>| match found {
        Some(found) if found == expected => Ok(()),
        Some(other) => Err(ConfigError::Unsupported {
            field: key.to_owned(),
            expected: format!("\"{expected}\""),
            found: format!("\"{}\"", other.escape_debug()),
        }),
        None => Err(missing(key.to_owned())),
    };
    expect(ARCHITECTURE, "clip", metadata.str(ARCHITECTURE)?)?;
    // The key has moved.
    const KEYS: [&str; 2] = ["clip.vision.projector_type", "clip.projector_type"];
    let found = match metadata.str(KEYS[0])? {
        Some(found) => (KEYS[0], Some(found)),
        None => (KEYS[1], metadata.str(KEYS[1])?),
    };
    expect(found.0, "gemma3", found.1)
}

fn missing(field: String) -> ConfigError {
    ConfigError::MissingField {
        field,
        expected: "the metadata of Gemma 3's image encoder",
        advice: "convert the model anew",
    }
}
