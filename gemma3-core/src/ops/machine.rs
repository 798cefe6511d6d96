//! [`Machine`]: what a device must be able to do for Gemma 3 to run on it.
//!
//! The decoder is written once, over this trait (`model/`), and so is the image encoder, over [`ImageMachine`](super::image::ImageMachine).
//! An implementation is a type: [`plain`](super::plain) is the definition in burn's tensors, which runs on every
//! device burn has; `cpu` and `cube` are fast. What an operation computes is said here and in `plain`; where its
//! numbers lie, what is fused, recorded or put off is the machine's own affair.

use std::fmt;
use std::ops::Range;

use super::pending::Pending;
use super::vectors::EmbeddedSpan;
use super::{MachineError, MatrixError};
use crate::cache::CacheShape;
use crate::checkpoint::TensorView;
use crate::config::LayerType;
use crate::device::DeviceFailed;
use crate::formats::Quantization;
use crate::sampling::{SamplingOptions, TokenHistory};

/// What Gemma 3's decoder needs of a device. R = rows of a pass, the tokens of its sequences one after the other.
pub trait Machine: fmt::Debug + Send + Sync + Sized + 'static {
    /// A weight matrix \[out, in\], or several that are multiplied with the same input: their outputs are then
    /// side by side, in their order.
    type Matrix: fmt::Debug + Send + Sync;
    /// Numbers of f32 that go with weights: the multiplier of a norm, a bias, frequencies.
    type Vector: fmt::Debug + Send + Sync;
    /// Rows of numbers between two operations of a pass. They may lie in buffers of the pass: what makes rows of
    /// the same kind next may overwrite them.
    type Rows: fmt::Debug + Send + Sync;
    /// Keys and values of one sequence, of all layers. A clone shares memory until one of the two is written to.
    type Cache: fmt::Debug + Clone + Send + Sync + 'static;
    /// The residual stream of a pass: R rows of f32, and perhaps a branch that has not joined them yet; whose rows
    /// they are; and, at the end, the logits that were asked for.
    type Stream<'a>: Send
    where
        Self: 'a;

    /// The device's name in errors.
    fn name(&self) -> String;

    /// Tensors of a checkpoint as matrices over their first axis, in their own format (or quantized) where the
    /// device multiplies that, in f32 elsewhere, with the values that the format gives.
    ///
    /// # Errors
    ///
    /// Bytes that are not what format and shape ask for.
    fn matrix(
        &self,
        stacked: Vec<TensorView<'_>>,
        quantization: Quantization,
    ) -> Result<Self::Matrix, MatrixError>;

    /// Bytes that a matrix occupies on the device.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> u64;

    /// Copies numbers to the device.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, DeviceFailed>;

    /// Reads a vector back. Waits for the device.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn vector_values(&self, vector: &Self::Vector) -> Result<Vec<f32>, DeviceFailed>;

    /// Memory for the keys and values of a sequence.
    fn cache(&self, shape: &CacheShape) -> Self::Cache;

    /// The capacity for the cache of a sequence that needs room for `own` tokens, in a batch of which the longest needs
    /// `longest`. Kernels are made for sizes, so that a device that compiles them wants few.
    fn capacity_in_batch(&self, own: usize, _longest: usize) -> usize {
        own
    }

    /// From how many tokens of one sequence on a pass computes each as it would among any others, bit for bit:
    /// fewer may be rounded otherwise, so that a prompt is not divided in a way that leaves fewer.
    fn alike_tokens(&self) -> usize {
        1
    }

    /// Whether these can have a step together although some go on with tokens that the device still holds
    /// ([`Input::Chosen`]) and others enter it. Where not, the tokens under way have to be waited for.
    fn goes_on_with(&self, _entrants: &mut [Entrant<'_, Self>], _shape: &ModelShape<'_, Self>) -> bool {
        false
    }

    /// Whether the device chooses tokens of so many sequences together as these options ask ([`Wanted::Token`]), from
    /// `vocab` logits each.
    fn chooses(&self, _choices: &[&Choice<'_>], _vocab: usize) -> bool {
        false
    }

    /// Lengths of prompts' chunks, the longest first, that between them need everything that is compiled for passes
    /// of up to `most` tokens of one sequence.
    fn lengths_to_compile(&self, most: usize, _shape: &ModelShape<'_, Self>) -> Vec<usize> {
        let mut lengths = vec![most, most.min(4)];
        lengths.dedup();
        lengths
    }

    /// Compiles what caches are copied with, where copies are compiled.
    fn compile_copies(&self) {}

    /// Enqueues one pass over the tokens of some sequences, without waiting for the device: has `program` run over
    /// their stream, and promises what they asked for, one [`Outcome`] each. A machine that records passes may
    /// replay one in which the same program ran over the same sequences.
    ///
    /// # Errors
    ///
    /// When the device fails; the caches then hold nothing of use.
    fn run<P: Program<Self>>(
        &self,
        entrants: &mut [Entrant<'_, Self>],
        program: &mut P,
    ) -> Result<Pending, MachineError>;

    /// The vectors that enter the first layer: rows of the `table` times `scale`, and given vectors, unscaled, in the
    /// place of some.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn embed(&self, x: &mut Self::Stream<'_>, table: &Self::Matrix, scale: f32) -> Result<(), MachineError>;

    /// `norm(x) Wᵀ`: queries, keys and values side by side, \[R, (heads + 2 kv_heads) head_dim\].
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn project(
        &self,
        x: &mut Self::Stream<'_>,
        norm: &Norm<Self::Vector>,
        qkv: &Self::Matrix,
    ) -> Result<Self::Rows, MachineError>;

    /// Norm, rope and factor of the queries, norm and rope of the keys; keys and values into the caches; attention of
    /// each sequence over its cache: \[R, heads * head_dim\].
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn attend(
        &self,
        x: &mut Self::Stream<'_>,
        qkv: Self::Rows,
        heads: &Heads<Self::Vector>,
    ) -> Result<Self::Rows, MachineError>;

    /// `gelu_tanh(norm(x) gateᵀ) * (norm(x) upᵀ)`, \[R, intermediate\]; `gate_up` is both, the gate first.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn gate(
        &self,
        x: &mut Self::Stream<'_>,
        norm: &Norm<Self::Vector>,
        gate_up: &Self::Matrix,
    ) -> Result<Self::Rows, MachineError>;

    /// `x += norm(rows Wᵀ)`, which may be left to whoever reads `x` next.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn join(
        &self,
        x: &mut Self::Stream<'_>,
        rows: Self::Rows,
        matrix: &Self::Matrix,
        norm: &Norm<Self::Vector>,
    ) -> Result<(), MachineError>;

    /// `norm(x) Wᵀ` of the rows whose logits are asked for, which the stream keeps.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn logits(
        &self,
        x: &mut Self::Stream<'_>,
        norm: &Norm<Self::Vector>,
        head: &Self::Matrix,
    ) -> Result<(), MachineError>;

    /// The stream as it is here, with every branch joined, on its way to the host: \[R, hidden\].
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn look(&self, x: &mut Self::Stream<'_>) -> Result<Values, MachineError>;

    /// `x += vector` for every row; `vector` \[hidden\].
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn add(&self, x: &mut Self::Stream<'_>, vector: &[f32]) -> Result<(), MachineError>;

    /// Rows of a pass on their way to the host: \[R, width\], outputs of several matrices side by side.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn look_at(&self, x: &Self::Stream<'_>, rows: &Self::Rows) -> Result<Values, MachineError>;

    /// `rows Wᵀ` in f32, of rows that lie on the host: what traces compute aside. Waits for the device.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn multiply(&self, rows: &[f32], matrix: &Self::Matrix) -> Result<Vec<f32>, MachineError>;

    /// The keys of some positions of a sequence of the pass in a layer, in f32, \[kv_heads, positions, head_dim\]: what traces
    /// compute attention weights of. Waits for the device.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn keys(
        &self,
        x: &Self::Stream<'_>,
        sequence: usize,
        layer: usize,
        positions: Range<usize>,
    ) -> Result<Vec<f32>, MachineError>;
}

