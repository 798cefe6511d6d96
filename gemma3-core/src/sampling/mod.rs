//! From the logits of one position to one token id, on the host.
//!
//! This module knows logits, token ids and numbers; it knows nothing of models, devices or text.
//! The steps run in the order of Hugging Face's `generate`, with the ones that Hugging Face lacks
//! placed beside their kin:
//!
//! | step | runs when greedy | source |
//! |---|---|---|
//! | suppressed ids get no probability | yes | ids without a token |
//! | `repetition_penalty` | yes | Hugging Face (CTRL, <https://arxiv.org/abs/1909.05858>) |
//! | `presence_penalty`, `frequency_penalty` | yes | OpenAI, vLLM |
//! | `logit_bias` | yes | OpenAI; after the penalties, so that a bias means what it says |
//! | `temperature` | no | Hugging Face |
//! | `top_k` | no | Hugging Face (<https://arxiv.org/abs/1805.04833>) |
//! | `top_p` | no | Hugging Face (<https://arxiv.org/abs/1904.09751>) |
//! | `min_p` | no | Hugging Face (<https://arxiv.org/abs/2407.01082>) |
//! | draw, or take the largest logit | | |
//!
//! Hugging Face's own `sequence_bias` stands before its repetition penalty; ours stands after, as
//! said above. With one of the two alone the results are equal.
//!
//! [`Sampler`] is the whole chain; [`processors`] and [`Candidates`] are its steps, for research;
//! [`LogProbs`] reads log-probabilities off the raw logits.
//!
//! Random numbers are a pure function of [`RandomKey`]: the seed, the sequence and the position. A
//! sequence therefore draws the same tokens alone, in a batch, after a fork, or resumed from a
//! snapshot.
//!
//! # Cost
//! One step over `V` logits (262,144 in Gemma 3) is a handful of linear passes. `top_k` selects
//! its threshold without sorting. `top_p` without a small `top_k` before it computes `V`
//! exponentials, discards in one pass the tokens that provably fall in the dropped tail, and
//! bisects the rest: O(V) in all, never a sort of the vocabulary.

mod candidates;
mod error;
mod history;
mod logprobs;
mod options;
pub mod processors;
mod random;
mod sampler;
mod scan;
#[cfg(test)]
mod tests;

pub use candidates::Candidates;
pub use error::SamplingError;
pub use history::TokenHistory;
pub use logprobs::{LogProbs, TokenLogprob, logprob, top_logits, top_logprobs};
pub use options::{GREEDY_BELOW_TEMPERATURE, SamplingOptions};
pub use random::{RandomKey, fresh_seed, uniform};
pub use sampler::Sampler;
