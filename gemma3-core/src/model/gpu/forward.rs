//! Prompts and batches of them.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use burn::tensor::{Device, Tensor};
use cubecl::bytes::Bytes;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::GpuDecoder;
use super::buffers::Buffers;
use super::pass::{ChunkRows, Residual, Tokens};
use crate::cache::{DeviceCache, LayerBuffers};
use crate::model::{ForwardError, Logits};
use crate::ops::cube::attention::visible_ranges;
use crate::ops::cube::copy::gather_rows;
use crate::ops::cube::gemm::{Plan, Rows};
use crate::ops::cube::packed::{Layout, PackedMatrix, rows};

/// Consecutive tokens of one sequence.
pub(crate) struct Sequence<'a> {
    pub(crate) input: SequenceInput<'a>,
    /// Position of the first.
    pub(crate) position: usize,
    pub(crate) cache: &'a mut DeviceCache,
}

/// Tokens as ids, or as vectors.
pub(crate) enum SequenceInput<'a> {
    Ids(&'a [u32]),
    /// \[tokens, hidden\], and the positions of images.
    Vectors {
        values: Vec<f32>,
        images: Vec<Range<usize>>,
    },
}

/// The granularity of buffers' rows: passes of similar lengths share them.
const ROWS: usize = 64;
/// Lengths up to which each that has kernels of its own is worth compiling beforehand: turns of a chat, and what is
/// left of prompts.
const SHORT: usize = 64;

impl GpuDecoder {
    /// Appends tokens to sequences, one chunk of each, and reads the asked logits back, row by row.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub(crate) fn forward(
        &self,
        sequences: &mut [Sequence<'_>],
        logits: Logits,
    ) -> Result<Option<Vec<f32>>, ForwardError> {
        let rows: usize = sequences.iter().map(|sequence| sequence.rows(&self.sizes)).sum();
        let handles = {
            let mut shared = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
            // What is too small is given back first.
            let large_enough = shared.take().filter(|buffers| buffers.rows >= rows);
            let buffers = large_enough.unwrap_or_else(|| Buffers::new(self, rows.next_multiple_of(ROWS)));
            self.launch_pass(sequences, logits, shared.insert(buffers), rows)?
        };
        // Read after the lock is given back: others may enqueue meanwhile.
        Ok(handles.map(|handle| self.stream.download(&handle)).transpose()?)
    }

    /// Lengths of passes of one sequence, the longest first, that between them launch every kernel that passes of up
    /// to 64 tokens launch, and those of a pass of `most`, which is the longest.
    pub(crate) fn lengths_to_compile(&self, most: usize) -> Vec<usize> {
        let mut lengths = vec![most];
        let mut known = vec![self.plans(most)];
        for length in (1..most.min(SHORT + 1)).rev() {
            let plans = self.plans(length);
            // Of few rows, kernels are made for their number.
            if plans.is_none() || !known.contains(&plans) {
                lengths.push(length);
                known.push(plans);
            }
        }
        lengths
    }

    /// How the products of a pass of so many rows are made, where they are those of many.
    fn plans(&self, rows: usize) -> Option<HashSet<(Layout, bool, Plan)>> {
        let format = self.processor.row_format(self.precision);
        let plan = |matrix: &Arc<PackedMatrix>, gated| {
            (matrix.layout, gated, self.processor.plan(&matrix.layout, format, rows, gated))
        };
        let plans = self.weights.layers.iter().flat_map(|layer| {
            let projections = layer.qkv.parts.iter().chain([&layer.output, &layer.down]);
            let gate_up = layer.gate_up.parts.iter().flat_map(|matrix| [(matrix, false), (matrix, true)]);
            projections.map(|matrix| (matrix, false)).chain(gate_up)
        });
        (rows >= self.many_rows()).then(|| plans.map(|(matrix, gated)| plan(matrix, gated)).collect())
    }

    /// The scaled embeddings of ids, \[ids, hidden\].
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub(crate) fn embed(&self, ids: &[u32], device: &Device) -> Result<Tensor<2>, ForwardError> {
        let (client, hidden) = (self.stream.client(), self.sizes.hidden);
        let out = client.empty((ids.len() * hidden).max(1) * size_of::<f32>());
        if !ids.is_empty() {
            let handle = self.stream.upload_words(ids);
            let factor = self.sizes.embedding_factor;
            rows(client, &self.weights.embedding, &handle, &out, ids.len(), factor);
        }
        Ok(self.stream.download_tensor(&out, [ids.len(), hidden], device)?)
    }

