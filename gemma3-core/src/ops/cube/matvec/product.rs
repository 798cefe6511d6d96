//! Sums over the columns: what all products have in common.

use std::cmp::min;

use cubecl::prelude::*;

use super::integers::{Octet, accumulate_integers};
use super::tiling::{Activations, MIN_NARROW_BATCH, Tiling};
use crate::ops::cube::packed::{
    Layout, Quad, Scales, fetch_side, quad, quads_of_span, scale_pair, side_words_of_item,
};
use crate::ops::cube::reduce::unit_of_group;

/// What a product is, as a constant of its kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    /// The matrix.
    pub layout: Layout,
    /// Rows of the input.
    pub batch: usize,
    /// How it is divided.
    pub tiling: Tiling,
}

impl Product {
    /// Items of a row: what a unit loads at once.
    pub const fn items(&self) -> usize {
        self.layout.row_words() / self.tiling.vector_words
    }

    /// Quads of an item.
    pub const fn quads(&self) -> usize {
        self.tiling.vector_words * self.layout.weights_per_word() / 4
    }

    /// Turns that a group takes along a row, of [`Tiling::unroll`] items a unit each.
    pub const fn turns(&self) -> usize {
        self.items().div_ceil(self.tiling.groups.units()).div_ceil(self.tiling.unroll)
    }

    /// Side words of an item.
    pub const fn side_words(&self) -> usize {
        side_words_of_item(&self.layout, self.tiling.vector_words)
    }

    /// Items that are loaded together.
    pub const fn loads(&self) -> usize {
        self.tiling.unroll * self.tiling.rows
    }

    /// Results of a group.
    pub const fn results(&self) -> usize {
        self.tiling.rows * self.batch
    }

    /// Whether the input is kept as integers.
    pub const fn integers(&self) -> bool {
        matches!(self.tiling.activations, Activations::Int8)
    }

    /// Quads of the input that a unit stages at once: with eight of the input it makes what belongs to a word
    /// of nibbles.
    pub const fn chunk_quads(&self) -> usize {
        if self.integers() { 2 } else { 1 }
    }

    /// Chunks of a staged row.
    pub const fn chunks(&self) -> usize {
        self.items() * self.quads() / self.chunk_quads()
    }

    /// Chunks of a row that a unit stages.
    pub const fn chunk_share(&self) -> usize {
        self.chunks().div_ceil(self.tiling.groups.cube_units())
    }

    /// Whether units keep their share of the input in registers while they prepare it.
    pub const fn held(&self) -> bool {
        self.chunk_share() * self.chunk_quads() * self.batch <= 8
    }

    /// Quads of the input that a unit keeps in registers; at least one.
    pub const fn held_quads(&self) -> usize {
        if self.held() { self.chunk_share() * self.chunk_quads() * self.batch } else { 1 }
    }

    /// Quads of the input in shared memory; at least one.
    pub const fn staged_quads(&self) -> usize {
        if self.tiling.staged && !self.integers() { self.chunks() * self.batch } else { 1 }
    }

    /// Eights of integers in shared memory; at least one.
    pub const fn staged_octets(&self) -> usize {
        if self.integers() { self.chunks() * self.batch } else { 1 }
    }

    /// Scales of the integers in shared memory, and behind them, without plane operations, a number of each unit; at least
    /// one.
    pub const fn staged_scales(&self) -> usize {
        let groups = self.tiling.groups;
        match self.integers() {
            true if groups.plane_operations => self.scales(),
            true => self.scales() + groups.cube_units(),
            false => 1,
        }
    }

    /// Scales of the integers.
    pub const fn scales(&self) -> usize {
        self.chunks() / 4 * self.batch
    }

    /// Whether each result is one sum, not four side by side: results then are many enough to hide the time
    /// that an addition takes, and registers are few.
    pub const fn narrow(&self) -> bool {
        self.integers() || self.batch >= MIN_NARROW_BATCH
    }

    /// Whether weights have a minimum.
    pub const fn has_minimum(&self) -> bool {
        matches!(self.layout.scales(), Scales::HalfPair | Scales::BytePair)
    }

