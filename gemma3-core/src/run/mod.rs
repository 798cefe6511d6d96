//! Rows in, outcomes out: the one door between those who decide whose tokens are computed and a model.
//!
//! ```text
//! generate ── Row, Row, Row ──> Runner::send ──> Receipt ── wait, or await ──> Outcome, Outcome, Outcome
//! ```
//!
//! Sending never waits for a device; a [`Receipt`] does, when it is asked to. (CPUs compute while they are sent to.)

mod check;
mod error;
mod receipt;
mod trace;

pub(crate) use check::{check_input, check_row};
pub use error::ForwardError;
pub(crate) use receipt::Receipt;
pub use trace::{Activation, Trace, TracedTensor};

use std::fmt;

use burn::tensor::Device;

use crate::cache::{CacheDtype, CacheError, CacheOptions, KvCache};
use crate::config::TextConfig;
use crate::ops::machine::{Choice, Input, Wanted};

/// The next tokens of one sequence, and what is wanted of them.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    /// What has been computed of the sequence; the tokens are appended to it.
    pub(crate) cache: &'a mut KvCache,
    pub(crate) input: Input<'a>,
    pub(crate) wanted: Wanted<'a>,
}

impl Row<'_> {
    /// The position of the first of its tokens. A token of one's own follows what is known; one that the device holds, what
    /// runs ahead of that.
    pub(crate) fn position(&self) -> usize {
        match self.input {
            Input::Chosen => self.cache.len() + self.cache.ahead(),
            _ => self.cache.len(),
        }
    }
}

/// What runs rows of any number of sequences.
pub(crate) trait Runner: fmt::Debug + Send + Sync {
    /// For tests that look inside.
    #[cfg(test)]
    #[cfg_attr(not(feature = "cube"), allow(dead_code))]
    fn as_any(&self) -> &dyn std::any::Any;

    /// The model's sizes.
    fn config(&self) -> &TextConfig;

    /// The device that computes.
    fn device(&self) -> &Device;

    /// Bytes of the weights in memory.
    fn weight_bytes(&self) -> u64;

    /// The dtype of caches for which none is asked.
    fn cache_dtype(&self) -> CacheDtype;

    /// A new, empty cache for one sequence.
    fn new_cache(&self, options: &CacheOptions) -> Result<KvCache, CacheError>;

    /// See [`Machine::capacity_in_batch`](crate::ops::machine::Machine::capacity_in_batch).
    fn capacity_in_batch(&self, own: usize, longest: usize) -> usize;

    /// See [`Machine::alike_tokens`](crate::ops::machine::Machine::alike_tokens).
    fn alike_tokens(&self) -> usize;

    /// Whether tokens of so many sequences together can be chosen on the device ([`Wanted::Token`]).
    fn chooses(&self, choices: &[&Choice<'_>]) -> bool;

    /// See [`Machine::lengths_to_compile`](crate::ops::machine::Machine::lengths_to_compile).
    fn lengths_to_compile(&self, most: usize) -> Vec<usize>;

    /// See [`Machine::compile_copies`](crate::ops::machine::Machine::compile_copies).
    fn compile_copies(&self);

    /// See [`Machine::goes_on_with`](crate::ops::machine::Machine::goes_on_with).
    fn goes_on_with(&self, rows: &mut [Row<'_>]) -> bool;

    /// Enqueues one pass over the rows, without waiting for the device. The tokens of rows that want logits count as
    /// computed from here on, those of rows that want a token when it has come ([`KvCache::catch_up`]). On
    /// an error the caches are as before, except after [`ForwardError::Device`].
    fn send(&self, rows: &mut [Row<'_>], trace: &mut Trace) -> Result<Receipt, ForwardError>;
}
