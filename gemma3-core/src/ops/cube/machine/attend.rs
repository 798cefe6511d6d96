//! Attention of the tokens of a pass over the caches of their sequences.

use cubecl::server::Handle;

use super::Cube;
use super::cache::LayerBuffers;
use super::matrix::Vector;
use super::stream::{Chunk, Chunks, Form, Place, Rows, StepTokens, Stream, Tokens, expect};
use crate::ops::MachineError;
use crate::ops::cube::attention::{
    Chunk as ChunkOf, ChunkHeads, Combined, DecodeAttention, DecodeInputs, PrefillAttention, PrefillBuffers,
    PrefillPath, combine_splits, combines_at_once, decode_attention, norm_rope_cache_chunk,
    prefill_attention,
};
use crate::ops::cube::commands::part;
use crate::ops::cube::commands::part as part_of;
use crate::ops::cube::copy::{Rectangle, copy_rectangle};
use crate::ops::cube::gemm::{RowFormat, Rows as Operands};
use crate::ops::cube::limits::product_flops;
use crate::ops::machine::{Heads, ModelShape};

const NO_LAYER: MachineError = MachineError::Bug { what: "a cache lacks a layer of the model" };

impl Cube {
    /// Attends; queries, keys and values lie in `qkv`.
    pub(super) fn launch_attention(
        &self,
        x: &mut Stream<'_>,
        qkv: Rows,
        heads: &Heads<Vector>,
    ) -> Result<Rows, MachineError> {
        let Place::Qkv { parts } = qkv.place else {
            return Err(MachineError::Bug { what: "attention was asked of other rows than a projection's" });
        };
        let fits = heads.query_width() + 2 * heads.key_width() == qkv.width
            && heads.query_width() <= x.buffers.widths.attended
            && heads.q_norm.scale.len == heads.head_dim
            && heads.k_norm.scale.len == heads.head_dim
            && heads.inv_freq.len == heads.head_dim / 2
            && heads.heads.is_multiple_of(heads.kv_heads.max(1));
        expect(fits, "heads are not as wide as their projection")?;
        expect(heads.q_norm.eps == heads.k_norm.eps, "the norms of heads differ in what they add")?;
        x.hold(None, &[&heads.q_norm.scale, &heads.k_norm.scale, &heads.inv_freq]);
        let form = match &mut x.tokens {
            Tokens::Step(step) => {
                let step = *step;
                self.attend_step(x, step, heads, parts)?
            }
            Tokens::Both(step, Chunks { all, .. }) => {
                let (step, mut chunks) = (*step, std::mem::take(all));
                let floats = Operands::f32(&x.buffers.attended);
                let stepped = self.attend_step_into(x, step, heads, parts, &floats);
                let form = stepped.and_then(|()| self.attend_apart(x, &mut chunks, heads));
                if let Tokens::Both(_, Chunks { all, .. }) = &mut x.tokens {
                    *all = chunks;
                }
                form?
            }
            Tokens::Chunks(Chunks { all, .. }) => {
                // They are put back below, whatever happens.
                let mut chunks = std::mem::take(all);
                let form = match &mut chunks[..] {
                    [chunk] => self.attend_whole(x, chunk, heads),
                    chunks => self.attend_apart(x, chunks, heads),
                };
                if let Tokens::Chunks(Chunks { all, .. }) = &mut x.tokens {
                    *all = chunks;
                }
                form?
            }
        };
        Ok(Rows { place: Place::Attended, form, width: heads.query_width() })
    }

    /// Bytes for the parts of a step's attention, of any layer.
    pub(super) fn partial_bytes(&self, shape: &ModelShape<'_, Self>, layers: &[LayerBuffers]) -> usize {
        let floats = shape.blocks.iter().filter_map(|block| {
            let layer = layers.get(block.heads.layer)?;
            Some(self.decode_attention(block.heads, layer).partial_floats())
        });
        floats.max().unwrap_or(1) * size_of::<f32>()
    }

    fn decode_attention(&self, heads: &Heads<Vector>, cache: &LayerBuffers) -> DecodeAttention {
        DecodeAttention::choose(&self.hardware, cache.layout, heads.heads, heads.window)
    }

