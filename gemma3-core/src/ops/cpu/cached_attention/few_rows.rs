//! Attention of a few rows, as a step of decoding asks for: it takes as long as reading the keys and values.
//!
//! The positions are divided into parts, always in the same places. A thread takes a part of one key head through
//! all queries that share it, a block of keys and a tile of queries at a time: scores, their softmax, and the values
//! weighted by it. What the parts found is put together at the end, in their order.

use std::ops::Range;

use rayon::prelude::*;

use super::element::CacheElement;
use super::ring::{Block, blocks};
use super::softmax::Running;
use super::{Attention, Gathered};
use crate::ops::cpu::exp::exp;
use crate::ops::cpu::packed::{Kernel, Lanes, SimdLevel};

/// Keys of a block: its values should come from memory while its scores are computed, and still be in the
/// first-level cache afterwards.
const BLOCK: usize = 32;

/// Sums that are kept in registers, since each waits for the one before.
const SUMS: usize = 8;

/// Multiplications of a key and a query below which one thread does it all: waking others would take longer.
const MIN_PARALLEL_WORK: usize = 512 * 1024;

/// Keys of a part for up to four rows: few enough for a window of 512 to be divided among four threads, and so many
/// that putting parts together takes a hundredth of the time. Whole blocks.
const PART: usize = 128;

/// See [`super::attend`]; the width of a head must be divisible by 8.
pub(super) fn attend<E: CacheElement>(level: SimdLevel, attention: &Attention<'_, E>, out: &mut [f32]) {
    let (kv_heads, head_dim) = (attention.cache.kv_heads, attention.cache.head_dim);
    let queries = attention.rows * attention.group;
    let positions = attention.visible_of(0..attention.rows);
    // Parts have a sum for every query, so that they are longer for more rows.
    let part = PART * attention.rows.div_ceil(4).next_power_of_two();
    let first = positions.start / part;
    let parts = positions.end.div_ceil(part) - first;

    let mut sums = vec![0.0; kv_heads * parts * queries * head_dim];
    let mut running = vec![Running::EMPTY; kv_heads * parts * queries];
    let of_part = |(task, (running, sums)): (usize, (&mut [Running], &mut [f32]))| {
        let start = (first + task % parts) * part;
        let positions = start.max(positions.start)..positions.end.min(start + part);
        level.run(Part { attention, kv_head: task / parts, positions, running, sums });
    };
    let (of_running, of_sums) = (queries, queries * head_dim);
    if positions.len() * queries * kv_heads * head_dim >= MIN_PARALLEL_WORK {
        let tasks = running.par_chunks_mut(of_running).zip(sums.par_chunks_mut(of_sums));
        tasks.enumerate().with_max_len(1).for_each(of_part);
    } else {
        running.chunks_mut(of_running).zip(sums.chunks_mut(of_sums)).enumerate().for_each(of_part);
    }
    level.run(Combine { attention, parts, running: &running, sums: &sums, out });
}

/// Puts together what the parts found.
struct Combine<'a, 'b, E> {
    attention: &'a Attention<'b, E>,
    parts: usize,
    /// \[kv_heads, parts, rows, group\].
    running: &'a [Running],
    /// \[kv_heads, parts, rows, group, head_dim\].
    sums: &'a [f32],
    /// \[rows, kv_heads, group, head_dim\].
    out: &'a mut [f32],
}

impl<E: CacheElement> Kernel for Combine<'_, '_, E> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let Self { attention: Attention { queries, cache, rows, group }, parts, running, sums, out } = self;
        let head_dim = cache.head_dim;
        for (n, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let (row, head) = (n / queries.heads, n % queries.heads);
            let (kv_head, query) = (head / group, row * group + head % group);
            let parts = (0..parts).map(|part| {
                let n = (kv_head * parts + part) * rows * group + query;
                (running[n], &sums[n * head_dim..][..head_dim])
            });
            combine(parts, out);
        }
    }
}

/// The quotient of the parts' weighted values and sums.
#[inline(always)]
fn combine<'a>(parts: impl Iterator<Item = (Running, &'a [f32])> + Clone, out: &mut [f32]) {
    let max = parts.clone().fold(f32::NEG_INFINITY, |max, (running, _)| max.max(running.max));
    // A part in which this query sees nothing says nothing. (`e^(-∞ - max)` isn't zero here.)
    let weights = parts.filter(|(running, _)| running.sum != 0.0).map(|(running, values)| {
        let factor = if running.max == max { 1.0 } else { exp(running.max - max) };
        (factor, factor * running.sum, values)
    });
    let sum: f32 = weights.clone().map(|(_, sum, _)| sum).sum();
    out.fill(0.0);
    for (factor, _, values) in weights {
        let weight = factor / sum;
        for (out, value) in out.iter_mut().zip(values) {
            *out += weight * value;
        }
    }
}

/// Some of the positions, for the queries that share a key head.
struct Part<'a, 'b, E> {
    attention: &'a Attention<'b, E>,
    kv_head: usize,
    positions: Range<usize>,
    /// \[rows, group\].
    running: &'a mut [Running],
    /// Values weighted by the softmax's numerators, \[rows, group, head_dim\].
    sums: &'a mut [f32],
}

impl<E: CacheElement> Kernel for Part<'_, '_, E> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let cache = self.attention.cache;
        let mut gathered = Gathered::new();
        for block in blocks(self.positions.clone(), BLOCK) {
            let entries = cache.of_block(self.kv_head, &block, &mut gathered);
            let queries = self.running.len();
            let mut query = 0;
            while query < queries {
                query += match queries - query {
                    4.. => self.tile::<L, 4, 2>(l, &block, entries, query),
                    2.. => self.tile::<L, 2, 4>(l, &block, entries, query),
                    _ => self.tile::<L, 1, 8>(l, &block, entries, query),
                };
            }
        }
    }
}

