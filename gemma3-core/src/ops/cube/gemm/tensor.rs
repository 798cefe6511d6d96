//! The kernel for tensor cores: bf16 tiles in shared memory, several stages of them, f32 sums in registers.
//!
//! The input comes as rows of bf16 whose width is whole tiles ([`Rows`](super::Rows)), and is copied as it
//! is. So are BF16 weights; those of other formats are fetched into registers while a tile is multiplied, and
//! written to shared memory as bf16 afterwards.

use std::cmp::min;

use cubecl::prelude::*;

use super::epilogue::{Job, store};
use super::ptx::*;
use super::tile::{DEPTH, Engine, ROW_CHUNKS};
use crate::checkpoint::TensorFormat;
use crate::ops::cube::packed::{
    Layout, Quad, fetch_side, quad, quads_of_span, scale_pair,
};

/// `out[m, n] = sum_k x[m, k] W[n, k]`: cube `[i, j, s]` makes tile `[i, j]` of part `s` of the columns.
#[cube(launch_unchecked)]
pub(super) fn tensor_kernel<S: Size, O: Size>(
    x: &[Chunk],
    quants: &[Chunk],
    side: &[u32],
    out: &mut [Vector<u32, O>],
    rows: u32,
    #[comptime] job: Job,
) {
    let tile = comptime!(job.tile);
    let tiles = comptime!(job.depth_tiles());
    let each = comptime!(tiles.div_ceil(tile.splits));
    let first = CUBE_POS_Z as usize * each;
    let count = min(each, tiles - first);
    let input = Shared::<[Chunk]>::new_aligned_slice(comptime!(tile.stages * tile.m * ROW_CHUNKS), 1024usize);
    let weights = Shared::<[Chunk]>::new_aligned_slice(comptime!(tile.stages * tile.n * ROW_CHUNKS), 1024usize);
    let input_at = shared_address(&input);
    let weights_at = shared_address(&weights);
    let mut fetched = Array::<Chunk>::new(comptime!(job.loads().max(1)));
    let mut sides = Array::<u32>::new(comptime!((job.loads() * job.side_words()).max(1)));

    #[unroll]
    for stage in 0..tile.stages - 1 {
        if stage < count {
            copy_input(x, input_at, first + stage, comptime!(stage as u32).runtime(), rows, job);
            if comptime!(job.copies_weights()) {
                copy_weights(quants, weights_at, first + stage, comptime!(stage as u32).runtime(), job);
            } else {
                fetch_weights(quants, side, &mut fetched, &mut sides, first + stage, job);
                store_weights(
                    &fetched, &sides, weights_at, first + stage, comptime!(stage as u32).runtime(), job,
                );
            }
        }
        commit_copies();
    }

    let mut sums = Array::<Quad>::new(comptime!(job.plane_sums()));
    // Inline instructions take values, which elements of an array are.
    let mut group_sums = Array::<Vector<f32, S>>::new(1usize);
    group_sums[0] = Vector::new(0.0f32);
    if comptime!(matches!(tile.engine, Engine::Planes)) {
        #[unroll]
        for i in 0..job.plane_sums() {
            sums[i] = Quad::new(0.0f32);
        }
    }
    let mut stage = 0u32;
    let mut free = comptime!(tile.stages as u32 - 1).runtime();
    for t in 0..count {
        wait_copies(comptime!(tile.stages - 2));
        if comptime!(matches!(tile.engine, Engine::Warpgroups)) {
            fence_async();
        }
        // All have written this tile, and none reads the one before it any more.
        sync_cube();
        let ahead = t + comptime!(tile.stages - 1);
        if ahead < count {
            copy_input(x, input_at, first + ahead, free, rows, job);
            if comptime!(job.copies_weights()) {
                copy_weights(quants, weights_at, first + ahead, free, job);
            } else {
                fetch_weights(quants, side, &mut fetched, &mut sides, first + ahead, job);
            }
        }
        commit_copies();
        let input_tile = input_at + stage * comptime!((tile.m * DEPTH * 2) as u32);
        let weights_tile = weights_at + stage * comptime!((tile.n * DEPTH * 2) as u32);
        if comptime!(matches!(tile.engine, Engine::Planes)) {
            multiply_planes(input_tile, weights_tile, &mut sums, job);
        } else {
            let group = UNIT_POS / 128u32;
            let rows_at = input_tile + group * comptime!((64 * DEPTH * 2) as u32);
            group_sums[0] = warpgroup_multiply_add::<S>(rows_at, weights_tile, group_sums[0], comptime!(tile.n));
        }
        if comptime!(!job.copies_weights()) {
            if ahead < count {
                store_weights(&fetched, &sides, weights_at, first + ahead, free, job);
            }
        }
        free = stage;
        stage += 1u32;
        if stage == comptime!(tile.stages as u32) {
            stage = 0u32;
        }
    }
    if comptime!(matches!(tile.engine, Engine::Warpgroups)) {
        #[unroll]
        for i in 0..job.plane_sums() {
            let mut quad = Quad::empty();
            #[unroll]
            for j in 0..4usize {
                quad.insert(j, group_sums[0].extract(comptime!(4 * i + j)));
            }
            sums[i] = quad;
        }
    }
    store::<O>(&sums, out, rows, job);
}

