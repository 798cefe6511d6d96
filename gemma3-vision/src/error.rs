//! What can go wrong between pixels and soft tokens.

use burn::tensor::DType;
use gemma3_core::config::ConfigError;
use gemma3_core::device::DeviceFailed;
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
    /// Pixel values that are no numbers of f32.
    #[error("the pixel values are of {found:?}, expected F32; cast the tensor")]
    WrongDtype {
        /// What they are of.
        found: DType,
    },
    /// Pixel values that lie on another device than the encoder.
    #[error("the pixel values lie on {found}, the encoder on {expected}; move the tensor with `to_device`")]
    OtherDevice {
        /// The encoder's device.
        expected: String,
        /// That of the pixel values.
        found: String,
    },
    /// The device failed.
    #[error("the device failed: {reason}")]
    Device {
        /// What it said.
        reason: String,
    },
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

impl From<DeviceFailed> for VisionError {
    fn from(DeviceFailed { reason }: DeviceFailed) -> Self {
        Self::Device { reason }
    }
}
