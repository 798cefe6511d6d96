//! How the work of a product is divided among units.

use cubecl::client::Client;
use cubecl::features::Plane;
use cubecl::ir::{ElemType, FloatKind, UIntKind};

use crate::ops::Precision;
use crate::ops::cube::packed::Layout;
use crate::ops::cube::reduce::Groups;
use crate::ops::cube::{CUDA, SPIRV};

/// What the numbers of the input become before they are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activations {
    /// They stay f32.
    F32,
    /// Signed bytes with a scale for each 32: each is off by at most 1/254 of the largest of its 32, so an
    /// output by at most `sum over blocks of largest(x) / 254 * sum of |w|`. Needs a staged tiling and a format
    /// with blocks; vectors are at least two words for Q8_0.
    Int8,
}

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
    /// The input's numbers.
    pub activations: Activations,
    /// Whether f16 weights and scales are converted by the device's own instruction.
    pub native_halves: bool,
}

/// What of a device decides over tilings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
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
    /// Whether an instruction sums up the products of four signed bytes.
    pub integer_dots: bool,
    /// Whether an instruction converts f16 to f32.
    pub native_halves: bool,
    /// Whether units had better take whole blocks at once for several rows of input, and groups two lines of floats, as
    /// measured through Vulkan.
    pub whole_blocks: bool,
}

/// Units of a cube.
const CUBE_UNITS: usize = 256;
/// Bytes of shared memory that every device has.
const SMALL_SHARED_BYTES: usize = 16 << 10;
/// Units that stand for a plane where planes have no operations, or differ in their units.
const ROW_UNITS: usize = 32;
/// The fewest units of a group.
const MIN_UNITS: usize = 4;
/// The same where units take whole blocks.
const MIN_UNITS_OF_BLOCKS: usize = 8;
/// Multiprocessors of a device that doesn't say. Where there are fewer, rows are divided among more units than need be, which
/// costs little; where there are more than this, a small product leaves some without work.
const DEFAULT_MULTIPROCESSORS: usize = 128;
/// Units that a multiprocessor runs at once, about.
const UNITS_OF_MULTIPROCESSOR: usize = 1024;
/// Rows of input from which on a result is one sum, not four side by side, so that more fit in registers.
pub(crate) const MIN_NARROW_BATCH: usize = 4;

#[cfg(test)]
std::thread_local! {
    /// Planes with operations that tests say the device has, whatever it has: units of one.
    pub(crate) static PLANES: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
    /// Units that tests have stand for a plane where there are no operations, and bytes of shared memory.
    pub(crate) static WITHOUT_PLANES: std::cell::Cell<Option<[usize; 2]>> = const { std::cell::Cell::new(None) };
}

impl Hardware {
    /// Reads the properties of a client's device.
    pub fn of(client: &Client) -> Self {
        let hardware = &client.properties().hardware;
        let (min, max) = (hardware.plane_size_min as usize, hardware.plane_size_max as usize);
        let plane_operations =
            client.features().plane.contains(Plane::Ops) && min == max && max.is_power_of_two();
        #[cfg(test)]
        let (max, plane_operations) = PLANES.get().map_or((max, plane_operations), |planes| (planes, true));
        let (row_units, shared_bytes) = (ROW_UNITS, hardware.max_shared_memory_size);
        #[cfg(test)]
        let (plane_operations, row_units, shared_bytes) = match WITHOUT_PLANES.get() {
            Some([units, bytes]) => (false, units, bytes.min(shared_bytes)),
            None => (plane_operations, row_units, shared_bytes),
        };
        let multiprocessors =
            hardware.num_streaming_multiprocessors.map_or(DEFAULT_MULTIPROCESSORS, |n| n as usize);
        Self {
            lanes: if plane_operations { max } else { row_units },
            plane_operations,
            shared_bytes,
            units: multiprocessors * UNITS_OF_MULTIPROCESSOR,
            max_cubes: hardware.max_cube_count.0 as usize,
            // Vulkan has had an instruction for products of bytes since 1.3, and before as an extension that most drivers
            // have; where a device has neither, cubecl makes the same of others. (WGSL has one too, `dot4I8Packed`, but
            // cubecl's compiler to WGSL always makes it of others, which is slower than f32.)
            integer_dots: [CUDA, SPIRV].contains(&client.name()),
            native_halves: match client.name() {
                CUDA => true,
                SPIRV => [ElemType::Float(FloatKind::F16), ElemType::UInt(UIntKind::U16)]
                    .into_iter()
                    .all(|kind| client.properties().supports_type(kind)),
                _ => false,
            },
            whole_blocks: client.name() == SPIRV,
        }
    }

    /// Bytes of the input that a cube stages at most: half of its shared memory, so that two cubes fit; of 16 KiB, which
    /// every device has, all but a number of each unit for three sums over the cube and for the largest of a block.
    fn staged_bytes(&self) -> usize {
        (self.shared_bytes / 2).max(SMALL_SHARED_BYTES - 4 * CUBE_UNITS * size_of::<f32>() - 512)
    }

