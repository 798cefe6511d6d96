//! The formats without blocks, read as they lie in the file: lanes are consecutive weights of a row.

use std::marker::PhantomData;

use super::activations::Activations;
use super::lanes::{Kernel, Lanes};
use super::strips::Strip;

/// A format whose weights stand alone.
pub(super) trait Plain {
    /// Bytes of eight weights.
    const BYTES: usize;

    /// Eight weights.
    fn load<L: Lanes>(l: L, bytes: &[u8]) -> L::Floats;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Plain for F32 {
    const BYTES: usize = 32;

    #[inline(always)]
    fn load<L: Lanes>(l: L, bytes: &[u8]) -> L::Floats {
        l.load_f32(bytes.first_chunk().expect("32 bytes"))
    }
}

impl Plain for F16 {
    const BYTES: usize = 16;

    #[inline(always)]
    fn load<L: Lanes>(l: L, bytes: &[u8]) -> L::Floats {
        l.load_f16(bytes.first_chunk().expect("16 bytes"))
    }
}

impl Plain for Bf16 {
    const BYTES: usize = 16;

    #[inline(always)]
    fn load<L: Lanes>(l: L, bytes: &[u8]) -> L::Floats {
        l.load_bf16(bytes.first_chunk().expect("16 bytes"))
    }
}

/// Fewer than eight weights, and zeros.
#[inline(always)]
pub(super) fn load_tail<L: Lanes, P: Plain>(l: L, bytes: &[u8]) -> L::Floats {
    let mut padded = [0; 32];
    padded[..bytes.len()].copy_from_slice(bytes);
    P::load(l, &padded)
}

/// Vectors of a row that are multiplied at once: enough sums for none to wait for the one before.
const UNROLL: usize = 8;

/// How far ahead, in bytes, weights are asked for. One row after the other is one stream, which the processor sees
/// coming by itself except across pages; several rows at once were slower.
const PREFETCH_DISTANCE: usize = 1024;

/// Multiplies consecutive rows of weights, of which `strip` are the outputs.
pub(super) struct PlainRows<'a, 'b, P> {
    pub(super) x: &'a Activations<'b>,
    pub(super) rows: &'a [u8],
    pub(super) strip: Strip<'a>,
    pub(super) format: PhantomData<P>,
}

impl<P: Plain> Kernel for PlainRows<'_, '_, P> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let in_features = self.x.in_features;
        let row_bytes = in_features * P::BYTES / 8;
        for (column, row) in self.rows.chunks_exact(row_bytes).enumerate() {
            // The first vector fetches the row, the others find it in the cache.
            for (r, x) in self.x.x.chunks_exact(in_features).enumerate() {
                self.strip.row(r)[column] = dot::<L, P>(l, row, x);
            }
        }
    }
}

/// The dot product of `x` with a row.
#[inline(always)]
fn dot<L: Lanes, P: Plain>(l: L, row: &[u8], x: &[f32]) -> f32 {
    let mut sums = [l.splat(0.0); UNROLL];
    let (pieces, rest) = x.as_chunks::<{ 8 * UNROLL }>();
    let (weights, weights_rest) = row.split_at(pieces.len() * UNROLL * P::BYTES);
    for (weights, x) in weights.chunks_exact(UNROLL * P::BYTES).zip(pieces) {
        l.prefetch(weights, PREFETCH_DISTANCE);
        for u in 0..UNROLL {
            let x = l.load_floats(x[8 * u..].first_chunk().expect("eight of a piece"));
            sums[u] = l.multiply_add(P::load(l, &weights[u * P::BYTES..]), x, sums[u]);
        }
    }
    for (weights, x) in weights_rest.chunks(P::BYTES).zip(rest.chunks(8)) {
        let mut padded = [0.0; 8];
        padded[..x.len()].copy_from_slice(x);
        sums[0] = l.multiply_add(load_tail::<L, P>(l, weights), l.load_floats(&padded), sums[0]);
    }
    let [a, b, c, d, e, f, g, h] = sums;
    let (ab, cd) = (l.add_floats(a, b), l.add_floats(c, d));
    let (ef, gh) = (l.add_floats(e, f), l.add_floats(g, h));
    l.reduce(l.add_floats(l.add_floats(ab, cd), l.add_floats(ef, gh)))
}
