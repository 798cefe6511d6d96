//! Products of many rows of input with a packed matrix: prompts, batches of sequences, images.
//!
//! | module | what it knows |
//! |---|---|
//! | `rows`, `layer_norm` | activations as rows of f32, bf16 or f16, with the norms in front |
//! | `halves` | what f16 has no room for |
//! | `registers`, `register_tile` | the kernel of every device: exact in f32, or in pairs of f16; how it is divided |
//! | `tensor` | the kernel for NVIDIA's tensor cores (CUDA): bf16 products, f32 sums |
//! | `staging` | how tiles get into its shared memory; packed weights into bf16 |
//! | `ptx` | the instructions that it is made of |
//! | `cooperative` | the kernel for cooperative matrices (Vulkan): f16 products, f32 sums |
//! | `tile`, `plan` | how a product is divided, and which division is chosen |
//! | `epilogue`, `parts` | sums into outputs; sums of columns that were divided |

mod cooperative;
mod epilogue;
mod halves;
mod layer_norm;
mod parts;
mod plan;
mod ptx;
#[cfg(test)]
mod rates;
mod register_tile;
mod registers;
mod rows;
mod staging;
mod tensor;
#[cfg(test)]
mod tests;
mod tile;

pub(in crate::ops::cube) use cooperative::{Cells, cell_of, loaded};
pub use layer_norm::{LayerNorm, write_layer_norm};
pub(crate) use plan::has_cooperative;
pub use plan::{Plan, Processor};
pub(crate) use ptx::bf16_pair;
pub use register_tile::{Numbers, RegisterTile};
pub(crate) use rows::quad_words;
pub use rows::{RowFormat, Rows, write_rows, write_rows_of_parts};
pub use tile::{Engine, Tile};

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;
use half::f16;

use crate::formats::TensorFormat;
use crate::ops::cube::SPIRV;
use crate::ops::cube::packed::{Layout, PackedMatrix};
use cooperative::cooperative_kernel;
use epilogue::{Finish, Job};
use parts::{UNITS, parts_kernel, register_parts_kernel};
use registers::{RegisterJob, registers_kernel};
use tensor::tensor_kernel;

/// Where the results of a product go.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    /// Rows of as many numbers as there are outputs.
    pub rows: &'a Rows,
    /// Whether the first half of the matrix is a gate and the second half an up projection; outputs, half as
    /// many as the matrix has rows, are then `gelu_tanh(gate) * up`.
    pub gated: bool,
    /// What is done to them first; not of gated products.
    pub ending: Option<Ending<'a>>,
}

/// What is done to the sums of a product before they are stored.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// Added to every row, f32 \[outputs\].
    pub bias: &'a Handle,
    /// The size that none of them exceeds.
    pub largest_bias: f32,
    /// Whether the activation `gelu_tanh` follows.
    pub gelu: bool,
    /// Rows that are added at last, f32 \[count, outputs\], and their count, after which they begin anew. Not the
    /// buffer of the output.
    pub added: Option<(&'a Handle, usize)>,
}

impl<'a> Output<'a> {
    /// The sums themselves.
    pub fn plain(rows: &'a Rows) -> Self {
        Self { rows, gated: false, ending: None }
    }

    /// A gate and its up projection.
    pub fn gated(rows: &'a Rows) -> Self {
        Self { rows, gated: true, ending: None }
    }

    /// The sums after something has been done to them.
    pub fn ending(rows: &'a Rows, ending: Ending<'a>) -> Self {
        Self { rows, gated: false, ending: Some(ending) }
    }

    fn finish(&self) -> Finish {
        self.ending.map_or(Finish::NONE, |ending| Finish {
            biased: true,
            gelu: ending.gelu,
            added: ending.added.is_some(),
            quick: false,
        })
    }

    /// Bias, added rows and their count, as kernels take them: the side of the matrix stands for what there is not.
    fn finish_buffers(&self, matrix: &PackedMatrix, outputs: usize) -> (BufferArg, BufferArg, u32) {
        let unused = (&matrix.side, matrix.layout.side_len());
        // SAFETY: the lengths are those of the shapes; what stands for them is not read.
        let buffer =
            |(handle, len): (&Handle, usize)| unsafe { BufferArg::from_raw_parts(handle.clone(), len) };
        let bias = self.ending.map_or(unused, |ending| (ending.bias, outputs));
        let added = self.ending.and_then(|ending| ending.added);
        let count = added.map_or(1, |(_, count)| count.max(1));
        let added = added.map_or(unused, |(handle, _)| (handle, count * outputs));
        (buffer(bias), buffer(added), count as u32)
    }
}

