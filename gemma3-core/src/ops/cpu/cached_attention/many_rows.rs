//! Attention of many rows, as a prompt asks for: products of matrices.
//!
//! A thread takes a tile of positions of one key head, with all queries that share it, over one block of keys
//! after the other. Blocks that no row of the tile sees are never read, and rows that see nothing of a
//! block take no part in its products. What a row finds doesn't depend on the tile that it is in: blocks begin where
//! they would for any other, and products are the same in any company ([`crate::ops::cpu::product`]).

use std::ops::Range;

use rayon::prelude::*;

use super::element::CacheElement;
use super::ring::{Block, blocks};
use super::softmax::Running;
use super::{Attention, Gathered};
use crate::ops::cpu::packed::{Kernel, Lanes, SimdLevel};
use crate::ops::cpu::product::{Operand, add_product, product, row_major};

/// Queries of a tile, those of all its positions together. More reuse a block of keys more often, fewer
/// are quicker where only a part of a block is visible.
const TILE: usize = 128;
/// Below this a tile no longer pays for packing and converting the keys.
const MIN_TILE: usize = 32;
/// Keys of a block.
const BLOCK: usize = 256;

/// See [`super::attend`].
pub(super) fn attend<E: CacheElement>(level: SimdLevel, attention: &Attention<'_, E>, out: &mut [f32]) {
    let Attention { rows, group, cache, .. } = *attention;
    // Four tiles a thread, so that one that was held up does not hold up all. (Sums are the same in any tile.)
    let queries = (rows * group * cache.kv_heads).div_ceil(4 * rayon::current_num_threads());
    let tile_rows = queries.clamp(MIN_TILE, TILE).div_ceil(group);
    // par_bridge hands out one tile after the other and makes a scratch per thread. The last tiles see
    // most, so they come first.
    let tiles = tiles(attention, tile_rows, out).into_iter().rev();
    tiles.par_bridge().for_each_init(
        || Scratch::new(tile_rows * group, cache.head_dim),
        |scratch, tile| attend_tile(level, attention, tile, scratch),
    );
}

/// Rows that are done together, for one key head.
struct Tile<'a> {
    rows: Range<usize>,
    kv_head: usize,
    /// The output of each row, \[group, head_dim\].
    out: Vec<&'a mut [f32]>,
}

fn tiles<'a, E: CacheElement>(
    attention: &Attention<'_, E>,
    tile_rows: usize,
    out: &'a mut [f32],
) -> Vec<Tile<'a>> {
    let Attention { rows, group, cache, .. } = *attention;
    let mut tiles: Vec<_> = (0..rows)
        .step_by(tile_rows)
        .flat_map(|start| (0..cache.kv_heads).map(move |kv_head| (start, kv_head)))
        .map(|(start, kv_head)| {
            let rows = start..rows.min(start + tile_rows);
            Tile { out: Vec::with_capacity(rows.len()), rows, kv_head }
        })
        .collect();
    for (n, out) in out.chunks_exact_mut(group * cache.head_dim).enumerate() {
        let (row, kv_head) = (n / cache.kv_heads, n % cache.kv_heads);
        tiles[row / tile_rows * cache.kv_heads + kv_head].out.push(out);
    }
    tiles
}

/// What a thread needs for a tile of `queries`.
struct Scratch<E> {
    /// \[queries, head_dim\].
    queries: Vec<f32>,
    /// Up to \[queries, BLOCK\].
    scores: Vec<f32>,
    gathered: Gathered<E>,
    /// A block of keys, then of values, where they aren't f32: up to \[BLOCK, head_dim\].
    converted: Vec<f32>,
    /// \[queries\].
    running: Vec<Running>,
    /// Values weighted by the softmax's numerators, \[queries, head_dim\].
    sums: Vec<f32>,
}

impl<E> Scratch<E> {
    fn new(queries: usize, head_dim: usize) -> Self {
        Self {
            queries: vec![0.0; queries * head_dim],
            scores: vec![0.0; queries * BLOCK],
            gathered: Gathered::new(),
            converted: Vec::new(),
            running: vec![Running::EMPTY; queries],
            sums: vec![0.0; queries * head_dim],
        }
    }
}

fn attend_tile<E: CacheElement>(
    level: SimdLevel,
    attention: &Attention<'_, E>,
    tile: Tile<'_>,
    scratch: &mut Scratch<E>,
) {
    let Attention { group, cache, .. } = *attention;
    let head_dim = cache.head_dim;
    for (row, packed) in tile.rows.clone().zip(scratch.queries.chunks_exact_mut(group * head_dim)) {
        packed.copy_from_slice(attention.queries_of(row, tile.kv_head));
    }
    scratch.running.fill(Running::EMPTY);
    scratch.sums.fill(0.0);

    let visible: Vec<_> = tile.rows.clone().map(|row| attention.visible(row)).collect();
    for block in blocks(attention.visible_of(tile.rows.clone()), BLOCK) {
        let (keys, values) = cache.of_block(tile.kv_head, &block, &mut scratch.gathered);
        // Those that see something of the block are neighbours, because what a row sees only moves on.
        let first = visible.partition_point(|keys| keys.end <= block.position);
        let end = visible.partition_point(|keys| keys.start < block.position + block.len);
        let (seeing, queries) = (first..end, first * group..end * group);
        let of_queries = queries.start * head_dim..queries.end * head_dim;

        let keys = E::floats(level, keys, &mut scratch.converted);
        let keys_transposed = Operand {
            rows: head_dim,
            columns: block.len,
            row_stride: 1,
            column_stride: head_dim,
            ..row_major(keys, block.len, head_dim)
        };
        let scores = &mut scratch.scores[..queries.len() * block.len];
        let packed = row_major(&scratch.queries[of_queries.clone()], queries.len(), head_dim);
        product(scores, block.len, packed, keys_transposed, 1.0);

        let sums = &mut scratch.sums[of_queries];
        let running = &mut scratch.running[queries.clone()];
        level.run(Softmax { block: &block, visible: &visible[seeing], scores, running, sums });

        let values = E::floats(level, values, &mut scratch.converted);
        let weights = row_major(scores, queries.len(), block.len);
        add_product(sums, head_dim, weights, row_major(values, block.len, head_dim));
    }

    let sums = scratch.sums.chunks_exact(head_dim).zip(&scratch.running);
    let outs = tile.out.into_iter().flat_map(|out| out.chunks_exact_mut(head_dim));
    for (out, (sums, running)) in outs.zip(sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum / running.sum;
        }
    }
}

/// Makes weights of the scores of a block, and multiplies the sums so far accordingly.
struct Softmax<'a> {
    block: &'a Block,
    /// What each row sees, \[rows\].
    visible: &'a [Range<usize>],
    /// \[rows, group, keys\].
    scores: &'a mut [f32],
    /// \[rows, group\].
    running: &'a mut [Running],
    /// \[rows, group, head_dim\].
    sums: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let Self { block, visible, scores, running, sums } = self;
        let (group, head_dim) = (running.len() / visible.len(), sums.len() / running.len());
        let scores = scores.chunks_exact_mut(block.len).zip(sums.chunks_exact_mut(head_dim));
        for (n, (running, (scores, sums))) in running.iter_mut().zip(scores).enumerate() {
            let factor = running.add(scores, block.overlap(&visible[n / group]));
            if factor != 1.0 {
                for sum in sums {
                    *sum *= factor;
                }
            }
        }
    }
}
