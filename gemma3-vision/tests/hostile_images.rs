//! Damaged, hostile and unusual images: each ends in an error that says what to do, or in the right pixels. No
//! panic, and no allocation driven by a number in the file alone.

mod build_png;
#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;
#[path = "../../gemma3-core/tests/count_allocations/mod.rs"]
mod count_allocations;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use build_png::{GRAY, GRAY_ALPHA, PALETTE, RGB, png};
use count_allocations::peak_bytes;
use gemma3_vision::{Alpha, Image, ImageError, ImageLimits, ImageOptions, Preprocessor, PreprocessorConfig};

/// The colours of the fixtures' quadrants: upper left, upper right, lower left, lower right.
const QUADRANTS: [[u8; 3]; 4] = [[200, 30, 40], [30, 180, 60], [40, 60, 220], [230, 220, 70]];

fn fixture(name: &str) -> Vec<u8> {
    let path = common::workspace().join("tests/fixtures/hostile-images").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The error of an image, whose text has `advice` in it.
fn refused(what: &str, result: Result<Image, ImageError>, advice: &str) -> ImageError {
    let error = result.expect_err(what);
    assert!(error.to_string().contains(advice), "{what}: no `{advice}` in: {error}");
    error
}

/// Decodes what must be refused by its header alone: at once, and within a few times the file's memory.
fn refused_at_once(what: &str, encoded: &[u8], advice: &str) -> ImageError {
    let start = Instant::now();
    let (peak, result) = peak_bytes(|| Image::decode(encoded));
    assert!(start.elapsed() < Duration::from_millis(200), "{what}: took {:?}", start.elapsed());
    assert!(peak <= 4 * encoded.len() + (64 << 10), "{what}: held {peak} bytes");
    refused(what, result, advice)
}

/// The pixels in the middle of the quadrants.
fn centres(image: &Image) -> [[u8; 3]; 4] {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixel = |x: usize, y: usize| {
        let at = 3 * (y * width + x);
        [image.pixels()[at], image.pixels()[at + 1], image.pixels()[at + 2]]
    };
    let (left, right, upper, lower) = (width / 4, width * 3 / 4, height / 4, height * 3 / 4);
    [pixel(left, upper), pixel(right, upper), pixel(left, lower), pixel(right, lower)]
}

fn assert_colours(what: &str, image: &Image, expected: [[u8; 3]; 4], levels: u8) {
    let found = centres(image);
    let close =
        found.as_flattened().iter().zip(expected.as_flattened()).all(|(a, b)| a.abs_diff(*b) <= levels);
    assert!(close, "{what}: expected {expected:?} within {levels} levels, found {found:?}");
}

/// A small PNG, with rows that differ.
fn small_png() -> Vec<u8> {
    let rows: Vec<Vec<u8>> = (0..8).map(|y| (0..24).map(|x| y * 24 + x).collect()).collect();
    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    png(8, 8, 8, RGB, &[], &rows)
}

/// A copy with other bytes at a place.
fn patched(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).expect("a known structure")
}

/// A path in the folder for temporary files.
fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("gemma3-vision-{}-{name}", std::process::id()))
}

#[test]
fn a_png_that_claims_60000x60000_pixels_is_refused_at_once() {
    let bomb = png(60_000, 60_000, 8, RGB, &[], &[]);
    let error = refused_at_once("a PNG", &bomb, "raise `max_pixels`");
    let expected =
        matches!(error, ImageError::TooManyPixels { width: 60_000, height: 60_000, limit: 67_108_864 });
    assert!(expected, "{error}");
}

#[test]
fn a_png_with_a_side_beyond_the_limit_is_refused_at_once() {
    for (width, height) in [(70_000, 1), (1, 65_536), (i32::MAX as u32, i32::MAX as u32)] {
        let bomb = png(width, height, 16, GRAY_ALPHA, &[], &[]);
        let error = refused_at_once("a PNG", &bomb, "raise `max_width`");
        assert!(matches!(error, ImageError::SideTooLong { max_width: 65_535, .. }), "{error}");
    }
}