impl<E: CacheElement> Part<'_, '_, E> {
    /// Queries `first..first + T` over a block, whose keys and values are given; returns `T`. `N` is
    /// [`SUMS`] / `T`.
    #[inline(always)]
    fn tile<L: Lanes, const T: usize, const N: usize>(
        &mut self,
        l: L,
        block: &Block,
        (keys, values): (&[E], &[E]),
        first: usize,
    ) -> usize {
        let Self { attention, kv_head, .. } = *self;
        let head_dim = attention.cache.head_dim;

        let mut queries = [&[][..]; T];
        for (t, query) in queries.iter_mut().enumerate() {
            let (row, member) = ((first + t) / attention.group, (first + t) % attention.group);
            let of_row = attention.queries_of(row, kv_head);
            *query = of_row[member * head_dim..][..head_dim].as_chunks::<8>().0;
        }
        let mut weights = [[0.0; BLOCK]; T];
        // The first tile fetches what the others find in the cache.
        scores::<L, E, T, N>(l, queries, keys, if first == 0 { values } else { &[] }, &mut weights);

        let mut factors = [1.0; T];
        for t in 0..T {
            let visible = block.overlap(&attention.visible((first + t) / attention.group));
            factors[t] = self.running[first + t].add(&mut weights[t], visible);
        }

        let sums = self.sums[first * head_dim..][..T * head_dim].as_chunks_mut::<8>().0;
        let (width, mut column) = (head_dim / 8, 0);
        while column < width {
            // The keys of the next block, a column's share at a time.
            if first == 0 {
                let share = keys.len() / width;
                l.prefetch(
                    E::bytes(&keys[column * share..][..share * N.min(width - column)]),
                    size_of_val(keys),
                );
            }
            column += if width - column >= N {
                weigh::<L, E, T, N>(l, &weights, factors, values, sums, width, column)
            } else {
                weigh::<L, E, T, 1>(l, &weights, factors, values, sums, width, column)
            };
        }
        T
    }
}

/// `out[t][key]` = the product of query `t` and a key, for `keys` \[up to BLOCK, head_dim\] and
/// `queries` \[T\]\[head_dim / 8\]. What follows the last key has no meaning. Asks for the cache lines of
/// `ahead`, as many as the keys have, on the way.
#[inline(always)]
fn scores<L: Lanes, E: CacheElement, const T: usize, const N: usize>(
    l: L,
    queries: [&[[f32; 8]]; T],
    keys: &[E],
    ahead: &[E],
    out: &mut [[f32; BLOCK]; T],
) {
    let width = queries[0].len();
    let mut queries = queries;
    for query in &mut queries {
        *query = &query[..width];
    }
    let keys = keys.as_chunks::<8>().0;
    let count = keys.len() / width;
    for first in (0..count).step_by(N) {
        if let Some(ahead) = ahead.get(first * 8 * width..) {
            l.prefetch(E::bytes(&ahead[..ahead.len().min(N * 8 * width)]), 0);
        }
        let mut rows = [&[][..]; N];
        for (n, row) in rows.iter_mut().enumerate() {
            // The last key again in the place of those after it.
            *row = &keys[(first + n).min(count - 1) * width..][..width];
        }
        let mut sums = [l.splat(0.0); SUMS];
        for column in 0..width {
            let mut query = [l.splat(0.0); T];
            for t in 0..T {
                query[t] = l.load_floats(&queries[t][column]);
            }
            for n in 0..N {
                let key = E::load(l, &rows[n][column]);
                for t in 0..T {
                    sums[n * T + t] = l.multiply_add(key, query[t], sums[n * T + t]);
                }
            }
        }
        let [a, b, c, d, e, f, g, h] = l.transpose(sums);
        let (ab, cd) = (l.add_floats(a, b), l.add_floats(c, d));
        let (ef, gh) = (l.add_floats(e, f), l.add_floats(g, h));
        let mut scores = [0.0; SUMS];
        l.store_floats(l.add_floats(l.add_floats(ab, cd), l.add_floats(ef, gh)), &mut scores);
        for n in 0..N {
            for t in 0..T {
                out[t][first + n] = scores[n * T + t];
            }
        }
    }
}

/// `sums[t] = factors[t] * sums[t] + weights[t] values`, in columns `8 * column..8 * (column + V)`; returns
/// `V`. `sums` \[T\]\[width\], `values` \[keys\]\[8 * width\].
#[inline(always)]
fn weigh<L: Lanes, E: CacheElement, const T: usize, const V: usize>(
    l: L,
    weights: &[[f32; BLOCK]; T],
    factors: [f32; T],
    values: &[E],
    sums: &mut [[f32; 8]],
    width: usize,
    column: usize,
) -> usize {
    let mut registers = [[l.splat(0.0); V]; T];
    for t in 0..T {
        for v in 0..V {
            let sum = l.load_floats(&sums[t * width + column + v]);
            registers[t][v] = l.multiply(sum, l.splat(factors[t]));
        }
    }
    for (key, row) in values.as_chunks::<8>().0.chunks_exact(width).enumerate().take(BLOCK) {
        let row = &row[column..column + V];
        let mut value = [l.splat(0.0); V];
        for v in 0..V {
            value[v] = E::load(l, &row[v]);
        }
        for t in 0..T {
            let weight = l.splat(weights[t][key]);
            for v in 0..V {
                registers[t][v] = l.multiply_add(value[v], weight, registers[t][v]);
            }
        }
    }
    for t in 0..T {
        for v in 0..V {
            l.store_floats(registers[t][v], &mut sums[t * width + column + v]);
        }
    }
    V
}
