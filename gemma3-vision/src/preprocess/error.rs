//! Why an image was refused.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Crop;

/// Why an image was refused. Each variant has one cause.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Nothing lies at the path.
    #[error("{path}: no such file; check the path")]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused to read.
    #[error("{path}: {source}; check the file's permissions and that its disk is reachable")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The path is a device, a pipe or a folder.
    #[error("{path}: expected a regular file; name the file that holds the image")]
    NotARegularFile {
        /// The path.
        path: PathBuf,
    },
    /// There are no bytes.
    #[error("expected an image, found no bytes; check that the file was written or downloaded completely")]
    Empty,
    /// The encoded image is larger than [`ImageLimits::max_encoded_bytes`](super::ImageLimits).
    #[error(
        "expected an encoded image of at most {limit} bytes, found {found}; make it smaller or raise \
         `max_encoded_bytes`"
    )]
    TooManyBytes {
        /// The limit.
        limit: u64,
        /// Bytes of the image.
        found: u64,
    },
    /// The content is of none of the formats that are read.
    #[error("expected a PNG, JPEG or WebP image, found {found}; convert it to one of these formats")]
    UnsupportedFormat {
        /// What the content seems to be.
        found: &'static str,
    },
    /// A side is longer than [`ImageLimits`](super::ImageLimits) allow, or than
    /// [`Image::MAX_SIDE`](super::Image::MAX_SIDE).
    #[error(
        "expected an image of at most {max_width}x{max_height} pixels, found {width}x{height}; make it \
         smaller or raise `max_width` and `max_height`"
    )]
    SideTooLong {
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// The longest width.
        max_width: u32,
        /// The longest height.
        max_height: u32,
    },
    /// The image has more pixels than [`ImageLimits::max_pixels`](super::ImageLimits).
    #[error(
        "expected an image of at most {limit} pixels, found {width}x{height}; make it smaller or raise \
         `max_pixels`"
    )]
    TooManyPixels {
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// The limit.
        limit: u64,
    },
    /// The image has no pixels.
    #[error("expected at least 1x1 pixels, found {width}x{height}; use an image that has pixels")]
    ZeroSize {
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
    },
    /// The image's bytes end before the image does.
    #[error("the {format} image is cut short: {problem}; download or copy it again")]
    Truncated {
        /// `PNG`, `JPEG` or `WebP`.
        format: &'static str,
        /// What is missing.
        problem: String,
    },
    /// The decoder could make nothing of the image's bytes.
    #[error(
        "the {format} image can't be decoded: {problem}; download it again, or save it anew if other programs \
         open it"
    )]
    Damaged {
        /// `PNG`, `JPEG` or `WebP`.
        format: &'static str,
        /// What the decoder says.
        problem: String,
    },
    /// The image uses a part of its format that the decoder lacks.
    #[error("the {format} image is of an unsupported kind: {problem}; save it anew as an 8-bit RGB PNG")]
    UnsupportedFeature {
        /// `PNG`, `JPEG` or `WebP`.
        format: &'static str,
        /// What the decoder says.
        problem: String,
    },
    /// The image carries far more data besides its pixels than its file is long.
    #[error(
        "the {format} image has metadata that takes more memory than the file allows for; save it anew without \
         metadata"
    )]
    TooMuchMetadata {
        /// `PNG`, `JPEG` or `WebP`.
        format: &'static str,
    },
    /// A buffer of raw pixels is not as long as its size asks for.
    #[error(
        "expected {expected} bytes for {width}x{height} pixels of {channels} bytes, found {found}; pass rows \
         without padding, top row first"
    )]
    WrongBufferLength {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes a pixel.
        channels: u32,
        /// Bytes that there should be.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// A crop has no pixels or reaches over the border.
    #[error("expected a crop inside of {width}x{height} pixels, found {crop:?}; clip it to the image")]
    CropOutside {
        /// The crop.
        crop: Crop,
        /// The image's width in pixels.
        width: u32,
        /// The image's height in pixels.
        height: u32,
    },
}

impl ImageError {
    /// An I/O error, telling apart a file that isn't there.
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::NotFound { path },
            _ => Self::Io { path, source },
        }
    }
}