/// Begins to copy a tile of the input. Rows beyond the last repeat it.
#[cube]
fn copy_input(x: &[Chunk], to: u32, depth: usize, stage: u32, rows: u32, #[comptime] job: Job) {
    let tile = comptime!(job.tile);
    let chunks = comptime!(tile.m * ROW_CHUNKS);
    let units = comptime!(tile.units());
    let to = to + stage * comptime!((tile.m * DEPTH * 2) as u32);
    let chunk = UNIT_POS % 8u32;
    #[unroll]
    for i in 0..chunks.div_ceil(units) {
        let row = UNIT_POS / 8u32 + comptime!((i * units / 8) as u32);
        if comptime!((i + 1) * units <= chunks) || row < comptime!(tile.m as u32) {
            let source = min(CUBE_POS_X * comptime!(tile.m as u32) + row, rows - 1u32);
            let at = source as usize * comptime!(job.depth_tiles() * ROW_CHUNKS)
                + depth * ROW_CHUNKS
                + chunk as usize;
            copy_chunk(x, at, to + swizzled(row, chunk), 16u32);
        }
    }
}

/// Begins to copy a tile of BF16 weights; zeros beyond the end of a row.
#[cube]
fn copy_weights(quants: &[Chunk], to: u32, depth: usize, stage: u32, #[comptime] job: Job) {
    let tile = comptime!(job.tile);
    let row_chunks = comptime!(job.layout.row_words() / 4);
    let chunks = comptime!(tile.n * ROW_CHUNKS);
    let units = comptime!(tile.units());
    let to = to + stage * comptime!((tile.n * DEPTH * 2) as u32);
    let chunk = UNIT_POS % 8u32;
    let column = depth * ROW_CHUNKS + chunk as usize;
    #[unroll]
    for i in 0..chunks.div_ceil(units) {
        let row = UNIT_POS / 8u32 + comptime!((i * units / 8) as u32);
        if comptime!((i + 1) * units <= chunks) || row < comptime!(tile.n as u32) {
            let base = matrix_row(row, job) as usize * row_chunks;
            let to = to + swizzled(row, chunk);
            if comptime!(row_chunks % ROW_CHUNKS == 0) {
                copy_chunk(quants, base + column, to, 16u32);
            } else {
                let bytes = select(column < row_chunks, 16u32, 0u32);
                copy_chunk(quants, base + min(column, comptime!(row_chunks - 1)), to, bytes);
            }
        }
    }
}

/// The row of the matrix behind a row of the cube's tile. Beyond the end it is the last.
///
/// Of a gate and its up projection, each plane's columns are gates in their first half and up projections of
/// the same outputs in their second.
#[cube]
fn matrix_row(row: u32, #[comptime] job: Job) -> u32 {
    let tile = comptime!(job.tile);
    let last = comptime!(job.outputs() as u32 - 1);
    if comptime!(job.gated) {
        let columns = comptime!((tile.n / tile.planes_n) as u32);
        let half = comptime!((tile.n / tile.planes_n / 2) as u32);
        let within = row % columns;
        let output = CUBE_POS_Y * comptime!((tile.n / 2) as u32) + row / columns * half + within % half;
        min(output, last) + within / half * comptime!(job.outputs() as u32)
    } else {
        min(CUBE_POS_Y * comptime!(tile.n as u32) + row, last)
    }
}

/// Row of the tile and item of the matrix's row that a unit's load `load` is.
#[cube]
fn place(#[comptime] load: usize, depth: usize, #[comptime] job: Job) -> (u32, usize) {
    let at = UNIT_POS + comptime!((load * job.tile.units()) as u32);
    let each = comptime!(job.tile_items() as u32);
    (at / each, depth * comptime!(job.tile_items()) + (at % each) as usize)
}

/// Loads a tile of packed weights into registers: nothing here waits for them.
#[cube]
fn fetch_weights(
    quants: &[Chunk],
    side: &[u32],
    fetched: &mut Array<Chunk>,
    sides: &mut Array<u32>,
    depth: usize,
    #[comptime] job: Job,
) {
    let items = comptime!(job.layout.row_words() / 4);
    #[unroll]
    for load in 0..job.loads() {
        let (row, item) = place(load, depth, job);
        let row = matrix_row(min(row, comptime!(job.tile.n as u32 - 1)), job) as usize;
        let item = min(item, comptime!(items - 1));
        fetched[load] = quants[row * items + item];
        let start = comptime!(load * job.side_words());
        fetch_side::<Const<4>>(side, row, item, sides, start, comptime!(job.layout));
    }
}

