//! Writes what the model gets to see of an image: the whole of it at the encoder's size, and the crops of
//! pan-and-scan. No model is needed.
//!
//! `cargo run --release --example image_views -- photo.jpg --out FOLDER`; with `--draw` in place of a file it draws a
//! landscape itself, which is how the pictures of `docs/images.md` were made.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use common::{ImageArguments, Outcome, out};
use gemma3::vision::preprocess::{Preprocessor, PreprocessorConfig};
use gemma3::{Image, PanAndScan};

/// Writes the views that the model gets of an image.
#[derive(Debug, Parser)]
struct Arguments {
    /// The image (PNG, JPEG, WebP).
    #[arg(required_unless_present = "draw", conflicts_with = "draw")]
    image: Option<PathBuf>,

    /// Draw a landscape of 1280 x 400 and show that.
    #[arg(long)]
    draw: bool,

    /// Where to write the pictures.
    #[arg(long, default_value = ".")]
    out: PathBuf,

    #[command(flatten)]
    reading: ImageArguments,
}

fn main() -> ExitCode {
    common::run(run)
}

fn run(arguments: &Arguments) -> Outcome {
    let image = match &arguments.image {
        Some(path) => arguments.reading.open(path)?,
        None => landscape()?,
    };
    std::fs::create_dir_all(&arguments.out)
        .map_err(|error| format!("cannot make the folder {}: {error}", arguments.out.display()))?;
    if arguments.draw {
        write(&image, &arguments.out.join("original.jpg"))?;
    }
    let preprocessor = Preprocessor::new(PreprocessorConfig::gemma3())?;
    let views = preprocessor.views(&image, Some(&PanAndScan::default()));
    let (whole, crops) = views.split_first().ok_or("nothing to show")?;
    write(&preprocessor.resize(&whole.image), &arguments.out.join("whole.jpg"))?;
    for (number, view) in (1..).zip(crops) {
        write(&preprocessor.resize(&view.image), &arguments.out.join(format!("crop-{number}.jpg")))?;
    }
    // All pictures are there when somebody reads of them, or doesn't.
    for (number, crop) in (1..).zip(crops.iter().filter_map(|view| view.crop)) {
        out!("crop {number}: {} x {} at ({}, {})", crop.width, crop.height, crop.x, crop.y)?;
    }
    let (width, height, crops) = (image.width(), image.height(), crops.len());
    out!("{width} x {height}: the whole and {crops} crops, in {}", arguments.out.display())?;
    Ok(())
}

fn write(image: &Image, path: &Path) -> Outcome {
    encode(image, path).map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

fn encode(image: &Image, path: &Path) -> Outcome {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, 75);
    let colours = image::ExtendedColorType::Rgb8;
    image::ImageEncoder::write_image(encoder, image.pixels(), image.width(), image.height(), colours)?;
    Ok(file.flush()?)
}

/// Hills under a low sun, with a house and a row of trees.
fn landscape() -> Result<Image, gemma3::ImageError> {
    const WIDTH: u32 = 1280;
    const HEIGHT: u32 = 400;
    let mut pixels = Vec::with_capacity((WIDTH * HEIGHT * 3) as usize);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            pixels.extend(colour(x as f32, y as f32));
        }
    }
    Image::from_rgb8(WIDTH, HEIGHT, pixels)
}

fn colour(x: f32, y: f32) -> [u8; 3] {
    let ridge = |base: f32, height: f32, length: f32, shift: f32| {
        base - height * ((x / length + shift).sin() + 0.4 * (2.3 * x / length + shift).sin())
    };
    let is_within = |left: f32, top: f32, width: f32, height: f32| {
        (left..left + width).contains(&x) && (top..top + height).contains(&y)
    };
    // From near to far.
    let meadow = ridge(330.0, 10.0, 260.0, 0.5);
    for tree in 0..9 {
        let (left, foot) = (60.0 + 34.0 * tree as f32, 345.0);
        let size = 26.0 + 9.0 * (tree % 3) as f32;
        if y < foot && y > foot - 3.0 * size && (x - left).abs() < (y - foot + 3.0 * size) / 5.0 {
            return [28, 74 + 10 * (tree % 3) as u8, 46];
        }
    }
    let roof = (y - 225.0) * 1.4;
    if is_within(820.0, 225.0, 160.0, 50.0) && (x - 900.0).abs() < roof {
        return [150, 54, 42];
    }
    if is_within(852.0, 300.0, 26.0, 45.0) || is_within(920.0, 292.0, 24.0, 22.0) {
        return [246, 214, 120];
    }
    if is_within(832.0, 275.0, 136.0, 72.0) {
        return [222, 204, 178];
    }
    if y > meadow {
        let stripe = ((x + 3.0 * y) / 22.0).sin() * 8.0;
        return [(104.0 + stripe) as u8, (150.0 + stripe - (y - meadow) / 3.0) as u8, 70];
    }
    if y > ridge(262.0, 26.0, 170.0, 2.0) {
        return [72, 110, 92];
    }
    if y > ridge(215.0, 38.0, 230.0, 4.2) {
        return [104, 128, 140];
    }
    let (dx, dy) = (x - 1080.0, y - 110.0);
    if dx * dx + dy * dy < 46.0 * 46.0 {
        return [255, 236, 170];
    }
    let height = y / 260.0;
    [(120.0 + 128.0 * height) as u8, (160.0 + 50.0 * height) as u8, (214.0 - 60.0 * height) as u8]
}
