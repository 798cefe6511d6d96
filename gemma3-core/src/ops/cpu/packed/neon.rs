//! [`Lanes`] on NEON with the dot product of bytes: pairs of 128-bit vectors. Its tests passed under
//! emulation; it has never been measured.
//!
//! # Safety of the calls in this file
//!
//! A value of [`Neon`] is only made by `detect`, after asking the processor for the features that its
//! methods use, and every method takes one. Loads and stores take references to arrays of exactly the bytes
//! that they touch, with instructions that need no alignment.
#![allow(unsafe_code)]

use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected;

use super::lanes::{Kernel, Lanes};

/// Proof that the processor has the instructions.
#[derive(Debug, Clone, Copy)]
pub struct Neon(());

impl Neon {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        (is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod")).then_some(Self(()))
    }
}

#[target_feature(enable = "neon,dotprod")]
fn run_neon<K: Kernel>(lanes: Neon, kernel: K) {
    kernel.run(lanes);
}

/// Adds per lane the four products of signed bytes. The standard library's name for the instruction isn't
/// stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut sums: uint32x4_t, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
    // SAFETY: the instruction is of the features of this function and touches the named registers only.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Applies a function to both halves.
macro_rules! both {
    ($($half:ident in $values:expr),+ => $body:expr) => {{
        // SAFETY: see the head of the file.
        unsafe {
            [
                { $(let $half = $values[0];)+ $body },
                { $(let $half = $values[1];)+ $body },
            ]
        }
    }};
}

type Ints = [uint32x4_t; 2];
type Floats = [float32x4_t; 2];

impl Lanes for Neon {
    type Ints = Ints;
    type Floats = Floats;

