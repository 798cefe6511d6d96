//! Q4_1: 32 weights in 20 bytes.
//!
//! | bytes | content |
//! |---|---|
//! | 0..2 | scale `d`, f16 |
//! | 2..4 | minimum `m`, f16 |
//! | 4..20 | quants, two a byte: weight `j` in the low half of byte `j`, `j + 16` in the high one |
//!
//! A weight is `d * q + m`.

use super::halves::half;

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<20>().0;
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, m0, m1, quants @ ..] = block;
        let (d, m) = (half([*d0, *d1]), half([*m0, *m1]));
        let (low, high) = out.split_at_mut(16);
        for (byte, (low, high)) in quants.iter().zip(low.iter_mut().zip(high)) {
            *low = d * f32::from(byte & 15) + m;
            *high = d * f32::from(byte >> 4) + m;
        }
    }
}
