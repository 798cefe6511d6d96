//! Image files to the numbers that the vision tower takes: decoding, resizing, normalizing, pan and scan.
//!
//! ```no_run
//! use gemma3_vision::preprocess::{Image, PanAndScan, Preprocessor, PreprocessorConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let preprocessor = Preprocessor::new(PreprocessorConfig::gemma3())?;
//! let image = Image::open("panorama.jpg")?;
//! for view in preprocessor.views(&image, Some(&PanAndScan::default())) {
//!     let pixel_values = preprocessor.pixel_values(&view.image); // [3, 896, 896]
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Resized levels and pixel values equal those of transformers' Pillow backend bit for bit, given the same
//! decoded pixels. PNGs and WebPs decode to Pillow's pixels; JPEGs to levels that differ by up to 3, with
//! chroma subsampling by up to 6 (measured on a few images), as decoders of JPEG do.
//!
//! Images may come from anywhere: sizes are checked before anything is allocated for them
//! ([`ImageLimits`]), and what can't be read whole is an error ([`ImageError`]).

mod alpha;
mod config;
mod container;
mod decode;
mod error;
mod image;
mod limits;
mod options;
mod pan_and_scan;
mod resize;

use gemma3_core::config::ConfigError;
use rayon::prelude::*;

pub use alpha::Alpha;
pub use config::PreprocessorConfig;
pub use error::ImageError;
pub use image::Image;
pub use limits::ImageLimits;
pub use options::ImageOptions;
pub use pan_and_scan::{Crop, PanAndScan};

/// Makes the vision tower's input of images. Runs on rayon's current thread pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    config: PreprocessorConfig,
}

/// An image as it is shown to the model: whole, or a crop of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its pixels.
    pub image: Image,
    /// The part of the original that it is, or `None` for the original.
    pub crop: Option<Crop>,
}

impl Preprocessor {
    /// With the numbers of a model.
    ///
    /// # Errors
    ///
    /// Numbers that [`PreprocessorConfig::validate`] refuses.
    pub fn new(config: PreprocessorConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { config })
    }

    /// The numbers.
    pub fn config(&self) -> &PreprocessorConfig {
        &self.config
    }

    /// An image in the model's size, `image_size` x `image_size`, whatever its proportions. Equals Pillow 12's
    /// `resize` with `BILINEAR` bit for bit.
    pub fn resize(&self, image: &Image) -> Image {
        let side = self.config.image_size as u32; // At most 8192.
        resize::resize(image, side, side)
    }

    /// The vision tower's input of one image, \[3, `image_size`, `image_size`\], red first: the levels of
    /// [`Self::resize`], normalized by `(level * rescale_factor - mean) / std`. In the released models from -1
    /// to 1.
    pub fn pixel_values(&self, image: &Image) -> Vec<f32> {
        let resized = self.resize(image);
        let pixels = resized.pixels().as_chunks::<3>().0;
        let mut values = vec![0.0; 3 * pixels.len()];
        values.par_chunks_mut(pixels.len()).enumerate().for_each(|(channel, plane)| {
            let table: [f32; 256] =
                std::array::from_fn(|level| self.config.pixel_value(level as u8, channel));
            for (value, pixel) in plane.iter_mut().zip(pixels) {
                let level = pixel.get(channel).copied().unwrap_or_default();
                *value = table[usize::from(level)];
            }
        });
        values
    }

    /// What the model is shown of an image: the whole, followed by its crops if `pan_and_scan` is given and the
    /// image is elongated enough. In the order in which the prompt names them.
    pub fn views(&self, image: &Image, pan_and_scan: Option<&PanAndScan>) -> Vec<View> {
        let crops = pan_and_scan.map(|options| options.crops(image.width(), image.height()));
        let crops = crops.unwrap_or_default().into_iter();
        let original = View { image: image.clone(), crop: None };
        std::iter::once(original)
            .chain(crops.map(|crop| View { image: image.cut(crop), crop: Some(crop) }))
            .collect()
    }
}
