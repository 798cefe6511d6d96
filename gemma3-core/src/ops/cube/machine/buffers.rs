//! What a pass writes beside the caches.

use std::sync::Arc;

use cubecl::server::Handle;

use super::Cube;
use super::matrix::Matrix;
use crate::ops::MachineError;
use crate::ops::cube::gemm::{Rows, part_count, scratch_bytes};
use crate::ops::cube::limits::DeviceLimits;
use crate::ops::cube::packed::PackedMatrix;
use crate::ops::machine::{BlockShape, ModelShape};

/// Buffers of a pass of some rows; f32 where nothing else is said. What they hold is of no use after it.
#[derive(Debug)]
pub(super) struct Buffers {
    /// The most rows of a pass.
    pub(super) rows: usize,
    pub(super) widths: Widths,
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
    /// Where a matrix lies in several parts: their products, before they lie side by side.
    apart: Option<Apart>,
    /// Where products of many rows are made: their inputs.
    pub(super) inputs: Option<Inputs>,
}

/// Numbers in a row of each buffer, the most of all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Widths {
    pub(super) hidden: usize,
    pub(super) qkv: usize,
    pub(super) attended: usize,
    pub(super) intermediate: usize,
    /// Outputs of the largest part of a matrix that lies in several; 0 if none does. The head has buffers of its own.
    part: usize,
    /// Outputs of gates and up projections that lie in several parts.
    gate_up: usize,
}

/// Products of the parts of a matrix.
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

impl Widths {
    pub(super) fn of(shape: &ModelShape<'_, Cube>) -> Self {
        let most = |width: &dyn Fn(usize) -> usize| (0..shape.blocks.len()).map(width).max().unwrap_or(0);
        let blocks = &shape.blocks;
        Self {
            hidden: shape.embedding.cols(),
            qkv: most(&|block| blocks[block].qkv.outputs()),
            attended: most(&|block| blocks[block].heads.query_width()),
            intermediate: most(&|block| blocks[block].down.cols()),
            part: most(&|block| {
                let BlockShape { qkv, output, gate_up, down, .. } = blocks[block];
                [qkv, output, gate_up, down].map(Matrix::largest_part).into_iter().max().unwrap_or(0)
            }),
            gate_up: most(&|block| match blocks[block].gate_up.stacks() {
                [_] => 0,
                _ => blocks[block].gate_up.outputs(),
            }),
        }
    }

    /// Bytes of the largest buffer of a pass.
    pub(super) fn bytes(&self, rows: usize) -> usize {
        let Self { hidden, qkv, attended, intermediate, part, gate_up } = *self;
        let widest = [hidden, qkv, attended, intermediate, part, gate_up].into_iter().max().unwrap_or(0);
        rows * widest * size_of::<f32>()
    }

    /// The most rows of a pass whose buffers the device holds, each in one piece.
    pub(super) fn most_rows(&self, limits: &DeviceLimits) -> usize {
        let row_bytes = self.bytes(1).max(1) as u64;
        usize::try_from(limits.buffer_bytes / row_bytes).unwrap_or(usize::MAX)
    }
}

impl Buffers {
    /// Where products of the parts of a matrix go, which there is where one lies in several.
    pub(super) fn apart(&self) -> Result<&Apart, MachineError> {
        self.apart
            .as_ref()
            .ok_or(MachineError::Bug { what: "a matrix lies in parts, but not what they multiply to" })
    }

    /// Those of passes of up to so many rows.
    pub(super) fn new(cube: &Cube, shape: &ModelShape<'_, Cube>, rows: usize) -> Self {
        Self::with_parts(cube, shape, rows, Parts { qkv: 1, branch: 1 })
    }

    /// Those of steps of so many rows.
    pub(super) fn for_steps(cube: &Cube, shape: &ModelShape<'_, Cube>, rows: usize) -> Self {
        Self::with_parts(cube, shape, rows, Parts::of(cube, shape, rows))
    }

    fn with_parts(cube: &Cube, shape: &ModelShape<'_, Cube>, rows: usize, parts: Parts) -> Self {
        let client = cube.commands.client();
        let widths = Widths::of(shape);
        let empty = |width: usize| client.empty(rows * width * size_of::<f32>());
        Self {
            rows,
            widths,
            stream: [empty(widths.hidden), empty(widths.hidden)],
            qkv: empty(parts.qkv * widths.qkv),
            queries: empty(widths.attended),
            attended: empty(widths.attended),
            branch: empty(parts.branch * widths.hidden),
            normed: empty(widths.hidden),
            gated: empty(widths.intermediate),
            apart: (widths.part > 0)
                .then(|| Apart { part: empty(widths.part), gate_up: empty(widths.gate_up.max(4)) }),
            inputs: (rows >= cube.many_rows()).then(|| Inputs::new(cube, shape, widths, rows)),
        }
    }
}

/// Parts of products whose sums stay apart, the most of all layers.
struct Parts {
    qkv: usize,
    branch: usize,
}

impl Parts {
    fn of(cube: &Cube, shape: &ModelShape<'_, Cube>, rows: usize) -> Self {
        let format = cube.row_format();
        let count = |matrix: &Arc<PackedMatrix>| {
            if rows < cube.many_rows() {
                return 1;
            }
            part_count(&cube.processor, &matrix.layout, format, rows)
        };
        let qkv = shape.blocks.iter().flat_map(|block| block.qkv.stacks()).map(count);
        let branches = shape.blocks.iter().flat_map(|block| [block.output, block.down]);
        let branch = branches.flat_map(|matrix| matrix.stacks()).map(count);
        Self { qkv: qkv.max().unwrap_or(1), branch: branch.max().unwrap_or(1) }
    }
}

impl Inputs {
    fn new(cube: &Cube, shape: &ModelShape<'_, Cube>, widths: Widths, rows: usize) -> Self {
        let client = cube.commands.client();
        let format = cube.row_format();
        let empty = |cols| Rows::empty(client, format, rows, cols);
        let bytes = |matrix: &Arc<PackedMatrix>, gated| {
            scratch_bytes(&cube.processor, &matrix.layout, format, rows, gated)
        };
        let blocks = shape.blocks.iter().flat_map(|block| {
            let projections = [block.qkv, block.output, block.down].into_iter().flat_map(|m| m.stacks());
            let plain = projections.map(|matrix| bytes(matrix, false));
            // Gate and up are one product, or two where they lie apart.
            let gate_up =
                block.gate_up.stacks().iter().map(|matrix| bytes(matrix, true).max(bytes(matrix, false)));
            plain.chain(gate_up).collect::<Vec<_>>()
        });
        let head = shape.head.stacks().iter().map(|matrix| bytes(matrix, false));
        let most = blocks.chain(head).max().unwrap_or(0);
        Self {
            normed: empty(widths.hidden),
            attended: empty(widths.attended),
            gated: empty(widths.intermediate),
            parts: (most > 0).then(|| client.empty(most)),
        }
    }
}