/// Numbers on their way to the host, f32, row-major.
pub type Values = Pending<Vec<f32>>;

/// What runs over a stream in a pass: a model. The same program does the same in every pass; a machine knows it by its
/// matrices. It may run on a thread of the device.
pub trait Program<M: Machine>: Send {
    /// What it multiplies with and attends by, so that a machine knows its sizes before it runs.
    fn shape(&self) -> ModelShape<'_, M>;

    /// From nothing to the logits.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn run(&mut self, machine: &M, x: &mut M::Stream<'_>) -> Result<(), MachineError>;

    /// Whether someone looks at what happens between, so that it has to happen this time.
    fn is_observed(&self) -> bool {
        false
    }
}

/// Everything of a model that decides over sizes.
#[derive(Debug)]
pub struct ModelShape<'a, M: Machine> {
    /// \[vocab, hidden\].
    pub embedding: &'a M::Matrix,
    /// In their order.
    pub blocks: Vec<BlockShape<'a, M>>,
    /// \[vocab, hidden\]; the embedding's, perhaps.
    pub head: &'a M::Matrix,
}

/// What of a block decides over sizes.
#[derive(Debug)]
pub struct BlockShape<'a, M: Machine> {
    /// Of [`Machine::project`].
    pub qkv: &'a M::Matrix,
    /// Of [`Machine::attend`].
    pub heads: &'a Heads<M::Vector>,
    /// Of the first [`Machine::join`].
    pub output: &'a M::Matrix,
    /// Of [`Machine::gate`].
    pub gate_up: &'a M::Matrix,
    /// Of the second [`Machine::join`].
    pub down: &'a M::Matrix,
}