#[test]
fn a_jpeg_that_claims_65535x65535_pixels_is_refused_at_once() {
    let jpeg = fixture("quadrants.jpg");
    let frame = find(&jpeg, &[0xff, 0xc0]); // Marker, length, precision, height, width.
    let error = refused_at_once("a JPEG", &patched(&jpeg, frame + 5, &[0xff; 4]), "raise `max_pixels`");
    assert!(matches!(error, ImageError::TooManyPixels { width: 65_535, height: 65_535, .. }), "{error}");
}

#[test]
fn a_webp_that_claims_too_many_pixels_is_refused_at_once() {
    let lossy = fixture("lossy.webp");
    let size = find(&lossy, &[0x9d, 0x01, 0x2a]) + 3;
    let error = refused_at_once("a WebP", &patched(&lossy, size, &[0xff; 4]), "raise `max_pixels`");
    assert!(matches!(error, ImageError::TooManyPixels { width: 16_383, height: 16_383, .. }), "{error}");
    let extended = fixture("animated.webp");
    let canvas = find(&extended, b"VP8X") + 12;
    let error = refused_at_once("a WebP", &patched(&extended, canvas, &[0xff; 3]), "raise `max_width`");
    assert!(matches!(error, ImageError::SideTooLong { width: 16_777_216, .. }), "{error}");
}

/// What a chunk claims to hold is not allocated before it is there.
#[test]
fn a_webp_chunk_that_claims_4_gigabytes_is_refused_at_once() {
    let mut webp = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0\x0f\0\0\x0f\0\0".to_vec();
    webp.extend(b"EXIF\xf0\xff\xff\xffMM");
    let length = (webp.len() - 8) as u32;
    let error =
        refused_at_once("a WebP", &patched(&webp, 4, &length.to_le_bytes()), "download or copy it again");
    assert!(matches!(error, ImageError::Truncated { format: "WebP", .. }), "{error}");
}

/// The profile would be 3 MiB; it is not needed, and the decoder stops inflating it.
#[test]
fn a_colour_profile_that_inflates_without_end_is_left_out() {
    let png = fixture("profile_bomb.png");
    let (peak, image) = peak_bytes(|| Image::decode(&png).expect("an image"));
    assert_colours("the image", &image, QUADRANTS, 0);
    assert!(peak < 2 << 20, "held {peak} bytes");
}

#[test]
fn the_limits_are_the_callers() {
    let png = small_png();
    let decode_with =
        |png: &[u8], limits| Image::decode_with(png, &ImageOptions { limits, ..ImageOptions::default() });
    let decode = |limits| decode_with(&png, limits);
    let tight =
        ImageLimits { max_encoded_bytes: png.len() as u64, max_width: 8, max_height: 8, max_pixels: 64 };
    assert_eq!(decode(tight).expect("exactly within the limits").width(), 8);
    let error = refused(
        "bytes",
        decode(ImageLimits { max_encoded_bytes: 100, ..tight }),
        "raise `max_encoded_bytes`",
    );
    assert!(matches!(error, ImageError::TooManyBytes { limit: 100, .. }), "{error}");
    let error = refused("width", decode(ImageLimits { max_width: 7, ..tight }), "raise `max_width`");
    assert!(matches!(error, ImageError::SideTooLong { max_width: 7, .. }), "{error}");
    let error = refused(
        "height",
        decode(ImageLimits { max_height: 7, ..tight }),
        "raise `max_width` and `max_height`",
    );
    assert!(matches!(error, ImageError::SideTooLong { max_height: 7, .. }), "{error}");
    let error = refused("pixels", decode(ImageLimits { max_pixels: 63, ..tight }), "raise `max_pixels`");
    assert!(matches!(error, ImageError::TooManyPixels { limit: 63, .. }), "{error}");
    let endless = ImageLimits {
        max_encoded_bytes: u64::MAX,
        max_width: u32::MAX,
        max_height: u32::MAX,
        max_pixels: u64::MAX,
    };
    assert_eq!(decode(endless).expect("within no limits").width(), 8);
    let bomb = gray_png(u32::MAX >> 1, 1);
    let error = refused("no limits", decode_with(&bomb, endless), "make it smaller");
    assert!(matches!(error, ImageError::SideTooLong { max_width: Image::MAX_SIDE, .. }), "{error}");
}

