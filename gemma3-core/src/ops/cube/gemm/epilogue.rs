//! What becomes of the sums of a tile.

use std::cmp::min;

use cubecl::prelude::*;

use super::halves::converted_pair;
use super::ptx::{Copies, MAX_COPIES, bf16_pair, quick_gelu_tanh};
use super::rows::RowFormat;
use super::tile::{DEPTH, Engine, ROW_CHUNKS, Tile};
use crate::formats::TensorFormat;
use crate::ops::cube::matvec::gelu_tanh;
use crate::ops::cube::packed::{Layout, Quad, side_words_of_item};

/// A product, as a constant of its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Job {
    /// The matrix.
    pub layout: Layout,
    /// How the product is divided.
    pub tile: Tile,
    /// Whether the matrix is a gate over an up projection, and outputs are `gelu_tanh(gate) * up`.
    pub gated: bool,
    /// What the outputs are. Parts of sums, which another kernel adds up, are f32, and so is what cooperative matrices
    /// make, unless something is known that no output is larger than: the largest number of a row, which rows of f16 depend
    /// on, is not known before all cubes have ended.
    pub format: RowFormat,
    /// What is done to the sums first.
    pub finish: Finish,
}

/// What is done to sums before they are stored, as a constant of kernels: see [`Ending`](super::Ending).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Finish {
    pub biased: bool,
    pub gelu: bool,
    pub added: bool,
    /// Whether the kernel is in PTX, which has quicker instructions for gelu.
    pub quick: bool,
}

impl Finish {
    /// Nothing.
    pub const NONE: Self = Self { biased: false, gelu: false, added: false, quick: false };
}

/// The output of a row and a column, of its sum. `bias` \[outputs\], `added` \[added_rows, outputs\].
#[cube]
pub(super) fn finished(
    sum: f32,
    row: u32,
    column: u32,
    bias: &[f32],
    added: &[f32],
    added_rows: u32,
    #[comptime] outputs: usize,
    #[comptime] finish: Finish,
) -> f32 {
    let mut value = sum;
    // Tiles are wider than the outputs.
    let column = min(column, comptime!(outputs as u32 - 1)) as usize;
    if comptime!(finish.biased) {
        value += bias[column];
    }
    if comptime!(finish.gelu) {
        value = gelu(value, comptime!(finish.quick));
    }
    if comptime!(finish.added) {
        value += added[(row % added_rows) as usize * outputs + column];
    }
    value
}

/// `gelu_tanh`, by the quicker instructions where there are some.
#[cube]
pub(super) fn gelu(x: f32, #[comptime] quick: bool) -> f32 {
    if comptime!(quick) { quick_gelu_tanh(x) } else { gelu_tanh(x) }
}

impl Job {
    /// Outputs of a row.
    pub const fn outputs(&self) -> usize {
        if self.gated { self.layout.rows / 2 } else { self.layout.rows }
    }

    /// Outputs of a row that are written: rows of bf16 and of f16 are filled with zeros to whole tiles.
    pub const fn written(&self) -> usize {
        self.format.width(self.outputs())
    }

    /// Outputs of a row that a cube makes.
    pub const fn cube_outputs(&self) -> usize {
        if self.gated { self.tile.n / 2 } else { self.tile.n }
    }

    /// Tiles along the columns.
    pub const fn depth_tiles(&self) -> usize {
        self.layout.cols.div_ceil(self.tile.depth)
    }

    /// Whether the weights are bf16 as they lie in memory, and copied without a unit's registers.
    pub const fn copies_weights(&self) -> bool {
        !matches!(self.tile.engine, Engine::Cooperative) && matches!(self.layout.format, TensorFormat::BF16)
    }

    /// The copies that run while warpgroups multiply, if they do: of whole tiles.
    pub const fn copies(&self) -> Option<Copies> {
        let units = self.tile.units();
        let input = self.tile.m * ROW_CHUNKS / units;
        let weights = (self.tile.n * ROW_CHUNKS).div_ceil(units);
        let whole =
            self.copies_weights() && self.layout.cols.is_multiple_of(DEPTH) && input + weights <= MAX_COPIES;
        if self.tile.overlapped && matches!(self.tile.engine, Engine::Warpgroups) && whole {
            let partial = !(self.tile.n * ROW_CHUNKS).is_multiple_of(units);
            Some(Copies { input, weights, partial, stride: units / ROW_CHUNKS * 2 * DEPTH })
        } else {
            None
        }
    }

    /// Words of packed weights that a unit loads at once, an item. Shallow tiles of cooperative matrices have so few words
    /// that smaller items keep all units busy; none has less than eight weights, or four of F32.
    pub const fn item_words(&self) -> usize {
        let per_word = self.layout.weights_per_word();
        if !matches!(self.tile.engine, Engine::Cooperative) {
            return 4;
        }
        let mut words = 4;
        while words > 1
            && words * per_word > 8
            && (words * per_word > self.tile.depth
                || self.tile.n * self.tile.depth < self.tile.units() * words * per_word)
        {
            words /= 2;
        }
        words
    }

    /// Weights of an item.
    pub const fn item_weights(&self) -> usize {
        self.item_words() * self.layout.weights_per_word()
    }

    /// Items of packed weights in a row of a tile.
    pub const fn tile_items(&self) -> usize {
        self.tile.depth / self.item_weights()
    }

