//! How large an image may be.

use super::{Image, ImageError};

/// How large an encoded image may be. What exceeds a limit is an error before anything is allocated for it:
/// the size is in the first bytes of a file, so a file of a few hundred bytes can claim to hold gigabytes.
///
/// Decoding holds at most 8 bytes a pixel (16-bit RGBA) besides the result's 3, and for a JPEG up to 8 more
/// for its coefficients. What an image claims to hold besides pixels is bounded by its encoded length, except
/// for the parts of a lossy WebP: 16 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// The longest file or buffer. Default: 64 MiB.
    pub max_encoded_bytes: u64,
    /// The longest width in pixels. Default: 65,535, the most that JPEG has. Never more than
    /// [`Image::MAX_SIDE`].
    pub max_width: u32,
    /// The longest height in pixels. Default: 65,535. Never more than [`Image::MAX_SIDE`].
    pub max_height: u32,
    /// The most pixels. Default: 2^26 (67 million, 192 MiB decoded). Never more than 2^30.
    pub max_pixels: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { max_encoded_bytes: 64 << 20, max_width: 65_535, max_height: 65_535, max_pixels: 1 << 26 }
    }
}

impl ImageLimits {
    /// The decoders count bytes of RGBA in 32 bits.
    const MOST_PIXELS: u64 = (1 << 30) - 1;

    /// Checks the length of a file or buffer.
    pub(super) fn check_encoded(&self, found: u64) -> Result<(), ImageError> {
        let limit = self.max_encoded_bytes;
        if found > limit { Err(ImageError::TooManyBytes { limit, found }) } else { Ok(()) }
    }

    /// Checks the size that a header names.
    pub(super) fn check_size(&self, width: u32, height: u32) -> Result<(), ImageError> {
        let [max_width, max_height] = [self.max_width, self.max_height].map(|side| side.min(Image::MAX_SIDE));
        let limit = self.max_pixels.min(Self::MOST_PIXELS);
        if width == 0 || height == 0 {
            return Err(ImageError::ZeroSize { width, height });
        }
        if width > max_width || height > max_height {
            return Err(ImageError::SideTooLong { width, height, max_width, max_height });
        }
        if u64::from(width) * u64::from(height) > limit {
            return Err(ImageError::TooManyPixels { width, height, limit });
        }
        Ok(())
    }
}