/// Writes the fetched weights as a tile of bf16; zeros beyond the end of a row.
#[cube]
fn store_weights(
    fetched: &Array<Chunk>,
    sides: &Array<u32>,
    to: u32,
    depth: usize,
    stage: u32,
    #[comptime] job: Job,
) {
    let layout = comptime!(job.layout);
    let tile = comptime!(job.tile);
    let items = comptime!(layout.row_words() / 4);
    let quads = comptime!(layout.weights_per_word());
    let whole = comptime!(items % job.tile_items() == 0);
    let to = to + stage * comptime!((tile.n * DEPTH * 2) as u32);
    #[unroll]
    for load in 0..job.loads() {
        let (row, item) = place(load, depth, job);
        if comptime!((load + 1) * tile.units() <= tile.n * job.tile_items())
            || row < comptime!(tile.n as u32)
        {
            let start = comptime!(load * job.side_words());
            let inside = item < items;
            let safe = min(item, comptime!(items - 1));
            let mut words = Array::<u32>::new(comptime!(2 * quads));
            #[unroll]
            for q in 0..quads {
                let w = weights_of(fetched[load], sides, safe, q, start, layout);
                words[comptime!(2 * q)] = bf16_pair(w.extract(0usize), w.extract(1usize));
                words[comptime!(2 * q + 1)] = bf16_pair(w.extract(2usize), w.extract(3usize));
            }
            if comptime!(!whole) {
                #[unroll]
                for i in 0..2 * quads {
                    words[i] = select(inside, words[i], 0u32);
                }
            }
            let column = (item % comptime!(job.tile_items())) as u32;
            if comptime!(quads == 1) {
                let to = to + swizzled(row, column / 2u32) + column % 2u32 * 8u32;
                store_half_chunk(to, words[0usize], words[1usize]);
            } else {
                #[unroll]
                for c in 0..quads / 2 {
                    let chunk = column * comptime!((quads / 2) as u32) + comptime!(c as u32);
                    let at = comptime!(4 * c);
                    store_chunk(
                        to + swizzled(row, chunk),
                        words[at],
                        words[comptime!(at + 1)],
                        words[comptime!(at + 2)],
                        words[comptime!(at + 3)],
                    );
                }
            }
        }
    }
}

/// Four weights of an item of four words.
#[cube]
pub(super) fn weights_of(
    words: Chunk,
    sides: &Array<u32>,
    item: usize,
    #[comptime] index: usize,
    #[comptime] start: usize,
    #[comptime] layout: Layout,
) -> Quad {
    let span = comptime!(index / quads_of_span(&layout, 4));
    let w = quad::<Const<4>>(words, sides, item, index, start, layout);
    if comptime!(matches!(layout.format, TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16)) {
        w
    } else {
        let (scale, minimum) = scale_pair::<Const<4>>(sides, item, span, start, layout);
        fma(w, Quad::new(scale), Quad::new(minimum))
    }
}

/// Adds the product of two tiles: each plane its part, from fragments in registers.
#[cube]
fn multiply_planes(input: u32, weights: u32, sums: &mut Array<Quad>, #[comptime] job: Job) {
    let tile = comptime!(job.tile);
    let plane_m = comptime!(tile.plane_m());
    let plane_n = comptime!(tile.plane_n());
    let lane = UNIT_POS % 32u32;
    let plane = UNIT_POS / 32u32;
    let first_m = plane / comptime!(tile.planes_n as u32) * comptime!((16 * plane_m) as u32);
    let first_n = plane % comptime!(tile.planes_n as u32) * comptime!((8 * plane_n) as u32);
    // `ldmatrix` takes the rows of its four matrices from lanes 0-7, 8-15, 16-23 and 24-31. Of the input
    // these are both halves of 16 rows, then the same of the next 8 columns; of the weights, both halves of
    // 16 columns, then the same of the next 8 rows.
    let input_row = input + ((first_m + lane % 16u32) << 7u32);
    let input_chunk = lane / 16u32;
    let weights_row = weights + ((first_n + lane % 8u32 + lane / 16u32 * 8u32) << 7u32);
    let weights_chunk = lane / 8u32 % 2u32;
    #[unroll]
    for step in 0..4u32 {
        let mut a = Array::<Chunk>::new(plane_m);
        let chunk = (input_chunk + comptime!(2 * step)) ^ (lane % 8u32);
        #[unroll]
        for i in 0..plane_m {
            a[i] = load_matrices(input_row + comptime!((i * 16 * 128) as u32) + (chunk << 4u32));
        }
        let chunk = (weights_chunk + comptime!(2 * step)) ^ (lane % 8u32);
        #[unroll]
        for j in 0..plane_n / 2 {
            let b = load_matrices(weights_row + comptime!((j * 16 * 128) as u32) + (chunk << 4u32));
            #[unroll]
            for half in 0..2usize {
                let low = b.extract(comptime!(2 * half));
                let high = b.extract(comptime!(2 * half + 1));
                #[unroll]
                for i in 0..plane_m {
                    let at = comptime!(i * plane_n + 2 * j + half);
                    sums[at] = multiply_add(a[i], low, high, sums[at]);
                }
            }
        }
    }
}