    /// Processors that cubes are spread over, about.
    pub const fn multiprocessors(&self) -> usize {
        self.units / UNITS_OF_MULTIPROCESSOR
    }

    /// Whether units had better take whole blocks of a matrix at once. (For a single row kernels by themselves are faster so,
    /// and steps are not.)
    fn takes_blocks(&self, layout: &Layout, batch: usize) -> bool {
        self.whole_blocks && layout.has_blocks() && batch >= MIN_NARROW_BATCH
    }

    /// Groups of `planes` planes in cubes of about 256 units.
    pub fn groups(&self, planes: usize) -> Groups {
        let groups = (CUBE_UNITS / (self.lanes * planes)).max(1);
        let (plane_units, plane_operations) = (self.lanes, self.plane_operations);
        Groups { plane_units, lanes: self.lanes, planes, groups, plane_operations }
    }

    /// Groups of `units` units in cubes of about 256; a power of two. Fewer than a plane's share a plane.
    pub fn groups_of(&self, units: usize) -> Groups {
        let groups = self.groups((units / self.lanes).max(1));
        if units < self.lanes {
            Groups { lanes: units, groups: groups.groups * self.lanes / units, ..groups }
        } else {
            groups
        }
    }
}

/// Loads of a unit that are under way at once, and the words that they fill: registers.
const MAX_LOADS: usize = 10;
const MAX_LOADED_WORDS: usize = 32;
/// What a turn of loads costs beside them, in loads.
const TURN_LOADS: usize = 2;
/// Words of a line of memory.
const LINE_WORDS: usize = 32;
/// The most sums of a unit.
const MAX_SUMS: usize = 32;

impl Tiling {
    /// A tiling for `batch` rows of input. `outputs` are the rows of the matrix that one result takes: two
    /// for a gate and its up projection. `stage`: whether the input has to be prepared, as all but
    /// [`Input::Plain`](super::Input) does.
    ///
    /// A row's loads should fill a group's turns, whose loads are all under way at once; few units a row keep
    /// the sums cheap and read the input for several rows at a time; but the device needs enough units. Where
    /// cubes stage the input, a third of what it runs is enough, since each cube more stages it once more.
    pub fn choose(
        hardware: &Hardware,
        layout: &Layout,
        batch: usize,
        outputs: usize,
        stage: bool,
        precision: Precision,
    ) -> Self {
        let fits = |activations| Self::staged_bytes(layout, batch, activations) <= hardware.staged_bytes();
        let integers = precision == Precision::Fast
            && hardware.integer_dots
            && layout.has_blocks()
            && fits(Activations::Int8);
        let activations = if integers { Activations::Int8 } else { Activations::F32 };
        // Units that take blocks read the input in stretches, which suits shared memory alone.
        let staged = integers || (stage || layout.has_blocks()) && fits(activations);
        let weights_at_once: usize = if integers { 8 } else { 4 };
        let min_words = weights_at_once.div_ceil(layout.weights_per_word());
        let mut best = None;
        let mut best_score = 0.0;
        for vector_words in [4, 2, 1].into_iter().filter(|words| *words >= min_words) {
            let mut units =
                if hardware.takes_blocks(layout, batch) { MIN_UNITS_OF_BLOCKS } else { MIN_UNITS };
            while units <= CUBE_UNITS {
                let score = {
                    let rows = Self::rows_at_once(hardware, layout, batch, outputs, units);
                    Self::score(hardware, layout, rows, staged, vector_words, [units, batch])
                };
                if score > best_score {
                    (best, best_score) = (Some((vector_words, units)), score);
                }
                units *= 2;
            }
        }
        let (vector_words, units) = best.unwrap_or((4, hardware.lanes));
        let rows = Self::rows_at_once(hardware, layout, batch, outputs, units);
        let base = Self {
            vector_words,
            groups: hardware.groups_of(units),
            rows,
            passes: 1,
            unroll: 1,
            staged,
            activations,
            native_halves: hardware.native_halves,
        };
        base.divided(hardware, layout, vector_words, units, rows)
    }

    /// The same with other units, rows and words at once.
    fn divided(
        self,
        hardware: &Hardware,
        layout: &Layout,
        vector_words: usize,
        units: usize,
        rows: usize,
    ) -> Self {
        let steps = (layout.row_words() / vector_words).div_ceil(units);
        let unroll = Self::best_unroll(steps, rows, vector_words);
        let groups = hardware.groups_of(units);
        let mut tiling = Self { vector_words, groups, rows, passes: 1, unroll, ..self };
        while tiling.cubes(layout) > hardware.max_cubes {
            tiling.passes *= 2;
        }
        tiling
    }

