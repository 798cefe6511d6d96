//! How an image is read.

use super::{Alpha, ImageLimits};

/// How an image is read from a file or from encoded bytes.
///
/// ```no_run
/// use gemma3_vision::{Alpha, Image, ImageOptions};
///
/// # fn main() -> Result<(), gemma3_vision::ImageError> {
/// let on_white = ImageOptions { alpha: Alpha::ON_WHITE, ..ImageOptions::default() };
/// let logo = Image::open_with("logo.png", &on_white)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageOptions {
    /// What becomes of transparency. Default: [`Alpha::Drop`], as in transformers.
    pub alpha: Alpha,
    /// How large it may be.
    pub limits: ImageLimits,
}