    /// Launches everything; returns the logits asked for.
    fn launch_pass(
        &self,
        sequences: &mut [Sequence<'_>],
        logits: Logits,
        buffers: &Buffers,
        rows: usize,
    ) -> Result<Option<Handle>, ForwardError> {
        let hidden = self.sizes.hidden;
        let ids: Vec<u32> = sequences.iter().flat_map(|sequence| sequence.ids(hidden)).collect();
        self.launch_embedding(&self.stream.upload_words(&ids), buffers, rows);
        let caches: Vec<Arc<Vec<LayerBuffers>>> =
            sequences.iter_mut().map(|sequence| sequence.cache.own().clone()).collect();
        let mut chunks = Vec::with_capacity(sequences.len());
        let mut first_row = 0;
        for (sequence, cache) in sequences.iter().zip(&caches) {
            if let SequenceInput::Vectors { values, .. } = &sequence.input {
                self.put_vectors(values, first_row, buffers);
            }
            let chunk = self.chunk(sequence, first_row, cache);
            first_row += chunk.rows;
            chunks.push(chunk);
        }
        let residual = self.launch_layers(&Tokens::Chunks(&chunks), buffers, rows)?;
        let wanted: Vec<u32> = match logits {
            Logits::None => return Ok(None),
            Logits::All => (0..rows as u32).collect(),
            Logits::Last => chunks.iter().map(|chunk| (chunk.first_row + chunk.rows - 1) as u32).collect(),
        };
        Ok(Some(self.launch_logits(&residual, &wanted, buffers, rows)))
    }

    /// The logits of some rows, \[wanted, vocab\].
    fn launch_logits(
        &self,
        residual: &Residual<'_>,
        wanted: &[u32],
        buffers: &Buffers,
        rows: usize,
    ) -> Handle {
        let client = self.stream.client();
        let count = wanted.len();
        let hidden = self.sizes.hidden;
        let empty = |width: usize| client.empty(count * width * size_of::<f32>());
        let logits = empty(self.sizes.vocab);
        let indices = self.stream.upload_words(wanted);
        let [x, branch] = residual.parts().map(|from| {
            let to = empty(hidden);
            gather_rows(client, from, buffers.rows.max(rows), &indices, &to, count, hidden / 4);
            to
        });
        let next = empty(hidden);
        let inputs = (count >= self.many_rows())
            .then(|| Rows::empty(client, self.processor.row_format(self.precision), count, hidden));
        let residual = residual.of(&x, &branch, &next);
        self.launch_head(&residual, &logits, count, &empty(hidden), inputs.as_ref().map(|rows| (rows, None)));
        logits
    }

    /// Writes vectors in place of embeddings.
    fn put_vectors(&self, values: &[f32], first_row: usize, buffers: &Buffers) {
        let width = self.sizes.hidden * size_of::<f32>();
        let bytes = f32::as_bytes(values).to_vec();
        let all = &buffers.stream[0];
        let start = (first_row * width) as u64;
        let after = all.size_in_used() - start - bytes.len() as u64;
        let place = all.clone().offset_start(start).offset_end(after);
        self.stream.client().write(&place, Bytes::from_bytes_vec(bytes));
    }

    fn chunk<'a>(
        &self,
        sequence: &Sequence<'_>,
        first_row: usize,
        cache: &'a [LayerBuffers],
    ) -> ChunkRows<'a> {
        let rows = sequence.rows(&self.sizes);
        let queries = sequence.position..sequence.position + rows;
        let images = match &sequence.input {
            SequenceInput::Ids(_) => &[][..],
            SequenceInput::Vectors { images, .. } => images,
        };
        let visible = |window| self.stream.upload_words(&visible_ranges(queries.clone(), window, images));
        ChunkRows {
            first_row,
            rows,
            position: self.stream.upload_words(&[sequence.position as u32]),
            local_visible: visible(Some(self.sizes.window)),
            global_visible: visible(None),
            cache,
        }
    }
}

impl Sequence<'_> {
    fn rows(&self, sizes: &super::Sizes) -> usize {
        match &self.input {
            SequenceInput::Ids(ids) => ids.len(),
            SequenceInput::Vectors { values, .. } => values.len() / sizes.hidden.max(1),
        }
    }

    /// Ids to look up; what stands in place of vectors is of no consequence.
    fn ids(&self, hidden: usize) -> Vec<u32> {
        match &self.input {
            SequenceInput::Ids(ids) => ids.to_vec(),
            SequenceInput::Vectors { values, .. } => vec![0; values.len() / hidden.max(1)],
        }
    }
}
