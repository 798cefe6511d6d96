//! Attention of one token of each sequence over its cache.
//!
//! The keys are divided among a fixed number of cubes, however many there are, so that the launch doesn't
//! depend on the position; those beyond the sequence's length have little to do. Each cube handles all query
//! heads of one head of keys, and leaves a softmax that the second kernel combines with the others': its
//! largest score, the sum of the exponentials below it, and the values weighted by them.

use std::cmp::min;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::cache::{CacheLayout, load, slot_start};
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::{Groups, group_of_cube, group_sum, unit_of_group};

/// The shape of decode attention, a constant of its kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecodeAttention {
    /// The cache.
    pub cache: CacheLayout,
    /// Query heads; a multiple of the key heads.
    pub heads: usize,
    /// Keys that a token sees, itself included; `None`: all.
    pub window: Option<usize>,
    /// Cubes among which the keys of a head are divided.
    pub splits: usize,
    /// Keys that a group of units works on at once.
    pub keys_at_once: usize,
    /// The units of a cube: each group takes keys of its own.
    pub groups: Groups,
}

/// Buffers of decode attention.
#[derive(Debug, Clone, Copy)]
pub struct DecodeBuffers<'a> {
    /// Normalized, turned and scaled, f32 \[sequences, heads, head_dim\].
    pub queries: &'a Handle,
    /// See [`CacheLayout`]; holds the token itself too.
    pub keys: &'a Handle,
    /// As the keys.
    pub values: &'a Handle,
    /// Position of each sequence's token, u32 \[sequences\].
    pub positions: &'a Handle,
    /// Scratch, f32 of [`DecodeAttention::partial_floats`].
    pub partial: &'a Handle,
    /// Scratch, f32 of [`DecodeAttention::statistic_floats`].
    pub statistics: &'a Handle,
    /// Receives f32 \[sequences, heads * head_dim\].
    pub out: &'a Handle,
}

/// A score below all others, where a shading language may lack infinity.
const LOWEST: f32 = -1e30;

impl DecodeAttention {
    /// Numbers of the scratch for values.
    pub const fn partial_floats(&self) -> usize {
        self.cache.sequences * self.heads * self.splits * self.cache.head_dim
    }

    /// Numbers of the scratch for largest scores and sums.
    pub const fn statistic_floats(&self) -> usize {
        self.cache.sequences * self.heads * self.splits * 2
    }

    /// Query heads that share a head of keys.
    const fn queries_per_key(&self) -> usize {
        self.heads / self.cache.kv_heads
    }

    /// Quads of a head that a unit holds.
    const fn share(&self) -> usize {
        (self.cache.head_dim / 4).div_ceil(self.groups.units())
    }
}

/// Launches both kernels.
pub fn decode_attention(client: &Client, attention: DecodeAttention, buffers: DecodeBuffers<'_>) {
    let CacheLayout { sequences, kv_heads, head_dim, format, .. } = attention.cache;
    let quads = head_dim / 4;
    let floats = attention.statistic_floats();
    // SAFETY: the lengths are those of the shapes; the kernels take remainders by the number of slots and
    // keep to the splits.
    unsafe {
        split_kernel::launch_unchecked(
            client,
            CubeCount::Static(attention.splits as u32, kv_heads as u32, sequences as u32),
            attention.groups.dim(),
            format.quad_words(),
            BufferArg::from_raw_parts(buffers.queries.clone(), sequences * attention.heads * quads),
            BufferArg::from_raw_parts(buffers.keys.clone(), attention.cache.quads()),
            BufferArg::from_raw_parts(buffers.values.clone(), attention.cache.quads()),
            BufferArg::from_raw_parts(buffers.positions.clone(), sequences),
            BufferArg::from_raw_parts(buffers.partial.clone(), attention.partial_floats() / 4),
            BufferArg::from_raw_parts(buffers.statistics.clone(), floats),
            attention,
        );
        combine_kernel::launch_unchecked(
            client,
            CubeCount::Static(attention.heads as u32, sequences as u32, 1),
            CubeDim::new_1d(quads as u32),
            BufferArg::from_raw_parts(buffers.partial.clone(), attention.partial_floats() / 4),
            BufferArg::from_raw_parts(buffers.statistics.clone(), floats),
            BufferArg::from_raw_parts(buffers.out.clone(), sequences * attention.heads * quads),
            attention.splits,
        );
    }
}

