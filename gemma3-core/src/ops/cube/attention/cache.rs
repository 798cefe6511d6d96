//! The KV cache of a layer in device memory, and the numbers in it.

use std::cmp::min;

use cubecl::prelude::*;

use crate::ops::cube::packed::{Quad, half_to_f32};

/// How the numbers of a cache are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheFormat {
    /// A word each.
    F32,
    /// IEEE halves, two to a word. Numbers beyond them become the largest.
    F16,
    /// Upper halves of f32, two to a word.
    BF16,
}

impl CacheFormat {
    /// Words of four numbers.
    pub const fn quad_words(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// Shape and format of the cache of one layer: two buffers, keys and values, each
/// \[sequences, kv_heads, slots, head_dim\]. Position `p` lies in slot `p % slots`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheLayout {
    /// Sequences that are decoded together.
    pub sequences: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Positions that it holds of each sequence.
    pub slots: usize,
    /// Width of a head; a multiple of 8.
    pub head_dim: usize,
    /// The numbers.
    pub format: CacheFormat,
}

impl CacheLayout {
    /// Quads of one of the two buffers.
    pub const fn quads(&self) -> usize {
        self.sequences * self.kv_heads * self.slots * self.head_dim / 4
    }

    /// Bytes of one of the two buffers.
    pub const fn bytes(&self) -> usize {
        self.quads() * self.format.quad_words() * size_of::<u32>()
    }
}

/// The position of a sequence that takes no step although its place among those that do is still computed: nothing is
/// written for it.
pub(crate) const NOBODY: u32 = u32::MAX;

/// Where a position lies: the one text of kernels that knows it, as [`Ring::slot`](crate::cache::Ring::slot) does on the
/// host.
#[cube]
pub(crate) fn slot_of(position: u32, #[comptime] slots: u32) -> usize {
    (position % slots) as usize
}

/// The first quad of a slot, in either buffer.
#[cube]
pub(crate) fn slot_start(
    sequence: usize,
    kv_head: usize,
    slot: usize,
    #[comptime] layout: CacheLayout,
) -> usize {
    let head = sequence * comptime!(layout.kv_heads) + kv_head;
    (head * comptime!(layout.slots) + slot) * comptime!(layout.head_dim / 4)
}

/// Four numbers of the cache.
#[cube]
pub(crate) fn load<N: Size>(words: Vector<u32, N>, #[comptime] format: CacheFormat) -> Quad {
    let mut quad = Quad::empty();
    match comptime!(format) {
        CacheFormat::F32 =>
        {
            #[unroll]
            for i in 0..4usize {
                quad.insert(i, f32::reinterpret(words.extract(i)));
            }
        }
        CacheFormat::BF16 =>
        {
            #[unroll]
            for i in 0..2usize {
                let word = words.extract(i);
                quad.insert(comptime!(2 * i), f32::reinterpret(word << 16u32));
                quad.insert(comptime!(2 * i + 1), f32::reinterpret(word & 0xffff_0000u32));
            }
        }
        CacheFormat::F16 =>
        {
            #[unroll]
            for i in 0..2usize {
                let word = words.extract(i);
                quad.insert(comptime!(2 * i), half_to_f32(word & 0xffffu32));
                quad.insert(comptime!(2 * i + 1), half_to_f32(word >> 16u32));
            }
        }
    }
    quad
}

/// Four numbers for the cache, rounded to nearest even.
#[cube]
pub(crate) fn store<N: Size>(quad: Quad, #[comptime] format: CacheFormat) -> Vector<u32, N> {
    let mut words = Vector::<u32, N>::empty();
    match comptime!(format) {
        CacheFormat::F32 =>
        {
            #[unroll]
            for i in 0..4usize {
                words.insert(i, u32::reinterpret(quad.extract(i)));
            }
        }
        CacheFormat::BF16 =>
        {
            #[unroll]
            for i in 0..2usize {
                let low = round_to_bf16(quad.extract(comptime!(2 * i)));
                let high = round_to_bf16(quad.extract(comptime!(2 * i + 1)));
                words.insert(i, low | (high << 16u32));
            }
        }
        CacheFormat::F16 =>
        {
            #[unroll]
            for i in 0..2usize {
                let low = round_to_f16(quad.extract(comptime!(2 * i)));
                let high = round_to_f16(quad.extract(comptime!(2 * i + 1)));
                words.insert(i, low | (high << 16u32));
            }
        }
    }
    words
}

/// The bits of the nearest bf16.
#[cube]
fn round_to_bf16(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    (bits + 0x7fffu32 + ((bits >> 16u32) & 1u32)) >> 16u32
}

/// The bits of the nearest f16.
#[cube]
fn round_to_f16(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let magnitude = bits & 0x7fff_ffffu32;
    let normal = ((magnitude + 0x0fffu32 + ((magnitude >> 13u32) & 1u32)) >> 13u32)
        - select(magnitude >= 0x3880_0000u32, 0x1_c000u32, 0u32);
    // Added to 1/2, the last bit counts 2^-24 as that of a subnormal half does, and the addition rounds.
    let subnormal = u32::reinterpret(f32::reinterpret(magnitude) + 0.5f32) - 0x3f00_0000u32;
    let half = select(magnitude >= 0x3880_0000u32, min(normal, 0x7bffu32), subnormal);
    half | ((bits >> 16u32) & 0x8000u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cube::testing::*;

    #[cube(launch_unchecked)]
    fn round_trip_kernel<N: Size>(
        x: &[Quad],
        words: &mut [Vector<u32, N>],
        out: &mut [Quad],
        #[comptime] format: CacheFormat,
    ) {
        let at = UNIT_POS as usize;
        words[at] = store::<N>(x[at], format);
        out[at] = load::<N>(words[at], format);
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_of_the_format() {
        let Some(client) = client() else { return };
        let mut x = vec![0.0, -0.0, 1.0, 65504.0, 65519.0, 1e6, -7e8, 6e-8, 3e-8, 6.1e-5, 6.098e-5, -1e-7];
        x.extend([1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]);
        x.extend(
            Random::new(9).floats(48).iter().enumerate().map(|(i, x)| x * 10.0_f32.powi(i as i32 % 9 - 6)),
        );
        for format in [CacheFormat::F32, CacheFormat::F16, CacheFormat::BF16] {
            let out = poisoned(&client, x.len());
            let words = poisoned(&client, x.len());
            let quads = x.len() / 4;
            // SAFETY: every unit has its quad.
            unsafe {
                round_trip_kernel::launch_unchecked(
                    &client,
                    CubeCount::Static(1, 1, 1),
                    CubeDim::new_1d(quads as u32),
                    format.quad_words(),
                    BufferArg::from_raw_parts(upload(&client, &x), quads),
                    BufferArg::from_raw_parts(words, quads),
                    BufferArg::from_raw_parts(out.clone(), quads),
                    format,
                );
            }
            let expected = x.iter().map(|x| match format {
                CacheFormat::F32 => *x,
                CacheFormat::F16 => half::f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32(),
                CacheFormat::BF16 => half::bf16::from_f32(*x).to_f32(),
            });
            assert_eq!(download(&client, &out), expected.collect::<Vec<_>>(), "{format:?}");
        }
    }
}
