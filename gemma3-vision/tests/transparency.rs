//! What shows where an image is transparent: from files, encoded bytes and memory alike.

mod build_png;

use build_png::{GRAY, GRAY_ALPHA, PALETTE, RGB, RGBA, png};
use gemma3_vision::{Alpha, Image, ImageError, ImageLimits, ImageOptions};
use image::codecs::webp::WebPEncoder;

const GREEN: Alpha = Alpha::On([0, 200, 100]);

/// Three pixels of one colour: transparent, opaque, about half.
const PIXELS: [u8; 12] = [10, 20, 30, 0, 10, 20, 30, 255, 10, 20, 30, 128];
/// What shows of them; `(20 * 128 + 200 * 127) / 255` is 109.6, for instance.
const DROPPED: [[u8; 3]; 3] = [[10, 20, 30]; 3];
const ON_WHITE: [[u8; 3]; 3] = [[255; 3], [10, 20, 30], [132, 137, 142]];
const ON_GREEN: [[u8; 3]; 3] = [[0, 200, 100], [10, 20, 30], [5, 110, 65]];

fn decode(encoded: &[u8], alpha: Alpha) -> Image {
    let options = ImageOptions { alpha, ..ImageOptions::default() };
    Image::decode_with(encoded, &options).expect("an image")
}

/// Decodes with each choice; `Image::decode` is the first of them.
fn assert_shows(what: &str, encoded: &[u8], dropped: &[[u8; 3]], white: &[[u8; 3]], green: &[[u8; 3]]) {
    for (alpha, expected) in [(Alpha::Drop, dropped), (Alpha::ON_WHITE, white), (GREEN, green)] {
        assert_eq!(decode(encoded, alpha).pixels(), expected.as_flattened(), "{what}, {alpha:?}");
    }
    let default = Image::decode(encoded).expect("an image");
    assert_eq!(default.pixels(), dropped.as_flattened(), "{what}, by default");
}

#[test]
fn a_png_of_rgba() {
    let encoded = png(3, 1, 8, RGBA, &[], &[&PIXELS]);
    assert_shows("RGBA", &encoded, &DROPPED, &ON_WHITE, &ON_GREEN);
}

/// As Pillow, which first makes 8 bits of 16: 128 of alpha is 0x80ff, and 0x00ff is none.
#[test]
fn a_png_of_rgba_with_16_bits() {
    let row: Vec<u8> = PIXELS.iter().flat_map(|level| [*level, 0xff]).collect();
    let encoded = png(3, 1, 16, RGBA, &[], &[&row]);
    assert_shows("RGBA of 16 bits", &encoded, &DROPPED, &ON_WHITE, &ON_GREEN);
}

#[test]
fn a_png_of_gray_and_alpha() {
    let encoded = png(3, 1, 8, GRAY_ALPHA, &[], &[&[20, 0, 20, 255, 20, 128]]);
    let white = [[255; 3], [20; 3], [137; 3]];
    assert_shows("gray", &encoded, &[[20; 3]; 3], &white, &[[0, 200, 100], [20; 3], [10, 110, 60]]);
}

/// A palette's alpha may be shorter than the palette: the other colours are opaque.
#[test]
fn a_png_of_a_palette_with_alpha() {
    let palette = (*b"PLTE", [[10, 20, 30]; 3].concat());
    let transparency = (*b"tRNS", vec![128, 0]);
    let encoded = png(3, 1, 8, PALETTE, &[palette, transparency], &[&[1, 2, 0]]);
    assert_shows("a palette", &encoded, &DROPPED, &ON_WHITE, &ON_GREEN);
}

/// One colour (of 16 bits, whatever the image has) that counts as transparent.
#[test]
fn a_png_with_a_colour_that_is_transparent() {
    let key = (*b"tRNS", vec![0, 1, 0, 2, 0, 3]);
    let encoded = png(2, 1, 8, RGB, &[key], &[&[1, 2, 3, 1, 2, 4]]);
    let shown = [1, 2, 4];
    assert_shows("RGB", &encoded, &[[1, 2, 3], shown], &[[255; 3], shown], &[[0, 200, 100], shown]);
    let encoded = png(2, 1, 8, GRAY, &[(*b"tRNS", vec![0, 7])], &[&[7, 8]]);
    assert_shows("gray", &encoded, &[[7; 3], [8; 3]], &[[255; 3], [8; 3]], &[[0, 200, 100], [8; 3]]);
}

#[test]
fn a_webp_with_alpha() {
    let mut encoded = Vec::new();
    WebPEncoder::new_lossless(&mut encoded)
        .encode(&PIXELS, 3, 1, image::ExtendedColorType::Rgba8)
        .expect("a WebP");
    assert_shows("WebP", &encoded, &DROPPED, &ON_WHITE, &ON_GREEN);
}

#[test]
fn pixels_in_memory() {
    for (alpha, expected) in [(Alpha::Drop, DROPPED), (Alpha::ON_WHITE, ON_WHITE), (GREEN, ON_GREEN)] {
        let image = Image::from_rgba8(3, 1, &PIXELS, alpha).expect("an image");
        assert_eq!(image.pixels(), expected.as_flattened(), "{alpha:?}");
    }
}

#[test]
fn a_file_is_read_as_its_bytes_are() {
    let path = std::env::temp_dir().join(format!("gemma3-vision-{}-transparent.png", std::process::id()));
    std::fs::write(&path, png(3, 1, 8, RGBA, &[], &[&PIXELS])).expect("a file");
    let open = |alpha| {
        Image::open_with(&path, &ImageOptions { alpha, ..ImageOptions::default() }).expect("an image")
    };
    assert_eq!(open(Alpha::Drop).pixels(), DROPPED.as_flattened());
    assert_eq!(open(Alpha::ON_WHITE).pixels(), ON_WHITE.as_flattened());
    assert_eq!(open(GREEN).pixels(), ON_GREEN.as_flattened());
    assert_eq!(Image::open(&path).expect("an image").pixels(), DROPPED.as_flattened());
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn an_image_without_alpha_is_the_same_on_every_ground() {
    let encoded = png(2, 1, 8, RGB, &[], &[&[1, 2, 3, 4, 5, 6]]);
    let shown = [[1, 2, 3], [4, 5, 6]];
    assert_shows("RGB", &encoded, &shown, &shown, &shown);
}

/// The two settings don't get into each other's way.
#[test]
fn the_limits_hold_on_every_ground() {
    let encoded = png(3, 1, 8, RGBA, &[], &[&PIXELS]);
    let limits = ImageLimits { max_width: 2, ..ImageLimits::default() };
    for alpha in [Alpha::Drop, GREEN] {
        let error = Image::decode_with(&encoded, &ImageOptions { alpha, limits }).expect_err("too wide");
        assert!(matches!(error, ImageError::SideTooLong { width: 3, max_width: 2, .. }), "{error}");
    }
}
