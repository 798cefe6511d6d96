//! Image files that are named on the command line.

use std::error::Error;
use std::path::Path;

use gemma3::{Alpha, Image, ImageError, ImageOptions};

/// How image files are read.
#[derive(Debug, Clone, clap::Args)]
pub struct ImageArguments {
    /// What transparent images are laid on: white, black or #rrggbb (quoted, or without the #). Without it the
    /// colours under transparent pixels show, which is what the models have been given.
    #[arg(long, value_name = "COLOUR", value_parser = parse_background)]
    pub background: Option<Alpha>,
}

impl ImageArguments {
    /// Reads an image file. The error names it.
    pub fn open(&self, path: &Path) -> Result<Image, Box<dyn Error>> {
        let options = ImageOptions { alpha: self.background.unwrap_or_default(), ..ImageOptions::default() };
        Image::open_with(path, &options).map_err(|error| match error {
            ImageError::NotFound { .. } | ImageError::Io { .. } | ImageError::NotARegularFile { .. } => {
                error.into()
            }
            error => format!("{}: {error}", path.display()).into(),
        })
    }
}

fn parse_background(name: &str) -> Result<Alpha, String> {
    match name {
        "white" => return Ok(Alpha::ON_WHITE),
        "black" => return Ok(Alpha::On([0; 3])),
        _ => {}
    }
    let digits = name.strip_prefix('#').unwrap_or(name);
    let is_hexadecimal = digits.len() == 6 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    match u32::from_str_radix(digits, 16) {
        Ok(colour) if is_hexadecimal => {
            let [_, red, green, blue] = colour.to_be_bytes();
            Ok(Alpha::On([red, green, blue]))
        }
        _ => Err("expected white, black or six hexadecimal digits such as #ffe0c0".to_owned()),
    }
}
