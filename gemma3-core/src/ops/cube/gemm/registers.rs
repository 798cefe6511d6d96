//! The kernel of every device: units multiply and add numbers in registers. Of f32 it is exact, and the other kernels
//! are checked against it; a device that does more f16 multiplies those in fast mode.
//!
//! A cube decodes weights once for each tile of rows of the input. While its units multiply what is in shared memory,
//! what comes next is on its way into their registers. Each output is one chain of sums along the columns, in their
//! order, so that it doesn't depend on the tile.
//!
//! Of f16 every [`RUN`] columns are a chain of their own, whose sum is added up in f32. Its terms are below 2^11 in size,
//! so that no sum is beyond f16's range; each addition is off by 2^-11 of the sum so far.

use std::cmp::min;

use cubecl::prelude::*;

use super::epilogue::{Finish, finished};
use super::register_tile::{Numbers, RegisterTile};
use super::rows::RowFormat;
use super::staging::weights_of;
use crate::ops::cube::matvec::gelu_tanh;
use crate::ops::cube::packed::{Layout, Quad, fetch_side, side_words_of_item};

/// Columns whose products are added up in f16.
pub(super) const RUN: usize = 16;
/// What rows of f16, which are below 2^14, are multiplied by: to below 2^6.
const INPUT_POWER: f32 = 1.0 / 256.0;
/// What weights are multiplied by beside their matrix's power, which brings them below 2^15: to below 2^5.
const WEIGHT_POWER: f32 = 1.0 / 1024.0;

/// Four numbers that are multiplied. In shared memory they are cells, vectors of the same numbers or, of f16 through
/// SPIR-V, of words: 16-bit numbers there would need a capability that cubecl doesn't declare.
type Four<F> = Vector<F, Const<4>>;

/// A product, as a constant of its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RegisterJob {
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

impl RegisterJob {
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

    /// Quads from a row of the input to the next.
    const fn input_stride(&self) -> usize {
        self.tile.numbers.row_format().row_elements(self.layout.cols)
    }

    /// Quads of a row of the input.
    const fn input_quads(&self) -> usize {
        self.tile.numbers.row_format().width(self.layout.cols) / 4
    }

