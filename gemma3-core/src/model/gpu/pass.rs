//! The launches of a pass, from ids to the last layer and to logits.

use cubecl::server::Handle;

use super::buffers::{Apart, Buffers, Inputs};
use super::weights::{LayerWeights, Projections};
use super::{GpuDecoder, Sizes};
use crate::cache::LayerBuffers;
use crate::config::LayerType;
use crate::model::ForwardError;
use crate::ops::cube::attention::{
    Chunk, ChunkHeads, DecodeAttention, DecodeStep, PrefillAttention, PrefillBuffers, PrefillPath,
    combine_splits, decode_attention, norm_rope_cache_chunk, prefill_attention,
};
use crate::ops::cube::copy::{Rectangle, copy_rectangle};
use crate::ops::cube::gelu::gelu_mul;
use crate::ops::cube::gemm::{
    Output, RowFormat, Rows, linear, linear_parts, write_rows, write_rows_of_parts,
};
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
    /// In how many parts the branch lies.
    branch_parts: usize,
    /// `None` before the first layer.
    branch_norm: Option<&'a Handle>,
}

/// Where the launches of a pass work.
#[derive(Clone, Copy)]
struct Pass<'a> {
    buffers: &'a Buffers,
    rows: usize,
    /// Whether the parts of a divided product may stay apart, to be added up by who reads them. Few rows spend more
    /// time between launches than in them; of a prompt, parts would be more to read than the product.
    divided: bool,
}

