//! Q6_K: 256 weights in 210 bytes, in sixteen groups of 16.
//!
//! | bytes | content |
//! |---|---|
//! | 0..128 | low four bits |
//! | 128..192 | high two bits |
//! | 192..208 | the groups' scales, i8 |
//! | 208..210 | scale of the groups' scales `d`, f16 |
//!
//! Each half of the block (128 weights) has 64 bytes of low and 32 of high bits, and is made of four
//! quarters of 32 weights. The first two quarters take the low halves of the 64 bytes, the last two
//! their high halves; quarter `k` takes bits `2k` and `2k + 1` of the 32 bytes. A weight is
//! `(d * scale) * (q - 32)`.

use super::halves::half;

pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.as_chunks::<210>().0;
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<256>().0) {
        let (low, rest) = block.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (scales, d) = rest.split_at(16);
        let Some(d) = d.first_chunk::<2>() else {
            return;
        };
        let d = half(*d);
        let halves = low.as_chunks::<64>().0.iter();
        let halves = halves.zip(high.as_chunks::<32>().0);
        let halves = halves.zip(scales.as_chunks::<8>().0);
        for (((low, high), scales), out) in halves.zip(out.as_chunks_mut::<128>().0) {
            decode_half(d, low, high, scales, out);
        }
    }
}

fn decode_half(d: f32, low: &[u8; 64], high: &[u8; 32], scales: &[u8; 8], out: &mut [f32; 128]) {
    let ([low_first, low_second], []) = low.as_chunks::<32>() else {
        return;
    };
    let [scales_0, scales_1, scales_2, scales_3] = scales.as_chunks::<2>().0 else {
        return;
    };
    let [out_0, out_1, out_2, out_3] = out.as_chunks_mut::<32>().0 else {
        return;
    };
    decode_quarter::<0, 0>(d, low_first, high, scales_0, out_0);
    decode_quarter::<0, 2>(d, low_second, high, scales_1, out_1);
    decode_quarter::<4, 4>(d, low_first, high, scales_2, out_2);
    decode_quarter::<4, 6>(d, low_second, high, scales_3, out_3);
}

/// The shifts are constants so that the loop becomes vector instructions.
#[inline(always)]
fn decode_quarter<const LOW_SHIFT: u32, const HIGH_SHIFT: u32>(
    d: f32,
    low: &[u8; 32],
    high: &[u8; 32],
    scales: &[u8; 2],
    out: &mut [f32; 32],
) {
    let mut quants = [0.0; 32];
    for ((quant, low), high) in quants.iter_mut().zip(low).zip(high) {
        let q = (low >> LOW_SHIFT) & 15 | ((high >> HIGH_SHIFT) & 3) << 4;
        *quant = f32::from(q.cast_signed() - 32);
    }
    let groups = scales.iter().zip(quants.as_chunks::<16>().0);
    for ((scale, quants), out) in groups.zip(out.as_chunks_mut::<16>().0) {
        let scale = d * f32::from(scale.cast_signed());
        for (quant, value) in quants.iter().zip(out) {
            *value = scale * quant;
        }
    }
}
