//! Q5_1: 32 weights in 24 bytes.
//!
//! | bytes | content |
//! |---|---|
//! | 0..2 | scale `d`, f16 |
//! | 2..4 | minimum `m`, f16 |
//! | 4..8 | fifth bits, u32: that of weight `j` is bit `j` |
//! | 8..24 | low four bits, two a byte: weight `j` in the low half of byte `j`, `j + 16` in the high one |
//!
//! A weight is `d * q + m`.

use super::halves::half;

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<24>().0;
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, m0, m1, h0, h1, h2, h3, quants @ ..] = block;
        let (d, m) = (half([*d0, *d1]), half([*m0, *m1]));
        let fifth_bits = u32::from_le_bytes([*h0, *h1, *h2, *h3]);
        let (low, high) = out.split_at_mut(16);
        for (j, (byte, (low, high))) in (0_u32..).zip(quants.iter().zip(low.iter_mut().zip(high))) {
            let q = u32::from(byte & 15) | ((fifth_bits >> j) & 1) << 4;
            *low = d * q as f32 + m;
            let q = u32::from(byte >> 4) | ((fifth_bits >> (j + 16)) & 1) << 4;
            *high = d * q as f32 + m;
        }
    }
}
