//! A few vectors times packed weights, as a step of decoding asks for: every block of weights is unpacked
//! in registers, once for all vectors of a tile.

use std::marker::PhantomData;

use crate::ops::Precision;

use super::activations::{Activations, BLOCK_SCALES, BLOCK_SUMS};
use super::formats::{BLOCK, Block, Format};
use super::lanes::{Kernel, Lanes};
use super::layout::PANEL_ROWS;
use super::strips::Strip;
use super::tiles::{TILE_ROWS, tiles};

/// Multiplies consecutive panels, of which `strip` are the outputs.
pub(super) struct FewRows<'a, 'b, F> {
    pub(super) x: &'a Activations<'b>,
    pub(super) panels: &'a [u8],
    pub(super) strip: Strip<'a>,
    pub(super) format: PhantomData<F>,
}

impl<F: Format> Kernel for FewRows<'_, '_, F> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let in_features = self.x.in_features;
        let panel_bytes = in_features / (BLOCK * F::BLOCKS) * F::BYTES;
        for (n, panel) in self.panels.chunks_exact(panel_bytes).enumerate() {
            for tile in tiles(self.x.rows, TILE_ROWS) {
                let (strip, column) = (&mut self.strip, n * PANEL_ROWS);
                match self.x.precision {
                    Precision::Fast => {
                        let (quants, scales) = self.x.bytes().tile(tile, in_features);
                        match tile.height {
                            1 => put(
                                l,
                                bytes_panel::<L, F, 1>(l, panel, quants, scales),
                                strip,
                                tile.row,
                                column,
                            ),
                            2 => put(
                                l,
                                bytes_panel::<L, F, 2>(l, panel, quants, scales),
                                strip,
                                tile.row,
                                column,
                            ),
                            _ => put(
                                l,
                                bytes_panel::<L, F, 4>(l, panel, quants, scales),
                                strip,
                                tile.row,
                                column,
                            ),
                        }
                    }
                    Precision::Exact => {
                        let tiles = self.x.floats();
                        let (x, sums) = (tiles.values(tile, in_features), tiles.sums(tile, in_features));
                        match tile.height {
                            1 => put(l, floats_panel::<L, F, 1>(l, panel, x, sums), strip, tile.row, column),
                            2 => put(l, floats_panel::<L, F, 2>(l, panel, x, sums), strip, tile.row, column),
                            _ => put(l, floats_panel::<L, F, 4>(l, panel, x, sums), strip, tile.row, column),
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn put<L: Lanes, const T: usize>(
    l: L,
    sums: [L::Floats; T],
    strip: &mut Strip<'_>,
    row: usize,
    column: usize,
) {
    for (t, sums) in sums.into_iter().enumerate() {
        let mut values = [0.0; 8];
        l.store_floats(sums, &mut values);
        strip.put(row + t, column, values, false);
    }
}

/// Calls `$body` with the constants `0..F::BLOCKS` as `$b`.
macro_rules! for_each_block {
    ($format:ident, |$b:ident| $body:expr) => {
        if $format::BLOCKS == 1 {
            let $b = 0;
            $body;
        } else {
            for_each_block!(@ $b $body; 0 1 2 3 4 5 6 7);
        }
    };
    (@ $b:ident $body:expr; $($n:literal)*) => {
        $({ let $b = $n; $body; })*
    };
}

/// How far ahead, in bytes, weights are asked for: the processor's own guesses end at a page of memory, and
/// blocks of 256 weights aren't read front to back.
const PREFETCH_DISTANCE: usize = 2048;

/// A panel times `T` rows rounded to 8 bits.
#[inline(always)]
fn bytes_panel<L: Lanes, F: Format, const T: usize>(
    l: L,
    panel: &[u8],
    quants: &[[i8; 4]],
    scales: &[f32],
) -> [L::Floats; T] {
    let mut sums = [l.splat(0.0); T];
    let blocks = panel.chunks_exact(F::BYTES);
    let quants = quants.chunks_exact(F::BLOCKS * 8 * T);
    for ((bytes, quants), scales) in blocks.zip(quants).zip(scales.chunks_exact(F::BLOCKS * BLOCK_SCALES * T))
    {
        l.prefetch(bytes, PREFETCH_DISTANCE);
        for_each_block!(F, |b| {
            let block = F::block(l, bytes, b);
            let quants = &quants[b * 8 * T..][..8 * T];
            let scales = &scales[b * BLOCK_SCALES * T..][..BLOCK_SCALES * T];
            sums = bytes_block::<L, F, T>(l, &block, quants, scales, sums)
        });
    }
    sums
}

#[inline(always)]
fn bytes_block<L: Lanes, F: Format, const T: usize>(
    l: L,
    block: &Block<L>,
    quants: &[[i8; 4]],
    scales: &[f32],
    mut sums: [L::Floats; T],
) -> [L::Floats; T] {
    let (steps, chain) = (8 / F::GROUPS, L::chain(F::BITS).min(8 / F::GROUPS));
    for t in 0..T {
        for group in 0..F::GROUPS {
            let mut products = l.zero_ints();
            for first in (0..steps).step_by(chain) {
                let mut chained = l.zero_ints();
                for step in group * steps + first..group * steps + first + chain {
                    let x = l.splat_bytes(quants[step * T + t]);
                    chained = l.multiply_bytes(F::BITS, chained, block.quants[step], x);
                }
                products = l.add(products, l.sum_bytes(chained));
            }
            let scale = l.multiply(block.scales[group], l.splat(scales[t]));
            sums[t] = l.multiply_add(l.to_floats(products), scale, sums[t]);
            let x_sum = l.splat(scales[(if F::GROUPS == 1 { 1 } else { 2 + group }) * T + t]);
            if F::OFFSET {
                sums[t] = l.multiply_add(block.offsets[group], x_sum, sums[t]);
            } else if L::SIGNED_OFFSET != 0.0 {
                let offset = l.multiply(block.scales[group], l.splat(-L::SIGNED_OFFSET));
                sums[t] = l.multiply_add(offset, x_sum, sums[t]);
            }
        }
    }
    sums
}

/// A panel times `T` rows of f32.
#[inline(always)]
fn floats_panel<L: Lanes, F: Format, const T: usize>(
    l: L,
    panel: &[u8],
    x: &[f32],
    x_sums: &[f32],
) -> [L::Floats; T] {
    let mut sums = [l.splat(0.0); T];
    let blocks = panel.chunks_exact(F::BYTES).zip(x.chunks_exact(F::BLOCKS * BLOCK * T));
    for ((bytes, x), x_sums) in blocks.zip(x_sums.chunks_exact(F::BLOCKS * BLOCK_SUMS * T)) {
        l.prefetch(bytes, PREFETCH_DISTANCE);
        for_each_block!(F, |b| {
            let block = F::block(l, bytes, b);
            let x = &x[b * BLOCK * T..][..BLOCK * T];
            sums =
                floats_block::<L, F, T>(l, &block, x, &x_sums[b * BLOCK_SUMS * T..][..BLOCK_SUMS * T], sums)
        });
    }
    sums
}

#[inline(always)]
fn floats_block<L: Lanes, F: Format, const T: usize>(
    l: L,
    block: &Block<L>,
    x: &[f32],
    x_sums: &[f32],
    mut sums: [L::Floats; T],
) -> [L::Floats; T] {
    let steps = 8 / F::GROUPS;
    // In memory, so that the loop over steps needn't be unrolled.
    let mut quants = [[0; 32]; 8];
    for (out, quants) in quants.iter_mut().zip(block.quants) {
        l.store(quants, out);
    }
    for group in 0..F::GROUPS {
        // Several sums a row, since each waits for the one before.
        let mut products = [[l.splat(0.0); 4]; T];
        let spread = if T == 1 { 4 } else { 4 / T };
        let x = x[group * steps * 4 * T..].chunks_exact(4 * T);
        for (quants, x) in quants[group * steps..][..steps].iter().zip(x) {
            let quants = l.load(quants);
            for byte in 0..4 {
                let weights = l.byte(quants, byte as u32, F::BITS == 8);
                for t in 0..T {
                    let sum = &mut products[t][byte % spread];
                    *sum = l.multiply_add(weights, l.splat(x[byte * T + t]), *sum);
                }
            }
        }
        for t in 0..T {
            let [a, b, c, d] = products[t];
            let product = l.add_floats(l.add_floats(a, b), l.add_floats(c, d));
            sums[t] = l.multiply_add(product, block.scales[group], sums[t]);
            if F::OFFSET {
                let x_sum = l.splat(x_sums[(if F::GROUPS == 1 { 0 } else { 1 + group }) * T + t]);
                sums[t] = l.multiply_add(block.offsets[group], x_sum, sums[t]);
            }
        }
    }
    sums
}