/// Parts of the columns that [`linear_parts`] adds up by themselves.
pub fn part_count(processor: &Processor, layout: &Layout, format: RowFormat, rows: usize) -> usize {
    match processor.plan(layout, format, rows, false) {
        Plan::Tensor(tile) => tile.split(tile.splits, layout).splits,
        Plan::Registers(tile) => tile.splits,
    }
}

/// `x Wᵀ` of `rows` rows as [`linear`], but where the columns are divided the sums of their parts stay apart: f32
/// \[parts, rows, outputs\]. Gives the number of parts, that of [`part_count`]. Whoever reads them adds them up, which
/// saves a launch.
pub fn linear_parts(
    client: &Client,
    processor: &Processor,
    x: &Rows,
    matrix: &PackedMatrix,
    out: &Handle,
    rows: usize,
) -> usize {
    // Each part is like a product of its own.
    let parts = Rows::f32(out);
    let out = Output::plain(&parts);
    match processor.plan(&matrix.layout, x.format, rows, false) {
        Plan::Tensor(tile) if rows > 0 => {
            launch_tensor_tiles(client, tile, x, matrix, out, rows);
            tile.split(tile.splits, &matrix.layout).splits
        }
        Plan::Registers(tile) if rows > 0 && tile.splits > 1 => {
            launch_register_tiles(client, tile, x, matrix, out, rows);
            tile.splits
        }
        plan => {
            launch(client, plan, x, matrix, out, rows, None);
            1
        }
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
        Plan::Registers(tile) => part_bytes(tile.splits, layout, rows),
    }
}

fn part_bytes(splits: usize, layout: &Layout, rows: usize) -> usize {
    if splits > 1 { splits * rows * layout.rows * size_of::<f32>() } else { 0 }
}

/// `x Wᵀ` of `rows` rows, by the kernels that `processor` has for the format of `x`: exact ones for f32 rows, tensor
/// cores or pairs of f16 for others. [`Processor::row_format`] says which rows to make.
/// `scratch` of [`scratch_bytes`] is used where it is large enough; a recorded product needs it, since what is
/// allocated here is free for others afterwards.
///
/// # Panics
/// Exact products have f32 outputs only, and so have those of f16 rows ([`RowFormat::of_products`]) but of matrices that
/// [`writes_halves`] names.
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

/// Whether products of this matrix, with biases of a known size and without added rows, can write rows of f16: no output is
/// larger than a row's weights make it of the largest input, which is known beforehand. Such products are never divided.
pub fn writes_halves(processor: &Processor, matrix: &PackedMatrix) -> bool {
    processor.engine == Some(Engine::Cooperative) && matrix.row_size.is_finite()
}

/// Launches a product as planned.
///
/// # Panics
/// If the plan doesn't fit the formats of `x` and `out`: see [`Numbers::row_format`] and [`RowFormat::of_products`].
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
        Plan::Registers(tile) => {
            let formats = (tile.numbers.row_format(), RowFormat::F32);
            assert_eq!((x.format, out.rows.format), formats, "the rows of another kernel");
            launch_registers(client, tile, x, matrix, out, rows, scratch);
        }
        Plan::Tensor(tile) => {
            assert_eq!(x.format, tile.engine.row_format(), "the rows of another instruction");
            let is_bounded = tile.engine == Engine::Cooperative
                && matrix.row_size.is_finite()
                && !out.gated
                && out.ending.is_none_or(|ending| ending.added.is_none());
            let formats = [RowFormat::F32, x.format.of_products(), RowFormat::F16];
            let count = if is_bounded { 3 } else { 2 };
            assert!(formats[..count].contains(&out.rows.format), "rows that this product can't write");
            launch_tensor(client, tile, x, matrix, out, rows, scratch);
        }
    }
}