    /// Whether numbers are f16.
    const fn halves(&self) -> bool {
        matches!(self.tile.numbers, Numbers::F16)
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
/// lie one after the other in `out`. Of f16, `factors` are the words of `x`, weights are multiplied by
/// `power` and [`WEIGHT_POWER`], and `factor` is the inverse of `power`.
#[cube(launch_unchecked)]
pub(super) fn registers_kernel<F: Float, E: Scalar, M: Size, N: Size>(
    x: &[Four<F>],
    factors: &[u32],
    quants: &[Vector<u32, N>],
    side: &[u32],
    bias: &[f32],
    added: &[f32],
    out: &mut [f32],
    rows: u32,
    added_rows: u32,
    power: f32,
    factor: f32,
    #[comptime] job: RegisterJob,
) {
    let tile = comptime!(job.tile);
    let mut input = Shared::<[Vector<E, M>]>::new_slice(comptime!(tile.m() * job.quads()));
    let mut weights = Shared::<[Vector<E, M>]>::new_slice(comptime!(tile.n() * job.quads()));
    let mut sums = Array::<Four<F>>::new(comptime!(job.sums()));
    let mut totals = Array::<Quad>::new(comptime!(job.sums()));
    #[unroll]
    for i in 0..job.sums() {
        sums[i] = Four::<F>::new(F::from_int(0));
        totals[i] = Quad::new(0.0f32);
    }
    let mut held = Array::<Four<F>>::new(comptime!(job.input_loads()));
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
    fetch_input::<F>(x, &mut held, first, rows, job);
    fetch_weights::<N>(quants, side, &mut fetched, &mut sides, first, job);
    for depth in first..end {
        store_input::<F, E, M>(&held, &mut input, job);
        store_weights::<F, E, M, N>(&fetched, &sides, &mut weights, depth, power, job);
        sync_cube();
        // The last tile once more, where there is none after it.
        let next = min(depth + 1, end - 1);
        fetch_input::<F>(x, &mut held, next, rows, job);
        fetch_weights::<N>(quants, side, &mut fetched, &mut sides, next, job);
        if comptime!(job.halves()) {
            for run in 0..comptime!(tile.depth / RUN) {
                for quad in 0..comptime!(RUN / 4) {
                    let quad = run * comptime!(RUN / 4) + quad;
                    multiply::<F, E, M>(&input, &weights, &mut sums, quad, row, column, job);
                }
                #[unroll]
                for i in 0..job.sums() {
                    totals[i] += Quad::cast_from(sums[i]);
                    sums[i] = Four::<F>::new(F::from_int(0));
                }
            }
        } else {
            for quad in 0..comptime!(job.quads()) {
                multiply::<F, E, M>(&input, &weights, &mut sums, quad, row, column, job);
            }
        }
        sync_cube();
    }
    if comptime!(!job.halves()) {
        #[unroll]
        for i in 0..job.sums() {
            totals[i] = Quad::cast_from(sums[i]);
        }
    }
    store(&totals, factors, bias, added, out, row, column, rows, added_rows, factor, job);
}

/// The place of quad `quad` in a row of a tile in shared memory. Quads change places with the row's number, so that
/// eight units that read or write side by side meet eight different banks. Rows that lie a multiple of 8 apart have
/// their quads in the same places.
#[cube]
fn swizzled(row: usize, quad: usize, #[comptime] job: RegisterJob) -> usize {
    if comptime!(job.quads() == 4) { quad ^ ((row >> 1) & 3) } else { quad ^ (row & 7) }
}

/// Four numbers as a cell of shared memory.
#[cube]
fn cell_of<F: Float, E: Scalar, M: Size>(four: Four<F>) -> Vector<E, M> {
    let width = M::value();
    if comptime!(width == 4) { Vector::<E, M>::cast_from(four) } else { Vector::<E, M>::reinterpret(four) }
}

/// The numbers of a cell.
#[cube]
fn four_of<F: Float, E: Scalar, M: Size>(cell: Vector<E, M>) -> Four<F> {
    let width = M::value();
    if comptime!(width == 4) { Four::<F>::cast_from(cell) } else { Four::<F>::reinterpret(cell) }
}

/// Loads quads of the input into registers, zeros beyond the end of a row. Rows beyond the last repeat it.
#[cube]
fn fetch_input<F: Float>(
    x: &[Four<F>],
    held: &mut Array<Four<F>>,
    depth: usize,
    rows: u32,
    #[comptime] job: RegisterJob,
) {
    let tile = comptime!(job.tile);
    let quads = comptime!(job.input_quads());
    let each = comptime!(job.quads());
    #[unroll]
    for load in 0..job.input_loads() {
        let at = UNIT_POS as usize + comptime!(load * tile.units());
        let row = min(CUBE_POS_X as usize * comptime!(tile.m()) + at / each, rows as usize - 1);
        let first = row * comptime!(job.input_stride());
        let column = depth * each + at % each;
        if comptime!(quads % each == 0) {
            held[load] = x[first + column];
        } else {
            let value = x[first + min(column, comptime!(quads - 1))];
            held[load] = select(column < quads, value, Four::<F>::new(F::from_int(0)));
        }
    }
}

/// Writes what [`fetch_input`] has loaded to shared memory.
#[cube]
fn store_input<F: Float, E: Scalar, M: Size>(
    held: &Array<Four<F>>,
    to: &mut [Vector<E, M>],
    #[comptime] job: RegisterJob,
) {
    let tile = comptime!(job.tile);
    let each = comptime!(job.quads());
    #[unroll]
    for load in 0..job.input_loads() {
        let at = UNIT_POS as usize + comptime!(load * tile.units());
        let row = at / each;
        if comptime!((load + 1) * tile.units() <= tile.m() * each) || row < comptime!(tile.m()) {
            let to_at = row * each + swizzled(row, at % each, job);
            if comptime!(job.halves()) {
                to[to_at] = cell_of::<F, E, M>(held[load] * Four::<F>::new(F::new(INPUT_POWER)));
            } else {
                to[to_at] = cell_of::<F, E, M>(held[load]);
            }
        }
    }
}

/// The row of the tile and the item of the matrix's row that a unit's load `load` is.
#[cube]
fn item_of(#[comptime] load: usize, depth: usize, #[comptime] job: RegisterJob) -> (usize, usize) {
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
    #[comptime] job: RegisterJob,
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

/// Writes the fetched weights to shared memory, multiplied by `power` where they become f16; zeros beyond the end of a
/// row.
#[cube]
fn store_weights<F: Float, E: Scalar, M: Size, N: Size>(
    fetched: &Array<Vector<u32, N>>,
    sides: &Array<u32>,
    to: &mut [Vector<E, M>],
    depth: usize,
    power: f32,
    #[comptime] job: RegisterJob,
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
                let mut w = weights_of::<N>(fetched[load], sides, item, q, start, layout, false);
                if comptime!(job.halves()) {
                    w *= Quad::new(power * WEIGHT_POWER);
                }
                if comptime!(items % each != 0) {
                    w = select(inside, w, Quad::new(0.0f32));
                }
                to[row * comptime!(job.quads()) + swizzled(row, first + q, job)] =
                    cell_of::<F, E, M>(Four::<F>::cast_from(w));
            }
        }
    }
}

