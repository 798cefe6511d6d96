//! Formats of 4 and 5 bits times many rows rounded to 8 bits: integer sums within a block, f32 sums over
//! blocks.

use std::marker::PhantomData;

use super::activations::{Activations, BLOCK_SCALES};
use super::formats::{BLOCK, Format};
use super::lanes::Lanes;
use super::many_rows::{Expand, ManyRows, PANELS, Sums};
use super::strips::Strip;
use super::tiles::{Tile, WIDE_TILE_ROWS as T};

/// Multiplies panels, of which `strip` are the outputs.
pub(super) fn multiply<F: Format>(x: &Activations<'_>, panels: &[u8], strip: Strip<'_>) {
    let weights = Bytes { panels, in_features: x.in_features, format: PhantomData::<F> };
    x.level.run(ManyRows { x, weights, strip });
}

/// Panels of a block format.
struct Bytes<'a, F> {
    panels: &'a [u8],
    in_features: usize,
    format: PhantomData<F>,
}

/// 32 weights of the rows of two panels, with the fields of [`super::formats::Block`].
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
struct ByteBlock {
    quants: [[[u8; 32]; PANELS]; 8],
    scales: [[f32; 8]; PANELS],
    offsets: [[f32; 8]; PANELS],
}

impl<F: Format> Expand<T> for Bytes<'_, F> {
    const COLUMNS: usize = BLOCK * F::BLOCKS;
    const MAX_COLUMNS: usize = 1024;
    type Expanded = ByteBlock;
    const UNIT: usize = BLOCK;

    #[inline(always)]
    fn expand<L: Lanes>(&self, l: L, panel: usize, start: usize, half: usize, out: &mut [ByteBlock]) {
        let first = (panel * self.in_features + start) / (BLOCK * F::BLOCKS);
        let blocks = self.panels[first * F::BYTES..].chunks_exact(F::BYTES);
        for (bytes, out) in blocks.zip(out.chunks_exact_mut(F::BLOCKS)) {
            for (b, out) in out.iter_mut().enumerate() {
                let block = F::block(l, bytes, b);
                for (out, quants) in out.quants.iter_mut().zip(block.quants) {
                    l.store(quants, &mut out[half]);
                }
                l.store_floats(block.scales[0], &mut out.scales[half]);
                l.store_floats(block.offsets[0], &mut out.offsets[half]);
            }
        }
    }

    #[inline(always)]
    fn multiply<L: Lanes>(
        l: L,
        weights: &[ByteBlock],
        x: &Activations<'_>,
        row: usize,
        start: usize,
    ) -> Sums<L, T> {
        let (quants, scales) = x.bytes().tile(Tile { row, height: T }, x.in_features);
        let quants = quants[start / 4 * T..].chunks_exact(8 * T);
        let scales = scales[start / BLOCK * BLOCK_SCALES * T..].chunks_exact(BLOCK_SCALES * T);
        let mut sums = [[l.splat(0.0); PANELS]; T];
        for ((weights, quants), scales) in weights.iter().zip(quants).zip(scales) {
            let products = block_products::<L, F>(l, &weights.quants, quants);
            let mut weight_scales = [l.splat(0.0); PANELS];
            let mut offsets = [l.splat(0.0); PANELS];
            for p in 0..PANELS {
                weight_scales[p] = l.load_floats(&weights.scales[p]);
                offsets[p] = l.load_floats(&weights.offsets[p]);
            }
            for t in 0..T {
                let (scale, x_sum) = (l.splat(scales[t]), l.splat(scales[T + t]));
                for p in 0..PANELS {
                    let scale = l.multiply(weight_scales[p], scale);
                    sums[t][p] = l.multiply_add(l.to_floats(products[t][p]), scale, sums[t][p]);
                    sums[t][p] = l.multiply_add(offsets[p], x_sum, sums[t][p]);
                }
            }
        }
        sums
    }
}

/// The sums of products of a block with the rows of a tile.
#[inline(always)]
fn block_products<L: Lanes, F: Format>(
    l: L,
    weights: &[[[u8; 32]; PANELS]; 8],
    quants: &[[i8; 4]],
) -> [[L::Ints; PANELS]; T] {
    let chain = L::chain(F::BITS);
    let mut products = [[l.zero_ints(); PANELS]; T];
    for (weights, quants) in weights.chunks_exact(chain).zip(quants.chunks_exact(chain * T)) {
        let mut chained = [[l.zero_ints(); PANELS]; T];
        for (weights, quants) in weights.iter().zip(quants.as_chunks::<T>().0) {
            let mut step_weights = [l.zero_ints(); PANELS];
            for p in 0..PANELS {
                step_weights[p] = l.load(&weights[p]);
            }
            for t in 0..T {
                let x = l.splat_bytes(quants[t]);
                for p in 0..PANELS {
                    chained[t][p] = l.multiply_bytes(F::BITS, chained[t][p], step_weights[p], x);
                }
            }
        }
        for t in 0..T {
            for p in 0..PANELS {
                products[t][p] = l.add(products[t][p], l.sum_bytes(chained[t][p]));
            }
        }
    }
    products
}