fn launch_registers(
    client: &Client,
    tile: RegisterTile,
    x: &Rows,
    matrix: &PackedMatrix,
    out: Output<'_>,
    rows: usize,
    scratch: Option<&Handle>,
) {
    if tile.splits == 1 {
        launch_register_tiles(client, tile, x, matrix, out, rows);
        return;
    }
    let layout = matrix.layout;
    let parts = parts_buffer(client, scratch, part_bytes(tile.splits, &layout, rows));
    launch_register_tiles(client, tile, x, matrix, Output::plain(&Rows::f32(&parts)), rows);
    let job = RegisterJob { layout, tile, gated: out.gated, finish: out.finish() };
    let (bias, added, added_rows) = out.finish_buffers(matrix, job.outputs());
    // SAFETY: the lengths are those of the layout, the rows and the parts, which bound every index of the kernel.
    unsafe {
        register_parts_kernel::launch_unchecked(
            client,
            CubeCount::Static((job.outputs() as u32).div_ceil(UNITS), rows as u32, 1),
            CubeDim::new_1d(UNITS),
            BufferArg::from_raw_parts(parts.clone(), tile.splits * rows * layout.rows),
            bias,
            added,
            BufferArg::from_raw_parts(out.rows.handle.clone(), rows * job.outputs()),
            tile.splits as u32,
            rows as u32,
            added_rows,
            job,
        );
    }
}

/// The sums, or those of each part of the columns: \[splits, rows, layout.rows\].
fn launch_register_tiles(
    client: &Client,
    tile: RegisterTile,
    x: &Rows,
    matrix: &PackedMatrix,
    out: Output<'_>,
    rows: usize,
) {
    let layout = matrix.layout;
    // One kernel, however many parts there are.
    let job = RegisterJob {
        layout,
        tile: RegisterTile { splits: 1, ..tile },
        gated: out.gated,
        finish: out.finish(),
    };
    let (bias, added, added_rows) = out.finish_buffers(matrix, job.outputs());
    let words = job.vector_words();
    let count = CubeCount::Static(
        rows.div_ceil(tile.m()) as u32,
        job.outputs().div_ceil(job.cube_outputs()) as u32,
        tile.splits as u32,
    );
    // SAFETY: these lengths are those of the layout, the rows and the parts.
    let buffer = |handle: &Handle, len| unsafe { BufferArg::from_raw_parts(handle.clone(), len) };
    let numbers = buffer(&x.handle, rows * x.format.row_elements(layout.cols));
    let factors = buffer(&x.handle, rows * x.format.row_words(layout.cols));
    let quants = buffer(&matrix.quants, layout.rows * layout.row_words() / words);
    let side = buffer(&matrix.side, layout.side_len());
    let out = buffer(&out.rows.handle, tile.splits * rows * job.outputs());
    let (halves, in_words) = (tile.numbers == Numbers::F16, client.name() == SPIRV);
    let cell_numbers = if halves && in_words { 2 } else { 4 };
    let launch = match (halves, in_words) {
        (false, _) => registers_kernel::launch_unchecked::<f32, f32>,
        (true, false) => registers_kernel::launch_unchecked::<f16, f16>,
        (true, true) => registers_kernel::launch_unchecked::<f16, u32>,
    };
    let mut factor = matrix.stored_power.recip();
    if layout.format == TensorFormat::F16 {
        factor *= matrix.power.recip();
    }
    // SAFETY: the lengths bound every index of the kernel; the cubes along the third axis are the parts.
    unsafe {
        launch(
            client,
            count,
            CubeDim::new_1d(tile.units() as u32),
            cell_numbers,
            words,
            numbers,
            factors,
            quants,
            side,
            bias,
            added,
            out,
            rows as u32,
            added_rows,
            matrix.stored_power,
            factor,
            job,
        );
    }
}

/// Where the parts of a product go: the scratch that was given, where it is large enough.
fn parts_buffer(client: &Client, scratch: Option<&Handle>, bytes: usize) -> Handle {
    let given = scratch.filter(|scratch| scratch.size_in_used() >= bytes as u64).cloned();
    given.unwrap_or_else(|| client.empty(bytes))
}