fn gray_png(width: u32, height: u32) -> Vec<u8> {
    png(width, height, 8, GRAY, &[], &[])
}

/// The file has holes instead of data, and is never read.
#[test]
fn a_file_beyond_the_limit_is_refused_unread() {
    let path = temporary("large.png");
    let limit = ImageLimits::default().max_encoded_bytes;
    std::fs::File::create(&path).and_then(|file| file.set_len(limit + 1)).expect("a sparse file");
    let (peak, result) = peak_bytes(|| Image::open(&path));
    std::fs::remove_file(&path).expect("removed");
    let error = refused("a large file", result, "raise `max_encoded_bytes`");
    assert!(matches!(error, ImageError::TooManyBytes { found, .. } if found == limit + 1), "{error}");
    assert!(peak < 64 << 10, "held {peak} bytes");
}

#[test]
fn every_part_of_a_png_is_refused() {
    let png = small_png();
    let end_of_pixels = find(&png, b"IEND") - 8; // Before the pixels' checksum.
    for length in 8..end_of_pixels {
        let error = refused(&format!("{length} bytes"), Image::decode(&png[..length]), "download");
        assert!(matches!(error, ImageError::Truncated { format: "PNG", .. }), "{length}: {error}");
    }
}

#[test]
fn every_part_of_a_jpeg_is_refused() {
    for name in ["quadrants.jpg", "progressive.jpg", "cmyk.jpg"] {
        let jpeg = fixture(name);
        for length in 3..jpeg.len() {
            let error =
                refused(&format!("{name}: {length} bytes"), Image::decode(&jpeg[..length]), "download");
            assert!(
                matches!(error, ImageError::Truncated { format: "JPEG", .. }),
                "{name}, {length}: {error}"
            );
        }
    }
}

#[test]
fn every_part_of_a_webp_is_refused() {
    for name in ["lossy.webp", "lossless.webp", "transparent.webp", "animated.webp", "animated_alpha.webp"] {
        let webp = fixture(name);
        for length in 12..webp.len() {
            let error =
                refused(&format!("{name}: {length} bytes"), Image::decode(&webp[..length]), "download");
            assert!(
                matches!(error, ImageError::Truncated { format: "WebP", .. }),
                "{name}, {length}: {error}"
            );
        }
    }
}

/// The end marker of a thumbnail is not that of the image.
#[test]
fn a_jpeg_cut_behind_its_thumbnail_is_refused() {
    let jpeg = fixture("quadrants.jpg");
    let thumbnail = [&[0xff, 0xe1, (jpeg.len() >> 8) as u8, (jpeg.len() + 2) as u8], &jpeg[..]].concat();
    let whole = [&jpeg[..2], &thumbnail, &jpeg[2..]].concat();
    assert_colours("with a thumbnail", &Image::decode(&whole).expect("an image"), QUADRANTS, 3);
    let error = refused("cut", Image::decode(&whole[..whole.len() - 100]), "download or copy it again");
    assert!(matches!(error, ImageError::Truncated { .. }), "{error}");
}