/// The next tokens of one sequence, and what is wanted of them.
#[derive(Debug)]
pub struct Entrant<'a, M: Machine> {
    /// What to append.
    pub input: Input<'a>,
    /// Position of the first.
    pub position: usize,
    /// The sequence's keys and values, of the positions before it.
    pub cache: &'a mut M::Cache,
    /// What comes back.
    pub wanted: Wanted<'a>,
}

/// What comes back from the tokens of a sequence.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// Logits, or nothing.
    Logits(Logits),
    /// A token that the device chooses from the logits of the sequence's only token in this pass
    /// ([`Machine::chooses`]).
    Token(&'a Choice<'a>),
}

/// Tokens that enter a pass. Their ids are in the vocabulary, and there is at least one.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Tokens to look up.
    Ids(&'a [u32]),
    /// Tokens of which some are given as vectors: spans in order, that lie within the ids and don't overlap.
    Placed {
        /// Those in the place of spans are not looked at.
        ids: &'a [u32],
        /// Vectors as wide as the stream.
        spans: &'a [EmbeddedSpan],
    },
    /// The token that the last step chose for this sequence, which may still be on the device. Others may enter the step
    /// with tokens of their own where [`Machine::goes_on_with`] says so.
    Chosen,
}

impl Input<'_> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match self {
            Self::Ids(ids) | Self::Placed { ids, .. } => ids.len(),
            Self::Chosen => 1,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Positions of images, if the first token is at `position`.
    pub fn images(&self, position: usize) -> Vec<Range<usize>> {
        let shift = |range: Range<usize>| range.start + position..range.end + position;
        match self {
            Self::Placed { spans, .. } => spans.iter().map(|span| shift(span.range())).collect(),
            Self::Ids(_) | Self::Chosen => Vec::new(),
        }
    }
}

/// Which positions get logits. The head is the largest matrix of a small model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None: only the caches are filled.
    None,
    /// The last position of each sequence.
    Last,
    /// Every position.
    All,
}

/// How the tokens of a sequence are chosen.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// How a token is chosen.
    pub options: &'a SamplingOptions,
    /// Tokens before it, for penalties.
    pub history: &'a TokenHistory,
    /// Ids that are never chosen.
    pub suppressed: &'a [u32],
    /// See [`RandomKey`](crate::sampling::RandomKey).
    pub seed: u64,
    /// See [`RandomKey`](crate::sampling::RandomKey).
    pub sequence: u64,
}

/// What a pass gives a sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// The logits that were asked for, each \[vocab\].
    pub logits: Vec<Vec<f32>>,
    /// The token that the device chose, if it was asked to.
    pub token: Option<Result<u32, Fault>>,
}

/// What a device found instead of a token, the same as the host's
/// [`SamplingError`](crate::sampling::SamplingError)s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The logit of the token is NaN.
    Nan {
        /// The lowest id.
        id: u32,
        /// Whether the options made it so.
        processed: bool,
    },
    /// The logit of the token is +infinity.
    Infinite {
        /// The lowest id.
        id: u32,
        /// Whether the options made it so.
        processed: bool,
    },
    /// All logits are -infinity.
    NothingLeft,
}

/// An RMS normalization: `x * rsqrt(mean(x²) + eps) * scale`.
#[derive(Debug, Clone)]
pub struct Norm<V> {
    /// The multiplier, `1 + w` of the paper's `w`, \[width\].
    pub scale: V,
    /// What is added to the mean of the squares.
    pub eps: f32,
}

/// What the attention of one layer depends on.
#[derive(Debug, Clone)]
pub struct Heads<V> {
    /// Which layer of the caches.
    pub layer: usize,
    /// Whether its queries see everything before them or a window.
    pub kind: LayerType,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads / kv_heads` query heads share one.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What queries are multiplied with: `query_pre_attn_scalar^-0.5`, which in the 27B is not `head_dim^-0.5`.
    pub query_factor: f32,
    /// Keys that a query sees at most, itself included; `None` for all before it.
    pub window: Option<usize>,
    /// Of each query head, \[head_dim\].
    pub q_norm: Norm<V>,
    /// Of each key head, \[head_dim\].
    pub k_norm: Norm<V>,
    /// Radians a position, \[head_dim / 2\].
    pub inv_freq: V,
}

impl<V> Heads<V> {
    /// Width of the queries, and of what attention makes of them.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the keys, and of the values.
    pub fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
