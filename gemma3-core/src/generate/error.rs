//! What can go wrong while generating.

use crate::cache::CacheError;
use crate::model::ForwardError;
use crate::sampling::SamplingError;

/// An error of a session, a stream or a batch.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The forward pass was refused or failed.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The sampling options are invalid, or the logits are not numbers.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The cache cannot be made or cannot do what was asked.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The prompt does not fit into the cache.
    #[error(
        "the prompt has {prompt_tokens} tokens, which with the {held} already there is more than the session's capacity of {capacity}; make the session larger or the prompt shorter"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that the session already held.
        held: usize,
        /// The session's capacity.
        capacity: usize,
    },
    /// The placeholder of an image among ids that are to be looked up.
    #[error(
        "id {id} at position {position} of the prompt is the placeholder of an image, but no image was given for it"
    )]
    PlaceholderWithoutImage {
        /// The placeholder.
        id: u32,
        /// Its position among the ids given.
        position: usize,
    },
    /// An image longer than what the cache takes at once.
    #[error(
        "an image of {tokens} tokens is longer than the session's chunk of {chunk}; the tokens of an image are computed together, so make the chunk larger"
    )]
    SpanLongerThanChunk {
        /// Soft tokens of the image.
        tokens: usize,
        /// The session's chunk.
        chunk: usize,
    },
    /// Nothing to continue: the session is empty.
    #[error("the session holds no tokens; prefill a prompt first (usually starting with <bos>)")]
    EmptySession,
    /// The sessions of a batch belong to different models.
    #[error("session {index} of the batch belongs to another model than session 0")]
    MixedModels {
        /// Index of the first session of another model.
        index: usize,
    },
    /// Another number of options than sessions.
    #[error("a batch of {sessions} sessions was given {options} options; expected one each")]
    BatchLength {
        /// Sessions given.
        sessions: usize,
        /// Options given.
        options: usize,
    },
}
