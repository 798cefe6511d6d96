//! What a pass writes beside the cache.

use std::sync::Arc;

use cubecl::server::Handle;

use super::GpuDecoder;
use crate::model::ForwardError;
use crate::ops::cube::gemm::{Rows, part_count, scratch_bytes};
use crate::ops::cube::packed::PackedMatrix;

/// Buffers of a pass of some rows; f32 where nothing else is said. What they hold is of no use after it.
#[derive(Debug)]
pub(super) struct Buffers {
    /// The most rows of a pass.
    pub(super) rows: usize,
    /// The residual stream, \[rows, hidden\], and where its next state goes: they change places.
    pub(super) stream: [Handle; 2],
    /// Queries, keys and values side by side, \[rows, (heads + 2 kv_heads) head_dim\]; of a step in parts that are
    /// added up when they are read.
    pub(super) qkv: Handle,
    /// Normalized, turned and scaled queries, \[rows, heads * head_dim\].
    pub(super) queries: Handle,
    /// \[rows, heads * head_dim\].
    pub(super) attended: Handle,
    /// What joins the residual stream next, \[rows, hidden\]; of a step in parts, as above.
    pub(super) branch: Handle,
    /// The stream, normalized, where products don't do that themselves, \[rows, hidden\].
    pub(super) normed: Handle,
    /// \[rows, intermediate\].
    pub(super) gated: Handle,
    /// Where matrices of one input have different formats: their products, before they lie side by side.
    apart: Option<Apart>,
    /// Where products of many rows are made: their inputs.
    pub(super) inputs: Option<Inputs>,
}

/// Products of single matrices.
#[derive(Debug)]
pub(super) struct Apart {
    /// \[rows, the widest of them\].
    pub(super) part: Handle,
    /// Gate and up side by side, \[rows, 2 * intermediate\].
    pub(super) gate_up: Handle,
}

/// Inputs of products of many rows, in the format that these read.
#[derive(Debug)]
pub(super) struct Inputs {
    /// \[rows, hidden\].
    pub(super) normed: Rows,
    /// \[rows, heads * head_dim\].
    pub(super) attended: Rows,
    /// \[rows, intermediate\].
    pub(super) gated: Rows,
    /// Sums of products whose columns are divided, if any are of exactly so many rows.
    pub(super) parts: Option<Handle>,
}

impl Buffers {
    /// Where products of single matrices go, which there is where matrices of one input have different formats.
    pub(super) fn apart(&self) -> Result<&Apart, ForwardError> {
        self.apart
            .as_ref()
            .ok_or(ForwardError::Bug { what: "matrices lie apart, but not what they multiply to" })
    }

    /// Those of passes of up to so many rows.
    pub(super) fn new(decoder: &GpuDecoder, rows: usize) -> Self {
        Self::with_parts(decoder, rows, Parts { qkv: 1, branch: 1 })
    }

    /// Those of steps of so many rows.
    pub(super) fn for_steps(decoder: &GpuDecoder, rows: usize) -> Self {
        Self::with_parts(decoder, rows, Parts::of(decoder, rows))
    }

    fn with_parts(decoder: &GpuDecoder, rows: usize, parts: Parts) -> Self {
        let (client, sizes) = (decoder.stream.client(), &decoder.sizes);
        let empty = |width: usize| client.empty(rows * width * size_of::<f32>());
        let apart = decoder.weights.layers.iter().any(|layer| layer.has_parts());
        Self {
            rows,
            stream: [empty(sizes.hidden), empty(sizes.hidden)],
            qkv: empty(parts.qkv * sizes.qkv()),
            queries: empty(sizes.attended()),
            attended: empty(sizes.attended()),
            branch: empty(parts.branch * sizes.hidden),
            normed: empty(sizes.hidden),
            gated: empty(sizes.intermediate),
            apart: apart.then(|| Apart {
                part: empty(sizes.qkv().max(sizes.intermediate)),
                gate_up: empty(2 * sizes.intermediate),
            }),
            inputs: (rows >= decoder.many_rows()).then(|| Inputs::new(decoder, rows)),
        }
    }
}

/// Parts of products whose sums stay apart, the most of all layers.
struct Parts {
    qkv: usize,
    branch: usize,
}

impl Parts {
    fn of(decoder: &GpuDecoder, rows: usize) -> Self {
        let format = decoder.processor.row_format(decoder.precision);
        let count = |matrix: &Arc<PackedMatrix>| {
            if rows < decoder.many_rows() {
                return 1;
            }
            part_count(&decoder.processor, &matrix.layout, format, rows)
        };
        let layers = || decoder.weights.layers.iter();
        let qkv = layers().flat_map(|layer| &layer.qkv.parts).map(count);
        let branch = layers().flat_map(|layer| [&layer.output, &layer.down]).map(count);
        Self { qkv: qkv.max().unwrap_or(1), branch: branch.max().unwrap_or(1) }
    }
}

impl Inputs {
    fn new(decoder: &GpuDecoder, rows: usize) -> Self {
        let (client, sizes) = (decoder.stream.client(), &decoder.sizes);
        let format = decoder.processor.row_format(decoder.precision);
        let empty = |cols| Rows::empty(client, format, rows, cols);
        let bytes = |matrix: &Arc<PackedMatrix>, gated| {
            scratch_bytes(&decoder.processor, &matrix.layout, format, rows, gated)
        };
        let layers = decoder.weights.layers.iter().flat_map(|layer| {
            let projections = layer.qkv.parts.iter().chain([&layer.output, &layer.down]);
            let plain = projections.map(|matrix| bytes(matrix, false));
            // Gate and up are one product, or two where they lie apart.
            let gate_up =
                layer.gate_up.parts.iter().map(|matrix| bytes(matrix, true).max(bytes(matrix, false)));
            plain.chain(gate_up).collect::<Vec<_>>()
        });
        let most = layers.max().unwrap_or(0).max(bytes(&decoder.weights.head, false));
        Self {
            normed: empty(sizes.hidden),
            attended: empty(sizes.attended()),
            gated: empty(sizes.intermediate),
            parts: (most > 0).then(|| client.empty(most)),
        }
    }
}