#[test]
fn content_that_is_no_image_is_refused_whatever_its_name() {
    let path = temporary("text.jpg");
    std::fs::write(&path, "not an image").expect("a file");
    let result = Image::open(&path);
    std::fs::remove_file(&path).expect("removed");
    let error = refused("a text", result, "convert it to one of these formats");
    assert!(matches!(error, ImageError::UnsupportedFormat { found: "unknown content" }), "{error}");
    for (content, expected) in [
        (&b"GIF89a\x01\0\x01\0\0\0\0;"[..], "a GIF image"),
        (b"BM\0\0\0\0", "a BMP image"),
        (b"II*\0", "a TIFF image"),
        (b"MM\0*", "a TIFF image"),
        (b"\0\0\0\x20ftypavif", "an AVIF image"),
        (b"\0\0\0\x20ftypheic", "a HEIC image or a video"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "markup such as SVG or HTML"),
        (b"%PDF-1.7", "a PDF document"),
        (b"RIFF\0\0\0\0WAVE", "unknown content"),
        (b"\x89PNG", "unknown content"),
        (b"\xff\xd8", "unknown content"),
    ] {
        let error = refused(expected, Image::decode(content), "PNG, JPEG or WebP");
        assert!(matches!(error, ImageError::UnsupportedFormat { found } if found == expected), "{error}");
    }
}

#[test]
fn no_bytes_are_an_error_of_their_own() {
    let path = temporary("empty.png");
    std::fs::write(&path, []).expect("a file");
    let result = Image::open(&path);
    std::fs::remove_file(&path).expect("removed");
    for result in [result, Image::decode(&[])] {
        let error = refused("nothing", result, "written or downloaded completely");
        assert!(matches!(error, ImageError::Empty), "{error}");
    }
}

#[test]
fn garbage_behind_a_right_signature_is_refused() {
    let garbage: Vec<u8> = (0..200_u32).map(|index| (index * index * 7 % 251) as u8).collect();
    let png = [b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x08\0\0\0\x08", &garbage[..]].concat();
    let error = refused("a PNG", Image::decode(&png), "download it again");
    assert!(matches!(error, ImageError::Damaged { format: "PNG", .. }), "{error}");
    let jpeg = [b"\xff\xd8\xff\xfe\0\x04ab", &garbage[..], b"\xff\xd9"].concat();
    let error = refused("a JPEG", Image::decode(&jpeg), "download it again");
    assert!(matches!(error, ImageError::Damaged { format: "JPEG", .. }), "{error}");
    let webp = [b"RIFF\xd8\0\0\0WEBPVP8 \xc8\0\0\0", &garbage[..], b"12345678"].concat();
    let error = refused("a WebP", Image::decode(&webp), "download it again");
    assert!(matches!(error, ImageError::Damaged { format: "WebP", .. }), "{error}");
}

#[test]
fn a_png_without_pixels_is_refused() {
    for (width, height) in [(0, 8), (8, 0), (0, 0)] {
        let error = refused("a PNG", Image::decode(&gray_png(width, height)), "use an image that has pixels");
        assert!(matches!(error, ImageError::ZeroSize { .. }), "{error}");
    }
}

/// Where an animation has alpha, its decoder trusts that both sizes are the same.
#[test]
fn an_animation_whose_frame_has_another_size_than_its_bitstream_is_refused() {
    let webp = fixture("animated_alpha.webp");
    assert_eq!(Image::decode(&webp).expect("an image").width(), 16);
    let frame = find(&webp, b"ANMF") + 8;
    for (place, less_1) in [(frame + 6, 3), (frame + 9, 7)] {
        let error = refused("a frame", Image::decode(&patched(&webp, place, &[less_1])), "save it anew");
        assert!(matches!(error, ImageError::Damaged { format: "WebP", .. }), "{error}");
    }
}

/// A chunk of a WebP.
fn webp_chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    [&name[..], &(data.len() as u32).to_le_bytes(), data, &[0][..data.len() % 2]].concat()
}

fn webp_file(chunks: &[Vec<u8>]) -> Vec<u8> {
    let chunks = chunks.concat();
    [b"RIFF", &(chunks.len() as u32 + 4).to_le_bytes()[..], b"WEBP", &chunks].concat()
}

