//! Decoded pixels.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::{Crop, ImageError, ImageLimits, decode};

/// An upright RGB image of 8 bits a channel. Cloning is cheap: clones share the pixels.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    /// \[height, width, 3\].
    pixels: Arc<[u8]>,
}

/// What becomes of the alpha channel of raw RGBA pixels.
///
/// [`Image::open`] and [`Image::decode`] always drop it: that is what transformers does with image files,
/// and so what the models see in practice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alpha {
    /// Ignore it: the colours under transparent pixels show.
    #[default]
    Drop,
    /// Composite on white, as transformers 5 does with a Pillow image in memory (4 drops there, too):
    /// `round((colour * alpha + 255 * (255 - alpha)) / 255)`.
    OnWhite,
}

impl Image {
    /// The longest side in pixels, 2^20: more than pictures have, and little enough that the sums of the
    /// resize are sure to fit their 32 bits.
    pub const MAX_SIDE: u32 = 1 << 20;

    /// Reads a PNG, JPEG or WebP file, told apart by content, within [`ImageLimits::default`].
    ///
    /// See [`Self::decode`] for what is done to the pixels.
    ///
    /// # Errors
    ///
    /// A path that is no readable regular file, and the errors of [`Self::decode`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ImageError> {
        Self::open_with(path, &ImageLimits::default())
    }

    /// [`Self::open`] within other limits.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_with(path: impl AsRef<Path>, limits: &ImageLimits) -> Result<Self, ImageError> {
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
        Self::decode_with(&encoded, limits)
    }

    /// Decodes a PNG, JPEG or WebP image, told apart by content, within [`ImageLimits::default`].
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
        Self::decode_with(encoded, &ImageLimits::default())
    }

    /// [`Self::decode`] within other limits.
    ///
    /// # Errors
    ///
    /// As [`Self::decode`].
    pub fn decode_with(encoded: &[u8], limits: &ImageLimits) -> Result<Self, ImageError> {
        let (width, height, pixels) = decode::decode(encoded, limits)?;
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
        let pixels = pixels.as_chunks::<4>().0.iter();
        let pixels: Vec<u8> = match alpha {
            Alpha::Drop => pixels.flat_map(|[red, green, blue, _]| [*red, *green, *blue]).collect(),
            Alpha::OnWhite => pixels
                .flat_map(|[red, green, blue, alpha]| [*red, *green, *blue].map(|c| on_white(c, *alpha)))
                .collect(),
        };
        Ok(Self::from_parts(width, height, pixels))
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

/// A colour over white. Equals Pillow's `alpha_composite` on opaque white for every colour and alpha.
fn on_white(colour: u8, alpha: u8) -> u8 {
    let [colour, alpha] = [u32::from(colour), u32::from(alpha)];
    // At most 255, as the sum is at most 255 * 255.
    ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
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
    fn alpha_is_dropped_or_composited_on_white() {
        let pixels = [10, 20, 30, 0, 10, 20, 30, 255, 10, 20, 30, 128];
        let dropped = Image::from_rgba8(3, 1, &pixels, Alpha::Drop).expect("an image");
        assert_eq!(dropped.pixels(), [10, 20, 30, 10, 20, 30, 10, 20, 30]);
        let on_white = Image::from_rgba8(3, 1, &pixels, Alpha::OnWhite).expect("an image");
        assert_eq!(on_white.pixels(), [255, 255, 255, 10, 20, 30, 132, 137, 142]);
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
