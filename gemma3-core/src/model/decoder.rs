//! The decoder: embeddings through all layers to logits, for one or several sequences at once.

use std::ops::Range;

#[cfg(feature = "cube")]
use burn::tensor::TensorData;
use burn::tensor::{DType, Device, Tensor};

use super::attention::AttentionContext;
use super::block::Block;
use super::embedding::Embedding;
#[cfg(feature = "cube")]
use super::gpu::{GpuDecoder, Sequence, SequenceInput};
use super::handle::ForwardError;
use super::norm::RmsNorm;
use super::rope::RotaryEmbedding;
use super::span::EmbeddedSpan;
use super::trace::Trace;
use crate::cache::{CacheDtype, CacheError, KvCache};
use crate::config::{LayerType, TextConfig};
#[cfg(feature = "cube")]
use crate::device;
use crate::matrix::Matrix;
use crate::ops::{Precision, Visibility};

/// Gemma 3's text decoder.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(super) config: TextConfig,
    pub(super) embedding: Embedding,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: RmsNorm,
    /// The output matrix \[vocab, hidden\] where it is not the embedding table.
    pub(super) head: Option<Matrix>,
    pub(super) local_rope: RotaryEmbedding,
    pub(super) global_rope: RotaryEmbedding,
    pub(super) device: Device,
    pub(super) precision: Precision,
    /// The same decoder as launches of our own kernels, where the weights lie on a GPU.
    #[cfg(feature = "cube")]
    pub(super) gpu: Option<std::sync::Arc<super::gpu::GpuDecoder>>,
}

/// The next tokens of one sequence.
#[derive(Debug)]
pub struct Segment<'a> {
    /// What to append.
    pub input: SegmentInput<'a>,
    /// The sequence's cache; the tokens are appended to it.
    pub cache: &'a mut KvCache,
}

/// Tokens as ids, or as the vectors that stand for them.
// A segment lives for one call, so the size of a tensor handle does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum SegmentInput<'a> {
    /// Token ids.
    Ids(&'a [u32]),
    /// Vectors \[tokens, hidden\] that enter the first layer as they are (text embeddings already
    /// scaled, soft tokens of images unscaled).
    Embeddings {
        /// \[tokens, hidden\], f32, on the model's device.
        vectors: Tensor<2>,
        /// Ranges of rows, each the soft tokens of one image: they see each other in both directions.
        images: Vec<Range<usize>>,
    },
}

/// Which positions get logits. The head is the largest matrix of a small model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None: only the caches are filled.
    None,
    /// The last position of each segment: \[segments, vocab\].
    Last,
    /// Every position: \[tokens of all segments, vocab\].
    All,
}

/// One segment after its checks.
struct Row<'a> {
    first_row: usize,
    rows: usize,
    position: usize,
    cache: &'a mut KvCache,
    local: Visibility,
    global: Visibility,
}

impl Decoder {
    /// The model's sizes.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of the weights in memory.
    pub fn weight_bytes(&self) -> u64 {
        let blocks = self.blocks.iter().flat_map(|block| {
            let (attention, feed_forward) = (&block.attention, &block.feed_forward);
            [
                &attention.q_proj,
                &attention.k_proj,
                &attention.v_proj,
                &attention.o_proj,
                &feed_forward.gate_proj,
                &feed_forward.up_proj,
                &feed_forward.down_proj,
            ]
        });
        let ends = std::iter::once(self.embedding.table()).chain(&self.head);
        blocks.chain(ends).map(Matrix::bytes).sum()
    }

    /// Launches of a layer in a decode step, where the decoder runs as launches of our own kernels.
    pub fn launches_per_block(&self) -> Option<usize> {
        #[cfg(feature = "cube")]
        if let Some(gpu) = &self.gpu {
            return Some(gpu.launches_per_block());
        }
        None
    }

    /// The dtype of caches for which none is asked: half precision where attention reads that natively, unless
    /// products are exact.
    pub fn cache_dtype(&self) -> CacheDtype {
        match self.precision {
            Precision::Fast if CacheDtype::F16.is_supported(&self.device) => CacheDtype::F16,
            _ => CacheDtype::F32,
        }
    }

    /// The scaled embeddings of `ids`, \[ids, hidden\]: what [`SegmentInput::Ids`] would enter with.
    ///
    /// # Errors
    ///
    /// [`ForwardError::UnknownToken`].
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor<2>, ForwardError> {
        self.check_ids(ids)?;
        #[cfg(feature = "cube")]
        if let Some(gpu) = &self.gpu {
            return gpu.embed(ids, &self.device);
        }
        Ok(self.embedding.forward(ids)?)
    }

