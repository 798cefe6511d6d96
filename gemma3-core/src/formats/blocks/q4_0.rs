//! Q4_0: 32 weights in 18 bytes.
//!
//! | bytes | content |
//! |---|---|
//! | 0..2 | scale `d`, f16 |
//! | 2..18 | quants, two a byte: weight `j` in the low half of byte `j`, `j + 16` in the high one |
//!
//! A weight is `d * (q - 8)`.

use super::halves::half;

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<18>().0;
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, quants @ ..] = block;
        let d = half([*d0, *d1]);
        let (low, high) = out.split_at_mut(16);
        for (byte, (low, high)) in quants.iter().zip(low.iter_mut().zip(high)) {
            *low = d * (i32::from(byte & 15) - 8) as f32;
            *high = d * (i32::from(byte >> 4) - 8) as f32;
        }
    }
}
