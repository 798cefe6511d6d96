//! The vectors of an image and their places in a prompt.

use std::ops::Range;

use burn::tensor::Tensor;

/// What the decoder sees of one image: \[tokens, hidden\], f32 (256 tokens in the released models).
///
/// They enter the first layer as they are, without the scaling of text embeddings.
#[derive(Debug, Clone)]
pub struct SoftTokens {
    vectors: Tensor<2>,
}

/// Prompt vectors and images that do not fit each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SoftTokensError {
    /// The prompt has another number of placeholders than the images have soft tokens.
    #[error(
        "the prompt has {placeholders} image placeholders, but its images have {soft_tokens} soft tokens; each image needs one run of placeholders"
    )]
    CountMismatch {
        /// Placeholders in the prompt.
        placeholders: usize,
        /// Soft tokens of all images.
        soft_tokens: usize,
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
    /// The number of prompt vectors is not the number of ids, or their width is not that of the images.
    #[error("the prompt's vectors are {found:?}, expected {expected:?} (ids, width of the soft tokens)")]
    ShapeMismatch {
        /// Shape that ids and images ask for.
        expected: [usize; 2],
        /// Shape of the prompt's vectors.
        found: [usize; 2],
    },
}

/// A prompt whose placeholders are filled.
#[derive(Debug, Clone)]
pub struct PlacedPrompt {
    /// \[tokens, hidden\].
    pub vectors: Tensor<2>,
    /// The rows of each image, in order.
    pub images: Vec<Range<usize>>,
}

impl SoftTokens {
    /// From vectors \[tokens, hidden\].
    pub fn new(vectors: Tensor<2>) -> Self {
        Self { vectors }
    }

    /// Number of soft tokens.
    pub fn len(&self) -> usize {
        self.vectors.dims()[0]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// \[tokens, hidden\].
    pub fn vectors(&self) -> &Tensor<2> {
        &self.vectors
    }
}

/// Replaces the vectors at the placeholders of a prompt by the soft tokens of its images, in order.
///
/// `embeddings` \[ids, hidden\] are the scaled text embeddings of `ids`
/// ([`Decoder::embed`](gemma3_core::model::Decoder::embed)); `placeholder` is the id of
/// `<image_soft_token>`. Each maximal run of placeholders is one image.
///
/// # Errors
///
/// Runs that do not match the images, or vectors that do not match the ids.
pub fn place(
    embeddings: Tensor<2>,
    ids: &[u32],
    placeholder: u32,
    images: &[SoftTokens],
) -> Result<PlacedPrompt, SoftTokensError> {
    let runs = runs(ids, placeholder);
    check(&embeddings, ids, &runs, images)?;
    let mut pieces = Vec::with_capacity(2 * runs.len() + 1);
    let mut done = 0;
    for (run, image) in runs.iter().zip(images) {
        if run.start > done {
            pieces.push(embeddings.clone().narrow(0, done, run.start - done));
        }
        pieces.push(image.vectors.clone());
        done = run.end;
    }
    if done < ids.len() {
        pieces.push(embeddings.clone().narrow(0, done, ids.len() - done));
    }
    let vectors = if pieces.is_empty() { embeddings } else { Tensor::cat(pieces, 0) };
    Ok(PlacedPrompt { vectors, images: runs })
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

fn check(
    embeddings: &Tensor<2>,
    ids: &[u32],
    runs: &[Range<usize>],
    images: &[SoftTokens],
) -> Result<(), SoftTokensError> {
    let found = embeddings.dims();
    for width in images.iter().map(|image| image.vectors.dims()[1]).chain([found[1]]) {
        let expected = [ids.len(), width];
        if found != expected {
            return Err(SoftTokensError::ShapeMismatch { expected, found });
        }
    }
    if runs.len() != images.len() {
        let placeholders = runs.iter().map(Range::len).sum();
        let soft_tokens = images.iter().map(SoftTokens::len).sum();
        return Err(SoftTokensError::CountMismatch { placeholders, soft_tokens });
    }
    for (image, (run, tokens)) in runs.iter().zip(images).enumerate() {
        if run.len() != tokens.len() {
            let (soft_tokens, placeholders) = (tokens.len(), run.len());
            return Err(SoftTokensError::RunMismatch { image, soft_tokens, placeholders });
        }
    }
    Ok(())
}
