//! [`Model`]: a decoder that is shared by everyone who generates with it.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};

use super::decoder::{Decoder, Logits, Segment};
use super::load::{self, LoadError, LoadOptions};
use super::trace::Trace;
use crate::cache::{CacheError, CacheOptions, KvCache};
use crate::checkpoint::Checkpoint;
use crate::config::{GenerationConfig, ModelConfig};
use crate::device::{self, DeviceFailed};
use crate::threads::Threads;

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
    /// An image's rows lie outside of the segment.
    #[error("an image occupies rows {image:?} of a segment of {tokens} tokens")]
    ImageOutOfRange {
        /// The rows.
        image: std::ops::Range<usize>,
        /// Rows of the segment.
        tokens: usize,
    },
    /// The cache cannot take the tokens.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Vectors that are no numbers of f32.
    #[error("the embeddings are of {found:?}, expected F32; cast the tensor")]
    WrongDtype {
        /// What they are of.
        found: DType,
    },
    /// Vectors that lie on another device than the model.
    #[error("the embeddings lie on {found}, the model on {expected}; move the tensor with `to_device`")]
    OtherDevice {
        /// The model's device.
        expected: String,
        /// That of the vectors.
        found: String,
    },
    /// The device failed, for instance for lack of memory.
    #[error("the device failed: {reason}")]
    Device {
        /// What the backend said.
        reason: String,
    },
    /// A state that this library rules out: not the caller's fault.
    #[error("a bug in gemma3: {what}; please report it, with the model, the device and the options used")]
    Bug {
        /// What was found that cannot be.
        what: &'static str,
    },
}

impl From<DeviceFailed> for ForwardError {
    fn from(DeviceFailed { reason }: DeviceFailed) -> Self {
        Self::Device { reason }
    }
}

/// A loaded model. Cloning shares the weights; every method takes `&self`, so any number of sequences
/// can use it from any thread.
#[derive(Debug, Clone)]
pub struct Model {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    decoder: Decoder,
    config: ModelConfig,
    generation_config: GenerationConfig,
    threads: Threads,
}

impl Model {
    /// Loads the text decoder of a checkpoint onto a device.
    ///
    /// # Errors
    ///
    /// A tensor that is missing or malformed, threads that cannot be started, or (debug builds)
    /// weights that are not finite.
    pub fn load(
        checkpoint: &Checkpoint,
        device: &Device,
        options: LoadOptions<'_>,
    ) -> Result<Self, LoadError> {
        let threads = options.threads(device)?;
        Self::load_on(checkpoint, device, threads, options)
    }

    /// [`load`](Self::load) on threads that others compute on too; the threads of the options are not
    /// looked at.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load), except for threads.
    pub fn load_on(
        checkpoint: &Checkpoint,
        device: &Device,
        threads: Threads,
        options: LoadOptions<'_>,
    ) -> Result<Self, LoadError> {
        let decoder = threads.run(|| load::decoder(checkpoint, device, options))?;
        Ok(Self {
            shared: Arc::new(Shared {
                decoder,
                config: checkpoint.config().clone(),
                generation_config: checkpoint.generation_config().clone(),
                threads,
            }),
        })
    }

    /// Whether `other` is a clone of this model: the same weights in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// The decoder itself.
    pub fn decoder(&self) -> &Decoder {
        &self.shared.decoder
    }

    /// The whole configuration of the checkpoint.
    pub fn config(&self) -> &ModelConfig {
        &self.shared.config
    }

    /// The generation defaults that came with the checkpoint.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.shared.generation_config
    }

    /// The device that computes.
    pub fn device(&self) -> &Device {
        self.shared.decoder.device()
    }

    /// The CPU threads that this model computes with, for others to share.
    pub fn threads(&self) -> &Threads {
        &self.shared.threads
    }

    /// Runs `f` where this model computes: on its thread pool for CPU devices, else on the caller's thread.
    /// For callers that add tensor operations of their own around [`forward`](Self::forward).
    pub fn on_threads<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.shared.threads.run(f)
    }

    /// A new, empty cache for one sequence. Its chunk is at least an image long, because the tokens of an
    /// image are computed together; its dtype, if none is asked for, is what suits the model's precision.
    ///
    /// # Errors
    ///
    /// Those of [`KvCache::new`].
    pub fn new_cache(&self, options: &CacheOptions) -> Result<KvCache, CacheError> {
        let image_tokens = self.config().image_tokens.map_or(0, |tokens| tokens.mm_tokens_per_image);
        let chunk = if options.chunk == 0 { 0 } else { options.chunk.max(image_tokens) };
        let dtype = Some(options.dtype.unwrap_or_else(|| self.decoder().cache_dtype()));
        let options = CacheOptions { chunk, dtype, ..*options };
        #[cfg(feature = "cube")]
        if let Some(gpu) = self.decoder().gpu() {
            return KvCache::on_stream(self.decoder().config(), &options, self.device(), gpu.stream());
        }
        KvCache::new(self.decoder().config(), &options, self.device())
    }

    /// Appends tokens to one or several sequences: [`Decoder::forward`] on this model's threads.
    ///
    /// # Errors
    ///
    /// Those of [`Decoder::forward`].
    pub fn forward(
        &self,
        segments: &mut [Segment<'_>],
        logits: Logits,
        trace: &mut Trace,
    ) -> Result<Option<Tensor<2>>, ForwardError> {
        self.shared.threads.run(|| self.decoder().forward(segments, logits, trace))
    }

    /// Appends tokens and reads the logits of the last position of each segment back to the host,
    /// each \[vocab\].
    ///
    /// # Errors
    ///
    /// Those of [`Decoder::forward`].
    pub fn forward_last(&self, segments: &mut [Segment<'_>]) -> Result<Vec<Vec<f32>>, ForwardError> {
        self.forward_rows(segments, Logits::Last)
    }

    /// Appends tokens and reads the logits of every position back to the host, each \[vocab\].
    ///
    /// # Errors
    ///
    /// Those of [`Decoder::forward`].
    pub fn forward_all(&self, segments: &mut [Segment<'_>]) -> Result<Vec<Vec<f32>>, ForwardError> {
        self.forward_rows(segments, Logits::All)
    }

    fn forward_rows(
        &self,
        segments: &mut [Segment<'_>],
        logits: Logits,
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        let vocab_size = self.decoder().config().vocab_size;
        let Some(logits) = self.forward(segments, logits, &mut Trace::none())? else {
            return Ok(Vec::new());
        };
        let rows = logits.dims()[0];
        let values = device::read(logits)?;
        if rows == 1 {
            return Ok(vec![values]);
        }
        Ok(values.chunks_exact(vocab_size).map(<[f32]>::to_vec).collect())
    }
}
