//! The launches of a pass, from ids to the last layer and to logits.

use cubecl::server::Handle;

use super::buffers::{Buffers, Inputs};
use super::weights::{LayerWeights, Projections};
use super::{GpuDecoder, Sizes};
use crate::cache::LayerBuffers;
use crate::config::LayerType;
use crate::ops::cube::attention::{
    Chunk, ChunkHeads, DecodeAttention, DecodeStep, PrefillAttention, PrefillBuffers, PrefillPath,
    combine_splits, decode_attention, norm_rope_cache_chunk, prefill_attention,
};
use crate::ops::cube::copy::{Rectangle, copy_rectangle};
use crate::ops::cube::gelu::gelu_mul;
use crate::ops::cube::gemm::{Output, RowFormat, Rows, linear, write_rows};
use crate::ops::cube::matvec::{Input, MAX_BATCH, Tiling, gated, matvec};
use crate::ops::cube::packed::{PackedMatrix, rows as embed};

/// Whose tokens the rows of a pass are.
pub(super) enum Tokens<'a> {
    /// One of each sequence of a cache.
    Step(Step<'a>),
    /// Consecutive ones of one sequence after the other.
    Chunks(&'a [ChunkRows<'a>]),
}

/// One token of each sequence: nothing of it depends on the positions but the contents of a buffer.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    /// u32 \[sequences\].
    pub(super) positions: &'a Handle,
    pub(super) cache: &'a [LayerBuffers],
    pub(super) scratch: &'a Scratch,
}

/// Rows that are consecutive tokens of a sequence.
pub(super) struct ChunkRows<'a> {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Position of the first, u32 \[1\].
    pub(super) position: Handle,
    /// First and end of the positions that each row sees, u32 \[rows, 2\], in local layers and in global ones.
    pub(super) local_visible: Handle,
    pub(super) global_visible: Handle,
    pub(super) cache: &'a [LayerBuffers],
}

/// Where the parts of a decode step's attention are gathered.
#[derive(Debug)]
pub(super) struct Scratch {
    partial: Handle,
}

/// The residual stream between two launches: the sum so far, and the norm of what has not joined it yet.
pub(super) struct Residual<'a> {
    x: &'a Handle,
    next: &'a Handle,
    branch: &'a Handle,
    /// `None` before the first layer.
    branch_norm: Option<&'a Handle>,
}

impl<'a> Residual<'a> {
    /// The stream with its branch added, normalized: the input of the next products.
    fn input(&self, scale: &'a Handle, eps: f32) -> Input<'a> {
        let Self { x, next, branch, branch_norm } = *self;
        match branch_norm {
            None => Input::Normed { x, scale, eps },
            Some(branch_scale) => Input::Residual { x, branch, branch_scale, scale, stream: next, eps },
        }
    }

    /// A product has added the branch and written the sum.
    fn advance(&mut self) {
        if self.branch_norm.take().is_some() {
            std::mem::swap(&mut self.x, &mut self.next);
        }
    }

    /// The same of other rows.
    pub(super) fn of(&self, x: &'a Handle, branch: &'a Handle, next: &'a Handle) -> Self {
        Self { x, next, branch, ..*self }
    }

    pub(super) fn parts(&self) -> [&'a Handle; 2] {
        [self.x, self.branch]
    }
}

impl GpuDecoder {
    /// Launches of a layer of a step of one sequence: the fused products (one more and a copy where formats
    /// differ), attention in two, its output, gate and up, down.
    pub(crate) fn launches_per_block(&self) -> usize {
        let apart = |parts: usize| if parts > 1 { 2 * parts } else { 1 };
        let layers = &self.weights.layers;
        let most =
            layers.iter().map(|layer| apart(layer.qkv.parts.len()) + apart(layer.gate_up.parts.len())).max();
        most.unwrap_or(2) + 4
    }

    /// Looks embeddings up: `ids` u32 \[rows\].
    pub(super) fn launch_embedding(&self, ids: &Handle, buffers: &Buffers, rows: usize) {
        let factor = self.sizes.embedding_factor;
        embed(self.stream.client(), &self.weights.embedding, ids, &buffers.stream[0], rows, factor);
    }

