//! The kernel for tensor cores: bf16 tiles in shared memory, several stages of them, f32 sums in registers.
//!
//! The input comes as rows of bf16 whose width is whole tiles ([`Rows`](super::Rows)), and is copied as it
//! is. So are BF16 weights; those of other formats are fetched into registers while a tile is multiplied, and
//! written to shared memory as bf16 afterwards.

use std::cmp::min;

use cubecl::prelude::*;

use super::epilogue::{Job, store};
use super::ptx::*;
use super::staging::*;
use super::tile::{DEPTH, Engine, ROW_CHUNKS};
use crate::ops::cube::packed::Quad;

/// `out[m, n] = sum_k x[m, k] W[n, k]`: cube `[i, j, s]` makes tile `[i, j]` of part `s` of the columns, and
/// the parts lie one after the other in `out`.
#[cube(launch_unchecked)]
pub(super) fn tensor_kernel<S: Size, O: Size>(
    x: &[Chunk],
    quants: &[Chunk],
    side: &[u32],
    bias: &[f32],
    added: &[f32],
    out: &mut [Vector<u32, O>],
    rows: u32,
    added_rows: u32,
    #[comptime] job: Job,
) {
    let mut sums = Array::<Quad>::new(comptime!(job.plane_sums()));
    tile_sums::<S>(x, quants, side, &mut sums, rows, job);
    store::<O>(&sums, bias, added, out, CUBE_POS_Z * rows, rows, added_rows, job);
}

/// The sums of a unit over the cube's part of the columns.
#[cube]
fn tile_sums<S: Size>(
    x: &[Chunk],
    quants: &[Chunk],
    side: &[u32],
    sums: &mut Array<Quad>,
    rows: u32,
    #[comptime] job: Job,
) {
    let tile = comptime!(job.tile);
    let tiles = comptime!(job.depth_tiles());
    let each = comptime!(tiles.div_ceil(tile.splits));
    let first = CUBE_POS_Z as usize * each;
    let count = min(each, tiles - first);
    let input = Shared::<[Chunk]>::new_aligned_slice(comptime!(tile.stages * tile.m * ROW_CHUNKS), 1024usize);
    let weights =
        Shared::<[Chunk]>::new_aligned_slice(comptime!(tile.stages * tile.n * ROW_CHUNKS), 1024usize);
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
                    &fetched,
                    &sides,
                    weights_at,
                    first + stage,
                    comptime!(stage as u32).runtime(),
                    job,
                );
            }
        }
        commit_copies();
    }

    // Inline instructions take values, which elements of an array are.
    let mut group_sums = Array::<Vector<f32, S>>::new(1usize);
    group_sums[0] = Vector::new(0.0f32);
    if comptime!(matches!(tile.engine, Engine::Planes)) {
        #[unroll]
        for i in 0..job.plane_sums() {
            sums[i] = Quad::new(0.0f32);
        }
    }
    let mut offsets = Array::<Vector<u32, Const<16>>>::new(1usize);
    if comptime!(job.copies().is_some()) {
        offsets[0] = copy_offsets(rows, job);
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
        let input_tile = input_at + stage * comptime!((tile.m * DEPTH * 2) as u32);
        let weights_tile = weights_at + stage * comptime!((tile.n * DEPTH * 2) as u32);
        // Each group of four planes multiplies 64 rows.
        let rows_at = input_tile + UNIT_POS / 128u32 * comptime!((64 * DEPTH * 2) as u32);
        if comptime!(job.copies().is_some()) {
            let copies = comptime!(job.copies().expect("there are some"));
            let to = swizzled(UNIT_POS / 8u32, UNIT_POS % 8u32);
            let last = UNIT_POS / 8u32 + comptime!(((copies.weights - 1) * tile.units() / 8) as u32);
            let flags = select(last < comptime!(tile.n as u32), 3u32, 1u32);
            group_sums[0] = warpgroup_multiply_add_copying::<S>(
                rows_at,
                weights_tile,
                group_sums[0],
                x,
                quants,
                offsets[0],
                input_at + free * comptime!((tile.m * DEPTH * 2) as u32) + to,
                weights_at + free * comptime!((tile.n * DEPTH * 2) as u32) + to,
                (first + ahead) as u32 * comptime!(2 * DEPTH as u32),
                select(ahead < count, flags, 0u32),
                comptime!(tile.n),
                copies,
            );
        } else {
            if ahead < count {
                copy_input(x, input_at, first + ahead, free, rows, job);
                if comptime!(job.copies_weights()) {
                    copy_weights(quants, weights_at, first + ahead, free, job);
                } else {
                    fetch_weights(quants, side, &mut fetched, &mut sides, first + ahead, job);
                }
            }
            commit_copies();
            if comptime!(matches!(tile.engine, Engine::Planes)) {
                multiply_planes(input_tile, weights_tile, sums, job);
            } else {
                group_sums[0] =
                    warpgroup_multiply_add::<S>(rows_at, weights_tile, group_sums[0], comptime!(tile.n));
            }
            if comptime!(!job.copies_weights()) {
                let more = ahead < count;
                if more {
                    store_weights(&fetched, &sides, weights_at, first + ahead, free, job);
                }
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
