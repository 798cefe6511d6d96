//! How a product of many rows is divided on tensor cores.

use crate::ops::cube::packed::Layout;

/// Columns of a tile in shared memory where PTX addresses it: 128 bytes of bf16. Rows of halves are filled up to them.
pub(super) const DEPTH: usize = 64;
/// Chunks of 16 bytes in a row of such a tile.
pub(super) const ROW_CHUNKS: usize = 8;
/// Rows and columns of a cooperative matrix.
pub(super) const SIDE: usize = 16;
/// Halves between two rows of a tile of cooperative matrices, so that eight rows lie in different banks.
const PADDING: usize = 8;

/// The instruction that multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Planes multiply fragments of bf16 in registers (`mma`, from compute capability 8.0 on).
    Planes,
    /// Groups of four planes multiply tiles of bf16 in shared memory (`wgmma`, compute capability 9.0).
    Warpgroups,
    /// Planes multiply cooperative matrices of f16, whose places in registers are the device's own affair (Vulkan's
    /// `VK_KHR_cooperative_matrix`, `wmma`).
    Cooperative,
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
    /// Columns in shared memory: 64 but of cooperative matrices, where it is 16, 32 or 64.
    pub depth: usize,
    /// Planes side by side along the rows of the input. Of warpgroups all planes are, with 16 rows each.
    pub planes_m: usize,
    /// Planes side by side along the rows of the matrix.
    pub planes_n: usize,
    /// Units of a plane; 32 but of cooperative matrices, where it is a multiple of 8 up to 128.
    pub plane_units: usize,
    /// Tiles of columns in shared memory at once.
    pub stages: usize,
    /// Parts into which the columns are divided, each made by cubes of its own.
    pub splits: usize,
    /// Whether copies of BF16 tiles are begun while warpgroups multiply, not before.
    pub overlapped: bool,
    /// Tiles of columns that are on their way into registers while one is multiplied: 1 but of cooperative matrices.
    pub ahead: usize,
}

impl Tile {
    /// A tile for `mma`.
    pub const fn planes(m: usize, n: usize, planes_m: usize, planes_n: usize, stages: usize) -> Self {
        Self {
            engine: Engine::Planes,
            m,
            n,
            depth: DEPTH,
            planes_m,
            planes_n,
            plane_units: 32,
            stages,
            splits: 1,
            overlapped: false,
            ahead: 1,
        }
    }

    /// A tile for `wgmma`.
    pub const fn warpgroups(m: usize, n: usize, stages: usize) -> Self {
        Self { engine: Engine::Warpgroups, ..Self::planes(m, n, m / 16, 1, stages) }
    }

    /// A tile for cooperative matrices, with one or two stages. Gated products need an even number of matrices along
    /// the rows of a plane.
    pub const fn cooperative(
        [m, n, depth]: [usize; 3],
        [planes_m, planes_n]: [usize; 2],
        stages: usize,
    ) -> Self {
        Self { engine: Engine::Cooperative, depth, ..Self::planes(m, n, planes_m, planes_n, stages) }
    }

    /// The same with the columns in about `splits` parts, none of which is empty.
    pub const fn split(self, splits: usize, layout: &Layout) -> Self {
        let tiles = layout.cols.div_ceil(self.depth);
        Self { splits: tiles.div_ceil(tiles.div_ceil(splits)), ..self }
    }

    /// The same with copies beside the products.
    pub const fn overlapped(self) -> Self {
        Self { overlapped: true, ..self }
    }

    /// The same with `ahead` tiles on their way.
    pub const fn ahead(self, ahead: usize) -> Self {
        Self { ahead, ..self }
    }

    /// Planes of a cube.
    pub const fn plane_count(&self) -> usize {
        self.planes_m * self.planes_n
    }

    /// Units of a cube.
    pub const fn units(&self) -> usize {
        self.plane_units * self.plane_count()
    }

    /// Bytes of shared memory.
    pub const fn shared_bytes(&self) -> usize {
        let halves = self.stages * (self.m + self.n) * self.row_halves();
        match self.engine {
            Engine::Planes | Engine::Warpgroups => halves * 2,
            Engine::Cooperative => halves * 2 + self.plane_count() * self.bounce_floats() * 4,
        }
    }

    /// Halves from a row of a tile in shared memory to the next.
    pub(super) const fn row_halves(&self) -> usize {
        match self.engine {
            Engine::Planes | Engine::Warpgroups => self.depth,
            Engine::Cooperative => self.depth + PADDING,
        }
    }

    /// Floats from a row to the next of the place where a plane's sums pass through shared memory, a matrix at a time:
    /// four more than it has columns spread them over the banks, where that place is no large part of the memory.
    pub(super) const fn bounce_stride(&self) -> usize {
        if self.plane_count() > 4 { SIDE } else { SIDE + 4 }
    }

    /// Floats of that place.
    pub(super) const fn bounce_floats(&self) -> usize {
        SIDE * self.bounce_stride()
    }

    /// Cooperative matrices of a plane along the rows of the input.
    pub(super) const fn matrices_m(&self) -> usize {
        self.m / (SIDE * self.planes_m)
    }

    /// Cooperative matrices of a plane along the rows of the matrix.
    pub(super) const fn matrices_n(&self) -> usize {
        self.n / (SIDE * self.planes_n)
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
