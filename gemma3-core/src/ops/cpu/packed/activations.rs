//! The vectors that weights are multiplied with, in the forms that the kernels read.
//!
//! Every form is made of tiles ([`super::tiles`]), and is made when the first matrix asks for it; other
//! matrices share it.

use std::sync::OnceLock;

use half::bf16;
use rayon::prelude::*;

use crate::ops::Precision;

use super::formats::BLOCK;
use super::lanes::{Kernel, Lanes, SimdLevel};
use super::tiles::{FEW_ROWS, MIN_TASK_ELEMENTS, TILE_ROWS, Tile, WIDE_TILE_ROWS, interleaved};

/// Rows of f32 that matrices are multiplied with.
#[derive(Debug)]
pub struct Activations<'a> {
    pub(super) x: &'a [f32],
    pub(super) rows: usize,
    pub(super) in_features: usize,
    pub(super) precision: Precision,
    pub(super) level: SimdLevel,
    bytes: OnceLock<ByteTiles>,
    words: OnceLock<WordTiles>,
    floats: OnceLock<FloatTiles>,
    halves: OnceLock<Vec<[i8; 4]>>,
}

impl<'a> Activations<'a> {
    /// `x` is \[rows, in_features\], row-major.
    ///
    /// # Panics
    ///
    /// When `x` is not `rows * in_features` long: a mistake of the caller, not of its input.
    pub fn new(x: &'a [f32], rows: usize, in_features: usize, precision: Precision) -> Self {
        Self::with_level(x, rows, in_features, precision, SimdLevel::detect())
    }

    /// As [`Activations::new`], to be multiplied with the instructions of `level`.
    pub fn with_level(
        x: &'a [f32],
        rows: usize,
        in_features: usize,
        precision: Precision,
        level: SimdLevel,
    ) -> Self {
        assert_eq!(Some(x.len()), rows.checked_mul(in_features), "x is not [rows, in_features]");
        let (bytes, words, floats, halves) = Default::default();
        Self { x, rows, in_features, precision, level, bytes, words, floats, halves }
    }

    /// Rounded to 8 bits, in tiles of [`TILE_ROWS`] for few rows, else of [`WIDE_TILE_ROWS`].
    pub(super) fn bytes(&self) -> &ByteTiles {
        self.bytes.get_or_init(|| ByteTiles::new(self.x, self.rows, self.in_features, self.level))
    }

    /// Rounded to 14 bits, in tiles of [`WIDE_TILE_ROWS`].
    pub(super) fn words(&self) -> &WordTiles {
        self.words.get_or_init(|| WordTiles::new(self.x, self.rows, self.in_features, self.level))
    }

    /// In f32: in tiles of [`TILE_ROWS`] for few rows, else of [`WIDE_TILE_ROWS`].
    pub(super) fn floats(&self) -> &FloatTiles {
        self.floats.get_or_init(|| FloatTiles::new(self.x, self.rows, self.in_features))
    }

    /// Pairs of bf16, in tiles of [`WIDE_TILE_ROWS`]: per pair of columns one of every row. The number of
    /// columns must be even.
    pub(super) fn halves(&self) -> &[[i8; 4]] {
        self.halves.get_or_init(|| pack_halves(self.x, self.rows, self.in_features))
    }
}

/// Rows rounded to 8 bits with a scale for every 32 columns.
#[derive(Debug)]
pub(super) struct ByteTiles {
    /// Of each row: block, step of four columns.
    pub(super) quants: Vec<[i8; 4]>,
    /// Of each row: block, [`BLOCK_SCALES`].
    pub(super) scales: Vec<f32>,
}

/// What is kept of the scales of a block of a row, in this order: the scale, the sum of the block's
/// rounded elements (in units of `x`), and the sums of its first and second half.
pub(super) const BLOCK_SCALES: usize = 4;
/// Sums of a block in f32: of all elements, and of its first and second half.
pub(super) const BLOCK_SUMS: usize = 3;

