//! What tiles of f16 lie in, in shared memory.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::super::epilogue::Job;
use crate::ops::cube::SPIRV;

/// Vectors that are written at once, and beginnings of which matrices are loaded from: 16 bytes where that can be, for
/// which devices have the quickest instructions. In SPIR-V matrices may be loaded from vectors of other numbers than
/// theirs, and shared memory of 16-bit numbers would need a capability that cubecl doesn't declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::ops::cube) enum Cells {
    /// Four words of two halves each.
    Words,
    /// Two of these words.
    WordPairs,
    /// Eight halves, where vectors are as long.
    Eights,
    /// Four halves.
    Fours,
}

impl Cells {
    /// Those of a device and a product. Items of F32 have no more than four weights.
    pub(in super::super) fn choose(client: &Client, job: &Job) -> Self {
        let is_short = job.item_weights() < 8;
        match Self::longest(client) {
            Self::Words if is_short => Self::WordPairs,
            Self::Eights if is_short => Self::Fours,
            longest => longest,
        }
    }

    /// The longest of a device.
    pub fn longest(client: &Client) -> Self {
        match client.name() {
            SPIRV => Self::Words,
            _ if client.properties().hardware.max_vector_size >= 8 => Self::Eights,
            _ => Self::Fours,
        }
    }

    /// Whether the vectors are of words, not of halves.
    pub const fn are_words(self) -> bool {
        matches!(self, Self::Words | Self::WordPairs)
    }

    /// Numbers of a vector.
    pub const fn vector_size(self) -> usize {
        match self {
            Self::WordPairs => 2,
            Self::Words | Self::Fours => 4,
            Self::Eights => 8,
        }
    }

    /// Words of a vector.
    pub const fn words(self) -> usize {
        match self {
            Self::Words | Self::Eights => 4,
            Self::WordPairs | Self::Fours => 2,
        }
    }

    /// Vectors of so many halves.
    pub const fn of(self, halves: usize) -> usize {
        halves / (2 * self.words())
    }

    /// What so many halves from a row to the next are in numbers.
    pub const fn stride(self, halves: usize) -> u32 {
        match self {
            Self::Words | Self::WordPairs => halves as u32 / 2,
            Self::Eights | Self::Fours => halves as u32,
        }
    }
}

/// A vector of the words from word `first` on.
#[cube]
pub(in crate::ops::cube) fn cell_of<W: Numeric, V: Size, N: Size>(
    words: Vector<u32, N>,
    #[comptime] first: usize,
    #[comptime] cells: Cells,
) -> Vector<W, V> {
    if comptime!(cells.words() == 4) {
        Vector::<W, V>::reinterpret(part::<N, Const<4>>(words, first))
    } else {
        Vector::<W, V>::reinterpret(part::<N, Const<2>>(words, first))
    }
}

#[cube]
fn part<N: Size, P: Size>(words: Vector<u32, N>, #[comptime] first: usize) -> Vector<u32, P> {
    let count = P::value();
    let mut part = Vector::<u32, P>::empty();
    #[unroll]
    for i in 0..count {
        part.insert(i, words.extract(comptime!(first + i)));
    }
    part
}
