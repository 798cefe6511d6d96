//! Formats of 6 and 8 bits times many rows rounded to 14 bits: pairs of 16-bit integers are multiplied by
//! one instruction, which is as fast as bytes whose sums don't fit 16 bits, and far more exact.

use std::marker::PhantomData;

use super::activations::Activations;
use super::formats::{BLOCK, WordFormat};
use super::lanes::Lanes;
use super::many_rows::{Expand, ManyRows, PANELS, Sums};
use super::strips::Strip;
use super::tiles::{Tile, WIDE_TILE_ROWS as T};

/// Multiplies panels, of which `strip` are the outputs.
pub(super) fn multiply<F: WordFormat>(x: &Activations<'_>, panels: &[u8], strip: Strip<'_>) {
    let weights = Words { panels, in_features: x.in_features, format: PhantomData::<F> };
    x.level.run(ManyRows { x, weights, strip });
}

/// Panels of a block format.
struct Words<'a, F> {
    panels: &'a [u8],
    in_features: usize,
    format: PhantomData<F>,
}

/// 32 weights of the rows of two panels, with the fields of [`super::formats::WordBlock`].
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
struct WordPanels {
    pairs: [[[u8; 32]; PANELS]; 16],
    scales: [[f32; 8]; PANELS],
}

impl<F: WordFormat> Expand<T> for Words<'_, F> {
    const COLUMNS: usize = BLOCK * F::BLOCKS;
    const MAX_COLUMNS: usize = 512;
    type Expanded = WordPanels;
    const UNIT: usize = BLOCK;

    #[inline(always)]
    fn expand<L: Lanes>(&self, l: L, panel: usize, start: usize, half: usize, out: &mut [WordPanels]) {
        let first = (panel * self.in_features + start) / (BLOCK * F::BLOCKS);
        let blocks = self.panels[first * F::BYTES..].chunks_exact(F::BYTES);
        for (bytes, out) in blocks.zip(out.chunks_exact_mut(F::BLOCKS)) {
            for (b, out) in out.iter_mut().enumerate() {
                let block = F::words(l, bytes, b);
                for (out, pairs) in out.pairs.iter_mut().zip(block.pairs) {
                    l.store(pairs, &mut out[half]);
                }
                l.store_floats(block.scale, &mut out.scales[half]);
            }
        }
    }

    #[inline(always)]
    fn multiply<L: Lanes>(
        l: L,
        weights: &[WordPanels],
        x: &Activations<'_>,
        row: usize,
        start: usize,
    ) -> Sums<L, T> {
        let (pairs, scales) = x.words().tile(Tile { row, height: T }, x.in_features);
        let pairs = pairs[start / 2 * T..].chunks_exact(BLOCK / 2 * T);
        let mut sums = [[l.splat(0.0); PANELS]; T];
        for ((weights, pairs), scales) in
            weights.iter().zip(pairs).zip(scales[start / BLOCK * T..].as_chunks::<T>().0)
        {
            let mut products = [[l.zero_ints(); PANELS]; T];
            for (weights, pairs) in weights.pairs.iter().zip(pairs.as_chunks::<T>().0) {
                let mut pair_weights = [l.zero_ints(); PANELS];
                for p in 0..PANELS {
                    pair_weights[p] = l.load(&weights[p]);
                }
                for t in 0..T {
                    let x = l.splat_words(pairs[t]);
                    for p in 0..PANELS {
                        products[t][p] = l.dot_words(products[t][p], pair_weights[p], x);
                    }
                }
            }
            let mut weight_scales = [l.splat(0.0); PANELS];
            for (out, scales) in weight_scales.iter_mut().zip(&weights.scales) {
                *out = l.load_floats(scales);
            }
            for t in 0..T {
                let scale = l.splat(scales[t]);
                for p in 0..PANELS {
                    let scale = l.multiply(weight_scales[p], scale);
                    sums[t][p] = l.multiply_add(l.to_floats(products[t][p]), scale, sums[t][p]);
                }
            }
        }
        sums
    }
}
