//! [`Model`]: a decoder that is shared by everyone who generates with it.

use std::sync::Arc;

use burn::tensor::Device;

use super::load::{self, LoadError};
use super::options::LoadOptions;
use crate::cache::{CacheDtype, CacheError, CacheOptions, KvCache};
use crate::checkpoint::Checkpoint;
use crate::config::{GenerationConfig, ModelConfig, TextConfig};
use crate::ops::machine::{Input, Logits, Wanted};
use crate::ops::vectors::EmbeddedSpan;
use crate::run::{ForwardError, Receipt, Row, Runner, Trace};
use crate::threads::Threads;

/// A loaded model. Cloning shares the weights; every method takes `&self`, so any number of sequences
/// can use it from any thread.
#[derive(Debug, Clone)]
pub struct Model {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    runner: Arc<dyn Runner>,
    config: ModelConfig,
    generation_config: GenerationConfig,
    threads: Threads,
}

/// The next tokens of one sequence.
#[derive(Debug)]
pub struct Segment<'a> {
    /// What to append.
    pub input: SegmentInput<'a>,
    /// The sequence's cache; the tokens are appended to it.
    pub cache: &'a mut KvCache,
}

/// Tokens of a segment.
#[derive(Debug, Clone, Copy)]
pub enum SegmentInput<'a> {
    /// Token ids.
    Ids(&'a [u32]),
    /// Token ids of which some are given as vectors: soft tokens of images, which enter the first layer as they are.
    /// Those of one span see each other in both directions.
    Placed {
        /// Those in the place of spans are not looked at.
        ids: &'a [u32],
        /// In order, within the ids, counted from the first of them.
        spans: &'a [EmbeddedSpan],
    },
}

impl<'a> From<SegmentInput<'a>> for Input<'a> {
    fn from(input: SegmentInput<'a>) -> Self {
        match input {
            SegmentInput::Ids(ids) => Self::Ids(ids),
            SegmentInput::Placed { ids, spans } => Self::Placed { ids, spans },
        }
    }
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
        let runner = threads.run(|| load::decoder(checkpoint, device, options))?;
        Ok(Self {
            shared: Arc::new(Shared {
                runner,
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

    /// The whole configuration of the checkpoint.
    pub fn config(&self) -> &ModelConfig {
        &self.shared.config
    }

    /// The decoder's sizes.
    pub fn text_config(&self) -> &TextConfig {
        self.runner().config()
    }

    /// The generation defaults that came with the checkpoint.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.shared.generation_config
    }

    /// The device that computes.
    pub fn device(&self) -> &Device {
        self.runner().device()
    }

    /// Bytes of the weights in memory.
    pub fn weight_bytes(&self) -> u64 {
        self.runner().weight_bytes()
    }

    /// The dtype of caches for which none is asked: half precision where attention reads that natively, unless
    /// products are exact.
    pub fn cache_dtype(&self) -> CacheDtype {
        self.runner().cache_dtype()
    }

    /// The CPU threads that this model computes with, for others to share.
    pub fn threads(&self) -> &Threads {
        &self.shared.threads
    }

    pub(crate) fn runner(&self) -> &dyn Runner {
        &*self.shared.runner
    }

    /// A new, empty cache for one sequence. Its chunk is at least an image long, because the tokens of an
    /// image are computed together; its dtype, if none is asked for, is what suits the model's precision.
    ///
    /// # Errors
    ///
    /// Those of [`CacheOptions::bytes`], [`CacheError::UnsupportedDtype`], and [`CacheError::OutOfMemory`] if the
    /// device's memory (for CPU devices the memory that the system says is available) is smaller than the cache.
    pub fn new_cache(&self, options: &CacheOptions) -> Result<KvCache, CacheError> {
        let image_tokens = self.config().image_tokens.map_or(0, |tokens| tokens.mm_tokens_per_image);
        let chunk = if options.chunk == 0 { 0 } else { options.chunk.max(image_tokens) };
        let dtype = Some(options.dtype.unwrap_or_else(|| self.cache_dtype()));
        self.runner().new_cache(&CacheOptions { chunk, dtype, ..*options })
    }

    /// The capacity for the cache of a sequence that needs room for `own` tokens, in a batch of which the longest needs
    /// `longest`: just that on devices that compile nothing, of few sizes on others.
    pub fn capacity_in_batch(&self, own: usize, longest: usize) -> usize {
        self.runner().capacity_in_batch(own, longest)
    }

    /// Appends tokens to one or several sequences and reads the asked logits back (f32, no softcap): each \[vocab\], the
    /// segments' one after the other. What the trace asks for is recorded on the way, or changed.
    ///
    /// Sequences are independent, each at its own position; nothing is padded. On an error the caches
    /// are as before, except after [`ForwardError::Device`].
    ///
    /// # Errors
    ///
    /// Empty input, unknown ids, a cache that is full, too short a chunk or of another model.
    pub fn forward(
        &self,
        segments: &mut [Segment<'_>],
        logits: Logits,
        trace: &mut Trace,
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        let rows = segments.iter_mut();
        let mut rows: Vec<_> = rows
            .map(|Segment { input, cache }| Row {
                cache,
                input: (*input).into(),
                wanted: Wanted::Logits(logits),
            })
            .collect();
        let outcomes = self.send(&mut rows, trace)?.wait();
        if outcomes.is_err() {
            rows.iter_mut().for_each(|row| row.cache.take_back(row.input.len()));
        }
        let outcomes = outcomes?;
        Ok(outcomes.into_iter().flat_map(|outcome| outcome.logits).collect())
    }

    /// [`forward`](Self::forward) for the logits of the last position of each segment.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_last(&self, segments: &mut [Segment<'_>]) -> Result<Vec<Vec<f32>>, ForwardError> {
        self.forward(segments, Logits::Last, &mut Trace::none())
    }

    /// [`forward`](Self::forward) for the logits of every position.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_all(&self, segments: &mut [Segment<'_>]) -> Result<Vec<Vec<f32>>, ForwardError> {
        self.forward(segments, Logits::All, &mut Trace::none())
    }

    /// Enqueues a pass: [`Runner::send`] on this model's threads.
    pub(crate) fn send(&self, rows: &mut [Row<'_>], trace: &mut Trace) -> Result<Receipt, ForwardError> {
        self.shared.threads.run(|| self.runner().send(rows, trace))
    }
}
