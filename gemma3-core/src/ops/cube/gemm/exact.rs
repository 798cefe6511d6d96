//! The exact kernel, for every device: products and sums of f32. The other kernels are checked against it.
//!
//! A cube decodes weights once for each tile of rows of the input. While its units multiply what is in shared memory,
//! what comes next is on its way into their registers. Each output is one chain of sums along the columns, in their
//! order, so that it doesn't depend on the tile.

use std::cmp::min;

use cubecl::prelude::*;

use super::epilogue::{Finish, finished};
use super::register_tile::RegisterTile;
use super::staging::weights_of;
use crate::ops::cube::matvec::gelu_tanh;
use crate::ops::cube::packed::{Layout, Quad, fetch_side, side_words_of_item};

/// A product, as a constant of its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ExactJob {
    /// The matrix.
    pub layout: Layout,
    /// How the product is divided. The number of parts is that of the launch's cubes along its third axis, so that it
    /// makes no kernel of its own.
    pub tile: RegisterTile,
    /// Whether the matrix is a gate over an up projection.
    pub gated: bool,
    /// What is done to the sums before they are stored.
    pub finish: Finish,
}

impl ExactJob {
    /// Outputs of a row.
    pub const fn outputs(&self) -> usize {
        if self.gated { self.layout.rows / 2 } else { self.layout.rows }
    }

    /// Outputs of a row that a cube makes.
    pub const fn cube_outputs(&self) -> usize {
        if self.gated { self.tile.n() / 2 } else { self.tile.n() }
    }

    /// Tiles along the columns.
    const fn depth_tiles(&self) -> usize {
        self.layout.cols.div_ceil(self.tile.depth)
    }

    /// Quads of a row of a tile.
    const fn quads(&self) -> usize {
        self.tile.depth / 4
    }

    /// Quads of the input that a unit fetches for a tile.
    const fn input_loads(&self) -> usize {
        (self.tile.m() * self.quads()).div_ceil(self.tile.units())
    }

    /// Words of weights that a unit loads at once: as many as leave none without work.
    pub const fn vector_words(&self) -> usize {
        let per_word = self.layout.weights_per_word();
        let mut words = 4;
        while words * per_word > self.tile.depth
            || (words * per_word > 8
                && self.tile.n() * self.tile.depth < words * per_word * self.tile.units())
        {
            words /= 2;
        }
        words
    }

    /// Items, of so many words, in a row of a tile.
    const fn tile_items(&self) -> usize {
        self.tile.depth / (self.vector_words() * self.layout.weights_per_word())
    }

    /// Items that a unit fetches for a tile.
    const fn weight_loads(&self) -> usize {
        (self.tile.n() * self.tile_items()).div_ceil(self.tile.units())
    }

    /// Words of a row's side for an item.
    const fn side_words(&self) -> usize {
        side_words_of_item(&self.layout, self.vector_words())
    }

    /// Quads of a unit's sums.
    const fn sums(&self) -> usize {
        self.tile.unit_m * self.tile.unit_n / 4
    }
}

/// `out[m, n] = sum_k x[m, k] W[n, k]`: cube `[i, j, s]` makes tile `[i, j]` of part `s` of the columns, and the parts
/// lie one after the other in `out`.
#[cube(launch_unchecked)]
pub(super) fn exact_kernel<N: Size>(
    x: &[Quad],
    quants: &[Vector<u32, N>],
    side: &[u32],
    bias: &[f32],
    added: &[f32],
    out: &mut [f32],
    rows: u32,
    added_rows: u32,
    #[comptime] job: ExactJob,
) {
    let tile = comptime!(job.tile);
    let mut input = Shared::<[Quad]>::new_slice(comptime!(tile.m() * job.quads()));
    let mut weights = Shared::<[Quad]>::new_slice(comptime!(tile.n() * job.quads()));
    let mut sums = Array::<Quad>::new(comptime!(job.sums()));
    #[unroll]
    for i in 0..job.sums() {
        sums[i] = Quad::new(0.0f32);
    }
    let mut held = Array::<Quad>::new(comptime!(job.input_loads()));
    let mut fetched = Array::<Vector<u32, N>>::new(comptime!(job.weight_loads()));
    let mut sides = Array::<u32>::new(comptime!((job.weight_loads() * job.side_words()).max(1)));
    // Eight units side by side read rows of the matrix side by side, those next to them the same for other rows of
    // the input: so a plane reads few different quads at a time.
    let unit = UNIT_POS as usize;
    let row = unit / 8 % comptime!(tile.units_m);
    let column = unit % 8 + unit / comptime!(8 * tile.units_m) * 8;

    let tiles = comptime!(job.depth_tiles());
    let each = (CUBE_COUNT_Z as usize + comptime!(tiles - 1)) / CUBE_COUNT_Z as usize;
    let first = CUBE_POS_Z as usize * each;
    let end = min(first + each, tiles);
    fetch_input(x, &mut held, first, rows, job);
    fetch_weights::<N>(quants, side, &mut fetched, &mut sides, first, job);
    for depth in first..end {
        store_input(&held, &mut input, job);
        store_weights::<N>(&fetched, &sides, &mut weights, depth, job);
        sync_cube();
        // The last tile once more, where there is none after it.
        let next = min(depth + 1, end - 1);
        fetch_input(x, &mut held, next, rows, job);
        fetch_weights::<N>(quants, side, &mut fetched, &mut sides, next, job);
        multiply(&input, &weights, &mut sums, row, column, job);
        sync_cube();
    }
    store(&sums, bias, added, out, row, column, rows, added_rows, job);
}