fn launch_tensor(
    client: &Client,
    tile: Tile,
    x: &Rows,
    matrix: &PackedMatrix,
    out: Output<'_>,
    rows: usize,
    scratch: Option<&Handle>,
) {
    let layout = matrix.layout;
    let job = tensor_job(tile, &layout, out, rows);
    let splits = job.tile.splits;
    if splits == 1 {
        launch_tensor_tiles(client, tile, x, matrix, out, rows);
        return;
    }
    let parts = parts_buffer(client, scratch, part_bytes(splits, &layout, rows));
    launch_tensor_tiles(client, tile, x, matrix, Output::plain(&Rows::f32(&parts)), rows);
    let (bias, added, added_rows) = out.finish_buffers(matrix, job.outputs());
    let pairs = job.written().div_ceil(2) as u32;
    // SAFETY: the lengths are those of the layout, the rows and the parts, which bound every index of the kernel.
    unsafe {
        parts_kernel::launch_unchecked(
            client,
            CubeCount::Static(pairs.div_ceil(UNITS), rows as u32, 1),
            CubeDim::new_1d(UNITS),
            job.element_words(),
            BufferArg::from_raw_parts(parts.clone(), splits * rows * layout.rows),
            bias,
            added,
            BufferArg::from_raw_parts(out.rows.handle.clone(), rows * job.written() / job.element_outputs()),
            rows as u32,
            added_rows,
            job,
        );
    }
}

/// The product with parts that none is empty of, and with the copies that it can make.
fn tensor_job(tile: Tile, layout: &Layout, out: Output<'_>, rows: usize) -> Job {
    // The factor of a row of f16 is known where its input is.
    let splits = if out.rows.format == RowFormat::F16 { 1 } else { tile.splits };
    let tile = tile.split(splits, layout);
    // The kernels that copy beside the products count bytes in 32 bits.
    let bytes = tile.engine.row_format().bytes(rows.max(layout.rows), layout.cols);
    let tile = Tile { overlapped: tile.overlapped && bytes <= u32::MAX as usize, ..tile };
    let finish = Finish { quick: tile.engine != Engine::Cooperative, ..out.finish() };
    Job { layout: *layout, tile, gated: out.gated, format: out.rows.format, finish }
}

/// The sums, or those of each part of the columns: \[splits, rows, layout.rows\].
fn launch_tensor_tiles(
    client: &Client,
    tile: Tile,
    x: &Rows,
    matrix: &PackedMatrix,
    out: Output<'_>,
    rows: usize,
) {
    let job = tensor_job(tile, &matrix.layout, out, rows);
    let Job { layout, tile, .. } = job;
    let (bias, added, added_rows) = out.finish_buffers(matrix, job.outputs());
    let largest_bias = out.ending.map_or(0.0, |ending| ending.largest_bias);
    let x_chunks = x.format.bytes(rows, layout.cols) / size_of::<[u32; 4]>();
    let quants_len = layout.rows * job.row_items();
    let out_len = tile.splits * rows * job.row_elements();
    let count = CubeCount::Static(
        rows.div_ceil(tile.m) as u32,
        job.written().div_ceil(job.cube_outputs()) as u32,
        tile.splits as u32,
    );
    let dim = CubeDim::new_1d(tile.units() as u32);
    // SAFETY: these lengths are those of the layout and the rows.
    let buffer = |handle: &Handle, len| unsafe { BufferArg::from_raw_parts(handle.clone(), len) };
    let (x, quants, side) = (
        buffer(&x.handle, x_chunks),
        buffer(&matrix.quants, quants_len),
        buffer(&matrix.side, layout.side_len()),
    );
    let out = buffer(&out.rows.handle, out_len);
    let sums = match tile.engine {
        Engine::Planes => 4, // not used
        Engine::Warpgroups => tile.sums().next_power_of_two(),
        Engine::Cooperative => {
            let cells = Cells::choose(client, &job);
            let launch = match cells.are_words() {
                true => cooperative_kernel::launch_unchecked::<u32>,
                false => cooperative_kernel::launch_unchecked::<f16>,
            };
            // SAFETY: the lengths bound every index of the kernel; in shared memory it stays within the stages of tiles
            // and the planes' places.
            unsafe {
                launch(
                    client,
                    count,
                    dim,
                    cells.vector_size(),
                    job.item_words(),
                    job.element_words(),
                    x,
                    quants,
                    side,
                    bias,
                    added,
                    out,
                    rows as u32,
                    added_rows,
                    matrix.power,
                    matrix.power.recip(),
                    matrix.row_size,
                    largest_bias,
                    cells,
                    job,
                );
            }
            return;
        }
    };
    // SAFETY: the lengths bound every index of the kernel; its inline instructions address shared memory within the
    // stages of tiles.
    unsafe {
        tensor_kernel::launch_unchecked(
            client,
            count,
            dim,
            sums,
            job.element_words(),
            x,
            quants,
            side,
            bias,
            added,
            out,
            rows as u32,
            added_rows,
            job,
        );
    }
}
