//! Tiles of the input and of the weights on their way into shared memory.

use std::cmp::min;

use cubecl::prelude::*;

use super::epilogue::Job;
use super::ptx::*;
use super::tile::{DEPTH, ROW_CHUNKS};
use crate::formats::TensorFormat;
use crate::ops::cube::packed::{Layout, Quad, fetch_side, quad, quads_of_span, scale_pair};

/// Where in the input, then in the weights, a unit's copies of the first tile begin, in bytes.
#[cube]
pub(super) fn copy_offsets(rows: u32, #[comptime] job: Job) -> Vector<u32, Const<16>> {
    let tile = comptime!(job.tile);
    let copies = comptime!(job.copies().expect("asked for where there are some"));
    let row_bytes = comptime!((job.layout.cols * 2) as u32);
    let chunk = UNIT_POS % 8u32 * 16u32;
    let mut offsets = Vector::<u32, Const<16>>::new(0u32);
    #[unroll]
    for i in 0..copies.input + copies.weights {
        let row = if comptime!(i < copies.input) {
            let row = UNIT_POS / 8u32 + comptime!((i * tile.units() / 8) as u32);
            min(CUBE_POS_X * comptime!(tile.m as u32) + row, rows - 1u32)
        } else {
            let row = UNIT_POS / 8u32 + comptime!(((i - copies.input) * tile.units() / 8) as u32);
            matrix_row(min(row, comptime!(tile.n as u32 - 1)), job)
        };
        offsets.insert(i, row * row_bytes + chunk);
    }
    offsets
}

/// Begins to copy a tile of the input. Rows beyond the last repeat it.
#[cube]
pub(super) fn copy_input(x: &[Chunk], to: u32, depth: usize, stage: u32, rows: u32, #[comptime] job: Job) {
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
pub(super) fn copy_weights(quants: &[Chunk], to: u32, depth: usize, stage: u32, #[comptime] job: Job) {
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
pub(super) fn matrix_row(row: u32, #[comptime] job: Job) -> u32 {
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
pub(super) fn fetch_weights(
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
pub(super) fn store_weights(
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
        if comptime!((load + 1) * tile.units() <= tile.n * job.tile_items()) || row < comptime!(tile.n as u32)
        {
            let start = comptime!(load * job.side_words());
            let inside = item < items;
            let safe = min(item, comptime!(items - 1));
            let mut words = Array::<u32>::new(comptime!(2 * quads));
            #[unroll]
            for q in 0..quads {
                let w = weights_of::<Const<4>>(fetched[load], sides, safe, q, start, layout, true);
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

/// Four weights of an item. `native`: whether the device converts f16 itself.
#[cube]
pub(super) fn weights_of<N: Size>(
    words: Vector<u32, N>,
    sides: &Array<u32>,
    item: usize,
    #[comptime] index: usize,
    #[comptime] start: usize,
    #[comptime] layout: Layout,
    #[comptime] native: bool,
) -> Quad {
    let item_words = N::value();
    let span = comptime!(index / quads_of_span(&layout, item_words));
    let w = quad::<N>(words, sides, item, index, start, layout, native);
    if comptime!(matches!(layout.format, TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16)) {
        w
    } else {
        let (scale, minimum) = scale_pair::<N>(sides, item, span, start, layout, native);
        fma(w, Quad::new(scale), Quad::new(minimum))
    }
}
