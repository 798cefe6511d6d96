//! The loop over a cube's tiles with several of them on their way: from memory to registers takes longer than to multiply
//! one tile, which shows where too few cubes share a multiprocessor to fill the time.

use std::cmp::min;

use cubecl::cmma;
use cubecl::prelude::*;

use super::super::epilogue::Job;
use super::super::ptx::Chunk;
use super::cells::Cells;
use super::multiply;
use super::staging::*;

/// Adds the products of `count` tiles from tile `first` on to a plane's sums, with `ahead` of them on their way.
///
/// The turns are unrolled, so that each knows which registers and which stage are its own.
#[cube]
pub(super) fn multiply_ahead<W: Numeric, V: Size, I: Size>(
    x: &[Chunk],
    quants: &[Vector<u32, I>],
    side: &[u32],
    places: &Places,
    input: &mut [Vector<W, V>],
    weights: &mut [Vector<W, V>],
    sums: &Sequence<cmma::Matrix<f32>>,
    first: usize,
    count: usize,
    power: f32,
    #[comptime] cells: Cells,
    #[comptime] job: Job,
) {
    let (ahead, stages) = comptime!((job.tile.ahead, job.tile.stages));
    let turns = comptime!(if ahead % stages == 0 { ahead } else { ahead * stages });
    // What would lie beyond the last tile is that tile once more, which nobody multiplies: no branch comes between loads
    // and products.
    let last = first + count - 1;
    let mut coming = Sequence::<Fetched<I>>::new();
    #[unroll]
    for i in 0..ahead {
        let mut fetched = Fetched::<I>::new(job);
        fetch(x, quants, side, places, &mut fetched, min(first + i, last), job);
        coming.push(fetched);
    }
    if comptime!(stages == 2) {
        put::<W, V, I>(coming.index(0usize), input, weights, first, 0usize, power, cells, job);
    }
    let mut t = 0usize.runtime();
    while t < count {
        #[unroll]
        for turn in 0..turns {
            let at = t + turn;
            if comptime!(turn == 0) || at < count {
                let own = comptime!(turn % ahead);
                let stage = comptime!(turn % stages).runtime();
                if comptime!(stages == 1) {
                    put::<W, V, I>(coming.index(own), input, weights, first + at, stage, power, cells, job);
                }
                // All have written this tile; with two stages none reads the one before it any more.
                sync_cube();
                let next = min(first + at + ahead, last);
                fetch(x, quants, side, places, coming.index_mut(own), next, job);
                multiply::<W, V>(&*input, &*weights, stage, sums, cells, job);
                if comptime!(stages == 1) {
                    // Nobody reads this tile any more.
                    sync_cube();
                } else if at + 1 < count {
                    let next = comptime!((turn + 1) % ahead);
                    let stage = comptime!((turn + 1) % stages).runtime();
                    put::<W, V, I>(
                        coming.index(next),
                        input,
                        weights,
                        first + at + 1,
                        stage,
                        power,
                        cells,
                        job,
                    );
                }
            }
        }
        t += turns;
    }
}
