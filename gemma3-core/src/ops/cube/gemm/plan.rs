//! Which kernel makes a product, and how it is divided.

use cubecl::client::Client;
use cubecl::features::Plane;
use cubecl::ir::features::{MmaConfig, TypeUsage};
use cubecl::ir::{ElemType, FloatKind};

use super::register_tile::{Numbers, RegisterTile};
use super::rows::RowFormat;
use super::tile::{DEPTH, Engine, SIDE, Tile};
use crate::formats::TensorFormat;
use crate::ops::Precision;
use crate::ops::cube::SPIRV;
use crate::ops::cube::packed::Layout;

/// A kernel and its division of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plan {
    /// Multiply-adds in registers: exact ones of f32, or others of f16.
    Registers(RegisterTile),
    /// Tensor cores.
    Tensor(Tile),
}

/// What of a device decides over plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// The best matrix instruction, if there is one.
    pub engine: Option<Engine>,
    /// Units of a plane where there are cooperative matrices.
    pub plane_units: usize,
    /// Bytes of shared memory of a cube.
    pub shared_bytes: usize,
    /// Multiprocessors; a guess for devices that don't say.
    pub multiprocessors: usize,
    /// Whether the columns of products in registers may be divided, where there are too few tiles for the device.
    pub divided: bool,
    /// Whether fast products in registers are of f16.
    pub halves: bool,
}

/// The most rows of input that are one tile of planes, so that weights are read once.
const SMALL: usize = 64;
/// Multiprocessors of a device that doesn't say.
const DEFAULT_MULTIPROCESSORS: usize = 64;
/// The same of one with cooperative matrices, as the largest have: a small one loses little time by parts that it need not
/// have divided, a large one most of its time where too few cubes share the work.
const COOPERATIVE_MULTIPROCESSORS: usize = 128;

impl Processor {
    /// Reads the properties of a client's device.
    pub fn of(client: &Client) -> Self {
        let properties = client.properties();
        let features = &properties.features;
        let bf16 = ElemType::Float(FloatKind::BF16);
        // `ldmatrix` is reported where kernels are compiled for NVIDIA's instructions, and asynchronous
        // copies from compute capability 8.0 on, as bf16 products are.
        let nvidia = features.matmul.ldmatrix.contains(&bf16) && features.copy_async;
        let hopper = properties.identity.fingerprint == "ptx_sm90";
        let engine = match (nvidia, hopper) {
            (true, true) => Some(Engine::Warpgroups),
            (true, false) => Some(Engine::Planes),
            (false, _) => has_cooperative(client).then_some(Engine::Cooperative),
        };
        let default = match engine {
            Some(Engine::Cooperative) => COOPERATIVE_MULTIPROCESSORS,
            _ => DEFAULT_MULTIPROCESSORS,
        };
        let multiprocessors = properties.hardware.num_streaming_multiprocessors;
        Self {
            engine,
            plane_units: properties.hardware.plane_size_max as usize,
            shared_bytes: properties.hardware.max_shared_memory_size,
            multiprocessors: multiprocessors.map_or(default, |count| count as usize),
            divided: true,
            halves: engine.is_none() && multiplies_halves(client),
        }
    }

