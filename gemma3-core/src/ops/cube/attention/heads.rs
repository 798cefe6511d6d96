//! The heads of a token as attention needs them: queries and keys normalized and turned, keys and values in
//! the numbers of the cache.

use std::cmp::min;

use cubecl::prelude::*;

use super::cache::{load, slot_of, slot_start, store};
use super::decode::DecodeAttention;
use super::rotation::turned;
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::{group_of_cube, group_sum, unit_of_group};

/// Prepares the token's heads that belong to one head of keys, each by a group of units, and leaves them in
/// `heads`, \[queries + 2, head_dim\]: the queries, the key, the value. Key and value are rounded as the
/// cache holds them; where `owner`, they are written there. The cube still has to wait for its units.
///
/// A unit holds quads of the first half of a head and those of the second that they turn with.
#[cube]
pub(crate) fn prepare_heads<N: Size>(
    qkv: &[Quad],
    q_scale: &[Quad],
    k_scale: &[Quad],
    inv_freq: &[Quad],
    keys: &mut [Vector<u32, N>],
    values: &mut [Vector<u32, N>],
    heads: &mut [Quad],
    position: u32,
    owner: bool,
    query_factor: f32,
    eps: f32,
    #[comptime] attention: DecodeAttention,
) {
    let layout = comptime!(attention.cache);
    let groups = comptime!(attention.groups);
    let queries = comptime!(attention.queries_per_key());
    let tasks = comptime!(queries + 2);
    let half = comptime!(layout.head_dim / 8);
    let share = comptime!(half.div_ceil(groups.units()));
    let kv_head = CUBE_POS_Y as usize;
    let sequence = CUBE_POS_Z as usize;
    let unit = unit_of_group(groups);
    let slot = slot_of(position, comptime!(layout.slots as u32));
    let slot_at = slot_start(sequence, kv_head, slot, layout);
    let all_heads = comptime!(attention.heads + 2 * layout.kv_heads);
    let part_quads = comptime!(layout.sequences * all_heads * layout.head_dim / 4);
    let first_head = sequence * all_heads;
    #[unroll]
    for turn in 0..comptime!(tasks.div_ceil(groups.groups)) {
        let task = group_of_cube(groups) + comptime!(turn * groups.groups);
        let is_query = task < queries;
        let is_value = task > queries;
        let query = kv_head * queries + min(task, comptime!(queries - 1));
        let other = comptime!(attention.heads) + kv_head;
        let other = select(is_value, other + comptime!(layout.kv_heads), other);
        let start = (first_head + select(is_query, query, other)) * comptime!(2 * half);

        let mut first = Array::<Quad>::new(share);
        let mut second = Array::<Quad>::new(share);
        let mut squares = Array::<f32>::new(1usize);
        squares[0] = 0.0f32;
        #[unroll]
        for i in 0..share {
            let at = min(unit + comptime!(i * groups.units()), comptime!(half - 1));
            first[i] = qkv[start + at];
            second[i] = qkv[start + half + at];
            #[unroll]
            for part in 1..attention.parts {
                first[i] += qkv[start + at + comptime!(part * part_quads)];
                second[i] += qkv[start + half + at + comptime!(part * part_quads)];
            }
            let sum = Vector::vector_sum(fma(first[i], first[i], second[i] * second[i]));
            squares[0] += select(unit + comptime!(i * groups.units()) < half, sum, 0.0f32);
        }
        group_sum(&mut squares, 1usize, groups);
        let inverse = f32::inverse_sqrt(squares[0] * comptime!(1.0 / layout.head_dim as f32) + eps);
        #[unroll]
        for i in 0..share {
            let at = unit + comptime!(i * groups.units());
            if at < half && task < tasks {
                let out = task * comptime!(2 * half) + at;
                if is_value {
                    let a = store::<N>(first[i], comptime!(layout.format));
                    let b = store::<N>(second[i], comptime!(layout.format));
                    heads[out] = load::<N>(a, comptime!(layout.format));
                    heads[out + half] = load::<N>(b, comptime!(layout.format));
                    if owner {
                        values[slot_at + at] = a;
                        values[slot_at + half + at] = b;
                    }
                } else {
                    let a_scale = select(is_query, q_scale[at], k_scale[at]);
                    let b_scale = select(is_query, q_scale[half + at], k_scale[half + at]);
                    let a = first[i] * Quad::new(inverse) * a_scale;
                    let b = second[i] * Quad::new(inverse) * b_scale;
                    let (turned_a, turned_b) = turned(a, b, position, inv_freq[at]);
                    if is_query {
                        heads[out] = turned_a * Quad::new(query_factor);
                        heads[out + half] = turned_b * Quad::new(query_factor);
                    } else {
                        let a = store::<N>(turned_a, comptime!(layout.format));
                        let b = store::<N>(turned_b, comptime!(layout.format));
                        heads[out] = load::<N>(a, comptime!(layout.format));
                        heads[out + half] = load::<N>(b, comptime!(layout.format));
                        if owner {
                            keys[slot_at + at] = a;
                            keys[slot_at + half + at] = b;
                        }
                    }
                }
            }
        }
    }
}
