//! Decoded pixels.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::{Alpha, Crop, ImageError, ImageOptions, decode};

/// An upright RGB image of 8 bits a channel. Cloning is cheap: clones share the pixels.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    /// \[height, width, 3\].
    pixels: Arc<[u8]>,
}

impl Image {
    /// The longest side in pixels, 2^20: more than pictures have, and little enough that the sums of the
    /// resize are sure to fit their 32 bits.
    pub const MAX_SIDE: u32 = 1 << 20;

    /// Reads a PNG, JPEG or WebP file, told apart by content, as [`ImageOptions::default`] says.
    ///
    /// See [`Self::decode`] for what is done to the pixels.
    ///
    /// # Errors
    ///
    /// A path that is no readable regular file, and the errors of [`Self::decode`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ImageError> {
        Self::open_with(path, &ImageOptions::default())
    }

    /// [`Self::open`] with other limits, or on a ground that shows where the image is transparent.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_with(path: impl AsRef<Path>, options: &ImageOptions) -> Result<Self, ImageError> {
        let limits = &options.limits;
        let path = path.as_ref();
        // Looked at before opening: opening a named pipe would wait for its writer.
        let metadata = std::fs::metadata(path).map_err(|error| ImageError::io(path, error))?;
        if !metadata.is_file() {
            return Err(ImageError::NotARegularFile { path: path.to_owned() });
        }
        limits.check_encoded(metadata.len())?;
        let file = File::open(path).map_err(|error| ImageError::io(path, error))?;
        let mut encoded = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        // Bounded once more: the file may grow meanwhile.
        let most = limits.max_encoded_bytes.saturating_add(1);
        file.take(most).read_to_end(&mut encoded).map_err(|error| ImageError::io(path, error))?;
        Self::decode_with(&encoded, options)
    }

    /// Decodes a PNG, JPEG or WebP image, told apart by content, as [`ImageOptions::default`] says.
    ///
    /// The orientation in its EXIF data is applied. Alpha is dropped, gray is replicated, palettes are looked
    /// up, CMYK is converted, 16-bit channels keep their high byte. Of an animation the first frame counts.
    /// Colour profiles are ignored. This is what transformers makes of image files, except for 16-bit gray
    /// PNGs: those it saturates to white.
    ///
    /// # Errors
    ///
    /// Another format, more than the limits, a damaged or truncated image.
    pub fn decode(encoded: &[u8]) -> Result<Self, ImageError> {
        Self::decode_with(encoded, &ImageOptions::default())
    }

    /// [`Self::decode`] with other limits, or on a ground that shows where the image is transparent.
    ///
    /// # Errors
    ///
    /// As [`Self::decode`].
    pub fn decode_with(encoded: &[u8], options: &ImageOptions) -> Result<Self, ImageError> {
        let (width, height, pixels) = decode::decode(encoded, options)?;
        Self::from_rgb8(width, height, pixels)
    }

    /// From raw RGB pixels, \[height, width, 3\], without padding between rows.
    ///
    /// # Errors
    ///
    /// A size of zero or beyond [`Self::MAX_SIDE`], a buffer of another length.
    pub fn from_rgb8(width: u32, height: u32, pixels: impl Into<Arc<[u8]>>) -> Result<Self, ImageError> {
        let pixels = pixels.into();
        check_raw(width, height, 3, pixels.len())?;
        Ok(Self { width, height, pixels })
    }

    /// From raw RGBA pixels, \[height, width, 4\], without padding between rows and with colours that are not
    /// multiplied by alpha.
    ///
    /// # Errors
    ///
    /// As [`Self::from_rgb8`].
    pub fn from_rgba8(width: u32, height: u32, pixels: &[u8], alpha: Alpha) -> Result<Self, ImageError> {
        check_raw(width, height, 4, pixels.len())?;
        Ok(Self::from_parts(width, height, decode::without_alpha(pixels, alpha)))
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// \[height, width, 3\], red first.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// A part of the image, as an image.
    ///
    /// # Errors
    ///
    /// A crop without pixels or one that is not inside of the image.
    pub fn crop(&self, crop: Crop) -> Result<Self, ImageError> {
        let is_inside = |start: u32, length: u32, side: u32| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= side)
        };
        if !is_inside(crop.x, crop.width, self.width) || !is_inside(crop.y, crop.height, self.height) {
            return Err(ImageError::CropOutside { crop, width: self.width, height: self.height });
        }
        Ok(self.cut(crop))
    }

    /// From pixels that are known to be as many as the size asks for.
    pub(super) fn from_parts(width: u32, height: u32, pixels: Vec<u8>) -> Self {
        Self { width, height, pixels: pixels.into() }
    }

    /// A part that is known to lie inside.
    pub(super) fn cut(&self, crop: Crop) -> Self {
        let [x, y, width, height] = [crop.x, crop.y, crop.width, crop.height].map(|side| side as usize);
        let mut pixels = Vec::with_capacity(3 * width * height);
        for row in self.rows().skip(y).take(height) {
            pixels.extend_from_slice(row.get(3 * x..3 * (x + width)).unwrap_or_default());
        }
        Self::from_parts(crop.width, crop.height, pixels)
    }

    /// The rows from top to bottom, \[width, 3\] each.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.pixels.chunks_exact(3 * self.width as usize)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Image({}x{})", self.width, self.height)
    }
}