impl ByteTiles {
    fn new(x: &[f32], rows: usize, in_features: usize, level: SimdLevel) -> Self {
        let blocks = in_features / BLOCK;
        let quantized = quantize(x, in_features, 127.0, level);
        let row = |row: usize| quantized[row * blocks..][..blocks].iter();
        let max_height = if rows > FEW_ROWS { WIDE_TILE_ROWS } else { TILE_ROWS };
        let steps = |block: &QuantizedBlock| {
            let (steps, _) = block.quants.as_chunks::<4>();
            std::array::from_fn::<_, 8, _>(|step| steps[step].map(|quant| quant as i8))
        };
        Self {
            quants: interleaved(rows, max_height, 8 * blocks, |r| row(r).flat_map(steps)),
            scales: interleaved(rows, max_height, BLOCK_SCALES * blocks, |r| {
                row(r).flat_map(|block| block.scales)
            }),
        }
    }

    /// The tile's [`ByteTiles::quants`] and [`ByteTiles::scales`].
    pub(super) fn tile(&self, tile: Tile, in_features: usize) -> (&[[i8; 4]], &[f32]) {
        let (start, end) = (tile.row * in_features, (tile.row + tile.height) * in_features);
        (
            &self.quants[start / 4..end / 4],
            &self.scales[start / BLOCK * BLOCK_SCALES..end / BLOCK * BLOCK_SCALES],
        )
    }
}

/// Rows rounded to 14 bits with a scale for every 32 columns.
#[derive(Debug)]
pub(super) struct WordTiles {
    /// Of each row: pair of columns, in the order of [`super::formats::WordBlock`].
    pub(super) pairs: Vec<[i16; 2]>,
    /// Of each row: block.
    pub(super) scales: Vec<f32>,
}

/// The largest rounded activation in 14 bits: 32 products with weights of at most 4096 fit 31 bits.
const LARGEST_WORD: f32 = 8191.0;

impl WordTiles {
    fn new(x: &[f32], rows: usize, in_features: usize, level: SimdLevel) -> Self {
        let blocks = in_features / BLOCK;
        let quantized = quantize(x, in_features, LARGEST_WORD, level);
        let row = |row: usize| quantized[row * blocks..][..blocks].iter();
        let pairs = |block: &QuantizedBlock| {
            let (steps, _) = block.quants.as_chunks::<4>();
            std::array::from_fn::<_, 16, _>(|pair| {
                let step = steps[pair / 2];
                [step[pair % 2], step[pair % 2 + 2]]
            })
        };
        Self {
            pairs: interleaved(rows, WIDE_TILE_ROWS, 16 * blocks, |r| row(r).flat_map(pairs)),
            scales: interleaved(rows, WIDE_TILE_ROWS, blocks, |r| row(r).map(|block| block.scales[0])),
        }
    }