    /// The vectors of `ids` with those of `spans` in their places, as a segment's input. The positions of a
    /// span count from the first of `ids`; the ids in its place are not looked at.
    ///
    /// # Errors
    ///
    /// [`ForwardError::UnknownToken`] outside of the spans, vectors of another width, dtype or device, or spans
    /// that overlap, lie outside of `ids`, or are out of order.
    pub fn embed_with(
        &self,
        ids: &[u32],
        spans: &[EmbeddedSpan],
    ) -> Result<SegmentInput<'static>, ForwardError> {
        let mut pieces = Vec::with_capacity(2 * spans.len() + 1);
        let mut images = Vec::with_capacity(spans.len());
        let mut done = 0;
        for span in spans {
            let range = span.range();
            self.check_vectors(&span.vectors)?;
            if range.start < done || range.end > ids.len() || range.is_empty() {
                let tokens = ids.len();
                return Err(ForwardError::SpanOutOfOrder { span: range, after: done, tokens });
            }
            if range.start > done {
                pieces.push(self.embed(&ids[done..range.start])?);
            }
            pieces.push(span.vectors.clone());
            done = range.end;
            images.push(range);
        }
        if done < ids.len() || pieces.is_empty() {
            pieces.push(self.embed(&ids[done..])?);
        }
        let vectors = if pieces.len() == 1 { pieces.swap_remove(0) } else { Tensor::cat(pieces, 0) };
        Ok(SegmentInput::Embeddings { vectors, images })
    }

    /// Appends tokens to one or several sequences and computes the asked logits (f32, no softcap;
    /// `None` for [`Logits::None`]).
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
    ) -> Result<Option<Tensor<2>>, ForwardError> {
        #[cfg(feature = "cube")]
        if let Some(gpu) = &self.gpu
            && trace.is_none()
        {
            let rows = self.forward_on_gpu(gpu, segments, logits)?;
            return Ok(
                rows.map(|(values, shape)| Tensor::from_data(TensorData::new(values, shape), &self.device))
            );
        }
        let (x, mut sequences) = self.enter(segments)?;
        trace.record_embeddings(&x);

        let positions = || sequences.iter().flat_map(|s| s.position..s.position + s.rows);
        let local_rotation = self.local_rope.at(positions(), &self.device);
        let global_rotation = self.global_rope.at(positions(), &self.device);

        let mut x = x;
        for (index, block) in self.blocks.iter().enumerate() {
            let rotation = match block.kind {
                LayerType::FullAttention => &global_rotation,
                LayerType::SlidingAttention => &local_rotation,
            };
            let contexts = sequences.iter_mut().map(|sequence| sequence.context(index, block.kind));
            let mut contexts = contexts.collect::<Result<Vec<_>, _>>()?;
            x = block.forward(x, rotation, &mut contexts, trace.layer(index))?;
        }
        for sequence in &mut sequences {
            sequence.cache.advance(sequence.rows);
        }

        let x = match logits {
            Logits::None => return Ok(None),
            Logits::All => x,
            Logits::Last => last_rows(x, &sequences),
        };
        trace.record_final_norm(|| self.norm.forward(x.clone()));
        let head = self.head.as_ref().unwrap_or(self.embedding.table());
        let [logits] = Matrix::forward_normed([head], x, self.norm.parts())?;
        Ok(Some(logits))
    }

    /// The decoder's launches, where its weights lie on a GPU.
    #[cfg(feature = "cube")]
    pub(crate) fn gpu(&self) -> Option<&std::sync::Arc<GpuDecoder>> {
        self.gpu.as_ref()
    }

    /// [`forward`](Self::forward) without a trace, on a GPU: logits row by row, and their shape.
    #[cfg(feature = "cube")]
    fn forward_on_gpu(
        &self,
        gpu: &GpuDecoder,
        segments: &mut [Segment<'_>],
        logits: Logits,
    ) -> Result<Option<LogitRows>, ForwardError> {
        if segments.is_empty() {
            return Err(ForwardError::EmptyInput);
        }
        for segment in segments.iter() {
            self.check(segment)?;
        }
        let mut sequences = Vec::with_capacity(segments.len());
        let mut counts = Vec::with_capacity(segments.len());
        for segment in segments.iter_mut() {
            let position = segment.cache.len();
            let input = match &segment.input {
                SegmentInput::Ids(ids) => SequenceInput::Ids(ids),
                SegmentInput::Embeddings { vectors, images } => {
                    let shift = |image: &Range<usize>| image.start + position..image.end + position;
                    let images = images.iter().map(shift).collect();
                    SequenceInput::Vectors { values: device::read(vectors.clone())?, images }
                }
            };
            counts.push(segment_tokens(&segment.input));
            let elsewhere = ForwardError::Bug { what: "a GPU's cache lies in tensors" };
            let cache = segment.cache.on_device().ok_or(elsewhere)?;
            sequences.push(Sequence { input, position, cache });
        }
        let rows = gpu.forward(&mut sequences, logits)?;
        for (segment, count) in segments.iter_mut().zip(counts) {
            segment.cache.advance(count);
        }
        let vocab = self.config.vocab_size;
        Ok(rows.map(|rows| (rows.len() / vocab, rows)).map(|(count, rows)| (rows, [count, vocab])))
    }

    /// Checks the segments and puts their vectors one after the other: \[tokens, hidden\].
    fn enter<'a>(&self, segments: &'a mut [Segment<'_>]) -> Result<(Tensor<2>, Vec<Row<'a>>), ForwardError> {
        if segments.is_empty() {
            return Err(ForwardError::EmptyInput);
        }
        for segment in segments.iter() {
            self.check(segment)?;
        }
        let mut vectors = Vec::with_capacity(segments.len());
        let mut sequences = Vec::with_capacity(segments.len());
        let mut first_row = 0;
        for segment in segments.iter_mut() {
            let position = segment.cache.len();
            let (x, images) = match &segment.input {
                SegmentInput::Ids(ids) => (self.embedding.forward(ids)?, Vec::new()),
                SegmentInput::Embeddings { vectors, images } => {
                    let shift = |r: &Range<usize>| r.start + position..r.end + position;
                    (vectors.clone(), images.iter().map(shift).collect())
                }
            };
            let rows = x.dims()[0];
            let queries = position..position + rows;
            sequences.push(Row {
                first_row,
                rows,
                position,
                local: Visibility::new(queries.clone(), Some(self.config.sliding_window), images.clone()),
                global: Visibility::new(queries, None, images),
                cache: &mut *segment.cache,
            });
            first_row += rows;
            vectors.push(x);
        }
        let x = if vectors.len() == 1 { vectors.swap_remove(0) } else { Tensor::cat(vectors, 0) };
        Ok((x, sequences))
    }

    fn check(&self, segment: &Segment<'_>) -> Result<(), ForwardError> {
        let count = match &segment.input {
            SegmentInput::Ids(ids) => {
                self.check_ids(ids)?;
                ids.len()
            }
            SegmentInput::Embeddings { vectors, images } => {
                self.check_vectors(vectors)?;
                let tokens = vectors.dims()[0];
                if let Some(image) = images.iter().find(|r| r.start >= r.end || r.end > tokens) {
                    return Err(ForwardError::ImageOutOfRange { image: image.clone(), tokens });
                }
                tokens
            }
        };
        if count == 0 {
            return Err(ForwardError::EmptyInput);
        }
        let cache = &*segment.cache;
        // Kernels index with the cache's sizes.
        cache.check(&self.config, &self.device)?;
        if count > cache.chunk() {
            return Err(CacheError::ChunkTooLong { count, chunk: cache.chunk() }.into());
        }
        if count > cache.remaining() {
            let (len, capacity) = (cache.len(), cache.capacity());
            return Err(CacheError::Full { count, len, capacity }.into());
        }
        Ok(())
    }

    /// Whether vectors that stand for tokens are such that can enter the first layer.
    pub(crate) fn check_vectors(&self, vectors: &Tensor<2>) -> Result<(), ForwardError> {
        let (expected, found) = (self.config.hidden_size, vectors.dims()[1]);
        if found != expected {
            return Err(ForwardError::WrongWidth { expected, found });
        }
        if vectors.dtype() != DType::F32 {
            return Err(ForwardError::WrongDtype { found: vectors.dtype() });
        }
        if vectors.device() != self.device {
            let (expected, found) = (format!("{:?}", self.device), format!("{:?}", vectors.device()));
            return Err(ForwardError::OtherDevice { expected, found });
        }
        Ok(())
    }

    fn check_ids(&self, ids: &[u32]) -> Result<(), ForwardError> {
        let vocab_size = self.config.vocab_size;
        match ids.iter().find(|id| **id as usize >= vocab_size) {
            Some(id) => Err(ForwardError::UnknownToken { id: *id, vocab_size }),
            None => Ok(()),
        }
    }
}

