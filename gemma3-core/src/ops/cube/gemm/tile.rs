//! How a product of many rows is divided on tensor cores.

use crate::ops::cube::packed::Layout;

/// Columns of a tile in shared memory: 128 bytes of bf16.
pub(super) const DEPTH: usize = 64;
/// Chunks of 16 bytes in a row of a tile.
pub(super) const ROW_CHUNKS: usize = 8;

/// The instruction that multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Planes multiply fragments in registers (`mma`, from compute capability 8.0 on).
    Planes,
    /// Groups of four planes multiply tiles in shared memory (`wgmma`, compute capability 9.0).
    Warpgroups,
}

/// The part of a product that a cube makes, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// What multiplies.
    pub engine: Engine,
    /// Rows of the input: a multiple of 16 times [`Self::planes_m`].
    pub m: usize,
    /// Rows of the matrix: a multiple of 16 times [`Self::planes_n`].
    pub n: usize,
    /// Planes side by side along the rows of the input. Of warpgroups all planes are, with 16 rows each.
    pub planes_m: usize,
    /// Planes side by side along the rows of the matrix.
    pub planes_n: usize,
    /// Tiles of columns in shared memory at once.
    pub stages: usize,
    /// Parts into which the columns are divided, each made by cubes of its own.
    pub splits: usize,
    /// Whether copies of BF16 tiles are begun while warpgroups multiply, not before.
    pub overlapped: bool,
}

impl Tile {
    /// A tile for `mma`.
    pub const fn planes(m: usize, n: usize, planes_m: usize, planes_n: usize, stages: usize) -> Self {
        Self { engine: Engine::Planes, m, n, planes_m, planes_n, stages, splits: 1, overlapped: false }
    }

    /// A tile for `wgmma`.
    pub const fn warpgroups(m: usize, n: usize, stages: usize) -> Self {
        Self {
            engine: Engine::Warpgroups,
            m,
            n,
            planes_m: m / 16,
            planes_n: 1,
            stages,
            splits: 1,
            overlapped: false,
        }
    }

    /// The same with the columns in about `splits` parts, none of which is empty.
    pub const fn split(self, splits: usize, layout: &Layout) -> Self {
        let tiles = layout.cols.div_ceil(DEPTH);
        Self { splits: tiles.div_ceil(tiles.div_ceil(splits)), ..self }
    }

    /// The same with copies beside the products.
    pub const fn overlapped(self) -> Self {
        Self { overlapped: true, ..self }
    }

    /// Units of a cube.
    pub const fn units(&self) -> usize {
        32 * self.planes_m * self.planes_n
    }

    /// Bytes of shared memory.
    pub const fn shared_bytes(&self) -> usize {
        self.stages * (self.m + self.n) * DEPTH * 2
    }

    /// Tiles of 16 rows of a plane.
    pub(super) const fn plane_m(&self) -> usize {
        self.m / (16 * self.planes_m)
    }

    /// Tiles of 8 columns of a plane's results.
    pub(super) const fn plane_n(&self) -> usize {
        self.n / (8 * self.planes_n)
    }

    /// Sums that a unit keeps.
    pub(super) const fn sums(&self) -> usize {
        self.plane_m() * self.plane_n() * 4
    }
}