    /// Whether weights have a scale.
    pub const fn has_scale(&self) -> bool {
        !matches!(self.layout.scales(), Scales::None)
    }
}

/// Loads the items of turn `turn` of all rows. Nothing here waits, so that all are under way at once; units
/// beyond the end of the row load its last item and don't use it.
#[cube]
pub(crate) fn fetch<N: Size>(
    quants: &[Vector<u32, N>],
    side: &[u32],
    rows: &Array<u32>,
    turn: usize,
    items: &mut Array<Vector<u32, N>>,
    sides: &mut Array<u32>,
    #[comptime] product: Product,
) {
    let tiling = comptime!(product.tiling);
    let unit = unit_of_group(comptime!(tiling.groups));
    let last = comptime!(product.items() - 1);
    #[unroll]
    for u in 0..tiling.unroll {
        let item = (turn * comptime!(tiling.unroll) + u) * comptime!(tiling.groups.units()) + unit;
        let item = min(item, last);
        #[unroll]
        for r in 0..tiling.rows {
            let load = comptime!(u * tiling.rows + r);
            let row = rows[r] as usize;
            items[load] = quants[row * comptime!(product.items()) + item];
            let start = comptime!(load * product.side_words());
            fetch_side::<N>(side, row, item, sides, start, comptime!(product.layout));
        }
    }
}

/// Adds the products of what was fetched with the input to `sums`, \[rows, batch\]. `input` are the quads of
/// the input, staged or as they are; where they are kept as integers, those are `octets` and their scales, and the
/// sums `narrow_sums`, as those of many results are.
#[cube]
pub(crate) fn accumulate<N: Size>(
    input: &[Quad],
    octets: &[Octet],
    octet_scales: &[f32],
    turn: usize,
    items: &Array<Vector<u32, N>>,
    sides: &Array<u32>,
    sums: &mut Array<Quad>,
    narrow_sums: &mut Array<f32>,
    #[comptime] product: Product,
) {
    let tiling = comptime!(product.tiling);
    let unit = unit_of_group(comptime!(tiling.groups));
    #[unroll]
    for u in 0..tiling.unroll {
        let item = (turn * comptime!(tiling.unroll) + u) * comptime!(tiling.groups.units()) + unit;
        if item < comptime!(product.items()) {
            if comptime!(product.integers()) {
                accumulate_integers::<N>(octets, octet_scales, item, items, sides, narrow_sums, u, product);
            } else if comptime!(product.narrow()) {
                accumulate_narrow::<N>(input, item, items, sides, narrow_sums, u, product);
            } else {
                accumulate_item::<N>(input, item, items, sides, sums, u, product);
            }
        }
    }
}

#[cube]
fn accumulate_item<N: Size>(
    input: &[Quad],
    item: usize,
    items: &Array<Vector<u32, N>>,
    sides: &Array<u32>,
    sums: &mut Array<Quad>,
    #[comptime] u: usize,
    #[comptime] product: Product,
) {
    let rows = comptime!(product.tiling.rows);
    let batch = comptime!(product.batch);
    let layout = comptime!(product.layout);
    let native = comptime!(product.tiling.native_halves);
    let span_quads = comptime!(quads_of_span(&layout, product.tiling.vector_words));
    let spans = comptime!(product.quads() / span_quads);
    #[unroll]
    for span in 0..spans {
        let mut dots = Array::<Quad>::new(comptime!(product.results()));
        let mut totals = Array::<Quad>::new(batch);
        #[unroll]
        for i in 0..product.results() {
            dots[i] = Quad::new(0.0f32);
        }
        #[unroll]
        for m in 0..batch {
            totals[m] = Quad::new(0.0f32);
        }
        #[unroll]
        for q in 0..span_quads {
            let index = comptime!(span * span_quads + q);
            let mut weights = Array::<Quad>::new(rows);
            #[unroll]
            for r in 0..rows {
                let load = comptime!(u * rows + r);
                let start = comptime!(load * product.side_words());
                weights[r] = quad::<N>(items[load], sides, item, index, start, layout, native);
            }
            #[unroll]
            for m in 0..batch {
                let x = input_quad(input, item, m, index, product);
                if comptime!(product.has_minimum()) {
                    totals[m] += x;
                }
                #[unroll]
                for r in 0..rows {
                    let at = comptime!(r * batch + m);
                    dots[at] = fma(weights[r], x, dots[at]);
                }
            }
        }
        #[unroll]
        for r in 0..rows {
            let start = comptime!((u * rows + r) * product.side_words());
            if comptime!(product.has_scale()) {
                let (scale, minimum) = scale_pair::<N>(sides, item, span, start, layout, native);
                #[unroll]
                for m in 0..batch {
                    let at = comptime!(r * batch + m);
                    sums[at] = fma(Quad::new(scale), dots[at], sums[at]);
                    if comptime!(product.has_minimum()) {
                        sums[at] = fma(Quad::new(minimum), totals[m], sums[at]);
                    }
                }
            } else {
                #[unroll]
                for m in 0..batch {
                    let at = comptime!(r * batch + m);
                    sums[at] += dots[at];
                }
            }
        }
    }
}