/// The place of quad `quad` in a row of a tile in shared memory. Quads change places with the row's number, so that
/// eight units that read or write side by side meet eight different banks. Rows that lie a multiple of 8 apart have
/// their quads in the same places.
#[cube]
fn swizzled(row: usize, quad: usize, #[comptime] job: ExactJob) -> usize {
    if comptime!(job.quads() == 4) { quad ^ ((row >> 1) & 3) } else { quad ^ (row & 7) }
}

/// Loads quads of the input into registers, zeros beyond the end of a row. Rows beyond the last repeat it.
#[cube]
fn fetch_input(x: &[Quad], held: &mut Array<Quad>, depth: usize, rows: u32, #[comptime] job: ExactJob) {
    let tile = comptime!(job.tile);
    let quads = comptime!(job.layout.cols / 4);
    let each = comptime!(job.quads());
    #[unroll]
    for load in 0..job.input_loads() {
        let at = UNIT_POS as usize + comptime!(load * tile.units());
        let row = min(CUBE_POS_X as usize * comptime!(tile.m()) + at / each, rows as usize - 1);
        let column = depth * each + at % each;
        if comptime!(quads % each == 0) {
            held[load] = x[row * quads + column];
        } else {
            let value = x[row * quads + min(column, comptime!(quads - 1))];
            held[load] = select(column < quads, value, Quad::new(0.0f32));
        }
    }
}

/// Writes what [`fetch_input`] has loaded to shared memory.
#[cube]
fn store_input(held: &Array<Quad>, to: &mut [Quad], #[comptime] job: ExactJob) {
    let tile = comptime!(job.tile);
    let each = comptime!(job.quads());
    #[unroll]
    for load in 0..job.input_loads() {
        let at = UNIT_POS as usize + comptime!(load * tile.units());
        let row = at / each;
        if comptime!((load + 1) * tile.units() <= tile.m() * each) || row < comptime!(tile.m()) {
            to[row * each + swizzled(row, at % each, job)] = held[load];
        }
    }
}

/// The row of the tile and the item of the matrix's row that a unit's load `load` is.
#[cube]
fn item_of(#[comptime] load: usize, depth: usize, #[comptime] job: ExactJob) -> (usize, usize) {
    let at = UNIT_POS as usize + comptime!(load * job.tile.units());
    let each = comptime!(job.tile_items());
    (at / each, depth * each + at % each)
}

/// Loads packed weights into registers: nothing here waits for them.
#[cube]
fn fetch_weights<N: Size>(
    quants: &[Vector<u32, N>],
    side: &[u32],
    fetched: &mut Array<Vector<u32, N>>,
    sides: &mut Array<u32>,
    depth: usize,
    #[comptime] job: ExactJob,
) {
    let items = comptime!(job.layout.row_words() / job.vector_words());
    #[unroll]
    for load in 0..job.weight_loads() {
        let (row, item) = item_of(load, depth, job);
        let source = matrix_row(min(row, comptime!(job.tile.n() - 1)), job);
        let item = min(item, comptime!(items - 1));
        fetched[load] = quants[source * items + item];
        let start = comptime!(load * job.side_words());
        fetch_side::<N>(side, source, item, sides, start, comptime!(job.layout));
    }
}

