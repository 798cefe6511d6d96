//! How a product without matrix hardware is divided: the outputs that a unit keeps in registers, and the tile that a
//! cube makes of them.
//!
//! A unit reads four columns of `unit_m` rows of the input and of `unit_n` rows of the matrix from shared memory and
//! multiplies each with each, so the more outputs it keeps, the less it reads for each. Tiles fill at most 16 KiB of
//! shared memory and 256 units, which every device of WebGPU has.

use super::rows::RowFormat;
use crate::ops::cube::packed::Layout;

/// The fewest columns of a part, where columns are divided.
const PART_COLS: usize = 256;
/// The most parts, and the most rows of which there are some: those of a launch's second axis, and fewer.
const MAX_SPLITS: usize = 8;
const MAX_SPLIT_ROWS: usize = 8192;

/// The numbers that are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Numbers {
    /// f32.
    F32,
    /// f16, of which units multiply two at a time.
    F16,
}

impl Numbers {
    /// The rows of the input.
    pub const fn row_format(self) -> RowFormat {
        match self {
            Self::F32 => RowFormat::F32,
            Self::F16 => RowFormat::F16,
        }
    }

    /// Bytes of a number.
    const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// The part of such a product that a cube makes, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegisterTile {
    /// What is multiplied.
    pub numbers: Numbers,
    /// Rows of the input that a unit works on.
    pub unit_m: usize,
    /// Rows of the matrix that a unit works on: a multiple of 4.
    pub unit_n: usize,
    /// Units along the rows of the input: a multiple of 8.
    pub units_m: usize,
    /// Units along the rows of the matrix: a multiple of 8.
    pub units_n: usize,
    /// Columns that are in shared memory at once: 16 or 32, of f16 twice as many.
    pub depth: usize,
    /// Parts into which the columns are divided, each made by cubes of its own.
    pub splits: usize,
}

impl RegisterTile {
    /// Units of `unit_m` by `unit_n` outputs, `units_m` by `units_n` of them.
    pub const fn new([unit_m, unit_n]: [usize; 2], [units_m, units_n]: [usize; 2], depth: usize) -> Self {
        Self { numbers: Numbers::F32, unit_m, unit_n, units_m, units_n, depth, splits: 1 }
    }

    /// The same of other numbers, in as many bytes.
    pub const fn of(self, numbers: Numbers) -> Self {
        Self { numbers, depth: self.depth * self.numbers.bytes() / numbers.bytes(), ..self }
    }

    /// The tiles that products are made of, in f32, those with the fewest rows first.
    pub const ALL: [Self; 7] = [
        Self::new([2, 4], [8, 16], 32),
        Self::new([4, 4], [8, 16], 32),
        Self::new([8, 4], [8, 16], 16),
        Self::new([8, 8], [8, 8], 16),
        Self::new([8, 8], [8, 16], 16),
        Self::new([8, 8], [16, 8], 16),
        Self::new([8, 8], [16, 16], 16),
    ];

    /// Rows of the input.
    pub const fn m(&self) -> usize {
        self.unit_m * self.units_m
    }

    /// Rows of the matrix.
    pub const fn n(&self) -> usize {
        self.unit_n * self.units_n
    }

    /// Units of a cube.
    pub const fn units(&self) -> usize {
        self.units_m * self.units_n
    }

    /// Bytes of shared memory.
    pub const fn shared_bytes(&self) -> usize {
        (self.m() + self.n()) * self.depth * self.numbers.bytes()
    }

    /// The same with the columns in about `splits` parts, none of which is empty.
    pub const fn split(self, splits: usize, layout: &Layout) -> Self {
        let tiles = layout.cols.div_ceil(self.depth);
        Self { splits: tiles.div_ceil(tiles.div_ceil(splits)), ..self }
    }

