//! Encoded bytes to upright RGB pixels, with the crate `image`.
//!
//! The decoders are called one by one and not through `image`'s reader, so that every size is checked before
//! anything is allocated for it and formats that other crates register with `image` stay out.
//!
//! Only EXIF data that comes before the pixels is looked at for the orientation.

use std::io::{Cursor, ErrorKind};
use std::panic::UnwindSafe;

use ::image::codecs::{jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder};
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, Limits, RgbImage};

use super::{Alpha, ImageError, ImageLimits, ImageOptions, container};

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Png,
    Jpeg,
    WebP,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
        }
    }

    /// The format by the first bytes; a file's name counts for nothing.
    fn of(encoded: &[u8]) -> Result<Self, ImageError> {
        if encoded.is_empty() {
            return Err(ImageError::Empty);
        }
        let has = |offset: usize, magic: &[u8]| encoded.get(offset..).is_some_and(|b| b.starts_with(magic));
        if has(0, b"\x89PNG\r\n\x1a\n") {
            return Ok(Self::Png);
        }
        if has(0, b"\xff\xd8\xff") {
            return Ok(Self::Jpeg);
        }
        if has(0, b"RIFF") && has(8, b"WEBP") {
            return Ok(Self::WebP);
        }
        let others: [(usize, &[u8], &str); 10] = [
            (0, b"GIF8", "a GIF image"),
            (0, b"BM", "a BMP image"),
            (0, b"II*\0", "a TIFF image"),
            (0, b"MM\0*", "a TIFF image"),
            (4, b"ftypavif", "an AVIF image"),
            (4, b"ftyp", "a HEIC image or a video"),
            (0, b"\xff\x0a", "a JPEG XL image"),
            (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
            (0, b"%PDF", "a PDF document"),
            (0, b"<", "markup such as SVG or HTML"),
        ];
        let found = others.iter().find(|(offset, magic, _)| has(*offset, magic));
        Err(ImageError::UnsupportedFormat { found: found.map_or("unknown content", |(_, _, name)| name) })
    }
}

/// Width, height and pixels \[height, width, 3\] of an encoded image.
pub(super) fn decode(encoded: &[u8], options: &ImageOptions) -> Result<(u32, u32, Vec<u8>), ImageError> {
    options.limits.check_encoded(encoded.len() as u64)?;
    let format = Format::of(encoded)?;
    contained(format, || decode_as(format, encoded, options))
}

/// Turns a panic of a decoder into an error: bugs in them that hostile bytes reach are not to end the host.
fn contained<T>(
    format: Format,
    decode: impl FnOnce() -> Result<T, ImageError> + UnwindSafe,
) -> Result<T, ImageError> {
    std::panic::catch_unwind(decode).unwrap_or_else(|_| {
        Err(ImageError::Damaged { format: format.name(), problem: "the decoder failed on it".to_owned() })
    })
}

fn decode_as(
    format: Format,
    encoded: &[u8],
    options: &ImageOptions,
) -> Result<(u32, u32, Vec<u8>), ImageError> {
    match format {
        Format::Png => {
            // The decoder reads more than the size before it can be asked for it.
            let (width, height) = png_size(encoded)?;
            options.limits.check_size(width, height)?;
            let allowed = allowed(encoded, width, &options.limits);
            let decoder = PngDecoder::with_limits(Cursor::new(encoded), allowed);
            pixels(format, decoder.map_err(|error| refused(format, error))?, encoded, options)
        }
        Format::Jpeg => {
            container::check_jpeg(encoded)?;
            let decoder = JpegDecoder::new(Cursor::new(encoded));
            pixels(format, decoder.map_err(|error| refused(format, error))?, encoded, options)
        }
        Format::WebP => {
            let file = container::check_webp(encoded)?;
            let decoder = WebPDecoder::new(Cursor::new(file));
            pixels(format, decoder.map_err(|error| refused(format, error))?, encoded, options)
        }
    }
}

/// Width and height in the header of a PNG.
fn png_size(encoded: &[u8]) -> Result<(u32, u32), ImageError> {
    const WIDTH: usize = 16; // After the signature, and the length and the name of the first chunk.
    let side = |at: usize| encoded.get(at..)?.first_chunk().map(|side| u32::from_be_bytes(*side));
    side(WIDTH).zip(side(WIDTH + 4)).ok_or_else(|| ImageError::Truncated {
        format: Format::Png.name(),
        problem: format!("its header has 24 bytes, found {}", encoded.len()),
    })
}