/// The size in front of a lossy WebP's pixels is compared with the one in its header before pixels of that size are
/// made: a file of 300 bytes took 400 MB.
#[test]
fn a_webp_whose_pixels_have_another_size_than_its_header_is_refused_at_once() {
    let lossy = fixture("lossy.webp");
    let bits = lossy[20..].to_vec();
    let huge = patched(&bits, 6, &[0xff, 0x3f, 0xff, 0x3f]);
    // Flags, place, and 48 x 32 less 1.
    let canvas = |flags: u8| webp_chunk(b"VP8X", &[flags, 0, 0, 0, 47, 0, 0, 31, 0, 0]);
    let still = |bits: &[u8]| webp_file(&[canvas(0), webp_chunk(b"VP8 ", bits)]);
    let animated = |bits: &[u8]| {
        let frame =
            [&[0, 0, 0, 0, 0, 0, 47, 0, 0, 31, 0, 0, 100, 0, 0, 0][..], &webp_chunk(b"VP8 ", bits)].concat();
        webp_file(&[canvas(2), webp_chunk(b"ANIM", &[0; 6]), webp_chunk(b"ANMF", &frame)])
    };
    for webp in [still(&bits), animated(&bits)] {
        let image = Image::decode(&webp).expect("an image");
        assert_eq!((image.width(), image.height()), (48, 32));
    }
    for webp in [still(&huge), animated(&huge), still(&bits[..6]), animated(&bits[..6])] {
        let error = refused_at_once("a WebP", &webp, "save it anew");
        assert!(matches!(error, ImageError::Damaged { format: "WebP", .. }), "{error}");
    }
}

/// Every result is an error or an image within the limits, and takes memory in proportion to them.
#[test]
fn images_with_wrong_bytes_stay_within_the_limits() {
    let limits = ImageLimits { max_pixels: 1 << 14, ..ImageLimits::default() };
    let options = ImageOptions { limits, ..ImageOptions::default() };
    let names =
        ["quadrants.jpg", "progressive.jpg", "cmyk.jpg", "lossy.webp", "lossless.webp", "animated.webp"];
    let mut files: Vec<Vec<u8>> = names.into_iter().map(fixture).collect();
    files.push(small_png());
    let mut state = 1_u32;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    let (mut images, mut errors) = (0, 0);
    for round in 0..7000 {
        let mut bytes = files[round % files.len()].clone();
        for _ in 0..1 + random(3) {
            let place = random(bytes.len());
            bytes[place] = random(256) as u8;
        }
        let (peak, result) = peak_bytes(|| Image::decode_with(&bytes, &options));
        // A part of a lossy WebP may claim 16 MiB, which its decoder allocates before it reads.
        assert!(peak < 20 << 20, "held {peak} bytes: {bytes:?}");
        match result {
            Ok(image) => {
                assert!(image.pixels().len() <= 3 << 14, "{image:?}");
                images += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains(';'), "no advice: {error}");
                errors += 1;
            }
        }
    }
    assert!(images > 100 && errors > 100, "{images} images, {errors} errors");
}

#[test]
fn images_of_one_pixel_a_side_work() {
    let preprocessor =
        Preprocessor::new(PreprocessorConfig { image_size: 56, ..PreprocessorConfig::gemma3() })
            .expect("valid");
    let row = vec![51; 20_000];
    let tall: Vec<&[u8]> = vec![&[51]; 20_000];
    for (width, height, rows) in [(1, 1, &[&row[..1]][..]), (20_000, 1, &[&row]), (1, 20_000, &tall)] {
        let image = Image::decode(&png(width, height, 8, GRAY, &[], rows)).expect("an image");
        assert_eq!((image.width(), image.height()), (width, height));
        let values = preprocessor.pixel_values(&image);
        assert_eq!(values.len(), 3 * 56 * 56);
        // 51 of 255 is 0.2 of 0 to 1, -0.6 of -1 to 1.
        assert!(values.iter().all(|value| (value + 0.6).abs() < 1e-6), "{width}x{height}");
    }
}