    const SIGNED_OFFSET: f32 = 0.0;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) {
        // SAFETY: `self` proves the features.
        unsafe { run_neon(self, kernel) }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; 32]) -> Ints {
        let halves = bytes.as_chunks::<16>().0;
        both!(half in halves => vreinterpretq_u32_u8(vld1q_u8(half.as_ptr())))
    }

    #[inline(always)]
    fn store(self, values: Ints, bytes: &mut [u8; 32]) {
        for (bytes, half) in bytes.as_chunks_mut::<16>().0.iter_mut().zip(values) {
            // SAFETY: as above.
            unsafe { vst1q_u8(bytes.as_mut_ptr(), vreinterpretq_u8_u32(half)) }
        }
    }

    #[inline(always)]
    fn zero_ints(self) -> Ints {
        self.splat_u32(0)
    }

    #[inline(always)]
    fn splat_u32(self, value: u32) -> Ints {
        // SAFETY: as above.
        unsafe { [vdupq_n_u32(value); 2] }
    }

    #[inline(always)]
    fn and(self, a: Ints, b: Ints) -> Ints {
        both!(a in a, b in b => vandq_u32(a, b))
    }

    #[inline(always)]
    fn or(self, a: Ints, b: Ints) -> Ints {
        both!(a in a, b in b => vorrq_u32(a, b))
    }

    #[inline(always)]
    fn xor(self, a: Ints, b: Ints) -> Ints {
        both!(a in a, b in b => veorq_u32(a, b))
    }

    #[inline(always)]
    fn add(self, a: Ints, b: Ints) -> Ints {
        both!(a in a, b in b => vaddq_u32(a, b))
    }

    #[inline(always)]
    fn shift_left(self, a: Ints, bits: u32) -> Ints {
        both!(a in a => vshlq_u32(a, vdupq_n_s32(bits.cast_signed())))
    }

    #[inline(always)]
    fn shift_right(self, a: Ints, bits: u32) -> Ints {
        both!(a in a => vshlq_u32(a, vdupq_n_s32(-bits.cast_signed())))
    }

    #[inline(always)]
    fn shift_right_signed(self, a: Ints, bits: u32) -> Ints {
        both!(a in a => {
            let shifted = vshlq_s32(vreinterpretq_s32_u32(a), vdupq_n_s32(-bits.cast_signed()));
            vreinterpretq_u32_s32(shifted)
        })
    }

    #[inline(always)]
    fn to_floats(self, a: Ints) -> Floats {
        both!(a in a => vcvtq_f32_s32(vreinterpretq_s32_u32(a)))
    }

    #[inline(always)]
    fn chain(_bits: u32) -> usize {
        8
    }

    /// Weights of up to 6 bits are signed bytes too.
    #[inline(always)]
    fn multiply_bytes(self, _bits: u32, sums: Ints, weights: Ints, x: Ints) -> Ints {
        both!(sum in sums, weight in weights, x in x => dot(sum, weight, x))
    }

    #[inline(always)]
    fn sum_bytes(self, sums: Ints) -> Ints {
        sums
    }

    #[inline(always)]
    fn add_words(self, a: Ints, b: Ints) -> Ints {
        both!(a in a, b in b => {
            vreinterpretq_u32_u16(vaddq_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b)))
        })
    }

    #[inline(always)]
    fn multiply_words(self, a: Ints, b: Ints) -> Ints {
        both!(a in a, b in b => {
            vreinterpretq_u32_u16(vmulq_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b)))
        })
    }

    #[inline(always)]
    fn dot_words(self, sums: Ints, a: Ints, b: Ints) -> Ints {
        both!(sum in sums, a in a, b in b => {
            let (a, b) = (vreinterpretq_s16_u32(a), vreinterpretq_s16_u32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            let high = vmull_high_s16(a, b);
            vaddq_u32(sum, vreinterpretq_u32_s32(vpaddq_s32(low, high)))
        })
    }

    #[inline(always)]
    fn load_floats(self, values: &[f32; 8]) -> Floats {
        let halves = values.as_chunks::<4>().0;
        both!(half in halves => vld1q_f32(half.as_ptr()))
    }

    #[inline(always)]
    fn store_floats(self, values: Floats, out: &mut [f32; 8]) {
        for (out, half) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            // SAFETY: as above.
            unsafe { vst1q_f32(out.as_mut_ptr(), half) }
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        // SAFETY: as above.
        unsafe { [vdupq_n_f32(value); 2] }
    }

    #[inline(always)]
    fn add_floats(self, a: Floats, b: Floats) -> Floats {
        both!(a in a, b in b => vaddq_f32(a, b))
    }

    #[inline(always)]
    fn multiply(self, a: Floats, b: Floats) -> Floats {
        both!(a in a, b in b => vmulq_f32(a, b))
    }

    #[inline(always)]
    fn multiply_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        both!(a in a, b in b, c in c => vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn reduce(self, [low, high]: Floats) -> f32 {
        // SAFETY: as above.
        unsafe { vaddvq_f32(vaddq_f32(low, high)) }
    }

    #[inline(always)]
    fn transpose(self, square: [Floats; 8]) -> [Floats; 8] {
        let mut values = [[0.0; 8]; 8];
        for (values, row) in values.iter_mut().zip(square) {
            self.store_floats(row, values);
        }
        let mut transposed = [self.splat(0.0); 8];
        for (column, out) in transposed.iter_mut().enumerate() {
            let mut row = [0.0; 8];
            for (out, values) in row.iter_mut().zip(values) {
                *out = values[column];
            }
            *out = self.load_floats(&row);
        }
        transposed
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 32]) -> Floats {
        both!(half in self.load(bytes) => vreinterpretq_f32_u32(half))
    }

    /// By hand: the conversion's type isn't stable yet. Exact: the exponent is moved by a multiplication,
    /// which leaves subnormal halves right too; only infinities and NaN need their exponent set.
    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 16]) -> Floats {
        let halves = bytes.as_chunks::<8>().0;
        both!(half in halves => {
            let half = vmovl_u16(vreinterpret_u16_u8(vld1_u8(half.as_ptr())));
            let magnitude = vshlq_n_u32::<13>(vandq_u32(half, vdupq_n_u32(0x7fff)));
            let scale = vreinterpretq_f32_u32(vdupq_n_u32(0x7780_0000));
            let scaled = vreinterpretq_u32_f32(vmulq_f32(vreinterpretq_f32_u32(magnitude), scale));
            let special = vcgeq_u32(magnitude, vdupq_n_u32(0x0f80_0000));
            let exponent = vandq_u32(special, vdupq_n_u32(0x7f80_0000));
            let sign = vshlq_n_u32::<16>(vandq_u32(half, vdupq_n_u32(0x8000)));
            vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(scaled, exponent), sign))
        })
    }

    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 16]) -> Floats {
        let halves = bytes.as_chunks::<8>().0;
        both!(half in halves => {
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(half.as_ptr()))))
        })
    }

    #[inline(always)]
    fn multiply_add_bf16(self, a: Ints, b: Ints, c: Floats) -> Floats {
        both!(a in a, b in b, c in c => {
            let high = vdupq_n_u32(0xffff_0000);
            let (a_odd, b_odd) = (vandq_u32(a, high), vandq_u32(b, high));
            let (a_even, b_even) = (vshlq_n_u32::<16>(a), vshlq_n_u32::<16>(b));
            let sum = vfmaq_f32(c, vreinterpretq_f32_u32(a_odd), vreinterpretq_f32_u32(b_odd));
            vfmaq_f32(sum, vreinterpretq_f32_u32(a_even), vreinterpretq_f32_u32(b_even))
        })
    }
}
