//! How the work is divided, and what of it a device can do.

use cubecl::client::Client;
use cubecl::features::Plane;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::super::PrefillAttention;
use super::super::tensor::Operands;
use crate::ops::cube::attention::cache::CacheFormat;
use crate::ops::cube::gemm::{Cells, RowFormat};
use crate::ops::cube::reduce::Groups;

/// Rows and columns of a matrix.
pub(super) const SIDE: usize = 16;

/// How a cube divides its queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CooperativeTile {
    /// Units of a plane: 32 or 64.
    pub plane_units: usize,
    /// Rows of queries that a plane holds, in 16s: 1 or 2.
    pub sixteens: usize,
    /// Planes of a cube.
    pub planes: usize,
    /// Keys of a block; a multiple of 16.
    pub keys: usize,
    /// Whether the queries stay in the planes' registers; in shared memory otherwise.
    pub holds: bool,
    /// Whether keys and values have shared memory of their own; otherwise they take turns, and wait for each other.
    pub apart: bool,
    /// Whether units fetch what is multiplied next while they multiply.
    pub ahead: bool,
    /// Whether that are the next block's keys and values together, which have a whole block's time to come; they have to
    /// be apart.
    pub together: bool,
    /// What shared memory is made of: vectors that are aligned as a device's quickest loads of matrices ask for.
    pub(in crate::ops::cube) cells: Cells,
}

/// The constants of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::ops::cube::attention) struct CooperativeShape {
    pub attention: PrefillAttention,
    pub tile: CooperativeTile,
    /// Rows are those of [`RowFormat::F16`].
    pub operands: Operands,
    /// What the attended values become: f32 or f16, in rows that are full.
    pub out: RowFormat,
}

impl CooperativeTile {
    /// The fastest for a device.
    pub fn choose(client: &Client, attention: &PrefillAttention) -> Option<Self> {
        let plane_units = client.properties().hardware.plane_size_max as usize;
        let tile = |sixteens, planes, keys, [apart, ahead]: [bool; 2]| Self {
            plane_units,
            sixteens,
            planes,
            keys,
            holds: true,
            apart,
            ahead,
            together: false,
            cells: Cells::longest(client),
        };
        // The quickest on an H100. Long heads leave no registers for what is fetched ahead.
        let first = match attention.cache.head_dim > 128 {
            true => tile(1, 4, 32, [true, false]),
            false => tile(2, 2, 32, [false, true]),
        };
        let tiles = [first, tile(1, 2, 32, [false, true])];
        tiles.into_iter().find(|tile| tile.runs(client, attention))
    }

    /// Whether a device can run it.
    pub fn runs(&self, client: &Client, attention: &PrefillAttention) -> bool {
        let half = ElemType::Float(FloatKind::F16);
        let multiply = MmaConfig {
            a_type: half,
            b_type: half,
            cd_type: ElemType::Float(FloatKind::F32),
            m: SIDE as u32,
            n: SIDE as u32,
            k: SIDE as u32,
        };
        let (features, hardware) = (client.features(), &client.properties().hardware);
        let (operands, out) = (Operands::Rows, RowFormat::F32);
        let shape = CooperativeShape { attention: *attention, tile: *self, operands, out };
        attention.cache.format == CacheFormat::F16
            // Units share rows of scores, a whole number of units each.
            && self.plane_units >= SIDE
            && self.plane_units.is_multiple_of(SIDE)
            && shape.share().is_multiple_of(2)
            && (!self.together || (self.apart && self.ahead))
            && (!self.holds || SIDE * self.planes <= shape.block_rows())
            && features.matmul.cmma.contains(&multiply)
            && features.plane.contains(Plane::Ops)
            && features.plane.contains(Plane::Sync)
            && hardware.plane_size_min as usize == self.plane_units
            && hardware.plane_size_max as usize == self.plane_units
            && shape.units() <= hardware.max_units_per_cube as usize
            && shape.shared_bytes() <= hardware.max_shared_memory_size
    }
}

impl CooperativeShape {
    /// The cubes of `tokens` queries of each of some sequences.
    pub fn cubes(&self, tokens: usize, sequences: usize) -> CubeCount {
        let tiles = (tokens * self.shared_by()).div_ceil(self.rows());
        CubeCount::Static(tiles as u32, self.attention.cache.kv_heads as u32, sequences as u32)
    }

    /// The dimensions of a cube.
    pub fn dim(&self) -> CubeDim {
        CubeDim::new_2d(self.tile.plane_units as u32, self.tile.planes as u32)
    }

