//! What can go wrong between logits and a token id, each with its one cause.

use thiserror::Error;

/// An error of the sampling module.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum SamplingError {
    /// A field of [`SamplingOptions`](super::SamplingOptions) is outside its range (or not a number).
    #[error("sampling option `{field}` must be {expected}, found {found}; correct the option")]
    InvalidOption {
        /// Name of the field, as in `generation_config.json`.
        field: &'static str,
        /// The values that are allowed.
        expected: &'static str,
        /// The value that was given.
        found: f32,
    },
    /// An entry of `logit_bias` is NaN or +infinity.
    #[error(
        "`logit_bias` of token {id} must be a number (or -infinity to forbid the token), \
         found {found}; correct the bias"
    )]
    InvalidBias {
        /// The token whose bias is wrong.
        id: u32,
        /// The bias that was given.
        found: f32,
    },
    /// A token id that a caller named has no logit.
    #[error(
        "token {id} of {what} has no logit: the model has {vocab_size} tokens (0 to {vocab_size} - 1); \
         use ids of this model's tokenizer"
    )]
    TokenOutOfRange {
        /// Where the id was named.
        what: &'static str,
        /// The id.
        id: u32,
        /// Number of logits.
        vocab_size: usize,
    },
    /// There are no logits at all.
    #[error("there are no logits to sample from: expected one for each token of the vocabulary")]
    NoLogits,
    /// The model produced NaN.
    #[error(
        "the logit of token {id} is NaN: the weights or the device computed nonsense; \
         check the checkpoint, or run with `Exact` numerics to see whether a faster mode is at fault"
    )]
    NanLogit {
        /// The lowest id with a NaN logit.
        id: u32,
    },
    /// A logit is +infinity: the model overflowed, or an extreme option made it so.
    #[error(
        "the logit of token {id} is infinite {stage}, expected a finite number; \
         check the checkpoint if it came from the model, else use less extreme sampling options"
    )]
    InfiniteLogit {
        /// The lowest id with an infinite logit.
        id: u32,
        /// Whether it came from the model or out of the processors.
        stage: &'static str,
    },
    /// Every token is suppressed, forbidden by a bias, or has a logit of -infinity.
    #[error(
        "no token is left to sample: all {vocab_size} logits are -infinity; \
         suppress or forbid fewer tokens"
    )]
    NothingLeft {
        /// Number of logits.
        vocab_size: usize,
    },
}

impl SamplingError {
    /// A logit that is infinite, as the model gave it or after the options were applied.
    pub(crate) fn infinite(id: u32, processed: bool) -> Self {
        let stage = if processed { super::scan::PROCESSED } else { super::scan::RAW };
        Self::InfiniteLogit { id, stage }
    }
}
