//! Q8_0: 32 weights in 34 bytes.
//!
//! | bytes | content |
//! |---|---|
//! | 0..2 | scale `d`, f16 |
//! | 2..34 | quants, i8 |
//!
//! A weight is `d * q`.

use super::halves::half;

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<34>().0;
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, quants @ ..] = block;
        let d = half([*d0, *d1]);
        for (byte, value) in quants.iter().zip(out) {
            *value = d * f32::from(byte.cast_signed());
        }
    }
}
