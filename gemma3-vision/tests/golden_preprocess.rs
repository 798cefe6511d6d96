//! Image preprocessing against Hugging Face transformers with Pillow 12: the same pixels, the same resized
//! levels, the same crops.

#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;

use common::{Tensors, assert_close, golden, golden_json, numbers};
use gemma3_vision::preprocess::{Alpha, Crop, Image, PanAndScan, Preprocessor, PreprocessorConfig};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Pixel values are the reference's to the last bit: the same operations in the same precision, and IEEE 754
/// leaves no choice.
const PIXEL_VALUES: f32 = 0.0;

/// The most that our JPEG decoder's levels differ from those of Pillow's libjpeg-turbo. Measured: 3 on both files
/// (neither has chroma subsampling), on 1.8 % and 1.5 % of the levels.
const JPEG_LEVELS: u8 = 3;

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn preprocessor(image_size: usize) -> Preprocessor {
    Preprocessor::new(PreprocessorConfig { image_size, ..PreprocessorConfig::gemma3() })
        .expect("a valid size")
}

fn open(name: &str) -> Option<Image> {
    let path = golden(&format!("images/{name}"))?;
    Some(Image::open(&path).unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// What Pillow decodes of a file: the file itself, or for JPEG the reference's pixels.
fn open_exactly(name: &str) -> Option<Image> {
    match name.strip_suffix(".jpg") {
        Some(stem) => open(&format!("{stem}.decoded.png")),
        None => open(name),
    }
}

/// An RGBA file with the alpha that [`Image::open`] drops, as raw pixels.
fn open_rgba(name: &str) -> Option<(u32, u32, Vec<u8>)> {
    let bytes = std::fs::read(golden(&format!("images/{name}"))?).expect("a readable golden");
    let image = image::load_from_memory(&bytes).expect("a golden").into_rgba8();
    Some((image.width(), image.height(), image.into_raw()))
}

/// The image of a key of `images.json`, or `None` where the key is a reading that we don't share: 16-bit gray
/// that Pillow saturates to white, and JPEGs on their side.
fn image_of(key: &str) -> Option<Image> {
    match key.split_once('#') {
        Some((name, "on-white")) => {
            let (width, height, pixels) = open_rgba(name)?;
            Some(Image::from_rgba8(width, height, &pixels, Alpha::ON_WHITE).expect("an image"))
        }
        Some((name, "high-byte")) => open(name),
        Some((_, "ignoring-exif")) => None,
        Some((_, reading)) => panic!("{key}: unknown reading {reading}"),
        None if key.starts_with("gray16") => None,
        None => open_exactly(key),
    }
}

/// Every image of the goldens that is there, with its key and entry.
fn images(index: &Value) -> Vec<(&String, &Value, Image)> {
    let entries = index["images"].as_object().expect("images");
    let images: Vec<_> =
        entries.iter().filter_map(|(key, entry)| Some((key, entry, image_of(key)?))).collect();
    assert!(images.len() >= 6, "only {} of {} images are there", images.len(), entries.len());
    images
}

/// \[height, width, 3\] to \[3, height, width\].
fn planes(image: &Image) -> Vec<u8> {
    (0..3).flat_map(|channel| image.pixels().iter().skip(channel).step_by(3).copied()).collect()
}

/// What the goldens keep of large images: `[:, 5::37, 3::37]` of \[3, side, side\].
fn sample(values: &[f32], side: usize) -> Vec<f32> {
    let places = |first: usize| (first..side).step_by(37);
    let places = places(5).flat_map(|y| places(3).map(move |x| y * side + x));
    let places: Vec<usize> = places.collect();
    values.chunks_exact(side * side).flat_map(|plane| places.iter().map(|place| plane[*place])).collect()
}

fn means(values: &[f32], channels: usize) -> Vec<f64> {
    let mean = |plane: &[f32]| plane.iter().map(|value| f64::from(*value)).sum::<f64>() / plane.len() as f64;
    values.chunks_exact(values.len() / channels).map(mean).collect()
}

#[test]
fn decoded_pixels_equal_pillows() {
    let Some(index) = golden_json("images.json") else { return };
    for (key, entry, image) in images(&index) {
        assert_eq!(serde_json::json!([image.width(), image.height()]), entry["rgb_size"], "{key}");
        assert_eq!(sha256(image.pixels()), entry["rgb_sha256"], "{key}");
    }
}

#[test]
fn resized_levels_equal_pillows_bit_for_bit() {
    let Some(index) = golden_json("images.json") else { return };
    for (key, entry, image) in images(&index) {
        for (size, golden) in entry["sizes"].as_object().expect("sizes") {
            let resized = preprocessor(size.parse().expect("a size")).resize(&image);
            assert_eq!(sha256(&planes(&resized)), golden["levels_sha256"], "{key} at {size}");
        }
    }
}

#[test]
fn pixel_values_equal_the_reference() {
    let (Some(index), Some(tensors)) = (golden_json("images.json"), Tensors::open("images.safetensors"))
    else {
        return;
    };
    for (key, entry, image) in images(&index) {
        let small = preprocessor(56).pixel_values(&image);
        assert_close(key, &small, &tensors.values(&format!("{key}.56.pixel_values")), PIXEL_VALUES);
        let large = preprocessor(896).pixel_values(&image);
        assert_close(key, &sample(&large, 896), &tensors.values(&format!("{key}.896.sample")), PIXEL_VALUES);
        for (size, values) in [("56", &small), ("896", &large)] {
            let expected = numbers(&entry["sizes"][size]["mean"]);
            for (found, expected) in means(values, 3).into_iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{key} at {size}: mean {found}, expected {expected}"
                );
            }
        }
    }
}