    /// All planes as one group.
    pub(super) const fn group(&self) -> Groups {
        let CooperativeTile { plane_units, planes, .. } = self.tile;
        Groups { plane_units, lanes: plane_units, planes, groups: 1, plane_operations: true }
    }

    /// Whether rows have factors, as they have in [`RowFormat::F16`].
    pub(super) const fn has_factors(&self) -> bool {
        matches!(self.operands, Operands::Rows)
    }

    /// Whether no block of keys ends beyond the last key.
    pub(super) const fn is_whole(&self) -> bool {
        matches!(self.operands, Operands::Rows) && self.attention.cache.slots.is_multiple_of(self.tile.keys)
    }

    /// Whether a row's sum of weights is a column of what it attends to: that of ones, where values are filled up to 16s.
    pub(super) const fn sums_in_column(&self) -> bool {
        self.eights() % 2 == 1
    }

    /// Numbers of a row of queries.
    pub(super) const fn width(&self) -> usize {
        self.attention.heads * self.attention.cache.head_dim
    }

    /// Query heads that share a key head.
    pub(super) const fn shared_by(&self) -> usize {
        self.attention.heads / self.attention.cache.kv_heads
    }

    /// Rows of queries of a cube.
    pub(super) const fn rows(&self) -> usize {
        SIDE * self.tile.sixteens * self.tile.planes
    }

    pub(super) const fn units(&self) -> usize {
        self.tile.plane_units * self.tile.planes
    }

    /// Eights of a head's numbers.
    pub(super) const fn eights(&self) -> usize {
        self.attention.cache.head_dim / 8
    }

    /// Eights from one row of queries to the next.
    pub(super) const fn query_stride(&self) -> usize {
        match self.operands {
            Operands::Cached => self.width() / 8,
            Operands::Rows => RowFormat::F16.row_words(self.width()) / 4,
        }
    }

    /// Eights from one key to the next.
    pub(super) const fn key_stride(&self) -> usize {
        match self.operands {
            Operands::Cached => self.eights(),
            Operands::Rows => self.query_stride(),
        }
    }

    /// Eights from one head of keys to the next.
    pub(super) const fn head_stride(&self) -> usize {
        match self.operands {
            Operands::Cached => self.attention.cache.slots * self.eights(),
            Operands::Rows => self.eights(),
        }
    }

    /// Eights from the keys of one sequence to those of the next.
    pub(super) const fn sequence_stride(&self) -> usize {
        match self.operands {
            Operands::Cached => self.attention.cache.kv_heads * self.head_stride(),
            Operands::Rows => self.attention.cache.slots * self.key_stride(),
        }
    }

    /// 16s of a head's numbers, the last of them filled up with zeros.
    pub(super) const fn steps(&self) -> usize {
        self.attention.cache.head_dim.div_ceil(SIDE)
    }

    /// Halves from one row in shared memory to the next: 16 bytes more than multiples of 32, so that eight rows lie in
    /// different banks.
    pub(super) const fn stride(&self) -> usize {
        SIDE * self.steps() + 8
    }

    /// Rows of keys and values in shared memory; those of queries come after them.
    pub(super) const fn block_rows(&self) -> usize {
        if self.tile.apart { 2 * self.tile.keys } else { self.tile.keys }
    }

    /// Rows of keys, values and queries in shared memory.
    pub(super) const fn memory_rows(&self) -> usize {
        self.block_rows() + if self.tile.holds { 0 } else { self.rows() }
    }

    /// 16 keys each.
    pub(super) const fn columns(&self) -> usize {
        self.tile.keys / SIDE
    }

    /// Numbers from one row of scores to the next.
    pub(super) const fn score_stride(&self) -> usize {
        self.tile.keys + 4
    }

    /// Halves from one row of weights to the next.
    pub(super) const fn weight_stride(&self) -> usize {
        self.tile.keys + 8
    }

    /// Units that share a row of scores.
    pub(super) const fn row_units(&self) -> usize {
        self.tile.plane_units / SIDE
    }

    /// Quads of a row of scores that a unit has.
    pub(super) const fn share(&self) -> usize {
        self.tile.keys / (4 * self.row_units())
    }

    /// Eights of a block of keys or values that a unit copies.
    pub(super) const fn fetched(&self) -> usize {
        (self.tile.keys * self.eights()).div_ceil(self.units())
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self) -> usize {
        let scores = SIDE * (4 * self.score_stride() + 2 * self.weight_stride());
        // The largest factors of keys and values, by plane.
        let factors = if self.has_factors() { 8 * self.tile.planes } else { 0 };
        2 * self.memory_rows() * self.stride() + self.tile.planes * scores + factors
    }
}
