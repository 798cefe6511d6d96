//! From a model to a sequence of tokens: sessions, streams, batches.
//!
//! A [`Session`] is one sequence with its cache. [`Session::generate`] gives a [`TokenStream`], an
//! iterator that computes one token each time it is asked; dropping it stops. [`generate_batch`] steps
//! several sessions together, reading the weights once for all of them. Both are faces of the one loop, the
//! [`Engine`], which sessions join and leave while it runs.
//!
//! This module knows token ids only, and of devices what `Runner` (module `run`) says. Text, stop strings and
//! chat turns are the facade's.

mod batch;
mod engine;
mod error;
mod options;
mod scoring;
mod session;
mod slot;
mod stream;
mod warm_up;

pub use batch::{Completion, generate_batch, generate_batch_with};
pub use engine::{Engine, Event, SlotId};
pub use error::GenerateError;
pub use options::{ContinueOptions, FinishReason};
pub use scoring::ScoredToken;
pub use session::{Session, SessionOptions};
pub use slot::Token;
pub use stream::TokenStream;
pub use warm_up::{WarmUpProgress, warm_up, warm_up_batch};