impl Row<'_> {
    fn context(&mut self, layer: usize, kind: LayerType) -> Result<AttentionContext<'_>, ForwardError> {
        let missing = ForwardError::Bug { what: "a cache lacks a layer that it was checked for" };
        Ok(AttentionContext {
            first_row: self.first_row,
            rows: self.rows,
            cache: self.cache.layer(layer).ok_or(missing)?,
            visibility: match kind {
                LayerType::FullAttention => &self.global,
                LayerType::SlidingAttention => &self.local,
            },
        })
    }
}

/// Logits row by row, and their shape.
#[cfg(feature = "cube")]
type LogitRows = (Vec<f32>, [usize; 2]);

#[cfg(feature = "cube")]
fn segment_tokens(input: &SegmentInput<'_>) -> usize {
    match input {
        SegmentInput::Ids(ids) => ids.len(),
        SegmentInput::Embeddings { vectors, .. } => vectors.dims()[0],
    }
}

/// The last row of each sequence: \[sequences, hidden\].
fn last_rows(x: Tensor<2>, sequences: &[Row<'_>]) -> Tensor<2> {
    let mut rows: Vec<_> =
        sequences.iter().map(|s| x.clone().narrow(0, s.first_row + s.rows - 1, 1)).collect();
    if rows.len() == 1 { rows.swap_remove(0) } else { Tensor::cat(rows, 0) }
}