/// As [`accumulate_item`], with one sum for a result.
#[cube]
fn accumulate_narrow<N: Size>(
    input: &[Quad],
    item: usize,
    items: &Array<Vector<u32, N>>,
    sides: &Array<u32>,
    sums: &mut Array<f32>,
    #[comptime] u: usize,
    #[comptime] product: Product,
) {
    let rows = comptime!(product.tiling.rows);
    let batch = comptime!(product.batch);
    let layout = comptime!(product.layout);
    let native = comptime!(product.tiling.native_halves);
    let span_quads = comptime!(quads_of_span(&layout, product.tiling.vector_words));
    let spans = comptime!(product.quads() / span_quads);
    #[unroll]
    for span in 0..spans {
        let mut scales = Array::<f32>::new(rows);
        let mut minima = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            let start = comptime!((u * rows + r) * product.side_words());
            let (scale, minimum) = scale_pair::<N>(sides, item, span, start, layout, native);
            scales[r] = scale;
            minima[r] = minimum;
        }
        #[unroll]
        for q in 0..span_quads {
            let index = comptime!(span * span_quads + q);
            let mut weights = Array::<Quad>::new(rows);
            #[unroll]
            for r in 0..rows {
                let start = comptime!((u * rows + r) * product.side_words());
                let weight =
                    quad::<N>(items[comptime!(u * rows + r)], sides, item, index, start, layout, native);
                // Scaled once for all rows of the input.
                weights[r] = if comptime!(product.has_minimum()) {
                    fma(weight, Quad::new(scales[r]), Quad::new(minima[r]))
                } else if comptime!(product.has_scale()) {
                    weight * Quad::new(scales[r])
                } else {
                    weight
                };
            }
            #[unroll]
            for m in 0..batch {
                let x = input_quad(input, item, m, index, product);
                #[unroll]
                for i in 0..4usize {
                    #[unroll]
                    for r in 0..rows {
                        let at = comptime!(r * batch + m);
                        sums[at] = fma(weights[r].extract(i), x.extract(i), sums[at]);
                    }
                }
            }
        }
    }
}

/// Quad `index` of the input of an item. The staged input lies so that units side by side read quads side by
/// side.
#[cube]
fn input_quad(
    input: &[Quad],
    item: usize,
    #[comptime] m: usize,
    #[comptime] index: usize,
    #[comptime] product: Product,
) -> Quad {
    if comptime!(product.tiling.staged) {
        input[item + comptime!((m * product.quads() + index) * product.items())]
    } else {
        let quads = comptime!(product.layout.cols / 4);
        let at = item * comptime!(product.quads()) + index;
        // Items reach beyond the end of a row that is no whole 16 bytes; the weights there are zeros.
        let whole = comptime!(product.items() * product.quads() == quads);
        let at = if comptime!(whole) { at } else { min(at, comptime!(quads - 1)) };
        input[at + comptime!(m * quads)]
    }
}