    /// The tile and the parts that take the least time by [`work`](Self::work), on so many multiprocessors. Without
    /// `divided` there is one part: a row's sums then are the same whatever other rows there are.
    pub fn choose(
        numbers: Numbers,
        multiprocessors: usize,
        layout: &Layout,
        rows: usize,
        divided: bool,
    ) -> Self {
        let divided = divided && rows <= MAX_SPLIT_ROWS;
        let most = (layout.cols / PART_COLS).clamp(1, if divided { MAX_SPLITS } else { 1 });
        let tiles = Self::ALL.into_iter().flat_map(|tile| (1..=most).map(move |splits| (tile, splits)));
        let wide = Self::class(rows);
        let tiles = tiles.map(|(tile, splits)| tile.of(numbers).split(splits, layout));
        tiles.min_by_key(|tile| tile.work(multiprocessors, layout, wide)).unwrap_or(Self::ALL[0])
    }

    /// The number of rows as which so many are planned: few kernels, and few to compile beforehand.
    pub const fn class(rows: usize) -> usize {
        let class = rows.next_power_of_two();
        if class < 16 { 16 } else { class }
    }

    /// About how long a product takes, in multiply-adds of a multiprocessor.
    fn work(&self, multiprocessors: usize, layout: &Layout, rows: usize) -> usize {
        /// Units that keep a multiprocessor busy.
        const BUSY_UNITS: usize = 256;
        /// What a cube's beginning and end cost, in columns.
        const EDGE_COLS: usize = 48;
        /// Multiply-adds in the time in which a multiprocessor moves a byte of memory, and in that of a launch.
        const BYTE_WORK: usize = 14;
        const LAUNCH_WORK: usize = 600_000;
        let cubes = rows.div_ceil(self.m()) * layout.rows.div_ceil(self.n()) * self.splits;
        let rounds = cubes.div_ceil(multiprocessors).max(BUSY_UNITS / self.units());
        let columns = layout.cols.div_ceil(self.splits) + EDGE_COLS;
        let products = rounds * self.m() * self.n() * columns * 100 / self.percent();
        if self.splits == 1 {
            return products;
        }
        let bytes = 2 * self.splits * rows * layout.rows * size_of::<f32>();
        products + bytes * BYTE_WORK / multiprocessors + LAUNCH_WORK
    }

    /// Multiply-adds of the units, of a hundred that a multiprocessor could do: the others wait for what they read.
    const fn percent(&self) -> usize {
        match self.unit_m * self.unit_n {
            64 => 70,
            32 => 55,
            16 => 40,
            _ => 25,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::TensorFormat;
    use crate::ops::cube::gemm::registers::RUN;

    #[test]
    fn every_tile_fits_every_device() {
        for tile in RegisterTile::ALL {
            assert_eq!(tile.of(Numbers::F16).shared_bytes(), tile.shared_bytes());
            assert!(tile.of(Numbers::F16).depth.is_multiple_of(RUN));
            assert!(tile.shared_bytes() <= 16 << 10 && tile.units() <= 256, "{tile:?}");
            assert!(tile.unit_n.is_multiple_of(4) && [16, 32].contains(&tile.depth), "{tile:?}");
            assert!(tile.units_m.is_multiple_of(8) && tile.units_n.is_multiple_of(8), "{tile:?}");
        }
    }

    #[test]
    fn no_part_of_the_columns_is_empty() {
        for cols in [64, 260, 1152, 6912, 10240] {
            let layout = Layout::new(TensorFormat::BF16, 1152, cols).unwrap();
            for rows in [1, 17, 64, 300, 5000] {
                let tile = RegisterTile::choose(Numbers::F32, 64, &layout, rows, true);
                let tiles = cols.div_ceil(tile.depth);
                assert!((tile.splits - 1) * tiles.div_ceil(tile.splits) < tiles, "{tile:?}");
                assert_eq!(RegisterTile::choose(Numbers::F32, 64, &layout, rows, false).splits, 1);
            }
        }
    }

    #[test]
    fn few_rows_are_few_classes() {
        let layout = Layout::new(TensorFormat::Q4_0, 1152, 6912).unwrap();
        let tiles: Vec<_> =
            (9..=64).map(|rows| RegisterTile::choose(Numbers::F16, 132, &layout, rows, true)).collect();
        let mut classes = tiles.clone();
        classes.dedup();
        assert!(classes.len() <= 3, "{classes:?}");
        assert!(classes.iter().all(|tile| tile.splits > 1), "18 tiles for 132 processors: {classes:?}");
    }
}