    /// One token of each sequence, which are all rows of the pass, over its cache; queries, keys and values lie in `parts`.
    fn attend_step(
        &self,
        x: &Stream<'_>,
        step: StepTokens<'_>,
        heads: &Heads<Vector>,
        parts: usize,
    ) -> Result<Form, MachineError> {
        let sequences = layer(step.layers, heads)?.layout.sequences;
        expect(sequences == x.rows, "a step is of other sequences than its caches")?;
        // As the output product reads it.
        let is_written = |format: RowFormat| format != RowFormat::F32 && format.is_full(heads.query_width());
        match self.many(x) {
            Some(inputs) if is_written(inputs.attended.format) => {
                self.attend_step_into(x, step, heads, parts, &inputs.attended)?;
                Ok(Form::Written)
            }
            _ => {
                self.attend_step_into(x, step, heads, parts, &Operands::f32(&x.buffers.attended))?;
                Ok(Form::Floats)
            }
        }
    }

    /// One token of each sequence, which are the first rows of the pass.
    fn attend_step_into(
        &self,
        x: &Stream<'_>,
        step: StepTokens<'_>,
        heads: &Heads<Vector>,
        parts: usize,
        out: &Operands,
    ) -> Result<(), MachineError> {
        let (client, cache) = (self.commands.client(), layer(step.layers, heads)?);
        expect(cache.layout.sequences <= x.rows, "a step is of more sequences than its pass has rows")?;
        let attention = DecodeAttention { parts, ..self.decode_attention(heads, cache) };
        let room = attention.partial_floats() * size_of::<f32>();
        expect(step.partial.size_in_used() as usize >= room, "a step's attention became larger")?;
        let inputs = DecodeInputs {
            qkv: &x.buffers.qkv,
            q_scale: &heads.q_norm.scale.handle,
            k_scale: &heads.k_norm.scale.handle,
            inv_freq: &heads.inv_freq.handle,
            positions: step.positions,
            keys: &cache.keys,
            values: &cache.values,
            partial: step.partial,
            query_factor: heads.query_factor,
            eps: heads.q_norm.eps,
        };
        match step.counters {
            Some(counters) => {
                decode_attention(client, attention, inputs, Some(Combined { counters, out }));
            }
            None => {
                decode_attention(client, attention, inputs, None);
                combine_splits(client, attention, step.partial, out);
            }
        }
        Ok(())
    }

    /// What the cubes of a step's attention count themselves with, where they can, and where that costs less than a launch:
    /// in a graph of CUDA's the next one begins sooner.
    pub(super) fn counters(&self, layers: &[LayerBuffers]) -> Option<Handle> {
        let count = layers.iter().map(|layer| layer.layout.sequences * layer.layout.kv_heads).max()?;
        let saves = self.commands.encodes_replays() && combines_at_once(self.commands.client());
        saves.then(|| self.commands.upload_words(&vec![0; count]))
    }

    /// Consecutive tokens of one sequence, which are all rows of the pass.
    fn attend_whole(
        &self,
        x: &Stream<'_>,
        chunk: &mut Chunk,
        heads: &Heads<Vector>,
    ) -> Result<Form, MachineError> {
        let buffers = x.buffers;
        let path = self.prefill_path(layer(&chunk.layers, heads)?, heads);
        let is_written = |format| path.row_format(format, heads.query_width()) != RowFormat::F32;
        let of = [&buffers.qkv, &buffers.queries];
        match self.many(x) {
            Some(inputs) if is_written(inputs.attended.format) => {
                self.attend_rows(chunk, heads, of, &inputs.attended, path)?;
                Ok(Form::Written)
            }
            _ => {
                self.attend_rows(chunk, heads, of, &Operands::f32(&buffers.attended), path)?;
                Ok(Form::Floats)
            }
        }
    }

