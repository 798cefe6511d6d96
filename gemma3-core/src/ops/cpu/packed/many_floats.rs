//! Weights expanded to f32 (or left in bf16, where that is multiplied) times many rows.

use std::marker::PhantomData;

use super::activations::Activations;
use super::formats::{BLOCK, Format};
use super::lanes::Lanes;
use super::layout::PANEL_ROWS;
use super::many_rows::{Expand, PANELS, Sums};
use super::plain::{Plain, load_tail};
use super::tiles::{Tile, WIDE_TILE_ROWS as T};

/// Columns whose expanded f32 of two panels (64 bytes a column) leave room in the first-level cache.
const MAX_COLUMNS: usize = 256;

/// A column of two panels.
type Column = [[f32; 8]; PANELS];

/// Panels of a block format.
pub(super) struct PanelFloats<'a, F> {
    pub(super) panels: &'a [u8],
    pub(super) in_features: usize,
    pub(super) format: PhantomData<F>,
}

impl<F: Format> Expand<T> for PanelFloats<'_, F> {
    const COLUMNS: usize = BLOCK * F::BLOCKS;
    const MAX_COLUMNS: usize = MAX_COLUMNS;
    type Expanded = Column;
    const UNIT: usize = 1;

    #[inline(always)]
    fn expand<L: Lanes>(&self, l: L, panel: usize, start: usize, half: usize, out: &mut [Column]) {
        let first = (panel * self.in_features + start) / (BLOCK * F::BLOCKS);
        let blocks = self.panels[first * F::BYTES..].chunks_exact(F::BYTES);
        for (bytes, out) in blocks.zip(out.chunks_exact_mut(BLOCK * F::BLOCKS)) {
            for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                let block = F::block(l, bytes, b);
                for (step, out) in out.chunks_exact_mut(4).enumerate() {
                    let group = step * F::GROUPS / 8;
                    for (byte, out) in out.iter_mut().enumerate() {
                        let quants = l.byte(block.quants[step], byte as u32, F::BITS == 8);
                        let weights = if F::OFFSET {
                            l.multiply_add(quants, block.scales[group], block.offsets[group])
                        } else {
                            l.multiply(quants, block.scales[group])
                        };
                        l.store_floats(weights, &mut out[half]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn multiply<L: Lanes>(
        l: L,
        weights: &[Column],
        x: &Activations<'_>,
        row: usize,
        start: usize,
    ) -> Sums<L, T> {
        multiply_floats(l, weights, x, row, start)
    }
}

/// Rows of a format without blocks.
pub(super) struct PlainFloats<'a, P> {
    pub(super) rows: &'a [u8],
    pub(super) in_features: usize,
    pub(super) format: PhantomData<P>,
}

impl<P: Plain> Expand<T> for PlainFloats<'_, P> {
    const COLUMNS: usize = 8;
    const MAX_COLUMNS: usize = MAX_COLUMNS;
    type Expanded = Column;
    const UNIT: usize = 1;

    #[inline(always)]
    fn expand<L: Lanes>(&self, l: L, panel: usize, start: usize, half: usize, out: &mut [Column]) {
        let row_bytes = self.in_features * P::BYTES / 8;
        let rows = &self.rows[panel * PANEL_ROWS * row_bytes..];
        let at = start * P::BYTES / 8;
        for (piece, out) in out.chunks_mut(8).enumerate() {
            let mut square = [l.splat(0.0); 8];
            for (square, row) in square.iter_mut().zip(rows.chunks_exact(row_bytes)) {
                let bytes = &row[at + piece * P::BYTES..][..out.len() * P::BYTES / 8];
                *square = if out.len() == 8 { P::load(l, bytes) } else { load_tail::<L, P>(l, bytes) };
            }
            for (out, column) in out.iter_mut().zip(l.transpose(square)) {
                l.store_floats(column, &mut out[half]);
            }
        }
    }

    #[inline(always)]
    fn multiply<L: Lanes>(
        l: L,
        weights: &[Column],
        x: &Activations<'_>,
        row: usize,
        start: usize,
    ) -> Sums<L, T> {
        multiply_floats(l, weights, x, row, start)
    }
}

#[inline(always)]
fn multiply_floats<L: Lanes>(
    l: L,
    weights: &[Column],
    x: &Activations<'_>,
    row: usize,
    start: usize,
) -> Sums<L, T> {
    let x = &x.floats().values(Tile { row, height: T }, x.in_features)[start * T..];
    let mut sums = [[l.splat(0.0); PANELS]; T];
    for (weights, x) in weights.iter().zip(x.as_chunks::<T>().0) {
        let mut column = [l.splat(0.0); PANELS];
        for p in 0..PANELS {
            column[p] = l.load_floats(&weights[p]);
        }
        for t in 0..T {
            let x = l.splat(x[t]);
            for p in 0..PANELS {
                sums[t][p] = l.multiply_add(column[p], x, sums[t][p]);
            }
        }
    }
    sums
}

/// Rows of bf16, for processors that multiply pairs of bf16. The number of columns must be even.
pub(super) struct HalfRows<'a> {
    pub(super) rows: &'a [u8],
    pub(super) in_features: usize,
}

/// Two columns of two panels: lanes are rows, with a pair of bf16 each.
type ColumnPair = [[u8; 32]; PANELS];

impl Expand<T> for HalfRows<'_> {
    const COLUMNS: usize = 16;
    const MAX_COLUMNS: usize = 2 * MAX_COLUMNS;
    type Expanded = ColumnPair;
    const UNIT: usize = 2;

    #[inline(always)]
    fn expand<L: Lanes>(&self, l: L, panel: usize, start: usize, half: usize, out: &mut [ColumnPair]) {
        let row_bytes = 2 * self.in_features;
        let rows = &self.rows[panel * PANEL_ROWS * row_bytes..];
        for (piece, out) in out.chunks_mut(8).enumerate() {
            // Pairs of bf16 move as if they were f32.
            let mut square = [l.splat(0.0); 8];
            for (square, row) in square.iter_mut().zip(rows.chunks_exact(row_bytes)) {
                let mut bytes = [0; 32];
                bytes[..4 * out.len()].copy_from_slice(&row[2 * start + 32 * piece..][..4 * out.len()]);
                *square = l.load_f32(&bytes);
            }
            for (out, pair) in out.iter_mut().zip(l.transpose(square)) {
                let mut values = [0.0; 8];
                l.store_floats(pair, &mut values);
                for (out, value) in out[half].as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *out = value.to_bits().to_le_bytes();
                }
            }
        }
    }

    #[inline(always)]
    fn multiply<L: Lanes>(
        l: L,
        weights: &[ColumnPair],
        x: &Activations<'_>,
        row: usize,
        start: usize,
    ) -> Sums<L, T> {
        let x = &x.halves()[row * x.in_features / 2..][start / 2 * T..];
        let mut sums = [[l.splat(0.0); PANELS]; T];
        for (weights, x) in weights.iter().zip(x.as_chunks::<T>().0) {
            let mut pair = [l.zero_ints(); PANELS];
            for p in 0..PANELS {
                pair[p] = l.load(&weights[p]);
            }
            for t in 0..T {
                let x = l.splat_bytes(x[t]);
                for p in 0..PANELS {
                    sums[t][p] = l.multiply_add_bf16(pair[p], x, sums[t][p]);
                }
            }
        }
        sums
    }
}
