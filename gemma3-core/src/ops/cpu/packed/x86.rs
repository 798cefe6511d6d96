//! [`Lanes`] on x86: AVX2, and the same with the dot products of AVX-512.
//!
//! 256-bit vectors serve both: the AVX-512 dot products have 256-bit forms, which run at the full rate on
//! the processors that split 512-bit ones.
//!
//! # Safety of the calls in this file
//!
//! Two things could go wrong with the intrinsics here. An instruction could be unknown to the processor:
//! a value of [`X86`] is only made by `detect`, after asking the processor for all features that its
//! methods use, and every method takes one. And memory could be touched outside of an object: loads and
//! stores take references to arrays of exactly the bytes that they touch, with unaligned instructions.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::transmute;
use std::sync::LazyLock;

use super::lanes::{Kernel, Lanes};

/// AVX2 with FMA and F16C.
pub type Avx2 = X86<false>;

/// AVX2, FMA, F16C, AVX-512 VNNI and BF16 (with VL, for vectors of 256 bits).
pub type Avx512 = X86<true>;

/// Proof that the processor has the instructions.
#[derive(Debug, Clone, Copy)]
pub struct X86<const AVX512: bool>(());

impl Avx2 {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        has_avx2().then_some(Self(()))
    }
}

impl Avx512 {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        let dots = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512bf16");
        (has_avx2() && dots).then_some(Self(()))
    }

    /// Whether products of pairs of bf16 are faster than products of f32. On a Zen 4 they reached 466 GFLOP/s beside
    /// 222, on a Sapphire Rapids 129 beside 247 (two threads each).
    pub fn has_fast_bf16() -> bool {
        static IS_AMD: LazyLock<bool> = LazyLock::new(|| {
            // SAFETY: every processor of this architecture has the instruction.
            #[allow(unused_unsafe, reason = "safe in later versions of the standard library")]
            let leaf = unsafe { __cpuid(0) };
            [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
        });
        *IS_AMD
    }
}

fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(lanes: Avx2, kernel: K) {
    kernel.run(lanes);
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16")]
fn run_avx512<K: Kernel>(lanes: Avx512, kernel: K) {
    kernel.run(lanes);
}

/// The vector, which the compiler knows nothing about. Integer sums could be regrouped, and are, into trees
/// of far more values than there are registers.
#[inline]
#[target_feature(enable = "avx")]
fn in_order(mut values: __m256i) -> __m256i {
    // SAFETY: no instruction is executed, and all that the assembly names is a register.
    unsafe { asm!("/* {0} */", inout(ymm_reg) values, options(pure, nomem, nostack, preserves_flags)) };
    values
}

impl<const AVX512: bool> Lanes for X86<AVX512> {
    type Ints = __m256i;
    type Floats = __m256;

    const SIGNED_OFFSET: f32 = if AVX512 { 128.0 } else { 0.0 };

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) {
        // SAFETY: `self` proves the features of its level.
        unsafe {
            if AVX512 {
                run_avx512(X86(()), kernel);
            } else {
                run_avx2(X86(()), kernel);
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8], distance: usize) {
        for line in (0..bytes.len()).step_by(64) {
            // SAFETY: as above; a prefetch touches no memory that a program could tell, and the address
            // needn't be valid.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(distance + line).cast()) };
        }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; 32]) -> __m256i {
        // SAFETY: see the head of the file; this holds for every call below.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, values: __m256i, bytes: &mut [u8; 32]) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), values) }
    }

    #[inline(always)]
    fn zero_ints(self) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn splat_u32(self, value: u32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(value.cast_signed()) }
    }

    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_and_si256(a, b) }
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_xor_si256(a, b) }
    }

    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { in_order(_mm256_add_epi32(a, b)) }
    }

    #[inline(always)]
    fn shift_left(self, a: __m256i, bits: u32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }

    #[inline(always)]
    fn shift_right(self, a: __m256i, bits: u32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }

    #[inline(always)]
    fn shift_right_signed(self, a: __m256i, bits: u32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(bits.cast_signed())) }
    }

    #[inline(always)]
    fn to_floats(self, a: __m256i) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtepi32_ps(a) }
    }

    /// AVX2 sums products in 16 bits: two products of a byte with 127 at most, `2 * 127 * (2^bits - 1)`,
    /// so many times must stay below 2^15. Signed weights, up to 128 in size, leave room for one.
    #[inline(always)]
    fn chain(bits: u32) -> usize {
        match bits {
            _ if AVX512 => 8,
            ..=4 => 8,
            5 => 4,
            6 => 2,
            _ => 1,
        }
    }

    #[inline(always)]
    fn multiply_bytes(self, bits: u32, sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            if AVX512 {
                let unsigned =
                    if bits == 8 { _mm256_xor_si256(weights, _mm256_set1_epi8(i8::MIN)) } else { weights };
                _mm256_dpbusd_epi32(sums, unsigned, x)
            } else if bits == 8 {
                let products = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
                in_order(_mm256_add_epi16(sums, products))
            } else {
                in_order(_mm256_add_epi16(sums, _mm256_maddubs_epi16(weights, x)))
            }
        }
    }

    #[inline(always)]
    fn sum_bytes(self, sums: __m256i) -> __m256i {
        if AVX512 {
            return sums;
        }
        // SAFETY: as above.
        unsafe { _mm256_madd_epi16(sums, _mm256_set1_epi16(1)) }
    }

    #[inline(always)]
    fn add_words(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi16(a, b) }
    }

    #[inline(always)]
    fn multiply_words(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_mullo_epi16(a, b) }
    }

    #[inline(always)]
    fn dot_words(self, sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            if AVX512 {
                _mm256_dpwssd_epi32(sums, a, b)
            } else {
                in_order(_mm256_add_epi32(sums, _mm256_madd_epi16(a, b)))
            }
        }
    }

    #[inline(always)]
    fn load_floats(self, values: &[f32; 8]) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn store_floats(self, values: __m256, out: &mut [f32; 8]) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn add_floats(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn multiply(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn reduce(self, a: __m256) -> f32 {
        // SAFETY: as above.
        unsafe {
            let fours = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
            _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)))
        }
    }

    #[inline(always)]
    fn transpose(self, [a, b, c, d, e, f, g, h]: [__m256; 8]) -> [__m256; 8] {
        // SAFETY: as above.
        unsafe {
            // Squares of 2, of 4, then of 8.
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let (ef_low, ef_high) = (_mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f));
            let (gh_low, gh_high) = (_mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h));
            let abcd = [
                _mm256_shuffle_ps::<0x44>(ab_low, cd_low),
                _mm256_shuffle_ps::<0xee>(ab_low, cd_low),
                _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
            ];
            let efgh = [
                _mm256_shuffle_ps::<0x44>(ef_low, gh_low),
                _mm256_shuffle_ps::<0xee>(ef_low, gh_low),
                _mm256_shuffle_ps::<0x44>(ef_high, gh_high),
                _mm256_shuffle_ps::<0xee>(ef_high, gh_high),
            ];
            [
                _mm256_permute2f128_ps::<0x20>(abcd[0], efgh[0]),
                _mm256_permute2f128_ps::<0x20>(abcd[1], efgh[1]),
                _mm256_permute2f128_ps::<0x20>(abcd[2], efgh[2]),
                _mm256_permute2f128_ps::<0x20>(abcd[3], efgh[3]),
                _mm256_permute2f128_ps::<0x31>(abcd[0], efgh[0]),
                _mm256_permute2f128_ps::<0x31>(abcd[1], efgh[1]),
                _mm256_permute2f128_ps::<0x31>(abcd[2], efgh[2]),
                _mm256_permute2f128_ps::<0x31>(abcd[3], efgh[3]),
            ]
        }
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 32]) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 16]) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 16]) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    fn multiply_add_bf16(self, a: __m256i, b: __m256i, c: __m256) -> __m256 {
        // SAFETY: as above; the casts only rename vectors of 256 bits.
        unsafe {
            if AVX512 {
                let (a, b) = (transmute::<__m256i, __m256bh>(a), transmute::<__m256i, __m256bh>(b));
                return _mm256_dpbf16_ps(c, a, b);
            }
            let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let (a_odd, b_odd) = (_mm256_and_si256(a, high), _mm256_and_si256(b, high));
            let (a_even, b_even) = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
            let sum = _mm256_fmadd_ps(_mm256_castsi256_ps(a_odd), _mm256_castsi256_ps(b_odd), c);
            _mm256_fmadd_ps(_mm256_castsi256_ps(a_even), _mm256_castsi256_ps(b_even), sum)
        }
    }
}
