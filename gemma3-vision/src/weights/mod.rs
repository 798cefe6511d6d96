//! The tensors of the image encoder by their role, whatever file they come from.

mod error;
mod huggingface;
mod mmproj;
mod names;
mod random;

use gemma3_core::checkpoint::{Checkpoint, CheckpointError, GgufFile, TensorFormat, TensorView};
use gemma3_core::config::VisionConfig;

pub use error::MmprojError;
pub use mmproj::Mmproj;
pub use names::{EncoderTensor, Parameter, VisionTensor};
pub use random::random_tensors;

use names::VisionNames;

/// The weights of an image encoder and its projector.
#[derive(Debug)]
pub struct VisionWeights<'a> {
    source: Source<'a>,
    config: VisionConfig,
    /// Soft tokens an image.
    tokens_per_image: usize,
    /// Width of the decoder.
    text_hidden_size: usize,
}

#[derive(Debug)]
enum Source<'a> {
    HuggingFace { checkpoint: &'a Checkpoint, names: VisionNames },
    Mmproj { file: &'a GgufFile, names: VisionNames },
}

impl<'a> VisionWeights<'a> {
    /// The encoder inside of a Hugging Face checkpoint; `None` if it has none (a text-only model, or a
    /// text-only copy of a larger one).
    pub fn in_checkpoint(checkpoint: &'a Checkpoint) -> Option<Self> {
        let config = checkpoint.config();
        let names = huggingface::names(checkpoint)?;
        Some(Self {
            source: Source::HuggingFace { checkpoint, names },
            config: config.vision.clone()?,
            tokens_per_image: config.image_tokens?.mm_tokens_per_image,
            text_hidden_size: config.text.hidden_size,
        })
    }

    /// The encoder in a GGUF file of its own ("mmproj"), for a decoder of the given width.
    pub fn in_mmproj(mmproj: &'a Mmproj, text_hidden_size: usize) -> Self {
        Self {
            source: Source::Mmproj { file: mmproj.file(), names: mmproj.names() },
            config: mmproj.config().clone(),
            tokens_per_image: mmproj.tokens_per_image(),
            text_hidden_size,
        }
    }

    /// Sizes of the encoder.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// The path of the model or the mmproj file, or what stands for it; for messages.
    pub fn source(&self) -> &str {
        match &self.source {
            Source::HuggingFace { checkpoint, .. } => checkpoint.source(),
            Source::Mmproj { file, .. } => file.label(),
        }
    }

    /// Soft tokens an image.
    pub fn tokens_per_image(&self) -> usize {
        self.tokens_per_image
    }

    /// Width of the decoder.
    pub fn text_hidden_size(&self) -> usize {
        self.text_hidden_size
    }

    /// Whether the stored weight of the projector's norm is `1 + w` (GGUF) or `w`.
    pub fn norm_includes_one(&self) -> bool {
        matches!(self.source, Source::Mmproj { .. })
    }

    /// Stored bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        VisionTensor::all(&self.config)
            .filter_map(|tensor| match &self.source {
                Source::HuggingFace { checkpoint, names } => checkpoint.bytes_of(&names.of(tensor)),
                Source::Mmproj { file, names } => file.bytes_of(&names.of(tensor)),
            })
            .sum()
    }

    /// A tensor, of the shape and in a format that its role asks for.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::MissingTensor`], [`CheckpointError::WrongShape`] or
    /// [`CheckpointError::UnsupportedFormat`].
    pub fn tensor(&self, tensor: VisionTensor) -> Result<TensorView<'a>, CheckpointError> {
        let expected = tensor.shape(&self.config, self.text_hidden_size);
        let view = match &self.source {
            Source::HuggingFace { checkpoint, names } => checkpoint.raw(&names.of(tensor)),
            Source::Mmproj { file, names } => file.tensor(&names.of(tensor)),
        };
        let view = view.map_err(|error| match error {
            CheckpointError::MissingTensor { file, tensor, .. } => {
                CheckpointError::MissingTensor { file, tensor, expected: Some(expected.clone()) }
            }
            other => other,
        })?;
        if view.shape != expected {
            return Err(CheckpointError::WrongShape {
                file: view.source.to_owned(),
                tensor: view.file_name.to_owned(),
                expected,
                found: view.shape,
            });
        }
        const VECTOR_FORMATS: &[TensorFormat] = &[TensorFormat::F32, TensorFormat::F16, TensorFormat::BF16];
        if tensor.is_vector() && !VECTOR_FORMATS.contains(&view.format) {
            return Err(CheckpointError::UnsupportedFormat {
                file: view.source.to_owned(),
                tensor: view.file_name.to_owned(),
                expected: VECTOR_FORMATS,
                found: view.format.to_string(),
            });
        }
        Ok(view)
    }
}
