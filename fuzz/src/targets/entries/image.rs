//! Encoded images, and what is made of them for the encoder.

use gemma3::vision::{PanAndScan, Preprocessor, PreprocessorConfig};
use gemma3::{Alpha, Image, ImageLimits, ImageOptions};

use super::super::bounds::{check_error, within};

const LIMITS: ImageLimits =
    ImageLimits { max_encoded_bytes: 1 << 20, max_width: 512, max_height: 512, max_pixels: 1 << 14 };
/// As [`ImageLimits`] has it: samples, result, coefficients of a JPEG, and a copy turned upright.
const BYTES_PER_PIXEL: usize = 8 + 3 + 8 + 3;
/// What an image has besides pixels, in proportion to its length.
const BYTES_PER_BYTE: usize = 8;
/// The parts of a lossy WebP, and what a decoder may take whatever the image.
const FIXED_BYTES: usize = (16 << 20) + (1 << 20);
const IMAGE_SIZE: usize = 28;

/// Reads one image.
pub fn run(encoded: &[u8]) {
    let most_bytes =
        LIMITS.max_pixels as usize * BYTES_PER_PIXEL + BYTES_PER_BYTE * encoded.len() + FIXED_BYTES;
    // Both ways of reading transparency, without taking a byte from the image.
    let alpha = if encoded.len().is_multiple_of(2) { Alpha::Drop } else { Alpha::ON_WHITE };
    let options = ImageOptions { alpha, limits: LIMITS };
    match within(most_bytes, || Image::decode_with(encoded, &options)) {
        Ok(image) => check(&image),
        Err(error) => check_error(&error),
    }
}

fn check(image: &Image) {
    let (width, height) = (image.width(), image.height());
    // Turning an image exchanges the sides.
    assert!(width.max(height) <= LIMITS.max_width && width.min(height) > 0, "{width}x{height}");
    assert!(u64::from(width) * u64::from(height) <= LIMITS.max_pixels, "{width}x{height}");
    assert_eq!(image.pixels().len(), 3 * width as usize * height as usize);
    let config = PreprocessorConfig { image_size: IMAGE_SIZE, ..PreprocessorConfig::gemma3() };
    let preprocessor = Preprocessor::new(config).expect("valid settings");
    let pan_and_scan = PanAndScan { min_crop_size: 16, ..PanAndScan::default() };
    for view in preprocessor.views(image, Some(&pan_and_scan)) {
        let values = preprocessor.pixel_values(&view.image);
        assert_eq!(values.len(), 3 * IMAGE_SIZE * IMAGE_SIZE);
        assert!(values.iter().all(|value| (-1.0..=1.0).contains(value)));
    }
}
