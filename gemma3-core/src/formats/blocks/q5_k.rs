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

use super::q4_k::group_scales;

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<176>().0;
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<256>().0) {
        let Some((header, rest)) = block.split_first_chunk() else { return };
        let (fifth_bits, quants) = rest.split_at(32);
        let groups = group_scales(header);
        let pairs = groups.as_chunks::<2>().0.iter();
        let quants = quants.as_chunks::<32>().0.iter();
        let pairs = (0_u32..).step_by(2).zip(pairs).zip(quants);
        for (((group, pair), quants), out) in pairs.zip(out.as_chunks_mut::<64>().0) {
            let [low_group, high_group] = pair;
            let (low, high) = out.split_at_mut(32);
            for ((byte, fifth), value) in quants.iter().zip(fifth_bits).zip(low) {
                let q = byte & 15 | ((fifth >> group) & 1) << 4;
                *value = low_group.0 * f32::from(q) - low_group.1;
            }
            for ((byte, fifth), value) in quants.iter().zip(fifth_bits).zip(high) {
                let q = byte >> 4 | ((fifth >> (group + 1)) & 1) << 4;
                *value = high_group.0 * f32::from(q) - high_group.1;
            }
        }
    }
}
