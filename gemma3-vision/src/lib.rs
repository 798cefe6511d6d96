//! The vision half of Gemma 3: pixels to soft tokens.
//!
//! An [`Image`] (a file, encoded bytes, or pixels in memory) is resized and normalized ([`preprocess`]), goes
//! through the SigLIP encoder and the projector ([`VisionModel`]), and becomes an [`EncodedImage`]: 256
//! vectors, which stand in a prompt where it has placeholders ([`place`]). The decoder
//! ([`gemma3_core`]) knows nothing of pixels, this crate nothing of text.
//!
//! ```no_run
//! use gemma3_core::checkpoint::Checkpoint;
//! use gemma3_core::{Threads, device};
//! use gemma3_vision::{
//!     EncodeOptions, Image, PreprocessorConfig, VisionLoadOptions, VisionModel, VisionWeights,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("gemma-3-4b-it")?;
//! let device = device::open("flex")?;
//! let threads = Threads::new(&device, None)?;
//! let weights = VisionWeights::in_checkpoint(&checkpoint).ok_or("a text-only model")?;
//! let preprocessor = PreprocessorConfig::gemma3();
//! let model =
//!     VisionModel::load(&weights, preprocessor, &device, &threads, VisionLoadOptions::default())?;
//! let image = model.encode_one(&Image::open("photo.jpg")?, &EncodeOptions::default())?;
//! assert_eq!(image.soft_token_count(), 256);
//! # Ok(())
//! # }
//! ```

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod cache;
mod encode;
mod encoder;
mod error;
mod load;
mod model;
pub mod preprocess;
mod projector;
mod siglip;
mod soft_tokens;
mod stages;
pub mod weights;

pub use cache::ImageCache;
pub use encode::{EncodeOptions, EncodedImage};
pub use error::VisionError;
pub use model::{VisionLoadOptions, VisionModel};
pub use preprocess::{
    Alpha, Crop, Image, ImageError, ImageLimits, ImageOptions, PanAndScan, Preprocessor, PreprocessorConfig,
};
pub use soft_tokens::{SoftTokens, SoftTokensError, place};
pub use stages::{Observer, Stage};
pub use weights::{Mmproj, MmprojError, VisionWeights};