/// Writes the fetched weights to shared memory as f32, zeros beyond the end of a row.
#[cube]
fn store_weights<N: Size>(
    fetched: &Array<Vector<u32, N>>,
    sides: &Array<u32>,
    to: &mut [Quad],
    depth: usize,
    #[comptime] job: ExactJob,
) {
    let layout = comptime!(job.layout);
    let tile = comptime!(job.tile);
    let items = comptime!(layout.row_words() / job.vector_words());
    let each = comptime!(job.tile_items());
    let quads = comptime!(job.quads() / each);
    #[unroll]
    for load in 0..job.weight_loads() {
        let (row, item) = item_of(load, depth, job);
        if comptime!((load + 1) * tile.units() <= tile.n() * each) || row < comptime!(tile.n()) {
            let inside = item < items;
            let item = min(item, comptime!(items - 1));
            let first = (UNIT_POS as usize + comptime!(load * tile.units())) % each * quads;
            #[unroll]
            for q in 0..quads {
                let start = comptime!(load * job.side_words());
                let w = weights_of::<N>(fetched[load], sides, item, q, start, layout, false);
                let at = row * comptime!(job.quads()) + swizzled(row, first + q, job);
                if comptime!(items % each == 0) {
                    to[at] = w;
                } else {
                    to[at] = select(inside, w, Quad::new(0.0f32));
                }
            }
        }
    }
}

/// The row of the matrix behind a row of the cube's tile: gates come before the up projections of the same
/// outputs. Beyond the end it is the last.
#[cube]
fn matrix_row(row: usize, #[comptime] job: ExactJob) -> usize {
    let outputs = comptime!(job.outputs());
    let each = comptime!(job.cube_outputs());
    let output = min(CUBE_POS_Y as usize * each + row % each, comptime!(outputs - 1));
    output + row / each * outputs
}

/// Adds the products of a tile to a unit's sums, \[unit_m, unit_n\]. Its rows of both lie as far apart as there are
/// units beside it.
#[cube]
fn multiply(
    input: &[Quad],
    weights: &[Quad],
    sums: &mut Array<Quad>,
    row: usize,
    column: usize,
    #[comptime] job: ExactJob,
) {
    let tile = comptime!(job.tile);
    let fours = comptime!(tile.unit_n / 4);
    let quads = comptime!(job.quads());
    for quad in 0..quads {
        let input_at = row * quads + swizzled(row, quad, job);
        let weights_at = column * quads + swizzled(column, quad, job);
        // Weights of four rows of the matrix in one column are a quad, as their sums are.
        let mut w = Array::<Quad>::new(comptime!(tile.unit_n));
        #[unroll]
        for j in 0..fours {
            #[unroll]
            for i in 0..4usize {
                let of_row = weights[weights_at + comptime!((4 * j + i) * tile.units_n * quads)];
                #[unroll]
                for k in 0..4usize {
                    let mut four =
                        if comptime!(i == 0) { Quad::empty() } else { w[comptime!(k * fours + j)] };
                    four.insert(i, of_row.extract(k));
                    w[comptime!(k * fours + j)] = four;
                }
            }
        }
        #[unroll]
        for i in 0..tile.unit_m {
            let x = input[input_at + comptime!(i * tile.units_m * quads)];
            #[unroll]
            for k in 0..4usize {
                let x = Quad::new(x.extract(k));
                #[unroll]
                for j in 0..fours {
                    let at = comptime!(i * fours + j);
                    sums[at] = fma(x, w[comptime!(k * fours + j)], sums[at]);
                }
            }
        }
    }
}

/// Stores a unit's outputs.
#[cube]
fn store(
    sums: &Array<Quad>,
    bias: &[f32],
    added: &[f32],
    out: &mut [f32],
    row: usize,
    column: usize,
    rows: u32,
    added_rows: u32,
    #[comptime] job: ExactJob,
) {
    let tile = comptime!(job.tile);
    let outputs = comptime!(job.outputs());
    let fours = comptime!(tile.unit_n / 4);
    let made = comptime!(if job.gated { tile.unit_n / 2 } else { tile.unit_n });
    let first_row = CUBE_POS_X as usize * comptime!(tile.m()) + row;
    let first_column = CUBE_POS_Y as usize * comptime!(job.cube_outputs()) + column;
    #[unroll]
    for i in 0..tile.unit_m {
        let row = first_row + comptime!(i * tile.units_m);
        if row < rows as usize {
            #[unroll]
            for j in 0..made {
                let output = first_column + comptime!(j * tile.units_n);
                if output < outputs {
                    let mut value = sums[comptime!(i * fours + j / 4)].extract(comptime!(j % 4));
                    if comptime!(job.gated) {
                        let up = comptime!(j + made);
                        let up = sums[comptime!(i * fours + up / 4)].extract(comptime!(up % 4));
                        value = gelu_tanh(value) * up;
                    }
                    let (m, n) = (row as u32, output as u32);
                    value = finished(value, m, n, bias, added, added_rows, outputs, comptime!(job.finish));
                    out[(CUBE_POS_Z as usize * rows as usize + row) * outputs + output] = value;
                }
            }
        }
    }
}
