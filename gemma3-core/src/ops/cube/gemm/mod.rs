//! Products of many rows of input with a packed matrix: prompts, batches of sequences, images.
//!
//! | module | what it knows |
//! |---|---|
//! | `rows` | activations as rows of f32 or bf16, with the norms in front |
//! | `exact` | the kernel of every device: f32 throughout |
//! | `tensor` | the kernel for NVIDIA's tensor cores: bf16 products, f32 sums |
//! | `ptx` | the instructions that it is made of |
//! | `tile`, `plan` | how a product is divided, and which division is chosen |
//! | `epilogue`, `parts` | sums into outputs; sums of columns that were divided |

mod epilogue;
mod exact;
mod parts;
mod plan;
mod ptx;
mod rows;
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

use crate::ops::cube::packed::PackedMatrix;
use epilogue::Job;
use exact::{ExactJob, SIDE, exact_kernel};
use parts::{UNITS, parts_kernel};
use tensor::tensor_kernel;


/// `x Wᵀ` into `out` \[rows, matrix rows\], by the kernels that `processor` has for the format of `x`: exact
/// ones for f32 rows, tensor cores for bf16 rows. [`Processor::row_format`] says which rows to make.
pub fn linear(client: &Client, processor: &Processor, x: &Rows, matrix: &PackedMatrix, out: &Rows, rows: usize) {
    launch(client, processor.plan(&matrix.layout, x.format, rows, false), x, matrix, out, rows, false);
}

/// `gelu_tanh(x Gᵀ) * (x Uᵀ)` into `out` \[rows, matrix rows / 2\], of a matrix whose first half of rows is `G`
/// and whose second half is `U`.
pub fn gated_linear(
    client: &Client,
    processor: &Processor,
    x: &Rows,
    matrix: &PackedMatrix,
    out: &Rows,
    rows: usize,
) {
    launch(client, processor.plan(&matrix.layout, x.format, rows, true), x, matrix, out, rows, true);
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
    out: &Rows,
    rows: usize,
    gated: bool,
) {
    if rows == 0 {
        return;
    }
    match plan {
        Plan::Exact { unit_m } => {
            assert_eq!((x.format, out.format), (RowFormat::F32, RowFormat::F32), "exact products are of f32");
            launch_exact(client, unit_m, &x.handle, matrix, &out.handle, rows, gated);
        }
        Plan::Tensor(tile) => {
            assert_eq!(x.format, RowFormat::Bf16, "tensor cores multiply bf16");
            launch_tensor(client, tile, &x.handle, matrix, out, rows, gated);
        }
    }
}

fn launch_exact(
    client: &Client,
    unit_m: usize,
    x: &Handle,
    matrix: &PackedMatrix,
    out: &Handle,
    rows: usize,
    gated: bool,
) {
    let layout = matrix.layout;
    let job = ExactJob { layout, unit_m, unit_n: 4, gated };
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
            BufferArg::from_raw_parts(out.clone(), rows * job.outputs()),
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
    out: &Rows,
    rows: usize,
    gated: bool,
) {
    let layout = matrix.layout;
    let tile = tile.split(tile.splits, &layout);
    let whole = Job { layout, tile, gated, format: out.format };
    if tile.splits == 1 {
        launch_tiles(client, whole, x, matrix, &out.handle, rows);
        return;
    }
    let part = Job { gated: false, format: RowFormat::F32, ..whole };
    let parts = client.empty(RowFormat::F32.bytes(tile.splits * rows, layout.rows));
    launch_tiles(client, part, x, matrix, &parts, rows);
    let pairs = whole.written().div_ceil(2) as u32;
    // SAFETY: the lengths are those that the kernel computes its indices from.
    unsafe {
        parts_kernel::launch_unchecked(
            client,
            CubeCount::Static(pairs.div_ceil(UNITS), rows as u32, 1),
            CubeDim::new_1d(UNITS),
            whole.element_words(),
            BufferArg::from_raw_parts(parts, tile.splits * rows * layout.rows),
            BufferArg::from_raw_parts(out.handle.clone(), rows * whole.written() / whole.element_outputs()),
            rows as u32,
            whole,
        );
    }
}

fn launch_tiles(client: &Client, job: Job, x: &Handle, matrix: &PackedMatrix, out: &Handle, rows: usize) {
    let (layout, tile) = (job.layout, job.tile);
    let count = CubeCount::Static(
        rows.div_ceil(tile.m) as u32,
        job.written().div_ceil(job.cube_outputs()) as u32,
        tile.splits as u32,
    );
    let sums = match tile.engine {
        Engine::Planes => 4, // not used
        Engine::Warpgroups => tile.sums().next_power_of_two(),
    };
    // SAFETY: the lengths are those of the layout and the rows, which bound every index of the kernel; its
    // inline instructions address shared memory within the tiles' stages.
    unsafe {
        tensor_kernel::launch_unchecked(
            client,
            count,
            CubeDim::new_1d(tile.units() as u32),
            sums,
            job.element_words(),
            BufferArg::from_raw_parts(x.clone(), rows * RowFormat::Bf16.width(layout.cols) / 8),
            BufferArg::from_raw_parts(matrix.quants.clone(), layout.rows * layout.row_words() / 4),
            BufferArg::from_raw_parts(matrix.side.clone(), (layout.rows * layout.side_words()).max(1)),
            BufferArg::from_raw_parts(
                out.clone(),
                tile.splits * rows * job.written() / job.element_outputs(),
            ),
            rows as u32,
            job,
        );
    }
}