/// What a decoder may do: the sizes, and memory besides the pixels that is in proportion to the file and a
/// row. Compressed metadata may ask for a thousand times the file.
fn allowed(encoded: &[u8], width: u32, limits: &ImageLimits) -> Limits {
    let mut allowed = Limits::no_limits();
    allowed.max_image_width = Some(limits.max_width);
    allowed.max_image_height = Some(limits.max_height);
    allowed.max_alloc = Some((1 << 20) + 4 * encoded.len() as u64 + 64 * u64::from(width));
    allowed
}

/// Lets a decoder that has read the headers decode.
fn pixels(
    format: Format,
    mut decoder: impl ImageDecoder,
    encoded: &[u8],
    options: &ImageOptions,
) -> Result<(u32, u32, Vec<u8>), ImageError> {
    let refused = |error| refused(format, error);
    let (width, height) = decoder.dimensions();
    options.limits.check_size(width, height)?;
    decoder.set_limits(allowed(encoded, width, &options.limits)).map_err(refused)?;
    let orientation = orientation(&mut decoder).map_err(refused)?;
    let colours = decoder.color_type();
    // In proportion to the checked size.
    let mut samples = vec![0; usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX)];
    decoder.read_image(&mut samples).map_err(refused)?;
    let channels = usize::from(colours.channel_count());
    let sample_bytes = usize::from(colours.bytes_per_pixel()) / channels.max(1);
    let pixels = rgb8(samples, channels, sample_bytes, options.alpha);
    upright(width, height, pixels, orientation).ok_or_else(|| ImageError::Damaged {
        format: format.name(),
        problem: format!("the decoder did not return {width}x{height} pixels"),
    })
}

/// How an image is to be turned. Missing or broken EXIF data means: not at all.
fn orientation(decoder: &mut impl ImageDecoder) -> Result<Orientation, ::image::ImageError> {
    let exif = decoder.exif_metadata()?.unwrap_or_default();
    // Some writers of WebP keep JPEG's prefix.
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
    Ok(Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms))
}

/// Samples of 1 (gray) to 4 channels to RGB of 8 bits.
fn rgb8(samples: Vec<u8>, channels: usize, sample_bytes: usize, alpha: Alpha) -> Vec<u8> {
    // Pillow keeps the high byte of 16 bits, where `image` rounds.
    let samples = match sample_bytes {
        2 => samples.as_chunks().0.iter().map(|sample| (u16::from_ne_bytes(*sample) >> 8) as u8).collect(),
        _ => samples,
    };
    match channels {
        1 => samples.iter().flat_map(|gray| [*gray; 3]).collect(),
        2 => samples.as_chunks().0.iter().flat_map(|[gray, a]| alpha.apply([*gray; 3], *a)).collect(),
        4 => without_alpha(&samples, alpha),
        _ => samples,
    }
}

/// RGBA of 8 bits to RGB.
pub(super) fn without_alpha(pixels: &[u8], alpha: Alpha) -> Vec<u8> {
    let pixels = pixels.as_chunks().0.iter();
    pixels.flat_map(|[red, green, blue, a]| alpha.apply([*red, *green, *blue], *a)).collect()
}

/// Turns an image. `None` if the pixels are not as many as its size asks for.
fn upright(
    width: u32,
    height: u32,
    pixels: Vec<u8>,
    orientation: Orientation,
) -> Option<(u32, u32, Vec<u8>)> {
    let mut image = DynamicImage::ImageRgb8(RgbImage::from_raw(width, height, pixels)?);
    image.apply_orientation(orientation);
    Some((image.width(), image.height(), image.into_bytes()))
}

/// What a decoder's error means to the user.
fn refused(format: Format, error: ::image::ImageError) -> ImageError {
    let format = format.name();
    match error {
        ::image::ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
            ImageError::Truncated { format, problem: error.to_string() }
        }
        ::image::ImageError::Unsupported(error) => {
            ImageError::UnsupportedFeature { format, problem: error.to_string() }
        }
        ::image::ImageError::Limits(_) => ImageError::TooMuchMetadata { format },
        error => ImageError::Damaged { format, problem: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_decoder_is_an_error() {
        let result: Result<(), _> = contained(Format::WebP, || panic!("as hostile bytes may cause"));
        let error = result.expect_err("a panic");
        assert!(matches!(error, ImageError::Damaged { format: "WebP", .. }), "{error}");
    }

    #[test]
    fn sixteen_bits_keep_their_high_byte() {
        let samples: Vec<u8> = [0x12ff_u16, 0xff00].iter().flat_map(|sample| sample.to_ne_bytes()).collect();
        assert_eq!(rgb8(samples.clone(), 1, 2, Alpha::Drop), [0x12, 0x12, 0x12, 0xff, 0xff, 0xff]);
        assert_eq!(rgb8(samples, 2, 2, Alpha::Drop), [0x12, 0x12, 0x12]);
    }
}