    /// The same for products of a precision. In exact mode the sums of a row don't depend on how many rows there are,
    /// so their columns are not divided.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { divided: precision == Precision::Fast, ..self }
    }

    /// The rows of activations that products of this precision take.
    pub fn row_format(&self, precision: Precision) -> RowFormat {
        match (precision, self.engine) {
            (Precision::Fast, Some(engine)) => engine.row_format(),
            (Precision::Fast, None) if self.halves => RowFormat::F16,
            _ => RowFormat::F32,
        }
    }

    /// The plan for `rows` rows of a format. `gated`: a gate over an up projection.
    pub fn plan(&self, layout: &Layout, format: RowFormat, rows: usize, gated: bool) -> Plan {
        match self.engine {
            Some(engine) if engine.row_format() == format => {
                Plan::Tensor(self.tile(engine, layout, rows, gated))
            }
            _ => {
                let numbers = if format == RowFormat::F16 { Numbers::F16 } else { Numbers::F32 };
                let (processors, divided) = (self.multiprocessors, self.divided);
                Plan::Registers(RegisterTile::choose(numbers, processors, layout, rows, divided))
            }
        }
    }

    fn tile(&self, engine: Engine, layout: &Layout, rows: usize, gated: bool) -> Tile {
        match engine {
            Engine::Cooperative => self.cooperative(layout, rows, gated),
            Engine::Planes | Engine::Warpgroups if rows <= SMALL => {
                let m = rows.next_multiple_of(16).next_power_of_two();
                self.filled(Tile::planes(m, 64, 1, 4, 4), layout, rows, 2)
            }
            Engine::Planes => self.filled(Tile::planes(128, 128, 2, 4, 3), layout, rows, 1),
            Engine::Warpgroups => self.warpgroups(layout, rows, gated),
        }
    }

    /// Of few rows, the largest tile of cooperative matrices that fits the device and is no larger than the product; of
    /// many, the one that takes the fewest cycles by [`cooperative_cycles`](Self::cooperative_cycles), the same up to
    /// the next power of two: so a warm-up can name all kernels, whose compilation takes long there.
    fn cooperative(&self, layout: &Layout, rows: usize, gated: bool) -> Tile {
        let fits = |tile: &Tile| tile.shared_bytes() <= self.shared_bytes;
        if rows <= SMALL {
            let tiles = [
                Tile::cooperative([64, 128, 32], [1, 4], 2),
                Tile::cooperative([64, 64, 32], [2, 2], 2),
                Tile::cooperative([32, 128, 64], [1, 4], 2),
                Tile::cooperative([32, 128, 32], [1, 4], 2),
                Tile::cooperative([16, 128, 64], [1, 4], 2),
                Tile::cooperative([16, 128, 32], [1, 4], 2),
            ];
            let mut tiles = tiles.map(|tile| self.of_planes(tile)).into_iter();
            let tile = tiles.find(|tile| fits(tile) && (tile.m < 2 * rows || tile.m == SIDE));
            return self.filled(tile.unwrap_or(self.of_planes(SMALLEST)), layout, rows, 2);
        }
        let tiles = [
            Tile::cooperative([256, 128, 32], [4, 2], 1),
            Tile::cooperative([128, 128, 32], [2, 4], 2),
            Tile::cooperative([128, 128, 32], [2, 2], 2),
            Tile::cooperative([128, 128, 32], [2, 2], 1),
            Tile::cooperative([128, 64, 32], [2, 2], 2),
            Tile::cooperative([64, 64, 32], [2, 2], 2),
        ];
        // Their widths divide what else leaves the last round of multiprocessors nearly idle: 1,152, 1,536 or 2,560
        // outputs. Gates want an even number of matrices.
        let between = [
            Tile::cooperative([128, 144, 32], [4, 1], 2),
            Tile::cooperative([128, 160, 32], [2, 2], 1),
            Tile::cooperative([128, 192, 32], [2, 4], 1),
        ];
        let between = between.into_iter().filter(|_| !gated);
        let rows = rows.next_power_of_two();
        let mut best = (u64::MAX, self.of_planes(SMALLEST));
        let all = tiles.into_iter().chain(between).map(|tile| self.of_planes(tile).ahead(AHEAD));
        for tile in all.filter(fits) {
            for splits in (1..=8).take_while(|splits| *splits == 1 || layout.cols >= 512 * splits) {
                let tile = tile.split(splits, layout);
                let cycles = self.cooperative_cycles(&tile, layout, rows, gated);
                if cycles < best.0 {
                    best = (cycles, tile);
                }
            }
        }
        best.1
    }

    /// About how long a product of cooperative matrices takes: tiles one after the other on each multiprocessor, and
    /// adding up the parts.
    fn cooperative_cycles(&self, tile: &Tile, layout: &Layout, rows: usize, gated: bool) -> u64 {
        let rounds = (self.cubes(tile, layout, rows) * tile.splits).div_ceil(self.multiprocessors);
        let steps = layout.cols.div_ceil(tile.depth * tile.splits);
        // Planes read what they multiply, and write a tile once, at 128 bytes a cycle.
        let read = tile.plane_count() * (tile.m / tile.planes_m + tile.n / tile.planes_n);
        let moved = (read + tile.m + tile.n) * tile.depth * 2 / 128;
        let multiplied = tile.m * tile.n * tile.depth / 1270;
        // All planes wait for each other, while those of another cube multiply.
        let cubes = rounds * steps * (moved.max(multiplied) + 200);
        (cubes + Self::adding_cycles(tile, layout, rows, gated)) as u64
    }

    /// About how long it takes to write outputs, and to add up parts before: at about 1,500 bytes a cycle, parts by a
    /// launch of its own.
    fn adding_cycles(tile: &Tile, layout: &Layout, rows: usize, gated: bool) -> usize {
        let parts = if tile.splits > 1 { rows * layout.rows * 2 * tile.splits * 4 / 1500 + 5000 } else { 0 };
        // The gate and its up projection are outputs of half the width.
        let outputs = if gated { rows * layout.rows / 2 } else { rows * layout.rows };
        parts + outputs * 2 / 1500
    }

    /// The same with planes of the device's size.
    pub(super) const fn of_planes(&self, tile: Tile) -> Tile {
        Tile { plane_units: self.plane_units, ..tile }
    }

    /// The tile of warpgroups that takes the fewest cycles by [`cycles`](Self::cycles).
    fn warpgroups(&self, layout: &Layout, rows: usize, gated: bool) -> Tile {
        // While packed weights become bf16, another cube has to multiply: two of them have to fit.
        let (widest, most_stages) = if layout.format == TensorFormat::BF16 { (256, 4) } else { (128, 3) };
        let mut best = (u64::MAX, Tile::warpgroups(128, 128, 3));
        for n in (64..=widest).rev().step_by(16) {
            for splits in 1..=4 {
                let stages =
                    (self.shared_bytes / Tile::warpgroups(128, n, 1).shared_bytes()).clamp(2, most_stages);
                let tile = Tile::warpgroups(128, n, stages).overlapped().split(splits, layout);
                if tile.splits > 1 && layout.cols < 512 * tile.splits {
                    continue;
                }
                let cycles = self.cycles(&tile, layout, rows, gated);
                if cycles < best.0 {
                    best = (cycles, tile);
                }
            }
        }
        best.1
    }

    /// About how long a product takes: rounds of cubes, one on each multiprocessor, and adding up the parts.
    fn cycles(&self, tile: &Tile, layout: &Layout, rows: usize, gated: bool) -> u64 {
        let rounds = (self.cubes(tile, layout, rows) * tile.splits).div_ceil(self.multiprocessors);
        let depth = layout.cols.div_ceil(DEPTH * tile.splits);
        // 16 columns of a tile take 8 warpgroup instructions of `n / 2` cycles for both groups; narrow tiles
        // wait for shared memory. Between tiles all wait for each other.
        let step = (4 * tile.n).max(400) + 100;
        let cubes = rounds * (depth * step + 2500);
        (cubes + Self::adding_cycles(tile, layout, rows, gated)) as u64
    }

    fn cubes(&self, tile: &Tile, layout: &Layout, rows: usize) -> usize {
        rows.div_ceil(tile.m) * layout.rows.div_ceil(tile.n)
    }

    /// Divides the columns until each multiprocessor has about `each` cubes, as long as a part is of at least
    /// four tiles.
    pub(super) fn filled(&self, tile: Tile, layout: &Layout, rows: usize, each: usize) -> Tile {
        let cubes = self.cubes(&tile, layout, rows);
        let most = (layout.cols / (4 * DEPTH)).max(1);
        let splits = (self.multiprocessors * each / cubes).clamp(1, most);
        tile.split(splits, layout)
    }
}

