//! Which kernel makes a product, and how it is divided.

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};

use super::rows::RowFormat;
use super::tile::{Engine, Tile};
use crate::ops::Precision;
use crate::ops::cube::packed::Layout;

/// A kernel and its division of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plan {
    /// The exact kernel.
    Exact {
        /// Rows of the input that a unit works on: 1, 2 or 4.
        unit_m: usize,
    },
    /// Tensor cores.
    Tensor(Tile),
}

/// What of a device decides over plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// The best matrix instruction for bf16, if there is one.
    pub engine: Option<Engine>,
    /// Bytes of shared memory of a cube.
    pub shared_bytes: usize,
    /// Multiprocessors; a guess for devices that don't say.
    pub multiprocessors: usize,
}

/// Multiprocessors of a device that doesn't say.
const DEFAULT_MULTIPROCESSORS: usize = 64;

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
            (false, _) => None,
        };
        let multiprocessors = properties.hardware.num_streaming_multiprocessors;
        Self {
            engine,
            shared_bytes: properties.hardware.max_shared_memory_size,
            multiprocessors: multiprocessors.map_or(DEFAULT_MULTIPROCESSORS, |count| count as usize),
        }
    }

    /// The rows of activations that products of this precision take.
    pub fn row_format(&self, precision: Precision) -> RowFormat {
        match (precision, self.engine) {
            (Precision::Fast, Some(_)) => RowFormat::Bf16,
            _ => RowFormat::F32,
        }
    }

    /// The plan for `rows` rows of a format. `gated`: a gate over an up projection.
    pub fn plan(&self, layout: &Layout, format: RowFormat, rows: usize, gated: bool) -> Plan {
        match (format, self.engine) {
            (RowFormat::Bf16, Some(engine)) => Plan::Tensor(self.tile(engine, layout, rows, gated)),
            _ => Plan::Exact { unit_m: rows.div_ceil(16).next_power_of_two().min(4) },
        }
    }

    fn tile(&self, engine: Engine, layout: &Layout, rows: usize, _gated: bool) -> Tile {
        if rows <= 64 {
            let m = rows.next_multiple_of(16).next_power_of_two();
            let tile = Tile::planes(m, 64, 1, 4, 4);
            return self.filled(tile, layout, rows, 2);
        }
        match engine {
            Engine::Planes => self.filled(Tile::planes(128, 128, 2, 4, 3), layout, rows, 1),
            Engine::Warpgroups => {
                let wide = Tile::warpgroups(128, 256, 4);
                let tile = if self.cubes(&wide, layout, rows) >= self.multiprocessors {
                    wide
                } else {
                    Tile::warpgroups(128, 128, 3)
                };
                self.filled(tile, layout, rows, 1)
            }
        }
    }

    fn cubes(&self, tile: &Tile, layout: &Layout, rows: usize) -> usize {
        rows.div_ceil(tile.m) * layout.rows.div_ceil(tile.n)
    }

    /// Divides the columns until each multiprocessor has about `each` cubes, as long as a part is of at least
    /// eight tiles.
    fn filled(&self, tile: Tile, layout: &Layout, rows: usize, each: usize) -> Tile {
        let cubes = self.cubes(&tile, layout, rows);
        let most = (layout.cols / 512).max(1);
        let splits = (self.multiprocessors * each / cubes).clamp(1, most);
        tile.split(splits, layout)
    }
}
