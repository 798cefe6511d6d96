//! What the kernels know of a processor: [`Lanes`], and [`SimdLevel`], which picks an implementation at
//! run time.
//!
//! Kernels are written once, over vectors of eight 32-bit lanes. A type that implements [`Lanes`] is a
//! token: that a value of it exists proves that the processor has the instructions, so everything above
//! this level is safe code.

#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};

/// The instructions that a matrix is multiplied with.
#[derive(Debug, Clone, Copy)]
pub enum SimdLevel {
    /// Plain Rust, on every target.
    Portable(Portable),
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// As AVX2, and the dot products of AVX-512 VNNI and BF16 in their 256-bit forms.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// NEON with the dot product of bytes.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl SimdLevel {
    /// The best that this processor has.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Portable(Portable))
    }

    /// All that this processor has, the best last.
    pub fn available() -> Vec<Self> {
        let levels = [
            Some(Self::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512::detect().map(Self::Avx512),
            #[cfg(target_arch = "aarch64")]
            Neon::detect().map(Self::Neon),
        ];
        levels.into_iter().flatten().collect()
    }

    /// Runs a kernel, compiled for this level.
    pub(in crate::ops::cpu) fn run<K: Kernel>(self, kernel: K) {
        match self {
            Self::Portable(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(lanes) => lanes.run(kernel),
        }
    }

    /// Whether pairs of bf16 are multiplied by one instruction that is worth rounding to bf16. Tests take it wherever
    /// it is there.
    pub(super) fn has_bf16_dot(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => cfg!(test) || Avx512::has_fast_bf16(),
            _ => false,
        }
    }
}

/// Code over [`Lanes`]: `run` and all that it calls must be `#[inline(always)]`, so that it is compiled
/// with the instructions of the level.
pub(in crate::ops::cpu) trait Kernel {
    fn run<L: Lanes>(self, lanes: L);
}

/// Vectors of eight lanes of 32 bits. A vector of integers is also one of 32 bytes: byte `i` of lane `n`
/// is byte `4 n + i`.
pub(in crate::ops::cpu) trait Lanes: Copy {
    /// Eight 32-bit integers.
    type Ints: Copy;
    /// Eight f32.
    type Floats: Copy;

    /// What [`Lanes::multiply_bytes`] adds to signed weights because its instruction takes unsigned ones;
    /// the caller takes it off again by the sum of `x`. 0 where the instruction takes signed ones.
    const SIGNED_OFFSET: f32;

    /// Calls `kernel.run(self)`, compiled with the instructions of this level.
    fn run<K: Kernel>(self, kernel: K);

    /// Asks for the cache lines of `bytes` as they lie `distance` bytes further on, wherever that is.
    #[inline(always)]
    fn prefetch(self, _bytes: &[u8], _distance: usize) {}

    fn load(self, bytes: &[u8; 32]) -> Self::Ints;
    fn store(self, values: Self::Ints, bytes: &mut [u8; 32]);
    fn zero_ints(self) -> Self::Ints;
    fn splat_u32(self, value: u32) -> Self::Ints;
    /// The four bytes in every lane.
    #[inline(always)]
    fn splat_bytes(self, bytes: [i8; 4]) -> Self::Ints {
        self.splat_u32(u32::from_le_bytes(bytes.map(i8::cast_unsigned)))
    }
    /// The two 16-bit integers in every lane.
    #[inline(always)]
    fn splat_words(self, [low, high]: [i16; 2]) -> Self::Ints {
        self.splat_u32(u32::from(low.cast_unsigned()) | u32::from(high.cast_unsigned()) << 16)
    }
    fn and(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn or(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn xor(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn add(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Shifts the lanes, filling with zeros.
    fn shift_left(self, a: Self::Ints, bits: u32) -> Self::Ints;
    /// Shifts the lanes, filling with zeros.
    fn shift_right(self, a: Self::Ints, bits: u32) -> Self::Ints;
    /// Shifts the lanes, filling with the sign.
    fn shift_right_signed(self, a: Self::Ints, bits: u32) -> Self::Ints;
    fn to_floats(self, a: Self::Ints) -> Self::Floats;

    /// How many products of [`Lanes::multiply_bytes`] fit one sum, for weights below `2^bits`
    /// (or signed ones, where `bits` is 8).
    fn chain(bits: u32) -> usize;
    /// Adds the products of bytes to `sums`, which start at zero and mean nothing until they pass
    /// [`Lanes::sum_bytes`]. `weights` are unsigned and below `2^bits`, or signed if `bits` is 8; `x` lie
    /// in -127..=127.
    fn multiply_bytes(self, bits: u32, sums: Self::Ints, weights: Self::Ints, x: Self::Ints) -> Self::Ints;
    /// Per lane the sum of its four products.
    fn sum_bytes(self, sums: Self::Ints) -> Self::Ints;

    /// Adds 16-bit integers, two a lane.
    fn add_words(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// The low 16 bits of the products of 16-bit integers, two a lane.
    fn multiply_words(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Adds to every lane of `sums` the two products of its signed 16-bit integers.
    fn dot_words(self, sums: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    fn load_floats(self, values: &[f32; 8]) -> Self::Floats;
    fn store_floats(self, values: Self::Floats, out: &mut [f32; 8]);
    fn splat(self, value: f32) -> Self::Floats;
    fn add_floats(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`; whether it is rounded once or twice depends on the level.
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The sum of the lanes.
    fn reduce(self, a: Self::Floats) -> f32;
    /// Columns of a square of lanes become its rows.
    fn transpose(self, square: [Self::Floats; 8]) -> [Self::Floats; 8];
    /// Eight f32.
    fn load_f32(self, bytes: &[u8; 32]) -> Self::Floats;
    /// Eight IEEE halves.
    fn load_f16(self, bytes: &[u8; 16]) -> Self::Floats;
    /// Eight bf16.
    fn load_bf16(self, bytes: &[u8; 16]) -> Self::Floats;
    /// Adds per lane the two products of pairs of bf16, with the rounding of the instruction.
    fn multiply_add_bf16(self, a: Self::Ints, b: Self::Ints, c: Self::Floats) -> Self::Floats;

    /// Bytes `at..at + 32`, for constant `at` within a slice of known length without a check.
    #[inline(always)]
    fn load_at(self, bytes: &[u8], at: usize) -> Self::Ints {
        self.load(bytes[at..].first_chunk().expect("32 bytes in a block"))
    }

    /// Halves in bytes `at..at + 16`.
    #[inline(always)]
    fn load_f16_at(self, bytes: &[u8], at: usize) -> Self::Floats {
        self.load_f16(bytes[at..].first_chunk().expect("16 bytes in a block"))
    }

    /// Byte `byte` of every lane as a number, from -128 to 127 if `signed`, else from 0 to 255.
    #[inline(always)]
    fn byte(self, a: Self::Ints, byte: u32, signed: bool) -> Self::Floats {
        if signed {
            return self.to_floats(self.shift_right_signed(self.shift_left(a, 24 - 8 * byte), 24));
        }
        let shifted = if byte == 0 { a } else { self.shift_right(a, 8 * byte) };
        self.to_floats(if byte == 3 { shifted } else { self.and(shifted, self.splat_u32(0xff)) })
    }
}