/// Tiles of cooperative matrices that are on their way at once, of many rows.
const AHEAD: usize = 1;

/// The tile of cooperative matrices that every device with these has to have room for.
const SMALLEST: Tile = Tile::cooperative([16, 64, 32], [1, 2], 2);

/// Whether a device multiplies cooperative matrices of f16 into f32, in planes that all have the same size.
pub(crate) fn has_cooperative(client: &Client) -> bool {
    let (features, hardware) = (client.features(), &client.properties().hardware);
    let multiply = MmaConfig {
        a_type: ElemType::Float(FloatKind::F16),
        b_type: ElemType::Float(FloatKind::F16),
        cd_type: ElemType::Float(FloatKind::F32),
        m: SIDE as u32,
        n: SIDE as u32,
        k: SIDE as u32,
    };
    let planes = hardware.plane_size_min;
    features.matmul.cmma.contains(&multiply)
        && features.plane.contains(Plane::Sync)
        && planes == hardware.plane_size_max
        && planes.is_power_of_two()
        && (8..=128).contains(&planes)
        && SMALLEST.shared_bytes() <= hardware.max_shared_memory_size
        && 4 * planes <= hardware.max_units_per_cube
}

/// Whether a device multiplies more f16 than f32: two at a time, as GPUs with 16-bit arithmetic do.
///
/// Not in WGSL: cubecl says there what the adapter has, and the device that an application has opened may lack it.
fn multiplies_halves(client: &Client) -> bool {
    let usage = client.properties().type_usage(ElemType::Float(FloatKind::F16));
    client.name() == SPIRV && usage.is_superset(TypeUsage::Arithmetic | TypeUsage::Buffer)
}