    /// Other divisions of the same product that its kernels can do, for benches.
    pub(crate) fn others(
        &self,
        hardware: &Hardware,
        layout: &Layout,
        batch: usize,
        outputs: usize,
    ) -> Vec<Self> {
        let min_words = self.weights_at_once().div_ceil(layout.weights_per_word());
        let mut others = Vec::new();
        for words in [4, 2, 1].into_iter().filter(|words| *words >= min_words) {
            for units in [8, 16, 32, 64, 128, 256] {
                for rows in [1, 2, 4].map(|rows| rows * outputs) {
                    let fits = batch * rows <= MAX_SUMS && rows <= 4;
                    // Each unit has something to load.
                    if fits && units * words <= layout.row_words() {
                        others.push(self.divided(hardware, layout, words, units, rows));
                    }
                }
            }
        }
        others
    }

    /// Weights that a unit takes at once.
    fn weights_at_once(&self) -> usize {
        if self.activations == Activations::Int8 { 8 } else { 4 }
    }

    /// Rows of the matrix that a group works on at once. Decoding blocks, and batches, take more than memory
    /// does: there rows share what they read of the input, as far as enough units are left.
    fn rows_at_once(
        hardware: &Hardware,
        layout: &Layout,
        batch: usize,
        outputs: usize,
        units: usize,
    ) -> usize {
        let mut rows = outputs;
        // Many rows of input keep even few units busy.
        let enough = if batch >= MIN_NARROW_BATCH { hardware.units / 8 } else { hardware.units };
        if layout.has_blocks() || batch >= MIN_NARROW_BATCH {
            while rows < 4 && batch * rows * 2 <= MAX_SUMS && layout.rows * units / (rows * 2) >= enough {
                rows *= 2;
            }
        }
        rows
    }

    /// How well groups of `units` units suit a product: the share of its time that a unit's loads are under
    /// way, less for what makes them slower.
    fn score(
        hardware: &Hardware,
        layout: &Layout,
        rows: usize,
        staged: bool,
        vector_words: usize,
        [units, batch]: [usize; 2],
    ) -> f64 {
        let items = layout.row_words() / vector_words;
        let steps = items.div_ceil(units);
        let unroll = Self::best_unroll(steps, rows, vector_words);
        let turns = Self::turns_cost(steps, unroll);
        let busy = items as f64 / units as f64 / turns as f64;
        let available = (layout.rows * units) as f64 / hardware.units as f64;
        let wanted = if staged { available * 2.8 } else { available };
        let whole = hardware.takes_blocks(layout, batch);
        let fill = wanted.min(1.0).powf(if whole { 0.6 } else { 0.4 });
        let long_rows = (16.0 / steps as f64).min(1.0).powf(0.1);
        let sums = 1.0 - 0.02 * f64::from(units.ilog2());
        // Wide loads take the registers of other units; of blocks they are decoded with fewer instructions.
        let width = match (layout.has_blocks(), vector_words) {
            (true, words) if !staged => 1.0 / words as f64,
            (true, 4) | (false, 2) => 1.0,
            (false, _) => 0.98,
            (true, 2) if whole => 0.65,
            (true, 2) => 0.88,
            (true, _) if whole => 0.45,
            (true, _) => 0.65,
        };
        // Rows lie apart: less than a line of memory at once takes more requests.
        let wide = hardware.whole_blocks && !layout.has_blocks();
        let lines = match units * vector_words {
            words if words >= 2 * LINE_WORDS || words >= LINE_WORDS && !wide => 1.0,
            words if words >= LINE_WORDS => 0.96,
            _ => 0.88,
        };
        busy * fill * long_rows * sums * width * lines
    }

    /// Loads along a row at once, of `steps`, for `rows` rows.
    fn best_unroll(steps: usize, rows: usize, vector_words: usize) -> usize {
        let most = (MAX_LOADS / rows).min(MAX_LOADED_WORDS / (rows * vector_words)).max(1);
        (1..=most.min(steps)).rev().min_by_key(|unroll| Self::turns_cost(steps, *unroll)).unwrap_or(1)
    }

    /// What the turns of a row cost, in loads.
    fn turns_cost(steps: usize, unroll: usize) -> usize {
        steps.div_ceil(unroll) * (unroll + TURN_LOADS)
    }

    /// Bytes of shared memory of `batch` staged rows of input.
    pub fn staged_bytes(layout: &Layout, batch: usize, activations: Activations) -> usize {
        let numbers = layout.row_words() * layout.weights_per_word() * batch;
        match activations {
            Activations::F32 => numbers * size_of::<f32>(),
            Activations::Int8 => numbers + numbers / 32 * size_of::<f32>(),
        }
    }

    /// Cubes of a launch.
    pub fn cubes(&self, layout: &Layout) -> usize {
        layout.rows.div_ceil(self.rows * self.passes * self.groups.groups)
    }
}