/// Cube `[split, kv_head, sequence]`.
#[cube(launch_unchecked)]
fn split_kernel<N: Size>(
    queries: &[Quad],
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    positions: &[u32],
    partial: &mut [Quad],
    statistics: &mut [f32],
    #[comptime] attention: DecodeAttention,
) {
    let layout = comptime!(attention.cache);
    let groups = comptime!(attention.groups);
    let shared_by = comptime!(attention.queries_per_key());
    let share = comptime!(attention.share());
    let quads = comptime!(layout.head_dim / 4);
    let at_once = comptime!(attention.keys_at_once);
    let split = CUBE_POS_X as usize;
    let kv_head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    let unit = unit_of_group(groups);
    let group = group_of_cube(groups);

    // The keys of this split: part `split` of those that the token sees.
    let end_of_all = positions[sequence] as usize + 1;
    let window = comptime!(match attention.window {
        Some(window) if window < layout.slots => window,
        _ => layout.slots,
    });
    let seen = min(end_of_all, window);
    let per_split = (seen + comptime!(attention.splits - 1)) / comptime!(attention.splits);
    let first = end_of_all - seen + split * per_split;
    let end = min(first + per_split, end_of_all);

    let mut q = Array::<Quad>::new(comptime!(shared_by * share));
    let mut weighted = Array::<Quad>::new(comptime!(shared_by * share));
    let mut largest = Array::<f32>::new(shared_by);
    let mut sums = Array::<f32>::new(shared_by);
    let head0 = sequence * comptime!(attention.heads) + kv_head * shared_by;
    #[unroll]
    for h in 0..shared_by {
        #[unroll]
        for i in 0..share {
            let at = unit + comptime!(i * groups.units());
            let loaded = queries[(head0 + h) * quads + min(at, comptime!(quads - 1))];
            q[comptime!(h * share + i)] = select(at < quads, loaded, Quad::new(0.0f32));
            weighted[comptime!(h * share + i)] = Quad::new(0.0f32);
        }
        largest[h] = LOWEST;
        sums[h] = 0.0f32;
    }

    let step = comptime!(groups.groups * at_once);
    let mut base = first;
    // Every group takes as many turns: sums may need the whole cube.
    while base < end {
        let mut scores = Array::<f32>::new(comptime!(at_once * shared_by));
        let mut v = Array::<Quad>::new(comptime!(at_once * share));
        #[unroll]
        for t in 0..at_once {
            let key = min(base + group * at_once + t, end - 1);
            let slot = key % comptime!(layout.slots);
            let start = slot_start(sequence, kv_head, slot, layout);
            #[unroll]
            for h in 0..shared_by {
                scores[comptime!(t * shared_by + h)] = 0.0f32;
            }
            #[unroll]
            for i in 0..share {
                let at = min(unit + comptime!(i * groups.units()), comptime!(quads - 1));
                let k = load::<N>(keys[start + at], comptime!(layout.format));
                v[comptime!(t * share + i)] = load::<N>(values[start + at], comptime!(layout.format));
                #[unroll]
                for h in 0..shared_by {
                    scores[comptime!(t * shared_by + h)] +=
                        Vector::vector_sum(k * q[comptime!(h * share + i)]);
                }
            }
        }
        group_sum(&mut scores, comptime!(at_once * shared_by), groups);
        #[unroll]
        for h in 0..shared_by {
            let mut highest = largest[h];
            #[unroll]
            for t in 0..at_once {
                let valid = base + group * at_once + t < end;
                highest = f32::max(highest, select(valid, scores[comptime!(t * shared_by + h)], LOWEST));
            }
            let shrink = f32::exp(largest[h] - highest);
            largest[h] = highest;
            sums[h] *= shrink;
            #[unroll]
            for i in 0..share {
                weighted[comptime!(h * share + i)] *= Quad::new(shrink);
            }
            #[unroll]
            for t in 0..at_once {
                let valid = base + group * at_once + t < end;
                let score = select(valid, scores[comptime!(t * shared_by + h)] - highest, 0.0f32);
                let weight = select(valid, f32::exp(score), 0.0f32);
                sums[h] += weight;
                #[unroll]
                for i in 0..share {
                    let at = comptime!(h * share + i);
                    weighted[at] = fma(Quad::new(weight), v[comptime!(t * share + i)], weighted[at]);
                }
            }
        }
        base += step;
    }
    combine_groups(&weighted, &largest, &sums, partial, statistics, head0, attention);
}

