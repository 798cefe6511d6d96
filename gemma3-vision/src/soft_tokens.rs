//! The vectors of an image and their places in a prompt.

use std::ops::Range;

use gemma3_core::device::DeviceFailed;
use gemma3_core::model::{EmbeddedSpan, Vectors};

/// What the decoder sees of one image: \[tokens, hidden\], f32 (256 tokens in the released models).
///
/// They enter the first layer as they are, without the scaling of text embeddings. They lie where they were made; a
/// decoder on the same device takes them from there. Cloning shares them.
#[derive(Debug, Clone)]
pub struct SoftTokens {
    vectors: Vectors,
}

/// Placeholders and images that do not fit each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SoftTokensError {
    /// The prompt has another number of runs of placeholders than there are images.
    #[error(
        "the prompt has {runs} runs of image placeholders, but {images} images (crops counted) were given; each image needs one run"
    )]
    CountMismatch {
        /// Runs of placeholders in the prompt.
        runs: usize,
        /// Images given, each crop counted as one.
        images: usize,
    },
    /// A run of placeholders has another length than the image that is to fill it.
    #[error(
        "image {image} has {soft_tokens} soft tokens, but its run of placeholders is {placeholders} long"
    )]
    RunMismatch {
        /// Index of the image.
        image: usize,
        /// Its soft tokens.
        soft_tokens: usize,
        /// Placeholders in the run.
        placeholders: usize,
    },
}

impl SoftTokens {
    /// From vectors \[tokens, hidden\].
    pub fn new(vectors: Vectors) -> Self {
        Self { vectors }
    }

    /// Number of soft tokens.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Width of each: the decoder's `hidden_size`.
    pub fn width(&self) -> usize {
        self.vectors.width()
    }

    /// \[tokens, hidden\].
    pub fn vectors(&self) -> &Vectors {
        &self.vectors
    }

    /// The values, \[tokens, hidden\], row-major. Waits for the device.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn to_vec(&self) -> Result<Vec<f32>, DeviceFailed> {
        self.vectors.to_vec()
    }
}

/// Gives each maximal run of `placeholder` (the id of `<image_soft_token>`) in `ids` the soft tokens of one
/// image, in order: what [`Session::append_with`](gemma3_core::generate::Session::append_with) takes.
///
/// # Errors
///
/// Runs that do not match the images in number or length.
pub fn place(
    ids: &[u32],
    placeholder: u32,
    images: &[SoftTokens],
) -> Result<Vec<EmbeddedSpan>, SoftTokensError> {
    let runs = runs(ids, placeholder);
    if runs.len() != images.len() {
        return Err(SoftTokensError::CountMismatch { runs: runs.len(), images: images.len() });
    }
    let span = |(image, (run, tokens)): (usize, (Range<usize>, &SoftTokens))| {
        if run.len() != tokens.len() {
            let (soft_tokens, placeholders) = (tokens.len(), run.len());
            return Err(SoftTokensError::RunMismatch { image, soft_tokens, placeholders });
        }
        Ok(EmbeddedSpan { start: run.start, vectors: tokens.vectors.clone() })
    };
    runs.into_iter().zip(images).enumerate().map(span).collect()
}

/// The maximal runs of an id.
fn runs(ids: &[u32], placeholder: u32) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (row, _) in ids.iter().enumerate().filter(|(_, id)| **id == placeholder) {
        match runs.last_mut() {
            Some(run) if run.end == row => run.end += 1,
            _ => runs.push(row..row + 1),
        }
    }
    runs
}
