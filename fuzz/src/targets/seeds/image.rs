//! Images of a few pixels.

#[path = "../../../../gemma3-vision/tests/build_png/mod.rs"]
mod build_png;

use build_png::{GRAY, GRAY_ALPHA, PALETTE, RGB, png};

use super::{read, read_folder};

/// PNGs of every colour type, and the JPEGs and WebPs of the fixtures.
pub fn image() -> Vec<Vec<u8>> {
    let palette = (*b"PLTE", vec![0, 0, 0, 255, 0, 0]);
    let transparency = (*b"tRNS", vec![0, 127]);
    let comment = (*b"tEXt", b"Comment\0made by a test".to_vec());
    let mut seeds = vec![
        png(9, 2, 1, GRAY, &[comment], &[&[0xaa, 0x80], &[0x55, 0]]),
        png(2, 2, 16, RGB, &[], &[&[1; 12], &[255; 12]]),
        png(4, 2, 2, PALETTE, &[palette, transparency], &[&[0x14], &[0x11]]),
        png(2, 1, 8, GRAY_ALPHA, &[], &[&[1, 2, 3, 4]]),
        read("tests/fixtures/images/one_pixel_1x1.png"),
        read("tests/fixtures/images/gray16_81x50.png"),
    ];
    seeds.extend(read_folder("tests/fixtures/hostile-images"));
    seeds
}