/// The softmaxes of a cube's groups -> the split's. One head after the other, to need little shared memory.
#[cube]
fn combine_groups(
    values: &Array<Quad>,
    largest: &Array<f32>,
    sums: &Array<f32>,
    partial: &mut [Quad],
    statistics: &mut [f32],
    head0: usize,
    #[comptime] attention: DecodeAttention,
) {
    let groups = comptime!(attention.groups);
    let share = comptime!(attention.share());
    let quads = comptime!(attention.cache.head_dim / 4);
    let unit = unit_of_group(groups);
    let group = group_of_cube(groups);
    let split = CUBE_POS_X as usize;
    let mut all_values = Shared::<[Quad]>::new_slice(comptime!(groups.groups * quads));
    let mut all_largest = Shared::<[f32]>::new_slice(comptime!(groups.groups));
    let mut all_sums = Shared::<[f32]>::new_slice(comptime!(groups.groups));
    #[unroll]
    for h in 0..attention.queries_per_key() {
        #[unroll]
        for i in 0..share {
            let at = unit + comptime!(i * groups.units());
            if at < quads {
                all_values[group * quads + at] = values[comptime!(h * share + i)];
            }
        }
        if unit == 0 {
            all_largest[group] = largest[h];
            all_sums[group] = sums[h];
        }
        sync_cube();
        let out = (head0 + h) * comptime!(attention.splits) + split;
        let mut highest = all_largest[0];
        #[unroll]
        for g in 1..groups.groups {
            highest = f32::max(highest, all_largest[g]);
        }
        let mut at = UNIT_POS as usize;
        while at < quads {
            let mut sum = Quad::new(0.0f32);
            #[unroll]
            for g in 0..groups.groups {
                let weight = f32::exp(all_largest[g] - highest);
                sum = fma(Quad::new(weight), all_values[comptime!(g * quads) + at], sum);
            }
            partial[out * quads + at] = sum;
            at += comptime!(groups.cube_units());
        }
        if UNIT_POS == 0 {
            let mut sum = 0.0f32;
            #[unroll]
            for g in 0..groups.groups {
                sum += f32::exp(all_largest[g] - highest) * all_sums[g];
            }
            statistics[2 * out] = highest;
            statistics[2 * out + 1] = sum;
        }
        sync_cube();
    }
}

/// Cube `[head, sequence]`, unit `quad`: the splits' softmaxes -> the head's.
#[cube(launch_unchecked)]
fn combine_kernel(partial: &[Quad], statistics: &[f32], out: &mut [Quad], #[comptime] splits: usize) {
    let quads = CUBE_DIM_X as usize;
    let head = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize;
    let quad = UNIT_POS_X as usize;
    let first = head * splits;
    let mut highest = LOWEST.runtime();
    for split in 0..splits {
        highest = f32::max(highest, statistics[2 * (first + split)]);
    }
    let mut sum = 0.0f32;
    let mut values = Quad::new(0.0f32);
    for split in 0..splits {
        let weight = f32::exp(statistics[2 * (first + split)] - highest);
        sum += weight * statistics[2 * (first + split) + 1];
        values = fma(Quad::new(weight), partial[(first + split) * quads + quad], values);
    }
    out[head * quads + quad] = values / Quad::new(sum);
}