    /// Several sequences: the rows of each are a part of the buffers, or are taken out for the time where none can begin
    /// there.
    fn attend_apart(
        &self,
        x: &Stream<'_>,
        chunks: &mut [Chunk],
        heads: &Heads<Vector>,
    ) -> Result<Form, MachineError> {
        let (client, buffers) = (self.commands.client(), x.buffers);
        let (qkv_width, width) = ((heads.query_width() + 2 * heads.key_width()) / 4, heads.query_width() / 4);
        for chunk in chunks {
            let path = self.prefill_path(layer(&chunk.layers, heads)?, heads);
            let of_rows = |buffer: &Handle, width: usize| {
                let bytes = |rows: usize| rows * width * 4 * size_of::<f32>();
                let is_aligned =
                    (bytes(chunk.first_row) as u64).is_multiple_of(self.commands.limits().alignment);
                is_aligned.then(|| part_of(buffer, bytes(chunk.first_row), bytes(chunk.rows)))
            };
            let parts = of_rows(&buffers.qkv, qkv_width).zip(of_rows(&buffers.queries, width));
            if let Some(((qkv, queries), out)) = parts.zip(of_rows(&buffers.attended, width)) {
                self.attend_rows(chunk, heads, [&qkv, &queries], &Operands::f32(&out), path)?;
                continue;
            }
            let empty = |quads: usize| client.empty(chunk.rows * quads * 4 * size_of::<f32>());
            let [qkv, queries, out] = [empty(qkv_width), empty(width), empty(width)];
            let (row, rows) = (chunk.first_row, chunk.rows);
            let place = |buffer, width| Rectangle { buffer, width, row, column: 0 };
            let own = |buffer, width| Rectangle { buffer, width, row: 0, column: 0 };
            copy_rectangle(client, place(&buffers.qkv, qkv_width), own(&qkv, qkv_width), rows, qkv_width);
            self.attend_rows(chunk, heads, [&qkv, &queries], &Operands::f32(&out), path)?;
            copy_rectangle(client, own(&out, width), place(&buffers.attended, width), rows, width);
        }
        Ok(Form::Floats)
    }

    /// What multiplies in the attention of prompts.
    fn prefill_path(&self, cache: &LayerBuffers, heads: &Heads<Vector>) -> PrefillPath {
        let attention = PrefillAttention { cache: cache.layout, heads: heads.heads };
        PrefillPath::choose(self.commands.client(), &attention)
    }

    fn attend_rows(
        &self,
        chunk: &mut Chunk,
        heads: &Heads<Vector>,
        [qkv, queries]: [&Handle; 2],
        out: &Operands,
        path: PrefillPath,
    ) -> Result<(), MachineError> {
        let client = self.commands.client();
        let visible = chunk.visible(heads.window, &self.commands);
        let cache = layer(&chunk.layers, heads)?;
        let of = ChunkHeads {
            qkv,
            q_scale: &heads.q_norm.scale.handle,
            k_scale: &heads.k_norm.scale.handle,
            inv_freq: &heads.inv_freq.handle,
            positions: &chunk.position,
            queries,
            keys: &cache.keys,
            values: &cache.values,
            query_factor: heads.query_factor,
            eps: heads.q_norm.eps,
        };
        let tokens = ChunkOf::Prompt { sequence: 0, tokens: chunk.rows };
        norm_rope_cache_chunk(client, of, tokens, heads.heads, cache.layout, self.hardware.groups(1));
        let attention = PrefillAttention { cache: cache.layout, heads: heads.heads };
        let (keys, values) = (&cache.keys, &cache.values);
        let (rows, width) = (chunk.rows, heads.query_width());
        let end = chunk.queries.end;
        let seen = heads.window.map_or(end, |window| end.min(window + rows));
        // Two products.
        let flops = |rows: usize| 2 * product_flops(rows, width, seen);
        let each = self.commands.limits().rows_of_launch(rows, flops(1));
        for first in (0..rows).step_by(each) {
            let count = each.min(rows - first);
            self.commands.spend(flops(count));
            let words = |handle: &Handle, width: usize| {
                let bytes = |count: usize| count * width * size_of::<u32>();
                part(handle, bytes(first), bytes(count))
            };
            let (queries, visible) = (words(queries, width), words(&visible, 2));
            let out = out.part(first, count, width);
            let over = PrefillBuffers { queries: &queries, keys, values, visible: &visible, out: &out };
            prefill_attention(client, attention, 0, count, over, path);
        }
        Ok(())
    }
}

/// The layer of a cache that heads attend over.
fn layer<'a>(layers: &'a [LayerBuffers], heads: &Heads<Vector>) -> Result<&'a LayerBuffers, MachineError> {
    let layer = layers.get(heads.layer).ok_or(NO_LAYER)?;
    let fits = (layer.layout.kv_heads, layer.layout.head_dim) == (heads.kv_heads, heads.head_dim);
    expect(fits, "a cache is of other heads than its model")?;
    Ok(layer)
}
