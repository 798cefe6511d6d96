//! What can go wrong between pixels and soft tokens.

use gemma3_core::config::ConfigError;
use gemma3_core::device::DeviceFailed;
use gemma3_core::model::LoadError;
use gemma3_core::ops::MachineError;

use crate::preprocess::ImageError;

/// An error of the image encoder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VisionError {
    /// The weights cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The sizes in the configuration do not fit together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An image cannot be read or prepared.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The encoder takes other channels than red, green and blue.
    #[error(
        "{file}: the image encoder takes {found} channels, expected 3 (red, green, blue); take the files of a Gemma 3"
    )]
    WrongChannels {
        /// The model's file or folder.
        file: String,
        /// Channels that the configuration says.
        found: usize,
    },
    /// Preprocessing and encoder disagree about the size of an image.
    #[error(
        "{file}: the preprocessor makes images of {preprocessed} pixels a side, the encoder takes {expected}; preprocessor_config.json and config.json belong to different models"
    )]
    WrongImageSize {
        /// The file or folder of the encoder.
        file: String,
        /// Pixels a side that the encoder takes.
        expected: usize,
        /// Pixels a side that the preprocessor makes.
        preprocessed: usize,
    },
    /// Another number of pixel values than the encoder takes.
    #[error(
        "there are {found} pixel values, expected those of {expected:?} (images, channels, height, width): {}",
        expected.iter().fold(1, |product: usize, size| product.saturating_mul(*size))
    )]
    WrongPixels {
        /// The shape that the encoder takes.
        expected: [usize; 4],
        /// The number of values given.
        found: usize,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceFailed),
    /// A state that this library rules out: not the caller's fault.
    #[error("a bug in gemma3: {what}; please report it, with the model, the device and the options used")]
    Bug {
        /// What was found that cannot be.
        what: String,
    },
    /// Encoding was cancelled.
    #[error("encoding the image was cancelled")]
    Cancelled,
}

impl From<MachineError> for VisionError {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Device(failed) => Self::Device(failed),
            MachineError::Bug { what } => Self::Bug { what: what.to_owned() },
            other => Self::Bug { what: other.to_string() },
        }
    }
}