/// The row of the matrix behind a row of the cube's tile: gates come before the up projections of the same
/// outputs. Beyond the end it is the last.
#[cube]
fn matrix_row(row: usize, #[comptime] job: RegisterJob) -> usize {
    let outputs = comptime!(job.outputs());
    let each = comptime!(job.cube_outputs());
    let output = min(CUBE_POS_Y as usize * each + row % each, comptime!(outputs - 1));
    output + row / each * outputs
}

/// Adds the products of quad `quad` of a tile to a unit's sums, \[unit_m, unit_n\]. Its rows of both lie as far apart as
/// there are units beside it.
#[cube]
fn multiply<F: Float, E: Scalar, M: Size>(
    input: &[Vector<E, M>],
    weights: &[Vector<E, M>],
    sums: &mut Array<Four<F>>,
    quad: usize,
    row: usize,
    column: usize,
    #[comptime] job: RegisterJob,
) {
    let tile = comptime!(job.tile);
    let fours = comptime!(tile.unit_n / 4);
    let quads = comptime!(job.quads());
    let input_at = row * quads + swizzled(row, quad, job);
    let weights_at = column * quads + swizzled(column, quad, job);
    // Weights of four rows of the matrix in one column are a quad, as their sums are.
    let mut w = Array::<Four<F>>::new(comptime!(tile.unit_n));
    #[unroll]
    for j in 0..fours {
        let mut of_rows = Array::<Four<F>>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            of_rows[i] =
                four_of::<F, E, M>(weights[weights_at + comptime!((4 * j + i) * tile.units_n * quads)]);
        }
        #[unroll]
        for k in 0..4usize {
            let mut four = Four::<F>::empty();
            #[unroll]
            for i in 0..4usize {
                four.insert(i, of_rows[i].extract(k));
            }
            w[comptime!(k * fours + j)] = four;
        }
    }
    #[unroll]
    for i in 0..tile.unit_m {
        let x = four_of::<F, E, M>(input[input_at + comptime!(i * tile.units_m * quads)]);
        #[unroll]
        for k in 0..4usize {
            let x = Four::<F>::new(x.extract(k));
            #[unroll]
            for j in 0..fours {
                let at = comptime!(i * fours + j);
                sums[at] = fma(x, w[comptime!(k * fours + j)], sums[at]);
            }
        }
    }
}

/// Stores a unit's outputs.
#[cube]
fn store(
    sums: &Array<Quad>,
    factors: &[u32],
    bias: &[f32],
    added: &[f32],
    out: &mut [f32],
    row: usize,
    column: usize,
    rows: u32,
    added_rows: u32,
    factor: f32,
    #[comptime] job: RegisterJob,
) {
    let tile = comptime!(job.tile);
    let outputs = comptime!(job.outputs());
    let made = comptime!(if job.gated { tile.unit_n / 2 } else { tile.unit_n });
    let first_row = CUBE_POS_X as usize * comptime!(tile.m()) + row;
    let first_column = CUBE_POS_Y as usize * comptime!(job.cube_outputs()) + column;
    #[unroll]
    for i in 0..tile.unit_m {
        let row = first_row + comptime!(i * tile.units_m);
        if row < rows as usize {
            let mut row_factor = 1.0f32;
            if comptime!(job.halves()) {
                let word = comptime!(RowFormat::factor_word(job.layout.cols));
                row_factor = f32::reinterpret(
                    factors[row * comptime!(RowFormat::F16.row_words(job.layout.cols)) + word],
                );
            }
            #[unroll]
            for j in 0..made {
                let output = first_column + comptime!(j * tile.units_n);
                if output < outputs {
                    let mut value = scaled(sums, i, j, factor, row_factor, job);
                    if comptime!(job.gated) {
                        value =
                            gelu_tanh(value) * scaled(sums, i, comptime!(j + made), factor, row_factor, job);
                    }
                    let (m, n) = (row as u32, output as u32);
                    value = finished(value, m, n, bias, added, added_rows, outputs, comptime!(job.finish));
                    out[(CUBE_POS_Z as usize * rows as usize + row) * outputs + output] = value;
                }
            }
        }
    }
}

/// The sum of row `i` and column `j` of a unit.
#[cube]
fn scaled(
    sums: &Array<Quad>,
    #[comptime] i: usize,
    #[comptime] j: usize,
    factor: f32,
    row_factor: f32,
    #[comptime] job: RegisterJob,
) -> f32 {
    let sum = sums[comptime!((i * job.tile.unit_n + j) / 4)].extract(comptime!(j % 4));
    if comptime!(job.halves()) {
        sum * comptime!(1.0 / (INPUT_POWER * WEIGHT_POWER)) * factor * row_factor
    } else {
        sum
    }
}
