//! [`Lanes`] in plain Rust: the reference for the others, and what targets without their own level run.

use half::f16;

use super::lanes::{Kernel, Lanes};

/// Needs nothing of the processor.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

/// Applies a function to every lane.
macro_rules! each {
    ($($lane:ident in $values:ident),+ => $body:expr) => {
        std::array::from_fn(|n| {
            $(let $lane = $values[n];)+
            $body
        })
    };
}

impl Lanes for Portable {
    type Ints = [u32; 8];
    type Floats = [f32; 8];

    const SIGNED_OFFSET: f32 = 0.0;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) {
        kernel.run(self);
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; 32]) -> [u32; 8] {
        let lanes = bytes.as_chunks::<4>().0;
        each!(lane in lanes => u32::from_le_bytes(lane))
    }

    #[inline(always)]
    fn store(self, values: [u32; 8], bytes: &mut [u8; 32]) {
        for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
    }

    #[inline(always)]
    fn zero_ints(self) -> [u32; 8] {
        [0; 8]
    }

    #[inline(always)]
    fn splat_u32(self, value: u32) -> [u32; 8] {
        [value; 8]
    }

    #[inline(always)]
    fn and(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        each!(a in a, b in b => a & b)
    }

    #[inline(always)]
    fn or(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        each!(a in a, b in b => a | b)
    }

    #[inline(always)]
    fn xor(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        each!(a in a, b in b => a ^ b)
    }

    #[inline(always)]
    fn add(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        each!(a in a, b in b => a.wrapping_add(b))
    }

    #[inline(always)]
    fn shift_left(self, a: [u32; 8], bits: u32) -> [u32; 8] {
        each!(a in a => a << bits)
    }

    #[inline(always)]
    fn shift_right(self, a: [u32; 8], bits: u32) -> [u32; 8] {
        each!(a in a => a >> bits)
    }

    #[inline(always)]
    fn shift_right_signed(self, a: [u32; 8], bits: u32) -> [u32; 8] {
        each!(a in a => (a.cast_signed() >> bits).cast_unsigned())
    }

    #[inline(always)]
    fn to_floats(self, a: [u32; 8]) -> [f32; 8] {
        each!(a in a => a.cast_signed() as f32)
    }

    #[inline(always)]
    fn chain(_bits: u32) -> usize {
        8
    }

    #[inline(always)]
    fn multiply_bytes(self, bits: u32, sums: [u32; 8], weights: [u32; 8], x: [u32; 8]) -> [u32; 8] {
        each!(sum in sums, weight in weights, x in x => {
            let mut sum = sum.cast_signed();
            for byte in [0, 8, 16, 24] {
                let weight = (weight >> byte) as u8;
                let weight = if bits == 8 { i32::from(weight.cast_signed()) } else { i32::from(weight) };
                sum += weight * i32::from(((x >> byte) as u8).cast_signed());
            }
            sum.cast_unsigned()
        })
    }

    #[inline(always)]
    fn sum_bytes(self, sums: [u32; 8]) -> [u32; 8] {
        sums
    }

    #[inline(always)]
    fn add_words(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        each!(a in a, b in b => {
            let (low, high) = ((a as u16).wrapping_add(b as u16), (a >> 16).wrapping_add(b >> 16));
            u32::from(low) | high << 16
        })
    }

    #[inline(always)]
    fn multiply_words(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        each!(a in a, b in b => {
            let (low, high) = ((a as u16).wrapping_mul(b as u16), (a >> 16).wrapping_mul(b >> 16));
            u32::from(low) | high << 16
        })
    }

    #[inline(always)]
    fn dot_words(self, sums: [u32; 8], a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        each!(sum in sums, a in a, b in b => {
            let low = i32::from(a as i16) * i32::from(b as i16);
            let high = (a.cast_signed() >> 16) * (b.cast_signed() >> 16);
            sum.wrapping_add(low.cast_unsigned()).wrapping_add(high.cast_unsigned())
        })
    }

    #[inline(always)]
    fn load_floats(self, values: &[f32; 8]) -> [f32; 8] {
        *values
    }

    #[inline(always)]
    fn store_floats(self, values: [f32; 8], out: &mut [f32; 8]) {
        *out = values;
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 8] {
        [value; 8]
    }

    #[inline(always)]
    fn add_floats(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each!(a in a, b in b => a + b)
    }

    #[inline(always)]
    fn multiply(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each!(a in a, b in b => a * b)
    }

    #[inline(always)]
    fn multiply_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        // Not `f32::mul_add`: without an instruction for it, that is a call into a library.
        each!(a in a, b in b, c in c => a * b + c)
    }

    #[inline(always)]
    fn reduce(self, a: [f32; 8]) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }

    #[inline(always)]
    fn transpose(self, square: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
        std::array::from_fn(|row| std::array::from_fn(|column| square[column][row]))
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8; 32]) -> [f32; 8] {
        let floats = bytes.as_chunks::<4>().0;
        each!(float in floats => f32::from_le_bytes(float))
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 16]) -> [f32; 8] {
        let halves = bytes.as_chunks::<2>().0;
        each!(half in halves => f16::from_le_bytes(half).to_f32_const())
    }

    #[inline(always)]
    fn load_bf16(self, bytes: &[u8; 16]) -> [f32; 8] {
        let halves = bytes.as_chunks::<2>().0;
        each!(half in halves => f32::from_bits(u32::from(u16::from_le_bytes(half)) << 16))
    }

    #[inline(always)]
    fn multiply_add_bf16(self, a: [u32; 8], b: [u32; 8], c: [f32; 8]) -> [f32; 8] {
        let even = |pair: u32| f32::from_bits(pair << 16);
        let odd = |pair: u32| f32::from_bits(pair & 0xffff_0000);
        each!(a in a, b in b, c in c => c + odd(a) * odd(b) + even(a) * even(b))
    }
}
