//! F32, F16 and BF16: one number after the other.

use half::f16;
use half::slice::HalfFloatSliceExt;

pub(super) fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

/// Exact: every half is an f32.
pub(super) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    // In pieces: `half` converts slices with the processor's instructions, and the bytes of a file
    // needn't be aligned as its slices must.
    const PIECE: usize = 256;
    let mut halves = [f16::ZERO; PIECE];
    for (out, bytes) in out.chunks_mut(PIECE).zip(bytes.chunks(2 * PIECE)) {
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        if let Some(halves) = halves.get(..out.len()) {
            halves.convert_to_f32_slice(out);
        }
    }
}

/// Exact: the upper half of an f32.
pub(super) fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}