fn check_raw(width: u32, height: u32, channels: u32, found: usize) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::ZeroSize { width, height });
    }
    let [max_width, max_height] = [Image::MAX_SIDE; 2];
    if width > max_width || height > max_height {
        return Err(ImageError::SideTooLong { width, height, max_width, max_height });
    }
    // Far below 2^64, as the sides are bounded.
    let expected = u64::from(width) * u64::from(height) * u64::from(channels);
    let found = found as u64;
    if found != expected {
        return Err(ImageError::WrongBufferLength { width, height, channels, expected, found });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_is_dropped_or_laid_on_a_colour() {
        let pixels = [10, 20, 30, 0, 10, 20, 30, 255, 10, 20, 30, 128];
        let dropped = Image::from_rgba8(3, 1, &pixels, Alpha::Drop).expect("an image");
        assert_eq!(dropped.pixels(), [10, 20, 30, 10, 20, 30, 10, 20, 30]);
        let on_white = Image::from_rgba8(3, 1, &pixels, Alpha::ON_WHITE).expect("an image");
        assert_eq!(on_white.pixels(), [255, 255, 255, 10, 20, 30, 132, 137, 142]);
        let on_green = Image::from_rgba8(3, 1, &pixels, Alpha::On([0, 200, 100])).expect("an image");
        assert_eq!(on_green.pixels(), [0, 200, 100, 10, 20, 30, 5, 110, 65]);
    }

    #[test]
    fn a_crop_is_the_part_of_the_image_and_must_lie_inside() {
        let image = Image::from_rgb8(3, 2, (0..18).collect::<Vec<u8>>()).expect("an image");
        let crop = |x, y, width, height| image.crop(Crop { x, y, width, height });
        let part = crop(1, 1, 2, 1).expect("a crop");
        assert_eq!((part.width(), part.height(), part.pixels()), (2, 1, &[12, 13, 14, 15, 16, 17][..]));
        assert_eq!(crop(0, 0, 3, 2).expect("the whole"), image);
        for outside in [crop(2, 0, 2, 1), crop(0, 2, 1, 1), crop(0, 0, 0, 1), crop(1, 0, u32::MAX, 1)] {
            let error = outside.expect_err("outside");
            assert!(matches!(error, ImageError::CropOutside { width: 3, height: 2, .. }), "{error}");
            assert!(error.to_string().contains("clip it"), "{error}");
        }
    }

    #[test]
    fn debug_prints_the_size_only() {
        let image = Image::from_rgb8(1, 1, vec![1, 2, 3]).expect("an image");
        assert_eq!(format!("{image:?}"), "Image(1x1)");
    }
}
