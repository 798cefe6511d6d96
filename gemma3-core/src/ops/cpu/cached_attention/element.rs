//! What a cache holds: f32, or 16-bit floats that become f32 in registers.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use pulp::bytemuck::cast_slice;

use crate::ops::cpu::packed::{Kernel, Lanes, SimdLevel};

/// An element of a KV cache.
pub(in crate::ops::cpu) trait CacheElement: Copy + Send + Sync + 'static {
    /// Eight of them as f32.
    fn load<L: Lanes>(l: L, values: &[Self; 8]) -> L::Floats;

    /// As f32.
    fn widen(self) -> f32;

    /// The memory that they occupy.
    fn bytes(values: &[Self]) -> &[u8];

    /// As f32: in place, or converted into `scratch`, whatever its length.
    fn floats<'a>(level: SimdLevel, values: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(values.len(), 0.0);
        level.run(Widen { values, out: scratch });
        scratch
    }

    /// Rounds to the nearest, ties to even; what is too large becomes the largest number of the format that
    /// it would exceed, and NaN stays NaN.
    fn round(values: &[f32], out: &mut [Self]);
}

impl CacheElement for f32 {
    #[inline(always)]
    fn load<L: Lanes>(l: L, values: &[f32; 8]) -> L::Floats {
        l.load_floats(values)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn bytes(values: &[f32]) -> &[u8] {
        cast_slice(values)
    }

    fn floats<'a>(_level: SimdLevel, values: &'a [f32], _scratch: &'a mut Vec<f32>) -> &'a [f32] {
        values
    }

    #[inline(always)]
    fn round(values: &[f32], out: &mut [f32]) {
        out.copy_from_slice(values);
    }
}

impl CacheElement for bf16 {
    #[inline(always)]
    fn load<L: Lanes>(l: L, values: &[bf16; 8]) -> L::Floats {
        l.load_bf16(&le_bytes(values.map(bf16::to_bits)))
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn bytes(values: &[bf16]) -> &[u8] {
        cast_slice(values.reinterpret_cast())
    }

    /// Without a branch, which `half` has, so that it becomes vector instructions.
    #[inline(always)]
    fn round(values: &[f32], out: &mut [bf16]) {
        for (out, value) in out.iter_mut().zip(values) {
            let bits = value.to_bits();
            let high = bits >> 16;
            // Carries into `high` above the half, and at the half if `high` is odd.
            let nearest = bits.wrapping_add(0x7fff + (high & 1)) >> 16;
            // A NaN's upper bits alone could be those of an infinity.
            let bits = if value.is_nan() { high | 0x40 } else { nearest };
            *out = bf16::from_bits(bits as u16);
        }
    }
}

impl CacheElement for f16 {
    #[inline(always)]
    fn load<L: Lanes>(l: L, values: &[f16; 8]) -> L::Floats {
        l.load_f16(&le_bytes(values.map(f16::to_bits)))
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn bytes(values: &[f16]) -> &[u8] {
        cast_slice(values.reinterpret_cast())
    }

    #[inline(always)]
    fn round(values: &[f32], out: &mut [f16]) {
        const LARGEST: f32 = 65504.0;
        for (out, values) in out.chunks_mut(64).zip(values.chunks(64)) {
            let mut limited = [0.0; 64];
            let limited = &mut limited[..values.len()];
            for (limited, value) in limited.iter_mut().zip(values) {
                // Not `clamp`: a NaN must stay a NaN.
                let value = if *value > LARGEST { LARGEST } else { *value };
                *limited = if value < -LARGEST { -LARGEST } else { value };
            }
            out.convert_from_f32_slice(limited);
        }
    }
}

/// The order in which [`Lanes`] take bytes; on most targets that of the memory already.
#[inline(always)]
fn le_bytes(halves: [u16; 8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (bytes, half) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
        *bytes = half.to_le_bytes();
    }
    bytes
}

/// Converts elements to f32.
struct Widen<'a, E> {
    values: &'a [E],
    out: &'a mut [f32],
}

impl<E: CacheElement> Kernel for Widen<'_, E> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (values, rest) = self.values.as_chunks::<8>();
        let (out, out_rest) = self.out.as_chunks_mut::<8>();
        for (out, values) in out.iter_mut().zip(values) {
            l.store_floats(E::load(l, values), out);
        }
        for (out, value) in out_rest.iter_mut().zip(rest) {
            *out = value.widen();
        }
    }
}
