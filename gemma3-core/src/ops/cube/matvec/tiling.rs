//! How the work of a product is divided among units.

use cubecl::client::Client;
use cubecl::features::Plane;

use crate::ops::cube::packed::Layout;
use crate::ops::cube::reduce::Groups;

/// How a product is divided: each group of units makes `rows` outputs at a time, its units taking turns along
/// the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tiling {
    /// Words that a unit loads at once: 1, 2 or 4. Fewer words divide a short row more evenly.
    pub vector_words: usize,
    /// The units of a cube.
    pub groups: Groups,
    /// Rows of the matrix that a group works on at once: what is read of the input serves them all.
    pub rows: usize,
    /// How often a group takes up rows: what a cube prepares of the input serves them all.
    pub passes: usize,
    /// Loads along a row that are under way at once.
    pub unroll: usize,
    /// Whether each cube keeps the input in shared memory.
    pub staged: bool,
}

/// What of a device decides over tilings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Units of a plane, and whether planes have operations.
    pub lanes: usize,
    /// Whether planes have operations, and all have `lanes` units.
    pub plane_operations: bool,
    /// Bytes of shared memory of a cube.
    pub shared_bytes: usize,
    /// Units that the whole device runs at once, about.
    pub units: usize,
    /// Cubes along the first axis of a launch.
    pub max_cubes: usize,
}

/// Units of a cube.
const CUBE_UNITS: usize = 256;
/// Multiprocessors of a device that doesn't say.
const DEFAULT_MULTIPROCESSORS: usize = 64;

impl Machine {
    /// Reads the properties of a client's device.
    pub fn of(client: &Client) -> Self {
        let hardware = &client.properties().hardware;
        let (min, max) = (hardware.plane_size_min as usize, hardware.plane_size_max as usize);
        let plane_operations =
            client.features().plane.contains(Plane::Ops) && min == max && max.is_power_of_two();
        let multiprocessors =
            hardware.num_streaming_multiprocessors.map_or(DEFAULT_MULTIPROCESSORS, |n| n as usize);
        Self {
            lanes: if plane_operations { max } else { 32 },
            plane_operations,
            shared_bytes: hardware.max_shared_memory_size,
            units: multiprocessors * 1024,
            max_cubes: hardware.max_cube_count.0 as usize,
        }
    }

    /// Groups of `planes` planes in cubes of about 256 units.
    pub fn groups(&self, planes: usize) -> Groups {
        let groups = (CUBE_UNITS / (self.lanes * planes)).max(1);
        Groups { lanes: self.lanes, planes, groups, plane_operations: self.plane_operations }
    }
}

impl Tiling {
    /// A tiling for `batch` rows of input. `outputs` are the rows of the matrix that one result takes: two
    /// for a gate and its up projection.
    pub fn choose(machine: &Machine, layout: &Layout, batch: usize, outputs: usize, stage: bool) -> Self {
        let min_words = 4usize.div_ceil(layout.weights_per_word());
        let mut best: Option<(f64, Self)> = None;
        for vector_words in [4, 2, 1].into_iter().filter(|words| *words >= min_words) {
            for planes in [1, 2, 4, 8] {
                if planes * machine.lanes > CUBE_UNITS.max(machine.lanes) {
                    continue;
                }
                let groups = machine.groups(planes);
                let items = layout.row_words() / vector_words;
                let steps = items.div_ceil(groups.units());
                let busy = items as f64 / (steps * groups.units()) as f64;
                // Fewer, larger loads cost fewer instructions; every step beyond the eighth of a row is a
                // turn of a loop that waits for memory.
                let width = [0.0, 0.9, 0.97, 0.0, 1.0][vector_words];
                let turns = if steps > 8 { 0.95 } else { 1.0 };
                let score = busy * width * turns * (1.0 - 0.01 * planes as f64);
                if best.as_ref().is_none_or(|(other, _)| score > *other) {
                    // Enough units for the device come before more rows for each.
                    let available = layout.rows * groups.units();
                    let mut rows = outputs;
                    while rows < 4 && batch * rows < 8 && available / (rows * 2) >= machine.units {
                        rows *= 2;
                    }
                    let unroll = steps.min((8 / rows).max(1));
                    let tiling = Self { vector_words, groups, rows, passes: 1, unroll, staged: false };
                    best = Some((score, tiling));
                }
            }
        }
        let mut tiling = best.map_or_else(|| Self::portable(machine, outputs), |(_, tiling)| tiling);
        tiling.staged = stage && Self::staged_bytes(layout, batch) <= machine.shared_bytes / 2;
        if tiling.staged {
            // A cube's share of staging should be small beside its share of the weights.
            let cube_rows = tiling.rows * tiling.groups.groups;
            while tiling.passes < 8
                && layout.rows / (cube_rows * tiling.passes * 2) >= 2 * machine.units / CUBE_UNITS
            {
                tiling.passes *= 2;
            }
        }
        let cube_rows = tiling.rows * tiling.groups.groups;
        while layout.rows.div_ceil(cube_rows * tiling.passes) > machine.max_cubes {
            tiling.passes *= 2;
        }
        tiling
    }

    /// A tiling that runs everywhere.
    fn portable(machine: &Machine, outputs: usize) -> Self {
        let groups = machine.groups(1);
        Self { vector_words: 4, groups, rows: outputs, passes: 1, unroll: 1, staged: false }
    }

    /// Bytes of shared memory of `batch` staged rows of input.
    pub fn staged_bytes(layout: &Layout, batch: usize) -> usize {
        layout.row_words() * layout.weights_per_word() * batch * size_of::<f32>()
    }

    /// Cubes of a launch.
    pub fn cubes(&self, layout: &Layout) -> usize {
        layout.rows.div_ceil(self.rows * self.passes * self.groups.groups)
    }
}