impl Engine {
    /// The rows that it multiplies.
    pub const fn row_format(self) -> RowFormat {
        match self {
            Self::Planes | Self::Warpgroups => RowFormat::Bf16,
            Self::Cooperative => RowFormat::F16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hopper() -> Processor {
        let engine = Some(Engine::Warpgroups);
        Processor {
            engine,
            plane_units: 32,
            shared_bytes: 232_448,
            multiprocessors: 132,
            divided: true,
            halves: false,
        }
    }

    #[test]
    fn every_plan_fits_the_device() {
        for format in TensorFormat::ALL {
            for (rows, cols) in [(1152, 6912), (13824, 1280), (262_144, 256), (4304, 1024)] {
                let layout = Layout::new(format, rows, cols).unwrap();
                for count in [1, 9, 33, 64, 65, 512, 2048, 5000] {
                    for engine in [Engine::Planes, Engine::Warpgroups] {
                        let processor = Processor { engine: Some(engine), ..hopper() };
                        let Plan::Tensor(tile) = processor.plan(&layout, RowFormat::Bf16, count, true) else {
                            panic!("there are tensor cores");
                        };
                        assert!(tile.shared_bytes() <= processor.shared_bytes, "{tile:?}");
                        assert!(tile.stages >= 2 && tile.splits >= 1, "{tile:?}");
                        assert_eq!(tile.m % (16 * tile.planes_m), 0, "{tile:?}");
                        assert_eq!(tile.n % (16 * tile.planes_n), 0, "{tile:?}");
                        // No part of the columns is empty.
                        let tiles = cols.div_ceil(DEPTH);
                        assert!((tile.splits - 1) * tiles.div_ceil(tile.splits) < tiles, "{tile:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_narrow_product_fills_the_device() {
        // The down projections of the 1B and the 4B at 2,048 tokens: 128 and 256 tiles for 132 processors.
        for (rows, cols, n) in [(1152, 6912, 144), (2560, 10240, 160)] {
            let layout = Layout::new(TensorFormat::BF16, rows, cols).unwrap();
            let Plan::Tensor(tile) = hopper().plan(&layout, RowFormat::Bf16, 2048, false) else {
                panic!("there are tensor cores");
            };
            assert_eq!((tile.n, tile.splits), (n, 1));
        }
    }

    #[test]
    fn a_narrow_product_fills_a_device_of_cooperative_matrices() {
        // Output and down projections of the 1B and of the image encoder, queries, keys and values of the 1B, the down
        // projection of the 4B.
        let narrow = [(1152, 6912, 2048, 144), (1152, 1152, 4096, 144), (1536, 1152, 2048, 192)];
        for (rows, cols, count, n) in narrow.into_iter().chain([(2560, 10240, 2048, 160)]) {
            let layout = Layout::new(TensorFormat::BF16, rows, cols).unwrap();
            let engine = Some(Engine::Cooperative);
            let processor = Processor { engine, shared_bytes: 48 << 10, multiprocessors: 128, ..hopper() };
            let Plan::Tensor(tile) = processor.plan(&layout, RowFormat::F16, count, false) else {
                panic!("there are cooperative matrices");
            };
            assert_eq!((tile.n, tile.splits), (n, 1), "{tile:?}");
        }
    }

    #[test]
    fn every_plan_for_cooperative_matrices_fits_the_device() {
        for format in TensorFormat::ALL {
            for (rows, cols) in [(1152, 6912), (13824, 1280), (262_144, 256), (4304, 1024)] {
                let layout = Layout::new(format, rows, cols).unwrap();
                for count in [1, 9, 17, 33, 64, 65, 512, 2048, 5000] {
                    for (plane_units, shared_bytes) in
                        [(32, 48 << 10), (32, 32 << 10), (64, 64 << 10), (16, 16 << 10)]
                    {
                        let engine = Some(Engine::Cooperative);
                        let processor = Processor { engine, plane_units, shared_bytes, ..hopper() };
                        for gated in [true, false] {
                            let plan = processor.plan(&layout, RowFormat::F16, count, gated);
                            let Plan::Tensor(tile) = plan else {
                                panic!("there are cooperative matrices");
                            };
                            let columns = if gated { 2 * SIDE } else { SIDE };
                            assert!(tile.shared_bytes() <= shared_bytes, "{tile:?}");
                            assert_eq!(tile.plane_units, plane_units);
                            assert_eq!(tile.m % (SIDE * tile.planes_m), 0, "{tile:?}");
                            assert_eq!(tile.n % (columns * tile.planes_n), 0, "{tile:?}");
                            assert!(tile.m < 2 * count.max(SIDE), "{tile:?} for {count} rows");
                            let tiles = cols.div_ceil(tile.depth);
                            assert!((tile.splits - 1) * tiles.div_ceil(tile.splits) < tiles, "{tile:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn without_tensor_cores_plans_are_exact() {
        let processor = Processor { engine: None, ..hopper() };
        let layout = Layout::new(TensorFormat::BF16, 64, 64).unwrap();
        assert_eq!(processor.row_format(Precision::Fast), RowFormat::F32);
        assert!(matches!(processor.plan(&layout, RowFormat::F32, 40, false), Plan::Registers(_)));
    }
}
