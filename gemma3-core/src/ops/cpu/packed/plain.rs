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

/// Rows of weights that are read at once: enough streams to keep the memory busy, and each vector of `x`
/// is loaded once for all.
const STREAMS: usize = 4;
/// Vectors of a row that are multiplied at once.
const UNROLL: usize = 2;

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
        let mut column = 0;
        let groups = self.rows.chunks_exact(STREAMS * row_bytes);
        let rest = groups.remainder();
        for group in groups {
            let mut rows = [&[][..]; STREAMS];
            for (row, bytes) in rows.iter_mut().zip(group.chunks_exact(row_bytes)) {
                *row = bytes;
            }
            for (r, x) in self.x.x.chunks_exact(in_features).enumerate() {
                let sums = dots::<L, P, STREAMS>(l, rows, x);
                self.strip.row(r)[column..column + STREAMS].copy_from_slice(&sums);
            }
            column += STREAMS;
        }
        for row in rest.chunks_exact(row_bytes) {
            for (r, x) in self.x.x.chunks_exact(in_features).enumerate() {
                let [sum] = dots::<L, P, 1>(l, [row], x);
                self.strip.row(r)[column] = sum;
            }
            column += 1;
        }
    }
}

/// The dot products of `x` with `N` rows.
#[inline(always)]
fn dots<L: Lanes, P: Plain, const N: usize>(l: L, rows: [&[u8]; N], x: &[f32]) -> [f32; N] {
    let mut sums = [[l.splat(0.0); UNROLL]; N];
    let (pieces, rest) = x.as_chunks::<{ 8 * UNROLL }>();
    for (piece, x) in pieces.iter().enumerate() {
        for n in 0..N {
            let weights = &rows[n][piece * UNROLL * P::BYTES..][..UNROLL * P::BYTES];
            for u in 0..UNROLL {
                let x = l.load_floats(x[8 * u..].first_chunk().expect("eight of a piece"));
                sums[n][u] = l.multiply_add(P::load(l, &weights[u * P::BYTES..]), x, sums[n][u]);
            }
        }
    }
    let mut at = pieces.len() * UNROLL * P::BYTES;
    for x in rest.chunks(8) {
        let mut padded = [0.0; 8];
        padded[..x.len()].copy_from_slice(x);
        let padded = l.load_floats(&padded);
        for n in 0..N {
            let weights = load_tail::<L, P>(l, &rows[n][at..][..x.len() * P::BYTES / 8]);
            sums[n][0] = l.multiply_add(weights, padded, sums[n][0]);
        }
        at += P::BYTES;
    }
    let mut out = [0.0; N];
    for (out, [first, second]) in out.iter_mut().zip(sums) {
        *out = l.reduce(l.add_floats(first, second));
    }
    out
}
