//! From the fused projection to attention: queries and keys are normalized and turned, keys and values enter
//! the cache; for many tokens of one sequence, or for one of each of several.

use std::cmp::min;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::ops::cube::attention::cache::{CacheLayout, slot_of, slot_start, store};
use crate::ops::cube::attention::rotation::turned;
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::{Groups, group_of_cube, group_sum, unit_of_group};

/// The tokens of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "a batch is what the tests compare with; steps have a kernel of their own")]
pub enum Chunk {
    /// One token of each sequence of the cache, at positions of their own.
    Batch,
    /// `tokens` tokens of one sequence, at consecutive positions.
    Prompt {
        /// The sequence of the cache.
        sequence: usize,
        /// How many.
        tokens: usize,
    },
}

/// What the step reads and writes; f32 where nothing else is said.
#[derive(Debug, Clone, Copy)]
pub struct ChunkHeads<'a> {
    /// Queries, keys and values side by side, \[tokens, (heads + 2 * kv_heads) * head_dim\].
    pub qkv: &'a Handle,
    /// Scale of the queries' norm, \[head_dim\].
    pub q_scale: &'a Handle,
    /// Scale of the keys' norm, \[head_dim\].
    pub k_scale: &'a Handle,
    /// Radians per position, \[head_dim / 2\].
    pub inv_freq: &'a Handle,
    /// Positions, u32: of each sequence's token, or of the first token of a prompt. Below 131,072.
    pub positions: &'a Handle,
    /// Receives the queries, \[tokens, heads, head_dim\].
    pub queries: &'a Handle,
    /// Receives keys in the slots of the positions; see [`CacheLayout`].
    pub keys: &'a Handle,
    /// Receives values.
    pub values: &'a Handle,
    /// Factor of the queries: `query_pre_attn_scalar^-0.5`.
    pub query_factor: f32,
    /// Added to the mean of the squares.
    pub eps: f32,
}

/// Launches the step, a plane a head. `groups` gives the planes. A prompt must not be longer than the cache
/// has slots: two of its tokens would want the same.
///
/// # Panics
/// When it is, or the sequence isn't one of the cache.
pub fn norm_rope_cache_chunk(
    client: &Client,
    step: ChunkHeads<'_>,
    chunk: Chunk,
    heads: usize,
    cache: CacheLayout,
    groups: Groups,
) {
    let CacheLayout { sequences, kv_heads, slots, head_dim, format } = cache;
    let (sequence, tokens, prompt) = match chunk {
        Chunk::Batch => (0, sequences, false),
        Chunk::Prompt { sequence, tokens } => (sequence, tokens, true),
    };
    assert!(sequence < sequences && (!prompt || tokens <= slots));
    if tokens == 0 {
        return;
    }
    let all_heads = heads + 2 * kv_heads;
    let quads = head_dim / 4;
    // Every plane a group of its own.
    let groups = Groups { planes: 1, groups: groups.groups * groups.planes, ..groups };
    let positions = if prompt { 1 } else { tokens };
    // SAFETY: the lengths are those of the shapes; slots are below their number by the remainder, tokens by
    // comparison.
    unsafe {
        heads_kernel::launch_unchecked(
            client,
            CubeCount::Static(tokens.div_ceil(groups.groups) as u32, all_heads as u32, 1),
            groups.dim(),
            format.quad_words(),
            BufferArg::from_raw_parts(step.qkv.clone(), tokens * all_heads * quads),
            BufferArg::from_raw_parts(step.q_scale.clone(), quads),
            BufferArg::from_raw_parts(step.k_scale.clone(), quads),
            BufferArg::from_raw_parts(step.inv_freq.clone(), quads / 2),
            BufferArg::from_raw_parts(step.positions.clone(), positions),
            BufferArg::from_raw_parts(step.queries.clone(), tokens * heads * quads),
            BufferArg::from_raw_parts(step.keys.clone(), cache.quads()),
            BufferArg::from_raw_parts(step.values.clone(), cache.quads()),
            tokens as u32,
            sequence as u32,
            step.query_factor,
            step.eps,
            heads,
            prompt,
            cache,
            groups,
        );
    }
}

