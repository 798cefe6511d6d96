//! Tiles of the input and of the weights on their way into shared memory, through registers.

use std::cmp::min;

use cubecl::prelude::*;
use half::f16;

use super::super::epilogue::Job;
use super::super::halves::converted;
use super::super::ptx::Chunk;
use super::super::rows::RowFormat;
use super::super::staging::matrix_row;
use super::cells::{Cells, cell_of};
use crate::formats::TensorFormat;
use crate::ops::cube::packed::{
    HalfPair, Quad, fetch_side, half_quad, has_half_quads, quad, quads_of_span, scale_pair,
};

/// Halves of a chunk of 16 bytes.
const CHUNK: usize = 8;

impl Job {
    /// Chunks of the input's tile that a unit fetches.
    const fn input_loads(&self) -> usize {
        (self.tile.m * self.tile.depth / CHUNK).div_ceil(self.tile.units())
    }

    /// Chunks from a row of the input to the next.
    pub(super) const fn row_chunks(&self) -> usize {
        RowFormat::F16.row_words(self.layout.cols) / 4
    }
}

/// Where a unit's shares of tiles begin, in chunks of the input and in rows of the matrix. The same for all tiles.
#[derive(CubeType)]
pub(super) struct Places {
    input: Array<u32>,
    weights: Array<u32>,
}

#[cube]
impl Places {
    pub fn new(rows: u32, #[comptime] job: Job) -> Places {
        let tile = comptime!(job.tile);
        let mut input = Array::<u32>::new(comptime!(job.input_loads()));
        #[unroll]
        for load in 0..job.input_loads() {
            let (row, chunk) = input_place(load, job);
            // Rows beyond the last repeat it.
            let row = min(CUBE_POS_X * comptime!(tile.m as u32) + row, rows - 1u32);
            input[load] = row * comptime!(job.row_chunks() as u32) + chunk;
        }
        let mut weights = Array::<u32>::new(comptime!(job.loads()));
        #[unroll]
        for load in 0..job.loads() {
            let (row, _) = weights_place(load, job);
            weights[load] = matrix_row(min(row, comptime!(tile.n as u32 - 1)), job);
        }
        Places { input, weights }
    }
}

/// The row of a tile that neighbouring units come to as the `index`-th: rows of less than 128 bytes in an order in which
/// those that eight units write at once lie in different banks. Each eight rows stay together.
#[cube]
fn spread(index: u32, #[comptime] depth: usize) -> u32 {
    if comptime!(depth == 32) {
        // Rows of 80 bytes from one to the next, two of 64 at once: 0 and 4, 1 and 5, and so on.
        (index & 0xffff_fff8u32) | ((index & 1u32) << 2u32) | ((index >> 1u32) & 3u32)
    } else if comptime!(depth == 16) {
        // Rows of 48 bytes, four of 32 at once: the even ones, then the odd ones.
        (index & 0xffff_fff8u32) | ((index & 3u32) << 1u32) | ((index >> 2u32) & 1u32)
    } else {
        index
    }
}

/// Row and chunk of the input's tile that a unit's load `load` is.
#[cube]
fn input_place(#[comptime] load: usize, #[comptime] job: Job) -> (u32, u32) {
    let at = UNIT_POS + comptime!((load * job.tile.units()) as u32);
    let each = comptime!((job.tile.depth / CHUNK) as u32);
    (spread(at / each, comptime!(job.tile.depth)), at % each)
}

/// Row and item of the weights' tile that a unit's load `load` is.
#[cube]
fn weights_place(#[comptime] load: usize, #[comptime] job: Job) -> (u32, u32) {
    let at = UNIT_POS + comptime!((load * job.tile.units()) as u32);
    let each = comptime!(job.tile_items() as u32);
    (spread(at / each, comptime!(job.tile.depth)), at % each)
}

/// A unit's share of a tile, as it lies in memory.
#[derive(CubeType)]
pub(super) struct Fetched<I: Size> {
    input: Array<Chunk>,
    weights: Array<Vector<u32, I>>,
    sides: Array<u32>,
}

#[cube]
impl<I: Size> Fetched<I> {
    pub fn new(#[comptime] job: Job) -> Fetched<I> {
        Fetched::<I> {
            input: Array::new(comptime!(job.input_loads())),
            weights: Array::new(comptime!(job.loads())),
            sides: Array::new(comptime!((job.loads() * job.side_words()).max(1))),
        }
    }
}

/// Loads a unit's share of tile `depth`: nothing here waits for it. Items beyond the end of a row are the last.
#[cube]
pub(super) fn fetch<I: Size>(
    x: &[Chunk],
    quants: &[Vector<u32, I>],
    side: &[u32],
    places: &Places,
    fetched: &mut Fetched<I>,
    depth: usize,
    #[comptime] job: Job,
) {
    let tile = comptime!(job.tile);
    #[unroll]
    for load in 0..job.input_loads() {
        if comptime!((load + 1) * tile.units() <= tile.m * tile.depth / CHUNK)
            || UNIT_POS < comptime!((tile.m * tile.depth / CHUNK - load * tile.units()) as u32)
        {
            fetched.input[load] = x[places.input[load] as usize + depth * comptime!(tile.depth / CHUNK)];
        }
    }
    let items = comptime!(job.row_items());
    #[unroll]
    for load in 0..job.loads() {
        let (_, item) = weights_place(load, job);
        let item = min(depth * comptime!(job.tile_items()) + item as usize, comptime!(items - 1));
        let row = places.weights[load] as usize;
        fetched.weights[load] = quants[row * items + item];
        let start = comptime!(load * job.side_words());
        fetch_side::<I>(side, row, item, &mut fetched.sides, start, comptime!(job.layout));
    }
}