    /// The tile's [`WordTiles::pairs`] and [`WordTiles::scales`].
    pub(super) fn tile(&self, tile: Tile, in_features: usize) -> (&[[i16; 2]], &[f32]) {
        let (start, end) = (tile.row * in_features, (tile.row + tile.height) * in_features);
        (&self.pairs[start / 2..end / 2], &self.scales[start / BLOCK..end / BLOCK])
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct QuantizedBlock {
    quants: [i16; BLOCK],
    scales: [f32; BLOCK_SCALES],
}

/// Rounds rows of whole blocks to integers of at most `largest`, on the current thread pool.
fn quantize(x: &[f32], in_features: usize, largest: f32, level: SimdLevel) -> Vec<QuantizedBlock> {
    let mut out = vec![QuantizedBlock::default(); x.len() / BLOCK];
    let task_blocks = MIN_TASK_ELEMENTS / BLOCK;
    if out.len() <= task_blocks {
        level.run(Quantize { x, largest, out: &mut out });
    } else {
        let tasks = out.par_chunks_mut(task_blocks).zip(x.par_chunks(task_blocks * BLOCK));
        tasks.for_each(|(out, x)| level.run(Quantize { x, largest, out }));
    }
    debug_assert!(in_features.is_multiple_of(BLOCK), "rows of whole blocks");
    out
}

/// Rounds consecutive blocks.
struct Quantize<'a> {
    x: &'a [f32],
    largest: f32,
    out: &'a mut [QuantizedBlock],
}

impl Kernel for Quantize<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        // Plain loops, which the compiler turns into vector instructions of the level.
        for (x, out) in self.x.as_chunks::<BLOCK>().0.iter().zip(self.out) {
            let (mut maxima, mut zeros) = ([0.0_f32; 8], [0.0_f32; 8]);
            for x in x.as_chunks::<8>().0 {
                for ((maximum, zero), x) in maxima.iter_mut().zip(&mut zeros).zip(x) {
                    *maximum = if x.abs() > *maximum { x.abs() } else { *maximum };
                    *zero += 0.0 * x;
                }
            }
            let (mut maximum, mut zero) = (0.0_f32, 0.0);
            for (lane, lane_zero) in maxima.into_iter().zip(zeros) {
                maximum = if lane > maximum { lane } else { maximum };
                zero += lane_zero;
            }
            // `zero` is NaN if an element is infinite or NaN, which integers couldn't show.
            let scale = maximum / self.largest + zero;
            let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let mut rounded = [0_i32; BLOCK];
            for (rounded, x) in rounded.iter_mut().zip(x) {
                // Adding and taking off 1.5 * 2^23 rounds to an integer; the low bits of the sum are it.
                let shifted = x * inverse + 12_582_912.0;
                *rounded = shifted.to_bits().cast_signed() - 0x4b40_0000;
            }
            let mut sums = [0_i32; 2];
            for (sum, half) in sums.iter_mut().zip(rounded.as_chunks::<16>().0) {
                *sum = half.iter().sum();
            }
            for (out, rounded) in out.quants.iter_mut().zip(rounded) {
                *out = rounded as i16;
            }
            let [first, second] = sums;
            let (first_sum, second_sum) = (first as f32, second as f32);
            out.scales = [scale, scale * (first + second) as f32, scale * first_sum, scale * second_sum];
        }
    }
}

/// Rows in f32, and sums of their blocks.
#[derive(Debug)]
pub(super) struct FloatTiles {
    /// Of each row: column.
    pub(super) values: Vec<f32>,
    /// Of each row: block, [`BLOCK_SUMS`]. Empty with more than [`FEW_ROWS`].
    pub(super) sums: Vec<f32>,
}

impl FloatTiles {
    fn new(x: &[f32], rows: usize, in_features: usize) -> Self {
        let row = |row: usize| &x[row * in_features..][..in_features];
        if rows > FEW_ROWS {
            let values = interleaved(rows, WIDE_TILE_ROWS, in_features, |r| row(r).iter().copied());
            return Self { values, sums: Vec::new() };
        }
        let sums = |r| row(r).as_chunks::<BLOCK>().0.iter().flat_map(block_sums);
        Self {
            values: interleaved(rows, TILE_ROWS, in_features, |r| row(r).iter().copied()),
            sums: interleaved(rows, TILE_ROWS, in_features / BLOCK * BLOCK_SUMS, sums),
        }
    }

    /// The tile's [`FloatTiles::values`].
    pub(super) fn values(&self, tile: Tile, in_features: usize) -> &[f32] {
        &self.values[tile.row * in_features..(tile.row + tile.height) * in_features]
    }

    /// The tile's [`FloatTiles::sums`].
    pub(super) fn sums(&self, tile: Tile, in_features: usize) -> &[f32] {
        let row_sums = in_features / BLOCK * BLOCK_SUMS;
        &self.sums[tile.row * row_sums..(tile.row + tile.height) * row_sums]
    }
}

fn block_sums(x: &[f32; BLOCK]) -> [f32; BLOCK_SUMS] {
    let (first, second) = x.split_at(BLOCK / 2);
    let (first, second): (f32, f32) = (first.iter().sum(), second.iter().sum());
    [first + second, first, second]
}

fn pack_halves(x: &[f32], rows: usize, in_features: usize) -> Vec<[i8; 4]> {
    let pair = |x: &[f32; 2]| {
        let [[a, b], [c, d]] = x.map(|x| bf16::from_f32(x).to_le_bytes().map(u8::cast_signed));
        [a, b, c, d]
    };
    interleaved(rows, WIDE_TILE_ROWS, in_features / 2, |row| {
        x[row * in_features..][..in_features].as_chunks::<2>().0.iter().map(pair)
    })
}