    /// Items in a row of the matrix.
    pub const fn row_items(&self) -> usize {
        self.layout.row_words() / self.item_words()
    }

    /// Items that a unit fetches for a tile of weights.
    pub const fn loads(&self) -> usize {
        if self.copies_weights() { 0 } else { (self.tile.n * self.tile_items()).div_ceil(self.tile.units()) }
    }

    /// Words of a row's side for an item.
    pub const fn side_words(&self) -> usize {
        side_words_of_item(&self.layout, self.item_words())
    }

    /// Quads of sums that a unit has at the end.
    pub const fn plane_sums(&self) -> usize {
        self.tile.sums() / 4
    }

    /// Outputs in an element of the buffer that they go to: a pair where pairs are aligned.
    pub const fn element_outputs(&self) -> usize {
        match self.format {
            RowFormat::F32 if self.outputs() % 2 == 1 => 1,
            RowFormat::F32 | RowFormat::Bf16 | RowFormat::F16 => 2,
        }
    }

    /// Elements from one row of outputs to the next.
    pub const fn row_elements(&self) -> usize {
        match self.format {
            RowFormat::F16 => RowFormat::F16.row_words(self.outputs()),
            RowFormat::F32 | RowFormat::Bf16 => self.written() / self.element_outputs(),
        }
    }

    /// Words of such an element.
    pub const fn element_words(&self) -> usize {
        match self.format {
            RowFormat::F32 => self.element_outputs(),
            RowFormat::Bf16 | RowFormat::F16 => 1,
        }
    }
}

/// Stores a unit's sums, from row `first_out` of `out` on. Those of a 16x8 tile are of two neighbouring columns in a row
/// and in the eighth row after it.
#[cube]
pub(super) fn store<O: Size>(
    sums: &Array<Quad>,
    bias: &[f32],
    added: &[f32],
    out: &mut [Vector<u32, O>],
    first_out: u32,
    rows: u32,
    added_rows: u32,
    #[comptime] job: Job,
) {
    let tile = comptime!(job.tile);
    let plane_m = comptime!(tile.plane_m());
    let plane_n = comptime!(tile.plane_n());
    let made = comptime!(if job.gated { plane_n / 2 } else { plane_n });
    let lane = UNIT_POS % 32u32;
    let plane = UNIT_POS / 32u32;
    let first_row = CUBE_POS_X * comptime!(tile.m as u32)
        + plane / comptime!(tile.planes_n as u32) * comptime!((16 * plane_m) as u32)
        + lane / 4u32;
    let first_column = CUBE_POS_Y * comptime!(job.cube_outputs() as u32)
        + plane % comptime!(tile.planes_n as u32) * comptime!((8 * made) as u32)
        + lane % 4u32 * 2u32;
    #[unroll]
    for i in 0..plane_m {
        #[unroll]
        for half in 0..2usize {
            let row = first_row + comptime!((16 * i + 8 * half) as u32);
            if row < rows {
                #[unroll]
                for j in 0..made {
                    let quad = sums[comptime!(i * plane_n + j)];
                    let mut first = quad.extract(comptime!(2 * half));
                    let mut second = quad.extract(comptime!(2 * half + 1));
                    if comptime!(job.gated) {
                        let up = sums[comptime!(i * plane_n + j + made)];
                        first = quick_gelu_tanh(first) * up.extract(comptime!(2 * half));
                        second = quick_gelu_tanh(second) * up.extract(comptime!(2 * half + 1));
                    }
                    let column = first_column + comptime!((8 * j) as u32);
                    let outputs = comptime!(job.outputs());
                    let finish = comptime!(job.finish);
                    first = finished(first, row, column, bias, added, added_rows, outputs, finish);
                    second = finished(second, row, column + 1u32, bias, added, added_rows, outputs, finish);
                    put_pair::<O>(out, (first_out + row) as usize, column, first, second, job);
                }
            }
        }
    }
}

/// Stores the outputs at `column` and after it of a row; those of f16 already fit.
#[cube]
pub(super) fn put_pair<O: Size>(
    out: &mut [Vector<u32, O>],
    row: usize,
    column: u32,
    first: f32,
    second: f32,
    #[comptime] job: Job,
) {
    let outputs = comptime!(job.outputs() as u32);
    let written = comptime!(job.written() as u32);
    let elements = comptime!(job.row_elements());
    let at = row * elements + column as usize / comptime!(job.element_outputs());
    if column < written {
        if comptime!(matches!(job.format, RowFormat::Bf16)) {
            let first = select(column < outputs, first, 0.0f32);
            let second = select(column + 1u32 < outputs, second, 0.0f32);
            out[at] = Vector::<u32, O>::new(bf16_pair(first, second));
        } else if comptime!(matches!(job.format, RowFormat::F16)) {
            let first = select(column < outputs, first, 0.0f32);
            let second = select(column + 1u32 < outputs, second, 0.0f32);
            out[at] = Vector::<u32, O>::new(converted_pair(first, second));
        } else if comptime!(job.element_outputs() == 2) {
            let mut pair = Vector::<u32, O>::empty();
            pair.insert(0usize, u32::reinterpret(first));
            pair.insert(1usize, u32::reinterpret(second));
            out[at] = pair;
        } else {
            out[at] = Vector::<u32, O>::new(u32::reinterpret(first));
            if column + 1u32 < written {
                out[at + 1] = Vector::<u32, O>::new(u32::reinterpret(second));
            }
        }
    }
}
