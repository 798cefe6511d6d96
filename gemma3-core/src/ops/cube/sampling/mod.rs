//! From logits to a token on the device, as the host's [`Sampler`](crate::sampling::Sampler) does it, and what
//! a step moves on for the next: token, position, counts, journal.
//!
//! | module | what it knows |
//! |---|---|
//! | `plan` | how the vocabulary is divided, and where kernels leave what for each other |
//! | `parameters` | options and histories as words; what is supported |
//! | `process` | logits -> scores: suppression, penalties, bias, temperature; the largest |
//! | `bins` | which bin of scores a threshold of top-k or top-p lies in |
//! | `gather` | the weight of the tokens that are kept, and a list of the undecided |
//! | `choose` | exact thresholds, the draw, the step's advance |
//! | `seats` | places of a step: who enters, who leaves |
//! | `random`, `wide`, `scan` | ChaCha; weights as whole numbers; sums up to each unit |
//!
//! Two launches take the largest, four draw, whatever the options: these are read from a buffer, so that a
//! recorded step serves all of them. Nothing is sorted and no list is bounded: a threshold is found exactly
//! by its bin, then by digits among the tokens of that bin, which are few unless many scores are alike.
//!
//! Weights are whole multiples of 2^-44 of the largest, so their sums are exact in any order. The host's are
//! f64: a token can differ from the host's only where a threshold, or the draw, lies within the rounding of
//! f32 exponentials (about 1e-7) of the boundary between two.
#![allow(
    clippy::manual_range_contains,
    clippy::assign_op_pattern,
    clippy::panicking_overflow_checks,
    clippy::excessive_precision,
    clippy::needless_borrow,
    reason = "kernels are written in a part of the language that lacks what is asked for"
)]

mod bins;
mod choose;
mod gather;
mod parameters;
mod plan;
mod process;
mod random;
mod scan;
mod seats;
#[cfg(test)]
mod tests;
mod wide;

pub use parameters::{Journal, PARAMETER_WORDS};
pub use plan::Sampling;
pub use seats::{Taken, take_places};

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use bins::bins_kernel;
use choose::choose_kernel;
use gather::gather_kernel;
use process::process_kernel;

use crate::sampling::SamplingOptions;

/// Buffers of a step's sampling.
#[derive(Debug, Clone, Copy)]
pub struct Buffers<'a> {
    /// f32 \[sequences, vocabulary\]; stays as it is.
    pub logits: &'a Handle,
    /// u32 \[sequences, [`PARAMETER_WORDS`]\]: [`Sampling::parameters`].
    pub parameters: &'a Handle,
    /// u32 of [`Sampling::adjustment_words`]: [`Sampling::adjustments`]. The step counts its token there.
    pub adjustments: &'a Handle,
    /// u32 of [`Sampling::bias_words`]: [`Sampling::bias_list`].
    pub biases: &'a Handle,
    /// Position of the token that the logits were computed for, u32 \[sequences\]. The one chosen stands at
    /// the next, which the step leaves here.
    pub positions: &'a Handle,
    /// Receives the token chosen, u32 \[sequences\]; 0 where there is none.
    pub tokens: &'a Handle,
    /// u32 of [`Sampling::journal_words`]: [`Journal`].
    pub journal: &'a Handle,
    /// Scratch, f32 of [`Sampling::score_floats`].
    pub scores: &'a Handle,
    /// Scratch, u32 of [`Sampling::work_words`].
    pub work: &'a Handle,
}

/// Launches the step.
pub fn sample(client: &Client, plan: Sampling, buffers: Buffers<'_>) {
    let Sampling { sequences, vector, .. } = plan;
    let blocks = plan.blocks() as u32;
    let over = |blocks: u32| CubeCount::Static(blocks, sequences as u32, 1);
    // SAFETY: the lengths are those of the plan, which bound every index of the kernels; what they read from
    // buffers and index with is clamped.
    let argument = |handle: &Handle, len: usize| unsafe { BufferArg::from_raw_parts(handle.clone(), len) };
    let parameters = || argument(buffers.parameters, sequences * PARAMETER_WORDS);
    let work = || argument(buffers.work, plan.work_words());
    // SAFETY: as above.
    unsafe {
        process_kernel::launch_unchecked(
            client,
            over(if plan.draws { blocks + 1 } else { blocks }),
            plan.groups.dim(),
            vector,
            argument(buffers.logits, sequences * plan.vocabulary / vector),
            argument(buffers.adjustments, plan.adjustment_words() / vector),
            argument(buffers.biases, plan.bias_words()),
            parameters(),
            argument(buffers.positions, sequences),
            argument(buffers.scores, plan.score_floats() / vector),
            work(),
            plan,
        );
        if plan.draws {
            let scores = || argument(buffers.scores, plan.score_floats() / vector);
            for launch in [bins_kernel::launch_unchecked, gather_kernel::launch_unchecked] {
                let dim = plan.groups.dim();
                launch(client, over(blocks), dim, vector, scores(), parameters(), work(), plan);
            }
        }
        choose_kernel::launch_unchecked(
            client,
            over(1),
            plan.choosing.dim(),
            argument(buffers.scores, plan.score_floats()),
            parameters(),
            work(),
            argument(buffers.adjustments, plan.adjustment_words()),
            argument(buffers.positions, sequences),
            argument(buffers.tokens, sequences),
            argument(buffers.journal, plan.journal_words()),
            plan,
        );
    }
}