    /// All layers over the vectors that stand in the first of the streams. Keys and values go to the caches.
    pub(super) fn launch_layers<'a>(
        &'a self,
        tokens: &Tokens<'_>,
        buffers: &'a Buffers,
        rows: usize,
    ) -> Residual<'a> {
        let eps = self.sizes.eps;
        let [x, next] = &buffers.stream;
        let mut residual = Residual { x, next, branch: &buffers.branch, branch_norm: None };
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let input = residual.input(&layer.input_norm, eps);
            self.project(input, &layer.qkv, buffers, rows);
            residual.advance();
            match tokens {
                Tokens::Step(step) => self.attend_step(layer, &step.cache[index], step, buffers),
                Tokens::Chunks([chunk]) => self.attend(layer, index, chunk, buffers),
                Tokens::Chunks(chunks) => self.attend_apart(layer, index, chunks, buffers),
            }
            self.multiply(&buffers.attended, |inputs| &inputs.attended, &layer.output, buffers, rows);
            residual.branch_norm = Some(&layer.post_attention_norm);

            let input = residual.input(&layer.pre_feedforward_norm, eps);
            self.feed_forward(input, layer, buffers, rows);
            residual.advance();
            residual.branch_norm = Some(&layer.post_feedforward_norm);
        }
        residual
    }

    /// Final norm and head: logits \[rows, vocab\]. `normed` is scratch of \[rows, hidden\], `inputs` the same in
    /// the format of products of many rows, and the scratch of these.
    pub(super) fn launch_head(
        &self,
        residual: &Residual<'_>,
        logits: &Handle,
        rows: usize,
        normed: &Handle,
        inputs: Option<(&Rows, Option<&Handle>)>,
    ) {
        let client = self.stream.client();
        let (input, head) = (residual.input(&self.weights.final_norm, self.sizes.eps), &self.weights.head);
        match inputs {
            Some((inputs, parts)) if rows >= self.many_rows() => {
                write_rows(client, &self.machine, input, inputs, rows, self.sizes.hidden);
                linear(client, &self.processor, inputs, head, Output::plain(&Rows::f32(logits)), rows, parts);
            }
            _ => {
                let tiling = self.tiling(head, rows, 1, true);
                matvec(client, self.fitting(input, tiling, normed, rows), head, logits, rows, tiling);
            }
        }
    }

    /// Queries, keys and values of the normalized stream.
    fn project(&self, input: Input<'_>, projections: &Projections, buffers: &Buffers, rows: usize) {
        if let Some(inputs) = self.many(buffers, rows) {
            let (client, normed) = (self.stream.client(), &inputs.normed);
            write_rows(client, &self.machine, input, normed, rows, self.sizes.hidden);
        }
        self.side_by_side(input, projections, &buffers.qkv, buffers, rows);
    }

    /// The products of one input with several matrices, side by side in `out`.
    fn side_by_side(
        &self,
        input: Input<'_>,
        projections: &Projections,
        out: &Handle,
        buffers: &Buffers,
        rows: usize,
    ) {
        let mut column = 0;
        let mut input = input;
        for part in &projections.parts {
            let whole = projections.parts.len() == 1;
            let to = match &buffers.apart {
                Some(apart) if !whole => &apart.part,
                _ => out,
            };
            self.product_of(input, |inputs| &inputs.normed, part, to, buffers, rows);
            if !whole {
                let width = part.layout.rows / 4;
                let from = Rectangle { buffer: to, width, row: 0, column: 0 };
                let to = Rectangle { buffer: out, width: projections.outputs() / 4, row: 0, column };
                copy_rectangle(self.stream.client(), from, to, rows, width);
                column += width;
                // The first product has added the branch to the stream.
                if let Input::Residual { stream, scale, eps, .. } = input {
                    input = Input::Normed { x: stream, scale, eps };
                }
            }
        }
    }

    /// `gelu(gate) * up` of the normalized stream, and the product with `down`.
    fn feed_forward(&self, input: Input<'_>, layer: &LayerWeights, buffers: &Buffers, rows: usize) {
        let client = self.stream.client();
        let Sizes { hidden, intermediate, .. } = self.sizes;
        let many = self.many(buffers, rows);
        if let Some(inputs) = many {
            write_rows(client, &self.machine, input, &inputs.normed, rows, hidden);
        }
        match (&layer.gate_up.parts[..], many) {
            ([gate_up], None) => {
                let tiling = self.tiling(gate_up, rows, 2, true);
                let input = self.fitting(input, tiling, &buffers.normed, rows);
                gated(client, input, gate_up, &buffers.gated, rows, tiling);
            }
            ([gate_up], Some(inputs)) => {
                let parts = inputs.parts.as_ref();
                linear(
                    client,
                    &self.processor,
                    &inputs.normed,
                    gate_up,
                    Output::gated(&inputs.gated),
                    rows,
                    parts,
                );
                let branch = Rows::f32(&buffers.branch);
                linear(
                    client,
                    &self.processor,
                    &inputs.gated,
                    &layer.down,
                    Output::plain(&branch),
                    rows,
                    parts,
                );
                return;
            }
            _ => {
                let Some(apart) = &buffers.apart else { return };
                self.side_by_side(input, &layer.gate_up, &apart.gate_up, buffers, rows);
                gelu_mul(client, &apart.gate_up, &buffers.gated, rows, intermediate);
            }
        }
        self.multiply(&buffers.gated, |inputs| &inputs.gated, &layer.down, buffers, rows);
    }

    /// `x Wᵀ` into the branch.
    fn multiply(
        &self,
        x: &Handle,
        place: fn(&Inputs) -> &Rows,
        matrix: &PackedMatrix,
        buffers: &Buffers,
        rows: usize,
    ) {
        let input = Input::Plain { x };
        if let Some(inputs) = self.many(buffers, rows)
            && place(inputs).format != RowFormat::F32
        {
            let cols = matrix.layout.cols;
            write_rows(self.stream.client(), &self.machine, input, place(inputs), rows, cols);
        }
        self.product_of(input, place, matrix, &buffers.branch, buffers, rows);
    }

    /// One product. Of many rows, the input is what has been written to its place, or plain f32 as it is.
    fn product_of(
        &self,
        input: Input<'_>,
        place: fn(&Inputs) -> &Rows,
        matrix: &PackedMatrix,
        out: &Handle,
        buffers: &Buffers,
        rows: usize,
    ) {
        let client = self.stream.client();
        match (self.many(buffers, rows), input) {
            (Some(inputs), Input::Plain { x }) if place(inputs).format == RowFormat::F32 => {
                let (x, out, parts) = (Rows::f32(x), Rows::f32(out), inputs.parts.as_ref());
                linear(client, &self.processor, &x, matrix, Output::plain(&out), rows, parts);
            }
            (Some(inputs), _) => {
                let (out, parts) = (Rows::f32(out), inputs.parts.as_ref());
                linear(client, &self.processor, place(inputs), matrix, Output::plain(&out), rows, parts);
            }
            (None, _) => {
                let stage = !matches!(input, Input::Plain { .. });
                let tiling = self.tiling(matrix, rows, 1, stage);
                let input = self.fitting(input, tiling, &buffers.normed, rows);
                matvec(client, input, matrix, out, rows, tiling);
            }
        }
    }

    /// The input, normalized beforehand where it does not fit the shared memory of the product's cubes.
    fn fitting<'b>(&self, input: Input<'b>, tiling: Tiling, normed: &'b Handle, rows: usize) -> Input<'b> {
        if tiling.staged || matches!(input, Input::Plain { .. }) {
            return input;
        }
        let to = Rows::f32(normed);
        write_rows(self.stream.client(), &self.machine, input, &to, rows, self.sizes.hidden);
        Input::Plain { x: normed }
    }

    /// The inputs of products of many rows, if there are many.
    fn many<'b>(&self, buffers: &'b Buffers, rows: usize) -> Option<&'b Inputs> {
        buffers.inputs.as_ref().filter(|_| rows >= self.many_rows())
    }

    /// The least number of rows of which products are made as those of prompts: tensor cores read weights as fast
    /// for sixteen rows as for one.
    pub(super) fn many_rows(&self) -> usize {
        match self.processor.row_format(self.precision) {
            RowFormat::Bf16 => 2,
            RowFormat::F32 => MAX_BATCH + 1,
        }
    }

    fn tiling(&self, matrix: &PackedMatrix, rows: usize, outputs: usize, stage: bool) -> Tiling {
        Tiling::choose(&self.machine, &matrix.layout, rows, outputs, stage, self.precision)
    }

    fn frequencies(&self, kind: LayerType) -> &Handle {
        match kind {
            LayerType::FullAttention => &self.weights.global_frequencies,
            LayerType::SlidingAttention => &self.weights.local_frequencies,
        }
    }

    /// One token of each sequence over its cache.
    fn attend_step(&self, layer: &LayerWeights, cache: &LayerBuffers, step: &Step<'_>, buffers: &Buffers) {
        let (client, sizes) = (self.stream.client(), &self.sizes);
        let attention = self.decode_attention(layer, cache);
        let over = DecodeStep {
            qkv: &buffers.qkv,
            q_scale: &layer.q_norm,
            k_scale: &layer.k_norm,
            inv_freq: self.frequencies(layer.kind),
            positions: step.positions,
            keys: &cache.keys,
            values: &cache.values,
            partial: &step.scratch.partial,
            query_factor: sizes.query_factor,
            eps: sizes.eps,
        };
        decode_attention(client, attention, over);
        combine_splits(client, attention, &step.scratch.partial, &buffers.attended);
    }

    fn decode_attention(&self, layer: &LayerWeights, cache: &LayerBuffers) -> DecodeAttention {
        let Sizes { heads, window, .. } = self.sizes;
        let window = matches!(layer.kind, LayerType::SlidingAttention).then_some(window);
        DecodeAttention::choose(&self.machine, cache.layout, heads, window)
    }

    /// Scratch that is large enough for every layer of a step.
    pub(super) fn scratch(&self, cache: &[LayerBuffers]) -> Scratch {
        let layers = self.weights.layers.iter().zip(cache);
        let floats = layers.map(|(layer, cache)| self.decode_attention(layer, cache).partial_floats());
        let bytes = floats.max().unwrap_or(1) * size_of::<f32>();
        Scratch { partial: self.stream.client().empty(bytes) }
    }

    /// Consecutive tokens of one sequence, which are all rows of the buffers.
    fn attend(&self, layer: &LayerWeights, index: usize, chunk: &ChunkRows<'_>, buffers: &Buffers) {
        let all = [&buffers.qkv, &buffers.queries, &buffers.attended];
        self.attend_rows(layer, &chunk.cache[index], chunk, all);
    }

    fn attend_rows(
        &self,
        layer: &LayerWeights,
        cache: &LayerBuffers,
        chunk: &ChunkRows<'_>,
        [qkv, queries, out]: [&Handle; 3],
    ) {
        let (client, sizes) = (self.stream.client(), &self.sizes);
        let heads = ChunkHeads {
            qkv,
            q_scale: &layer.q_norm,
            k_scale: &layer.k_norm,
            inv_freq: self.frequencies(layer.kind),
            positions: &chunk.position,
            queries,
            keys: &cache.keys,
            values: &cache.values,
            query_factor: sizes.query_factor,
            eps: sizes.eps,
        };
        let tokens = Chunk::Prompt { sequence: 0, tokens: chunk.rows };
        norm_rope_cache_chunk(client, heads, tokens, sizes.heads, cache.layout, self.machine.groups(1));
        let attention = PrefillAttention { cache: cache.layout, heads: sizes.heads };
        let visible = match layer.kind {
            LayerType::FullAttention => &chunk.global_visible,
            LayerType::SlidingAttention => &chunk.local_visible,
        };
        let over = PrefillBuffers { queries, keys: &cache.keys, values: &cache.values, visible, out };
        let path = PrefillPath::choose(client, &attention);
        prefill_attention(client, attention, 0, chunk.rows, over, path);
    }

    /// Several sequences: the rows of each are taken out for the time.
    fn attend_apart(&self, layer: &LayerWeights, index: usize, chunks: &[ChunkRows<'_>], buffers: &Buffers) {
        let client = self.stream.client();
        let (qkv_width, width) = (self.sizes.qkv() / 4, self.sizes.attended() / 4);
        for chunk in chunks {
            let empty = |quads: usize| client.empty(chunk.rows * quads * 4 * size_of::<f32>());
            let [qkv, queries, out] = [empty(qkv_width), empty(width), empty(width)];
            let place = |buffer, width| Rectangle { buffer, width, row: chunk.first_row, column: 0 };
            let own = |buffer, width| Rectangle { buffer, width, row: 0, column: 0 };
            let from = place(&buffers.qkv, qkv_width);
            copy_rectangle(client, from, own(&qkv, qkv_width), chunk.rows, qkv_width);
            self.attend_rows(layer, &chunk.cache[index], chunk, [&qkv, &queries, &out]);
            copy_rectangle(client, own(&out, width), place(&buffers.attended, width), chunk.rows, width);
        }
    }
}
