//! What can go wrong between pixels and soft tokens.

use gemma3_core::config::ConfigError;
use gemma3_core::model::LoadError;

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
    /// Pixel values of another shape than the encoder takes.
    #[error("the pixel values have shape {found:?}, expected {expected:?} (images, channels, height, width)")]
    WrongPixels {
        /// The shape that the encoder takes.
        expected: [usize; 4],
        /// The shape given.
        found: [usize; 4],
    },
    /// The device failed.
    #[error("the device failed: {reason}")]
    Device {
        /// What it said.
        reason: String,
    },
    /// Encoding was cancelled.
    #[error("encoding the image was cancelled")]
    Cancelled,
}
