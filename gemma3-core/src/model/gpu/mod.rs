//! The decoder on a GPU: the same mathematics as [`Decoder::forward`](super::Decoder::forward), as launches of the
//! kernels in [`crate::ops::cube`] from weights in the format of their file.
//!
//! Plain tensors can't say what makes a small model fast on a GPU: that a branch joins the residual stream in
//! front of the next product, across the borders of blocks; that a position is the content of a buffer; which
//! buffers a recorded step may touch. So the order of the launches is written here, beside the definition that
//! it is tested against. Passes that trace take the definition.
//!
//! | module | what it knows |
//! |---|---|
//! | `weights` | what of a decoder lies on the device, in the order of use |
//! | `buffers` | what a pass writes beside the cache |
//! | `pass` | the launches of a pass |
//! | `forward` | prompts and batches: what is appended to which cache, whose logits are asked for |
//! | `step` | one token: recorded once, replayed for every token |
//! | `sampled` | steps that choose their tokens on the device |

#[cfg(all(test, feature = "wgpu"))]
mod browser_tests;
mod buffers;
#[cfg(test)]
mod failure_tests;
mod forward;
mod pass;
mod sampled;
mod step;
mod weights;

pub(crate) use forward::{Sequence, SequenceInput};
pub(crate) use sampled::Choice;
pub(crate) use step::DecodeStep;

pub(crate) use crate::ops::cube::sampling::Fault;

use std::sync::Mutex;

use cubecl::server::ServerError;

use super::ForwardError;
use super::decoder::Decoder;
use crate::config::TextConfig;
use crate::device::DeviceFailed;
use crate::ops::Precision;
use crate::ops::cube::gemm::Processor;
use crate::ops::cube::matvec::Machine;
use crate::ops::cube::stream::Stream;
use buffers::Buffers;
use weights::Weights;

/// A decoder whose weights lie on a GPU.
#[derive(Debug)]
pub(crate) struct GpuDecoder {
    stream: Stream,
    machine: Machine,
    processor: Processor,
    weights: Weights,
    sizes: Sizes,
    precision: Precision,
    /// Of passes of many rows, which follow each other on the stream and so can share them.
    buffers: Mutex<Option<Buffers>>,
    /// Held while a step is recorded.
    records: Mutex<()>,
}

/// The widest head for which attention has been laid out and tested.
const MAX_HEAD_DIM: usize = 256;

/// Sizes that launches need.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: usize,
    vocab: usize,
    eps: f32,
    /// What queries are multiplied with.
    query_factor: f32,
    /// What embeddings are multiplied with.
    embedding_factor: f32,
}

impl Sizes {
    fn of(config: &TextConfig) -> Self {
        Self {
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            window: config.sliding_window,
            vocab: config.vocab_size,
            eps: config.rms_norm_eps as f32,
            query_factor: config.query_pre_attn_scalar.powf(-0.5) as f32,
            embedding_factor: (config.hidden_size as f32).sqrt(),
        }
    }

    /// Width of queries, keys and values side by side.
    fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Width of what attention makes.
    fn attended(&self) -> usize {
        self.heads * self.head_dim
    }
}

impl GpuDecoder {
    /// Whether the kernels can run a model of this shape.
    pub(crate) fn supports(config: &TextConfig) -> bool {
        let widths = [config.hidden_size, config.intermediate_size];
        let heads = config.num_attention_heads.max(1);
        config.head_dim.is_multiple_of(8)
            && config.head_dim <= MAX_HEAD_DIM
            && widths.iter().all(|width| width.is_multiple_of(4))
            && heads.is_multiple_of(config.num_key_value_heads.max(1))
    }

    /// The device's side of a decoder whose matrices were loaded onto `stream`.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub(super) fn new(decoder: &Decoder, stream: Stream) -> Result<Self, ForwardError> {
        Ok(Self {
            machine: Machine::of(stream.client()),
            processor: Processor::of(stream.client()),
            buffers: Mutex::new(None),
            records: Mutex::new(()),
            weights: Weights::of(decoder, &stream)?,
            sizes: Sizes::of(&decoder.config),
            precision: decoder.precision,
            stream,
        })
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl From<ServerError> for ForwardError {
    fn from(error: ServerError) -> Self {
        DeviceFailed::from(error).into()
    }
}