/// Expected: Pillow 12.3. Both convert without a colour profile.
#[test]
fn a_cmyk_jpeg_becomes_rgb_as_with_pillow() {
    let image = Image::decode(&fixture("cmyk.jpg")).expect("an image");
    assert_colours("CMYK", &image, [[0, 255, 255], [255, 0, 0], [0, 0, 0], [137, 119, 100]], 2);
}

#[test]
fn every_kind_of_jpeg_and_webp_decodes() {
    for (name, levels) in
        [("quadrants.jpg", 3), ("progressive.jpg", 3), ("lossy.webp", 2), ("lossless.webp", 0)]
    {
        assert_colours(name, &Image::decode(&fixture(name)).expect(name), QUADRANTS, levels);
    }
}

#[test]
fn colours_under_transparent_pixels_show() {
    let image = Image::decode(&fixture("transparent.webp")).expect("an image");
    assert_colours("a WebP", &image, QUADRANTS, 0);
    let palette = (*b"PLTE", vec![1, 2, 3, 40, 50, 60]);
    let transparency = (*b"tRNS", vec![0, 128]);
    let image =
        Image::decode(&png(2, 1, 8, PALETTE, &[palette, transparency], &[&[0, 1]])).expect("an image");
    assert_eq!(image.pixels(), [1, 2, 3, 40, 50, 60]);
}

#[test]
fn sixteen_bits_keep_their_high_byte() {
    // As with Pillow. Rounding would give 19 and 255 where these are 18 and 254.
    let gray_alpha = png(2, 1, 16, GRAY_ALPHA, &[], &[&[0x12, 0xff, 0x80, 0, 0xfe, 0xff, 0, 0]]);
    assert_eq!(Image::decode(&gray_alpha).expect("an image").pixels(), [0x12, 0x12, 0x12, 0xfe, 0xfe, 0xfe]);
    let rgb = png(1, 1, 16, RGB, &[], &[&[0x12, 0xff, 0x80, 0x80, 0xfe, 0xff]]);
    assert_eq!(Image::decode(&rgb).expect("an image").pixels(), [0x12, 0x80, 0xfe]);
}

#[test]
fn few_bits_are_spread_over_all_levels() {
    let image = Image::decode(&png(4, 1, 1, GRAY, &[], &[&[0b0110_0000]])).expect("an image");
    assert_eq!(image.pixels(), [[0; 3], [255; 3], [255; 3], [0; 3]].as_flattened());
    let image = Image::decode(&png(4, 1, 2, GRAY, &[], &[&[0b0001_1011]])).expect("an image");
    assert_eq!(image.pixels(), [[0; 3], [85; 3], [170; 3], [255; 3]].as_flattened());
}

#[test]
fn of_an_animation_the_first_frame_counts() {
    assert_colours("a WebP", &Image::decode(&fixture("animated.webp")).expect("an image"), QUADRANTS, 0);
}

/// A JPEG with EXIF data that holds an orientation only.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let exif =
        [b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", &[orientation][..], &[0; 6]].concat();
    let segment = [&[0xff, 0xe1, 0, exif.len() as u8 + 2], &exif[..]].concat();
    [&jpeg[..2], &segment, &jpeg[2..]].concat()
}