/// Writes what was fetched of tile `depth` as f16 into a stage, the weights multiplied by `power`; zeros beyond the end
/// of a row.
#[cube]
pub(super) fn put<W: Numeric, V: Size, I: Size>(
    fetched: &Fetched<I>,
    input: &mut [Vector<W, V>],
    weights: &mut [Vector<W, V>],
    depth: usize,
    stage: usize,
    power: f32,
    #[comptime] cells: Cells,
    #[comptime] job: Job,
) {
    let tile = comptime!(job.tile);
    let row_cells = comptime!(cells.of(tile.row_halves()));
    let cell_words = comptime!(cells.words());
    let chunks = comptime!(tile.m * tile.depth / CHUNK);
    #[unroll]
    for load in 0..job.input_loads() {
        let (row, chunk) = input_place(load, job);
        if comptime!((load + 1) * tile.units() <= chunks)
            || UNIT_POS < comptime!((chunks - load * tile.units()) as u32)
        {
            let at = stage * comptime!(tile.m * row_cells)
                + row as usize * row_cells
                + chunk as usize * comptime!(cells.of(CHUNK));
            #[unroll]
            for cell in 0..comptime!(cells.of(CHUNK)) {
                let words = fetched.input[load];
                input[at + cell] = cell_of::<W, V, Const<4>>(words, comptime!(cell * cell_words), cells);
            }
        }
    }
    let items = comptime!(job.row_items());
    let tile_items = comptime!(job.tile_items());
    let item_cells = comptime!(cells.of(job.item_weights()));
    #[unroll]
    for load in 0..job.loads() {
        let (row, within) = weights_place(load, job);
        let item = depth * tile_items + within as usize;
        if comptime!((load + 1) * tile.units() <= tile.n * tile_items) || row < comptime!(tile.n as u32) {
            let safe = min(item, comptime!(items - 1));
            let at = stage * comptime!(tile.n * row_cells)
                + row as usize * row_cells
                + within as usize * item_cells;
            #[unroll]
            for cell in 0..item_cells {
                let mut words =
                    halves_of::<I>(fetched, load, safe, comptime!(cell * cell_words), power, cells, job);
                if comptime!(items % tile_items != 0) {
                    words = select(item < items, words, Chunk::new(0u32));
                }
                weights[at + cell] = cell_of::<W, V, Const<4>>(words, 0usize, cells);
            }
        }
    }
}

/// Words of f16 from word `first` of a load's weights on, as many as a cell has, times `power`.
#[cube]
fn halves_of<I: Size>(
    fetched: &Fetched<I>,
    #[comptime] load: usize,
    item: usize,
    #[comptime] first: usize,
    power: f32,
    #[comptime] cells: Cells,
    #[comptime] job: Job,
) -> Chunk {
    let layout = comptime!(job.layout);
    let packed = fetched.weights[load];
    let mut words = Chunk::new(0u32);
    #[unroll]
    for pair in 0..comptime!(cells.words() / 2) {
        let at = comptime!(first + 2 * pair);
        let start = comptime!(load * job.side_words());
        if comptime!(matches!(layout.format, TensorFormat::F16)) {
            words.insert(comptime!(2 * pair), packed.extract(at));
            words.insert(comptime!(2 * pair + 1), packed.extract(comptime!(at + 1)));
        } else if comptime!(has_half_quads(layout.format)) {
            let (scale, _) = scale_pair::<I>(&fetched.sides, item, 0usize, start, layout, false);
            let scale = HalfPair::new(f16::cast_from(scale * power));
            let (low, high) = half_quad::<I>(packed, comptime!(at / 2), layout);
            words.insert(comptime!(2 * pair), u32::reinterpret(low * scale));
            words.insert(comptime!(2 * pair + 1), u32::reinterpret(high * scale));
        } else {
            let quad = powered::<I>(packed, &fetched.sides, item, comptime!(at / 2), start, power, job);
            // Devices with matrices of f16 convert to it: one instruction for two numbers, where their bits take thirty.
            let halves = converted(quad);
            words.insert(comptime!(2 * pair), halves.extract(0usize));
            words.insert(comptime!(2 * pair + 1), halves.extract(1usize));
        }
    }
    words
}

/// Quad `index` of an item's weights, times `power`.
#[cube]
fn powered<I: Size>(
    words: Vector<u32, I>,
    sides: &Array<u32>,
    item: usize,
    #[comptime] index: usize,
    #[comptime] start: usize,
    power: f32,
    #[comptime] job: Job,
) -> Quad {
    let layout = comptime!(job.layout);
    let weights = quad::<I>(words, sides, item, index, start, layout, false);
    if comptime!(layout.has_blocks()) {
        let span = comptime!(index / quads_of_span(&layout, job.item_words()));
        let (scale, minimum) = scale_pair::<I>(sides, item, span, start, layout, false);
        fma(weights, Quad::new(scale * power), Quad::new(minimum * power))
    } else {
        weights * Quad::new(power)
    }
}
