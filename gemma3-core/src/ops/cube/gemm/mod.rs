//! Products of many rows of input with a packed matrix: prompts, batches of sequences, images.
//!
//! | module | what it knows |
//! |---|---|
//! | `rows` | activations as rows of f32 or bf16, with the norms in front |
//! | `exact` | the kernel of every device: f32 throughout |
//! | `tensor` | the kernel for NVIDIA's tensor cores: bf16 products, f32 sums |
//! | `staging` | how tiles get into its shared memory; packed weights into bf16 |
//! | `ptx` | the instructions that it is made of |
//! | `tile`, `plan` | how a product is divided, and which division is chosen |
//! | `epilogue`, `parts` | sums into outputs; sums of columns that were divided |

mod epilogue;
mod exact;
mod parts;
mod plan;
mod ptx;
mod rows;
mod staging;
mod tensor;
#[cfg(test)]
mod tests;
mod tile;

pub use plan::{Plan, Processor};
pub use rows::{RowFormat, Rows, write_rows};
pub use tile::{Engine, Tile};

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::ops::cube::packed::{Layout, PackedMatrix};
use epilogue::Job;
use exact::{ExactJob, SIDE, exact_kernel};
use parts::{UNITS, parts_kernel};
use tensor::tensor_kernel;

/// Where the results of a product go.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    /// Rows of as many numbers as there are outputs.
    pub rows: &'a Rows,
    /// Whether the first half of the matrix is a gate and the second half an up projection; outputs, half as
    /// many as the matrix has rows, are then `gelu_tanh(gate) * up`.
    pub gated: bool,
}

impl<'a> Output<'a> {
    /// The sums themselves.
    pub fn plain(rows: &'a Rows) -> Self {
        Self { rows, gated: false }
    }

    /// A gate and its up projection.
    pub fn gated(rows: &'a Rows) -> Self {
        Self { rows, gated: true }
    }
}

/// Bytes of scratch that [`linear`] uses, of a product whose columns are divided; 0 for others.
pub fn scratch_bytes(
    processor: &Processor,
    layout: &Layout,
    format: RowFormat,
    rows: usize,
    gated: bool,
) -> usize {
    match processor.plan(layout, format, rows, gated) {
        Plan::Tensor(tile) => part_bytes(tile.split(tile.splits, layout).splits, layout, rows),
        Plan::Exact { .. } => 0,
    }
}

fn part_bytes(splits: usize, layout: &Layout, rows: usize) -> usize {
    if splits > 1 { splits * rows * layout.rows * size_of::<f32>() } else { 0 }
}

/// `x Wᵀ` of `rows` rows, by the kernels that `processor` has for the format of `x`: exact ones for f32 rows,
/// tensor cores for bf16 rows. [`Processor::row_format`] says which rows to make.
/// `scratch` of [`scratch_bytes`] is used where it is large enough; a recorded product needs it, since what is
/// allocated here is free for others afterwards.
///
/// # Panics
/// Exact products have f32 outputs only.
pub fn linear(
    client: &Client,
    processor: &Processor,
    x: &Rows,
    matrix: &PackedMatrix,
    out: Output<'_>,
    rows: usize,
    scratch: Option<&Handle>,
) {
    let plan = processor.plan(&matrix.layout, x.format, rows, out.gated);
    launch(client, plan, x, matrix, out, rows, scratch);
}

/// Launches a product as planned.
///
/// # Panics
/// If the plan doesn't fit the formats of `x` and `out`: f32 rows have exact plans and f32 outputs.
pub fn launch(
    client: &Client,
    plan: Plan,
    x: &Rows,
    matrix: &PackedMatrix,
    out: Output<'_>,
    rows: usize,
    scratch: Option<&Handle>,
) {
    if rows == 0 {
        return;
    }
    match plan {
        Plan::Exact { unit_m } => {
            assert_eq!(
                (x.format, out.rows.format),
                (RowFormat::F32, RowFormat::F32),
                "exact products are of f32"
            );
            launch_exact(client, unit_m, &x.handle, matrix, out, rows);
        }
        Plan::Tensor(tile) => {
            assert_eq!(x.format, RowFormat::Bf16, "tensor cores multiply bf16");
            launch_tensor(client, tile, &x.handle, matrix, out, rows, scratch);
        }
    }
}