/// The decoders round differently. What the model sees then differs by as many levels.
#[test]
fn jpegs_decode_upright_to_pillows_pixels_within_three_levels() {
    let mut decoded = 0;
    for name in ["exif6_190x130", "wide_1100x300"] {
        let (Some(found), Some(expected)) =
            (open(&format!("{name}.jpg")), open(&format!("{name}.decoded.png")))
        else {
            continue;
        };
        assert_eq!((found.width(), found.height()), (expected.width(), expected.height()), "{name}");
        let differences: Vec<u8> =
            found.pixels().iter().zip(expected.pixels()).map(|(a, b)| a.abs_diff(*b)).collect();
        let differing = differences.iter().filter(|difference| **difference > 0).count();
        let most = differences.iter().copied().max().expect("pixels");
        println!("{name}: at most {most} levels, {differing} of {} differ", differences.len());
        assert!(most <= JPEG_LEVELS, "{name}: {most} levels");
        decoded += 1;
    }
    assert!(decoded == 2 || golden("images").is_none());
}

#[test]
fn pan_and_scan_cuts_where_the_reference_cuts() {
    let Some(index) = golden_json("images.json") else { return };
    let options = PanAndScan::default();
    let golden_options = &index["pan_and_scan_options"];
    assert_eq!(golden_options["pan_and_scan_min_crop_size"], options.min_crop_size);
    assert_eq!(golden_options["pan_and_scan_max_num_crops"], options.max_num_crops);
    assert_eq!(golden_options["pan_and_scan_min_ratio_to_activate"], options.min_ratio_to_activate);
    let cases = index["pan_and_scan_boxes"].as_array().expect("boxes");
    assert!(!cases.is_empty());
    for case in cases {
        let side =
            |name: &str| case[name].as_u64().and_then(|side| u32::try_from(side).ok()).expect("a side");
        let (width, height) = (side("width"), side("height"));
        let crops: Vec<[u32; 4]> = options
            .crops(width, height)
            .iter()
            .map(|crop| [crop.x, crop.y, crop.width, crop.height])
            .collect();
        assert_eq!(serde_json::json!(crops), case["crops_xywh"], "{width}x{height}");
    }
}

#[test]
fn the_views_of_pan_and_scan_equal_the_reference() {
    let (Some(index), Some(tensors)) = (golden_json("images.json"), Tensors::open("images.safetensors"))
    else {
        return;
    };
    let preprocessor = preprocessor(896);
    let cases = index["pan_and_scan"].as_object().expect("images with crops");
    let mut compared = 0;
    for (name, golden) in cases {
        let Some(image) = open_exactly(name) else { continue };
        let views = preprocessor.views(&image, Some(&PanAndScan::default()));
        assert_eq!(views.len() as u64, 1 + golden["num_crops"].as_u64().expect("a count"), "{name}");
        assert_eq!((views[0].crop, &views[0].image), (None, &image), "{name}: the original comes first");
        let mut samples = Vec::new();
        for (view, expected) in views.iter().zip(golden["mean"].as_array().expect("means")) {
            let values = preprocessor.pixel_values(&view.image);
            for (found, expected) in means(&values, 3).into_iter().zip(numbers(expected)) {
                assert!((found - expected).abs() < 1e-6, "{name} {:?}: mean {found}", view.crop);
            }
            samples.extend(sample(&values, 896));
        }
        assert_close(name, &samples, &tensors.values(&format!("{name}.pan_and_scan.sample")), PIXEL_VALUES);
        compared += 1;
    }
    assert!(compared == cases.len() || golden("images").is_none());
}

#[test]
fn without_pan_and_scan_only_the_original_is_viewed() {
    let image = Image::from_rgb8(600, 300, vec![7; 3 * 600 * 300]).expect("an image");
    let preprocessor = preprocessor(56);
    let views = preprocessor.views(&image, None);
    assert_eq!(views.iter().map(|view| view.crop).collect::<Vec<_>>(), [None]);
    let views = preprocessor.views(&image, Some(&PanAndScan::default()));
    let crops: Vec<_> = views.iter().map(|view| view.crop).collect();
    let crop = |x| Some(Crop { x, y: 0, width: 300, height: 300 });
    assert_eq!(crops, [None, crop(0), crop(300)]);
}

#[test]
fn the_tiny_models_preprocessor_config_is_read() {
    let Some(path) = golden("tiny-multimodal/preprocessor_config.json") else { return };
    let text = std::fs::read_to_string(path).expect("a readable golden");
    let expected = PreprocessorConfig { image_size: 56, ..PreprocessorConfig::gemma3() };
    assert_eq!(PreprocessorConfig::from_json(&text), Ok(expected));
}
