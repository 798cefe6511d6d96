//! Why a forward pass was refused or failed.

use crate::cache::CacheError;
use crate::device::DeviceFailed;
use crate::ops::MachineError;

/// Why a forward pass was refused or failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// No tokens were given.
    #[error("no tokens were given; a prompt needs at least one (usually <bos>)")]
    EmptyInput,
    /// An id outside of the embedding table.
    #[error(
        "token id {id} is not in the model's vocabulary of {vocab_size}; was the text encoded with another model's tokenizer?"
    )]
    UnknownToken {
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
    /// Vectors of another model's width.
    #[error("the embeddings are {found} wide, but the model's hidden_size is {expected}")]
    WrongWidth {
        /// The model's `hidden_size`.
        expected: usize,
        /// Width of the vectors.
        found: usize,
    },
    /// Spans of given vectors that lie outside of the tokens, overlap, or are out of order.
    #[error("vectors are given for positions {span:?} of {tokens} tokens, after those up to {after}")]
    SpanOutOfOrder {
        /// The positions.
        span: std::ops::Range<usize>,
        /// Where the span before it ends.
        after: usize,
        /// Tokens that they belong to.
        tokens: usize,
    },
    /// The cache cannot take the tokens.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A trace asks to add a vector where there is no such place, or one of another width.
    #[error("the trace adds {found} numbers to {place}, where the stream is {expected} wide")]
    WrongEdit {
        /// Where.
        place: String,
        /// Width of the stream there; 0 where there is none.
        expected: usize,
        /// Numbers given.
        found: usize,
    },
    /// The device failed, for instance for lack of memory.
    #[error(transparent)]
    Device(#[from] DeviceFailed),
    /// A state that this library rules out: not the caller's fault.
    #[error("a bug in gemma3: {what}; please report it, with the model, the device and the options used")]
    Bug {
        /// What was found that cannot be.
        what: &'static str,
    },
}

impl From<MachineError> for ForwardError {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Device(failed) => Self::Device(failed),
            MachineError::Bug { what } => Self::Bug { what },
        }
    }
}
