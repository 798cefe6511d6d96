//! From a model to a sequence of tokens: sessions, streams, batches.
//!
//! A [`Session`] is one sequence with its cache. [`Session::generate`] gives a [`TokenStream`], an
//! iterator that computes one token each time it is asked; dropping it stops. [`generate_batch`] steps
//! several sessions together, reading the weights once for all of them.
//!
//! This module knows token ids only. Text, stop strings and chat turns are the facade's.

mod batch;
mod error;
#[cfg(feature = "cube")]
mod gpu;
#[cfg(feature = "cube")]
mod gpu_batch;
mod options;
mod session;
mod stepper;
mod stream;
mod warm_up;

pub use batch::{Completion, generate_batch, generate_batch_with};
pub use error::GenerateError;
pub use options::{FinishReason, GenerateOptions};
pub use session::{ScoredToken, Session, SessionOptions};
pub use stepper::Token;
pub use stream::TokenStream;
pub use warm_up::{WarmUpProgress, warm_up, warm_up_batch};