fn launch_exact(
    client: &Client,
    unit_m: usize,
    x: &Handle,
    matrix: &PackedMatrix,
    out: Output<'_>,
    rows: usize,
) {
    let layout = matrix.layout;
    let job = ExactJob { layout, unit_m, unit_n: 4, gated: out.gated };
    let count = CubeCount::Static(
        rows.div_ceil(SIDE * unit_m) as u32,
        job.outputs().div_ceil(job.cube_outputs()) as u32,
        1,
    );
    // SAFETY: the lengths are those of the layout and the rows, which bound every index of the kernel.
    unsafe {
        exact_kernel::launch_unchecked(
            client,
            count,
            CubeDim::new_1d((SIDE * SIDE) as u32),
            BufferArg::from_raw_parts(x.clone(), rows * layout.cols / 4),
            BufferArg::from_raw_parts(matrix.quants.clone(), layout.rows * layout.row_words() / 4),
            BufferArg::from_raw_parts(matrix.side.clone(), (layout.rows * layout.side_words()).max(1)),
            BufferArg::from_raw_parts(out.rows.handle.clone(), rows * job.outputs()),
            rows as u32,
            job,
        );
    }
}

fn launch_tensor(
    client: &Client,
    tile: Tile,
    x: &Handle,
    matrix: &PackedMatrix,
    out: Output<'_>,
    rows: usize,
    scratch: Option<&Handle>,
) {
    let layout = matrix.layout;
    let mut tile = tile.split(tile.splits, &layout);
    // Those kernels count bytes in 32 bits.
    let bytes = RowFormat::Bf16.bytes(rows.max(layout.rows), layout.cols);
    tile.overlapped &= bytes <= u32::MAX as usize;
    let whole = Job { layout, tile, gated: out.gated, format: out.rows.format };
    let (x_chunks, out) = (rows * RowFormat::Bf16.width(layout.cols) / 8, &out.rows.handle);
    // SAFETY: these lengths are those of the layout and the rows, which bound every index of the kernels; their
    // inline instructions address shared memory within the stages of tiles.
    let buffer = |handle: &Handle, len| unsafe { BufferArg::from_raw_parts(handle.clone(), len) };
    let x = || buffer(x, x_chunks);
    let quants = || buffer(&matrix.quants, layout.rows * layout.row_words() / 4);
    let side = || buffer(&matrix.side, (layout.rows * layout.side_words()).max(1));
    let written = || buffer(out, rows * whole.written() / whole.element_outputs());
    let sums = match tile.engine {
        Engine::Planes => 4, // not used
        Engine::Warpgroups => tile.sums().next_power_of_two(),
    };
    let dim = CubeDim::new_1d(tile.units() as u32);
    if tile.splits == 1 {
        let (count, words) = (tiles(&whole, rows), whole.element_words());
        // SAFETY: as above.
        unsafe {
            tensor_kernel::launch_unchecked(
                client,
                CubeCount::Static(count.0, count.1, 1),
                dim,
                sums,
                words,
                x(),
                quants(),
                side(),
                written(),
                rows as u32,
                whole,
            );
        }
        return;
    }
    let splits = tile.splits as u32;
    // Each part is like a product of its own.
    let part = Job { gated: false, format: RowFormat::F32, ..whole };
    let count = tiles(&part, rows);
    let floats = tile.splits * rows * layout.rows;
    let bytes = part_bytes(tile.splits, &layout, rows);
    let given = scratch.filter(|scratch| scratch.size_in_used() >= bytes as u64).cloned();
    let parts = given.unwrap_or_else(|| client.empty(bytes));
    // SAFETY: as above.
    unsafe {
        tensor_kernel::launch_unchecked(
            client,
            CubeCount::Static(count.0, count.1, splits),
            dim,
            sums,
            part.element_words(),
            x(),
            quants(),
            side(),
            buffer(&parts, floats / part.element_outputs()),
            rows as u32,
            part,
        );
    }
    let pairs = whole.written().div_ceil(2) as u32;
    // SAFETY: as above.
    unsafe {
        parts_kernel::launch_unchecked(
            client,
            CubeCount::Static(pairs.div_ceil(UNITS), rows as u32, 1),
            CubeDim::new_1d(UNITS),
            whole.element_words(),
            buffer(&parts, floats),
            written(),
            rows as u32,
            whole,
        );
    }
}

/// Tiles of the outputs, along the rows of the input and of the matrix.
fn tiles(job: &Job, rows: usize) -> (u32, u32) {
    (rows.div_ceil(job.tile.m) as u32, job.written().div_ceil(job.cube_outputs()) as u32)
}
