//! Q4_K: 256 weights in 144 bytes, in eight groups of 32.
//!
//! | bytes | content |
//! |---|---|
//! | 0..2 | scale of the groups' scales `d`, f16 |
//! | 2..4 | scale of the groups' minima `dmin`, f16 |
//! | 4..16 | the groups' scales and minima, 6 bits each: [`group_scales`] |
//! | 16..144 | quants: of each 32 bytes, the low halves are one group and the high halves the next |
//!
//! A weight is `(d * scale) * q - (dmin * minimum)`.

use super::halves::half;

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<144>().0;
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<256>().0) {
        let Some((header, quants)) = block.split_first_chunk() else { return };
        let groups = group_scales(header);
        let pairs = groups.as_chunks::<2>().0.iter();
        let quants = quants.as_chunks::<32>().0.iter();
        for ((pair, quants), out) in pairs.zip(quants).zip(out.as_chunks_mut::<64>().0) {
            let [low_group, high_group] = pair;
            let (low, high) = out.split_at_mut(32);
            for (byte, value) in quants.iter().zip(low) {
                *value = low_group.0 * f32::from(byte & 15) - low_group.1;
            }
            for (byte, value) in quants.iter().zip(high) {
                *value = high_group.0 * f32::from(byte >> 4) - high_group.1;
            }
        }
    }
}

/// (`d * scale`, `dmin * minimum`) of the eight groups, from the 16 bytes before the quants. The 6 bits of the first
/// four are the low ones of bytes 4..8 and 8..12; of the last four, bytes 12..16 hold the low four bits of the scale
/// (low half) and of the minimum (high half), and the top two bits of bytes 4..8 and 8..12 the rest.
#[inline]
pub(super) fn group_scales(header: &[u8; 16]) -> [(f32, f32); 8] {
    let [d0, d1, m0, m1, packed @ ..] = header;
    let (d, dmin) = (half([*d0, *d1]), half([*m0, *m1]));
    let mut groups = [(0.0, 0.0); 8];
    let (first, last) = groups.split_at_mut(4);
    let (scales, rest) = packed.split_at(4);
    let (minima, nibbles) = rest.split_at(4);
    let bytes = scales.iter().zip(minima).zip(nibbles);
    for (((scale, minimum), nibbles), (first, last)) in bytes.zip(first.iter_mut().zip(last)) {
        *first = (f32::from(scale & 63), f32::from(minimum & 63));
        *last = (
            f32::from((nibbles & 15) | ((scale >> 6) << 4)),
            f32::from((nibbles >> 4) | ((minimum >> 6) << 4)),
        );
    }
    groups.map(|(scale, minimum)| (d * scale, dmin * minimum))
}