/// Cube `[tokens, head]`. A unit holds quads of the first half of the head and those of the second that they
/// turn with.
#[cube(launch_unchecked)]
fn heads_kernel<N: Size>(
    qkv: &[Quad],
    q_scale: &[Quad],
    k_scale: &[Quad],
    inv_freq: &[Quad],
    positions: &[u32],
    queries: &mut [Quad],
    keys: &mut [Vector<u32, N>],
    values: &mut [Vector<u32, N>],
    tokens: u32,
    sequence: u32,
    query_factor: f32,
    eps: f32,
    #[comptime] heads: usize,
    #[comptime] prompt: bool,
    #[comptime] layout: CacheLayout,
    #[comptime] groups: Groups,
) {
    let kv_heads = comptime!(layout.kv_heads);
    let half = comptime!(layout.head_dim / 8);
    let share = comptime!(half.div_ceil(groups.units()));
    let head = CUBE_POS_Y as usize;
    let unit = unit_of_group(groups);
    let own = CUBE_POS_X as usize * comptime!(groups.groups) + group_of_cube(groups);
    // Groups beyond the last token repeat it and write nothing: sums may need the whole cube.
    let present = own < tokens as usize;
    let token = min(own, tokens as usize - 1);
    let (sequence, position) = if comptime!(prompt) {
        (sequence as usize, positions[0] + token as u32)
    } else {
        (token, positions[token])
    };
    let slot = slot_of(position, comptime!(layout.slots as u32));
    let start = (token * comptime!(heads + 2 * kv_heads) + head) * comptime!(2 * half);

    let mut first = Array::<Quad>::new(share);
    let mut second = Array::<Quad>::new(share);
    let mut squares = Array::<f32>::new(1usize);
    squares[0] = 0.0f32;
    #[unroll]
    for i in 0..share {
        let at = min(unit + comptime!(i * groups.units()), comptime!(half - 1));
        first[i] = qkv[start + at];
        second[i] = qkv[start + half + at];
        let sum = Vector::vector_sum(fma(first[i], first[i], second[i] * second[i]));
        squares[0] += select(unit + comptime!(i * groups.units()) < half, sum, 0.0f32);
    }
    group_sum(&mut squares, 1usize, groups);
    let inverse = f32::inverse_sqrt(squares[0] * comptime!(1.0 / layout.head_dim as f32) + eps);

    #[unroll]
    for i in 0..share {
        let at = unit + comptime!(i * groups.units());
        if present && at < half {
            if head >= comptime!(heads + kv_heads) {
                let start = slot_start(sequence, head - comptime!(heads + kv_heads), slot, layout);
                values[start + at] = store::<N>(first[i], comptime!(layout.format));
                values[start + half + at] = store::<N>(second[i], comptime!(layout.format));
            } else {
                let is_query = head < heads;
                let a = first[i] * Quad::new(inverse) * select(is_query, q_scale[at], k_scale[at]);
                let b =
                    second[i] * Quad::new(inverse) * select(is_query, q_scale[half + at], k_scale[half + at]);
                let (turned_a, turned_b) = turned(a, b, position, inv_freq[at]);
                if is_query {
                    let start = (token * heads + head) * comptime!(2 * half);
                    queries[start + at] = turned_a * Quad::new(query_factor);
                    queries[start + half + at] = turned_b * Quad::new(query_factor);
                } else {
                    let start = slot_start(sequence, head - heads, slot, layout);
                    keys[start + at] = store::<N>(turned_a, comptime!(layout.format));
                    keys[start + half + at] = store::<N>(turned_b, comptime!(layout.format));
                }
            }
        }
    }
}
