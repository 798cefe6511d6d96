//! Q5_K: 256 weights in 176 bytes, in eight groups of 32.
//!
//! | bytes | content |
//! |---|---|
//! | 0..2 | scale of the groups' scales `d`, f16 |
//! | 2..4 | scale of the groups' minima `dmin`, f16 |
//! | 4..16 | the groups' scales and minima, as in Q4_K |
//! | 16..48 | fifth bits: bit `g` of byte `l` belongs to weight `l` of group `g` |
//! | 48..176 | low four bits: of each 32 bytes, the low halves are one group, the high halves the next |
//!
//! A weight is `(d * scale) * q - (dmin * minimum)`.

use super::halves::half;
use super::q4_k::group_scales;

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<176>().0;
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<256>().0) {
        let (header, rest) = block.split_at(16);
        let (fifth_bits, quants) = rest.split_at(32);
        let Some([d0, d1, m0, m1, packed @ ..]) = header.first_chunk::<16>() else {
            return;
        };
        let (d, dmin) = (half([*d0, *d1]), half([*m0, *m1]));
        let groups = group_scales(packed);
        let pairs = groups.as_chunks::<2>().0.iter();
        let quants = quants.as_chunks::<32>().0.iter();
        let pairs = (0_u32..).step_by(2).zip(pairs).zip(quants);
        for (((group, pair), quants), out) in pairs.zip(out.as_chunks_mut::<64>().0) {
            let [low_group, high_group] = pair;
            let (low, high) = out.split_at_mut(32);
            let (scale, minimum) = (d * low_group.0, dmin * low_group.1);
            for ((byte, fifth), value) in quants.iter().zip(fifth_bits).zip(low) {
                let q = byte & 15 | ((fifth >> group) & 1) << 4;
                *value = scale * f32::from(q) - minimum;
            }
            let (scale, minimum) = (d * high_group.0, dmin * high_group.1);
            for ((byte, fifth), value) in quants.iter().zip(fifth_bits).zip(high) {
                let q = byte >> 4 | ((fifth >> (group + 1)) & 1) << 4;
                *value = scale * f32::from(q) - minimum;
            }
        }
    }
}