/// Expected: Pillow's `exif_transpose`.
#[test]
fn images_stand_upright_whatever_their_exif_orientation() {
    let jpeg = fixture("quadrants.jpg");
    for (orientation, expected) in [
        (1, [0, 1, 2, 3]),
        (2, [1, 0, 3, 2]),
        (3, [3, 2, 1, 0]),
        (4, [2, 3, 0, 1]),
        (5, [0, 2, 1, 3]),
        (6, [2, 0, 3, 1]),
        (7, [3, 1, 2, 0]),
        (8, [1, 3, 0, 2]),
        // Not defined: left as they are.
        (0, [0, 1, 2, 3]),
        (9, [0, 1, 2, 3]),
    ] {
        let image = Image::decode(&with_orientation(&jpeg, orientation)).expect("an image");
        let size = if (5..=8).contains(&orientation) { (32, 48) } else { (48, 32) };
        assert_eq!((image.width(), image.height()), size, "orientation {orientation}");
        assert_colours(
            &format!("orientation {orientation}"),
            &image,
            expected.map(|index| QUADRANTS[index]),
            3,
        );
    }
}

#[test]
fn broken_exif_data_leaves_the_image_as_it_is() {
    let oriented = with_orientation(&fixture("quadrants.jpg"), 6);
    let exif = find(&oriented, b"MM\0*");
    for (place, byte) in [(exif, b'X'), (exif + 7, 0xff), (exif + 9, 0)] {
        let image = Image::decode(&patched(&oriented, place, &[byte])).expect("an image");
        assert_colours("broken EXIF", &image, QUADRANTS, 3);
    }
}

#[test]
fn a_path_that_is_no_regular_file_is_refused() {
    let folder = common::workspace();
    let error = refused("a folder", Image::open(&folder), "name the file that holds the image");
    assert!(matches!(error, ImageError::NotARegularFile { path } if path == folder));
    let missing = temporary("missing.png");
    let error = refused("nothing", Image::open(&missing), "check the path");
    assert!(matches!(error, ImageError::NotFound { path } if path == missing));
}

/// Opening a pipe would wait for its writer, reading `/dev/zero` for its end.
#[cfg(unix)]
#[test]
fn devices_and_pipes_are_refused_without_opening_them() {
    let pipe = temporary("pipe.png");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success(), "{made}");
    let result = Image::open(&pipe);
    std::fs::remove_file(&pipe).expect("removed");
    for (what, result) in [("a pipe", result), ("a device", Image::open("/dev/zero"))] {
        let error = refused(what, result, "name the file that holds the image");
        assert!(matches!(error, ImageError::NotARegularFile { .. }), "{what}: {error}");
    }
}

#[test]
fn raw_pixels_of_another_length_are_refused() {
    let advice = "rows without padding";
    for length in [0, 11, 13, 16] {
        let error = refused("RGB", Image::from_rgb8(2, 2, vec![0; length]), advice);
        let ImageError::WrongBufferLength { expected, found, channels: 3, .. } = error else {
            panic!("{error}")
        };
        assert_eq!((expected, found), (12, length as u64));
    }
    for alpha in [Alpha::Drop, Alpha::ON_WHITE] {
        let error = refused("RGBA", Image::from_rgba8(2, 2, &[0; 12], alpha), advice);
        assert!(matches!(error, ImageError::WrongBufferLength { expected: 16, found: 12, .. }), "{error}");
    }
}

#[test]
fn raw_pixels_of_impossible_sizes_are_refused() {
    let raw = |width, height| {
        [
            Image::from_rgb8(width, height, vec![0; 12]),
            Image::from_rgba8(width, height, &[0; 12], Alpha::Drop),
        ]
    };
    for (width, height) in [(0, 0), (0, 4), (4, 0)] {
        for result in raw(width, height) {
            let error = refused("no pixels", result, "use an image that has pixels");
            assert!(matches!(error, ImageError::ZeroSize { .. }), "{error}");
        }
    }
    // 3 times the product of these overflows even 64 bits.
    for (width, height) in [(u32::MAX, u32::MAX), (Image::MAX_SIDE + 1, 1), (1, u32::MAX)] {
        for result in raw(width, height) {
            let error = refused("too large", result, "make it smaller");
            assert!(matches!(error, ImageError::SideTooLong { .. }), "{error}");
        }
    }
}