/// The input of a product of many rows or few.
#[derive(Clone, Copy)]
enum Operand<'a> {
    /// f32 rows.
    Floats(&'a Handle),
    /// What stands in its place among the inputs already.
    Written(&'a Inputs),
}

impl<'a> Residual<'a> {
    /// The stream with its branch added, normalized: the input of the next products.
    fn input(&self, scale: &'a Handle, eps: f32) -> Input<'a> {
        let Self { x, next, branch, branch_norm, .. } = *self;
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
    ) -> Result<Residual<'a>, ForwardError> {
        let eps = self.sizes.eps;
        let [x, next] = &buffers.stream;
        let mut residual = Residual { x, next, branch: &buffers.branch, branch_parts: 1, branch_norm: None };
        let is_step = matches!(tokens, Tokens::Step(_));
        let pass = Pass { buffers, rows, divided: is_step };
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.normalize(&residual, &layer.input_norm, pass);
            let input = residual.input(&layer.input_norm, eps);
            let parts = self.project(input, &layer.qkv, pass)?;
            residual.advance();
            let attended = match tokens {
                Tokens::Step(step) => self.attend_step(layer, &step.cache[index], step, pass, parts),
                Tokens::Chunks([chunk]) => self.attend(layer, index, chunk, pass),
                Tokens::Chunks(chunks) => self.attend_apart(layer, index, chunks, buffers),
            };
            residual.branch_parts = self.multiply(attended, |inputs| &inputs.attended, &layer.output, pass);
            residual.branch_norm = Some(&layer.post_attention_norm);

            self.normalize(&residual, &layer.pre_feedforward_norm, pass);
            let input = residual.input(&layer.pre_feedforward_norm, eps);
            residual.branch_parts = self.feed_forward(input, layer, pass)?;
            residual.advance();
            residual.branch_norm = Some(&layer.post_feedforward_norm);
        }
        Ok(residual)
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
                let (parts_of_branch, hidden) = (residual.branch_parts, self.sizes.hidden);
                write_rows_of_parts(client, &self.machine, input, parts_of_branch, inputs, rows, hidden);
                linear(client, &self.processor, inputs, head, Output::plain(&Rows::f32(logits)), rows, parts);
            }
            _ => {
                let tiling = self.tiling(head, rows, 1, true);
                matvec(client, self.fitting(input, tiling, normed, rows), head, logits, rows, tiling);
            }
        }
    }

    /// Where there are many rows, writes the normalized stream as products read it.
    fn normalize(&self, residual: &Residual<'_>, scale: &Handle, pass: Pass<'_>) {
        let Some(inputs) = self.many(pass.buffers, pass.rows) else { return };
        let Sizes { hidden, eps, .. } = self.sizes;
        let (client, input, parts) =
            (self.stream.client(), residual.input(scale, eps), residual.branch_parts);
        write_rows_of_parts(client, &self.machine, input, parts, &inputs.normed, pass.rows, hidden);
    }

    /// Queries, keys and values of the normalized stream; gives the parts in which they lie.
    fn project(
        &self,
        input: Input<'_>,
        projections: &Projections,
        pass: Pass<'_>,
    ) -> Result<usize, ForwardError> {
        let out = &pass.buffers.qkv;
        match &projections.parts[..] {
            [qkv] => Ok(self.product(input, |inputs| &inputs.normed, qkv, out, pass)),
            _ => {
                self.side_by_side(input, projections, out, pass.buffers.apart()?, pass);
                Ok(1)
            }
        }
    }

    /// The products of one input with several matrices, side by side in `out`.
    fn side_by_side(
        &self,
        input: Input<'_>,
        projections: &Projections,
        out: &Handle,
        apart: &Apart,
        pass: Pass<'_>,
    ) {
        let pass = Pass { divided: false, ..pass };
        let mut column = 0;
        let mut input = input;
        for part in &projections.parts {
            self.product(input, |inputs| &inputs.normed, part, &apart.part, pass);
            let width = part.layout.rows / 4;
            let from = Rectangle { buffer: &apart.part, width, row: 0, column: 0 };
            let to = Rectangle { buffer: out, width: projections.outputs() / 4, row: 0, column };
            copy_rectangle(self.stream.client(), from, to, pass.rows, width);
            column += width;
            // The first product has added the branch to the stream.
            if let Input::Residual { stream, scale, eps, .. } = input {
                input = Input::Normed { x: stream, scale, eps };
            }
        }
    }

    /// `gelu(gate) * up` of the normalized stream, and the product with `down`; gives the parts of the branch.
    fn feed_forward(
        &self,
        input: Input<'_>,
        layer: &LayerWeights,
        pass: Pass<'_>,
    ) -> Result<usize, ForwardError> {
        let (client, Pass { buffers, rows, .. }) = (self.stream.client(), pass);
        let mut operand = Operand::Floats(&buffers.gated);
        match (&layer.gate_up.parts[..], self.many(buffers, rows)) {
            ([gate_up], None) => {
                let tiling = self.tiling(gate_up, rows, 2, true);
                let input = self.fitting(input, tiling, &buffers.normed, rows);
                gated(client, input, gate_up, &buffers.gated, rows, tiling);
            }
            ([gate_up], Some(inputs)) => {
                let (out, parts) = (Output::gated(&inputs.gated), inputs.parts.as_ref());
                linear(client, &self.processor, &inputs.normed, gate_up, out, rows, parts);
                operand = Operand::Written(inputs);
            }
            _ => {
                let apart = buffers.apart()?;
                self.side_by_side(input, &layer.gate_up, &apart.gate_up, apart, pass);
                gelu_mul(client, &apart.gate_up, &buffers.gated, rows, self.sizes.intermediate);
            }
        }
        Ok(self.multiply(operand, |inputs| &inputs.gated, &layer.down, pass))
    }

    /// `x Wᵀ` into the branch; gives the parts in which it lies. `place` is that of the operand as products of many
    /// rows read it.
    fn multiply(
        &self,
        operand: Operand<'_>,
        place: fn(&Inputs) -> &Rows,
        matrix: &PackedMatrix,
        pass: Pass<'_>,
    ) -> usize {
        let branch = &pass.buffers.branch;
        match (operand, self.many(pass.buffers, pass.rows)) {
            (Operand::Written(inputs), _) => self.linear(place(inputs), matrix, branch, inputs, pass),
            (Operand::Floats(x), Some(inputs)) if place(inputs).format == RowFormat::F32 => {
                self.linear(&Rows::f32(x), matrix, branch, inputs, pass)
            }
            (Operand::Floats(x), many) => {
                let input = Input::Plain { x };
                if let Some(inputs) = many {
                    let (client, cols) = (self.stream.client(), matrix.layout.cols);
                    write_rows(client, &self.machine, input, place(inputs), pass.rows, cols);
                }
                self.product(input, place, matrix, branch, pass)
            }
        }
    }

    /// A product of what has been written to its `place`, where there are many rows, of `input` otherwise; gives the
    /// parts in which it lies.
    fn product(
        &self,
        input: Input<'_>,
        place: fn(&Inputs) -> &Rows,
        matrix: &PackedMatrix,
        out: &Handle,
        pass: Pass<'_>,
    ) -> usize {
        let Pass { buffers, rows, .. } = pass;
        if let Some(inputs) = self.many(buffers, rows) {
            return self.linear(place(inputs), matrix, out, inputs, pass);
        }
        let stage = !matches!(input, Input::Plain { .. });
        let tiling = self.tiling(matrix, rows, 1, stage);
        let input = self.fitting(input, tiling, &buffers.normed, rows);
        matvec(self.stream.client(), input, matrix, out, rows, tiling);
        1
    }

    /// A product of many rows.
    fn linear(
        &self,
        x: &Rows,
        matrix: &PackedMatrix,
        out: &Handle,
        inputs: &Inputs,
        pass: Pass<'_>,
    ) -> usize {
        let (client, rows) = (self.stream.client(), pass.rows);
        if pass.divided {
            return linear_parts(client, &self.processor, x, matrix, out, rows);
        }
        let (out, parts) = (Rows::f32(out), inputs.parts.as_ref());
        linear(client, &self.processor, x, matrix, Output::plain(&out), rows, parts);
        1
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

    /// One token of each sequence over its cache; queries, keys and values lie in `parts`.
    fn attend_step<'b>(
        &self,
        layer: &LayerWeights,
        cache: &LayerBuffers,
        step: &Step<'_>,
        pass: Pass<'b>,
        parts: usize,
    ) -> Operand<'b> {
        let buffers = pass.buffers;
        let (client, sizes) = (self.stream.client(), &self.sizes);
        let attention = DecodeAttention { parts, ..self.decode_attention(layer, cache) };
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
        let partial = &step.scratch.partial;
        // As the output product reads it.
        let is_written = |inputs: &Inputs| {
            let format = inputs.attended.format;
            format == RowFormat::Bf16 && format.is_full(sizes.attended())
        };
        match self.many(buffers, pass.rows) {
            Some(inputs) if is_written(inputs) => {
                combine_splits(client, attention, partial, &inputs.attended);
                Operand::Written(inputs)
            }
            _ => {
                let rows = Rows::f32(&buffers.attended);
                combine_splits(client, attention, partial, &rows);
                Operand::Floats(&buffers.attended)
            }
        }
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
    fn attend<'b>(
        &self,
        layer: &LayerWeights,
        index: usize,
        chunk: &ChunkRows<'_>,
        pass: Pass<'b>,
    ) -> Operand<'b> {
        let buffers = pass.buffers;
        let (qkv, queries) = (&buffers.qkv, &buffers.queries);
        let cache = &chunk.cache[index];
        let path = self.prefill_path(cache);
        let is_written = |inputs: &Inputs| {
            path.row_format(inputs.attended.format, self.sizes.attended()) == RowFormat::Bf16
        };
        match self.many(buffers, chunk.rows) {
            Some(inputs) if is_written(inputs) => {
                self.attend_rows(layer, cache, chunk, [qkv, queries], &inputs.attended, path);
                Operand::Written(inputs)
            }
            _ => {
                let out = Rows::f32(&buffers.attended);
                self.attend_rows(layer, cache, chunk, [qkv, queries], &out, path);
                Operand::Floats(&buffers.attended)
            }
        }
    }

    /// What multiplies in the attention of prompts.
    fn prefill_path(&self, cache: &LayerBuffers) -> PrefillPath {
        let attention = PrefillAttention { cache: cache.layout, heads: self.sizes.heads };
        PrefillPath::choose(self.stream.client(), &attention)
    }

    fn attend_rows(
        &self,
        layer: &LayerWeights,
        cache: &LayerBuffers,
        chunk: &ChunkRows<'_>,
        [qkv, queries]: [&Handle; 2],
        out: &Rows,
        path: PrefillPath,
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
        prefill_attention(client, attention, 0, chunk.rows, over, path);
    }

    /// Several sequences: the rows of each are taken out for the time.
    fn attend_apart<'b>(
        &self,
        layer: &LayerWeights,
        index: usize,
        chunks: &[ChunkRows<'_>],
        buffers: &'b Buffers,
    ) -> Operand<'b> {
        let client = self.stream.client();
        let (qkv_width, width) = (self.sizes.qkv() / 4, self.sizes.attended() / 4);
        for chunk in chunks {
            let empty = |quads: usize| client.empty(chunk.rows * quads * 4 * size_of::<f32>());
            let [qkv, queries, out] = [empty(qkv_width), empty(width), empty(width)];
            let place = |buffer, width| Rectangle { buffer, width, row: chunk.first_row, column: 0 };
            let own = |buffer, width| Rectangle { buffer, width, row: 0, column: 0 };
            let from = place(&buffers.qkv, qkv_width);
            copy_rectangle(client, from, own(&qkv, qkv_width), chunk.rows, qkv_width);
            let (cache, attended) = (&chunk.cache[index], Rows::f32(&out));
            self.attend_rows(layer, cache, chunk, [&qkv, &queries], &attended, self.prefill_path(cache));
            copy_rectangle(client, own(&out, width), place(&buffers.attended, width), chunk.rows, width);
        }
        Operand::Floats(&buffers.attended)
    }
}
