//! Tiles of the input and of the weights on their way into shared memory, through registers.

use std::cmp::min;

use cubecl::prelude::*;
use half::f16;

use super::super::epilogue::Job;
use super::super::ptx::Chunk;
use super::super::rows::RowFormat;
use super::super::staging::matrix_row;
use crate::formats::TensorFormat;
use crate::ops::cube::packed::{Quad, fetch_side, quad, quads_of_span, scale_pair};

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

/// Row and chunk of the input's tile that a unit's load `load` is.
#[cube]
fn input_place(#[comptime] load: usize, #[comptime] job: Job) -> (u32, u32) {
    let at = UNIT_POS + comptime!((load * job.tile.units()) as u32);
    let each = comptime!((job.tile.depth / CHUNK) as u32);
    (at / each, at % each)
}

/// Row and item of the weights' tile that a unit's load `load` is.
#[cube]
fn weights_place(#[comptime] load: usize, #[comptime] job: Job) -> (u32, u32) {
    let at = UNIT_POS + comptime!((load * job.tile.units()) as u32);
    let each = comptime!(job.tile_items() as u32);
    (at / each, at % each)
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
pub(super) fn put<I: Size, V: Size>(
    fetched: &Fetched<I>,
    input: &mut [Vector<f16, V>],
    weights: &mut [Vector<f16, V>],
    depth: usize,
    stage: usize,
    power: f32,
    #[comptime] job: Job,
) {
    let tile = comptime!(job.tile);
    let width = V::value();
    let row_vectors = comptime!(tile.row_halves() / width);
    let chunks = comptime!(tile.m * tile.depth / CHUNK);
    #[unroll]
    for load in 0..job.input_loads() {
        let (row, chunk) = input_place(load, job);
        if comptime!((load + 1) * tile.units() <= chunks)
            || UNIT_POS < comptime!((chunks - load * tile.units()) as u32)
        {
            let at = stage * comptime!(tile.m * row_vectors)
                + row as usize * row_vectors
                + chunk as usize * comptime!(CHUNK / width);
            #[unroll]
            for part in 0..comptime!(CHUNK / width) {
                input[at + part] = halves_of_words::<Const<4>, V>(fetched.input[load], part);
            }
        }
    }
    let items = comptime!(job.row_items());
    let tile_items = comptime!(job.tile_items());
    let item_weights = comptime!(job.item_weights());
    #[unroll]
    for load in 0..job.loads() {
        let (row, within) = weights_place(load, job);
        let item = depth * tile_items + within as usize;
        if comptime!((load + 1) * tile.units() <= tile.n * tile_items) || row < comptime!(tile.n as u32) {
            let safe = min(item, comptime!(items - 1));
            let at = stage * comptime!(tile.n * row_vectors)
                + row as usize * row_vectors
                + within as usize * comptime!(item_weights / width);
            #[unroll]
            for part in 0..comptime!(item_weights / width) {
                let mut halves = decoded::<I, V>(fetched, load, safe, part, power, job);
                if comptime!(items % tile_items != 0) {
                    halves = select(item < items, halves, Vector::<f16, V>::new(f16::from_int(0)));
                }
                weights[at + part] = halves;
            }
        }
    }
}

/// Vector `part` of the words of f16.
#[cube]
fn halves_of_words<N: Size, V: Size>(words: Vector<u32, N>, #[comptime] part: usize) -> Vector<f16, V> {
    let width = V::value();
    let mut halves = Vector::<f16, V>::empty();
    #[unroll]
    for i in 0..comptime!(width / 2) {
        let pair = Vector::<f16, Const<2>>::reinterpret(words.extract(comptime!(part * width / 2 + i)));
        halves.insert(comptime!(2 * i), pair.extract(0usize));
        halves.insert(comptime!(2 * i + 1), pair.extract(1usize));
    }
    halves
}

/// Vector `part` of the weights of a load, times `power`.
#[cube]
fn decoded<I: Size, V: Size>(
    fetched: &Fetched<I>,
    #[comptime] load: usize,
    item: usize,
    #[comptime] part: usize,
    power: f32,
    #[comptime] job: Job,
) -> Vector<f16, V> {
    let layout = comptime!(job.layout);
    let words = fetched.weights[load];
    if comptime!(matches!(layout.format, TensorFormat::F16)) {
        halves_of_words::<I, V>(words, part)
    } else {
        let width = V::value();
        let start = comptime!(load * job.side_words());
        let mut halves = Vector::<f16, V>::empty();
        #[unroll]
        for q in 0..comptime!(width / 4) {
            let index = comptime!(part * width / 4 + q);
            let quad = powered::<I>(words, &fetched.sides, item, index, start, power, job);
            let four = Vector::<f16, Const<4>>::cast_from(quad);
            #[unroll]
            for i in 0..4usize {
                halves.insert(comptime!(4 * q + i), four.extract(i));
            }
        }
        halves
    }
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
