//! What a device does by itself, for benches: plain multiply-adds, and products whose tile is forced.

use std::fmt;

use burn::tensor::Device;
use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use half::f16;

use super::commands::Commands;
use super::gemm::{Numbers, Output, Plan, Processor, RegisterTile, Rows, launch, write_rows};
use super::matvec::{Hardware, Input};
use super::packed::PackedMatrix;
use crate::checkpoint::TensorView;
use crate::ops::{MachineError, MatrixError, Precision};

/// Numbers that are multiplied and added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialNumbers {
    /// f32.
    F32,
    /// Pairs of f16.
    F16,
    /// Four signed bytes with a sum of 32 bits.
    Int8,
}

/// A stream of commands on a GPU, for trials.
#[derive(Debug)]
pub struct Trials {
    commands: Commands,
}

/// Commands that can be given any number of times.
pub struct Trial<'a> {
    commands: &'a Commands,
    /// Operations of one time: a multiply-add is two.
    pub operations: f64,
    run: Box<dyn Fn(&Client) + 'a>,
}

impl fmt::Debug for Trial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial").field("operations", &self.operations).finish_non_exhaustive()
    }
}

impl Trial<'_> {
    /// Gives them, and waits.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn run(&self, times: usize) -> Result<(), MachineError> {
        for _ in 0..times {
            (self.run)(self.commands.client());
        }
        Ok(self.commands.wait()?)
    }
}

/// Units of a cube of multiply-adds, cubes, and turns of a unit.
const UNITS: usize = 256;
const CUBES: usize = 2048;
const TURNS: usize = 512;
/// Vectors of sums that a unit keeps, so that none waits for another.
const SUMS: usize = 16;

impl Trials {
    /// A new stream on a device; `None` if it is none of cubecl's.
    pub fn open(device: &Device) -> Option<Self> {
        Some(Self { commands: Commands::open(device)? })
    }

    /// What the runtime and its compiler call themselves.
    pub fn runtime(&self) -> &'static str {
        self.commands.client().name()
    }

    /// Multiply-adds in registers alone: the most that the device does. `None` where it has no such numbers.
    pub fn multiply_adds(&self, numbers: TrialNumbers) -> Option<Trial<'_>> {
        let client = self.commands.client();
        let f16 = ElemType::Float(FloatKind::F16);
        if numbers == TrialNumbers::F16 && !client.properties().supports_type(f16) {
            return None;
        }
        let out = client.empty(UNITS * CUBES * size_of::<f32>());
        let (per_vector, dot) = match numbers {
            TrialNumbers::F32 => (4, 1),
            TrialNumbers::F16 => (2, 1),
            TrialNumbers::Int8 => (1, 4),
        };
        let run = move |client: &Client| {
            let (count, dim) = (CubeCount::Static(CUBES as u32, 1, 1), CubeDim::new_1d(UNITS as u32));
            // SAFETY: the kernels write a number for each unit, and the buffer has as many.
            let out = unsafe { BufferArg::from_raw_parts(out.clone(), UNITS * CUBES) };
            // SAFETY: as above.
            unsafe {
                match numbers {
                    TrialNumbers::F32 => {
                        floats_kernel::launch_unchecked(client, count, dim, out, 0.5, TURNS as u32)
                    }
                    TrialNumbers::F16 => {
                        halves_kernel::launch_unchecked(client, count, dim, out, 0.5, TURNS as u32)
                    }
                    TrialNumbers::Int8 => {
                        bytes_kernel::launch_unchecked(client, count, dim, out, 3, TURNS as u32)
                    }
                }
            }
        };
        let operations = 2.0 * (UNITS * CUBES * TURNS * SUMS * per_vector * dot) as f64;
        Some(Trial { commands: &self.commands, operations, run: Box::new(run) })
    }

    /// A matrix and `rows` rows to be multiplied with it.
    ///
    /// # Errors
    ///
    /// Bytes that are no matrix that kernels can read.
    pub fn product(&self, weight: TensorView<'_>, rows: usize) -> Result<TrialProduct<'_>, MatrixError> {
        let client = self.commands.client();
        let [_, ref rest @ ..] = weight.shape[..] else {
            return Err(MatrixError::NotAMatrix { found: weight.shape });
        };
        let (format, cols) = (weight.format, rest.iter().product());
        let matrix = PackedMatrix::upload(client, format, cols, &[&weight.bytes])?;
        let value = |i: usize| (i.wrapping_mul(2_654_435_761) % 1999) as f32 / 1000.0 - 1.0;
        let values: Vec<f32> = (0..rows * cols).map(value).collect();
        let floats = Rows::f32(&self.commands.upload(&values));
        let out = Rows::f32(&client.empty(rows * matrix.layout.rows * size_of::<f32>()));
        let processor = Processor::of(client).with_precision(Precision::Fast);
        Ok(TrialProduct { commands: &self.commands, processor, matrix, floats, out, rows })
    }
}

/// A product in registers.
#[derive(Debug)]
pub struct TrialProduct<'a> {
    commands: &'a Commands,
    processor: Processor,
    matrix: PackedMatrix,
    floats: Rows,
    out: Rows,
    rows: usize,
}

impl TrialProduct<'_> {
    /// The tile that the library takes of tiles of such numbers.
    pub fn chosen(&self, numbers: Numbers) -> RegisterTile {
        let Processor { multiprocessors, divided, .. } = self.processor;
        RegisterTile::choose(numbers, multiprocessors, &self.matrix.layout, self.rows, divided)
    }

    /// The product by a tile; `gated` of a gate over an up projection.
    pub fn by(&self, tile: RegisterTile, gated: bool) -> Trial<'_> {
        let (client, layout) = (self.commands.client(), self.matrix.layout);
        let tile = tile.split(tile.splits, &layout);
        let parts = tile.splits * self.rows * layout.rows * size_of::<f32>();
        let parts = client.empty(if tile.splits > 1 { parts } else { 4 });
        let x = match tile.numbers {
            Numbers::F32 => self.floats.clone(),
            Numbers::F16 => {
                let format = tile.numbers.row_format();
                let x = Rows::empty(client, format, self.rows, layout.cols);
                let floats = Input::Plain { x: &self.floats.handle };
                write_rows(client, &Hardware::of(client), floats, &x, self.rows, layout.cols);
                x
            }
        };
        let run = move |client: &Client| {
            let out = if gated { Output::gated(&self.out) } else { Output::plain(&self.out) };
            launch(client, Plan::Registers(tile), &x, &self.matrix, out, self.rows, Some(&parts));
        };
        let operations = 2.0 * (self.rows * layout.rows * layout.cols) as f64;
        Trial { commands: self.commands, operations, run: Box::new(run) }
    }
}

/// `sum = sum a + b`, many times.
#[cube(launch_unchecked)]
fn floats_kernel(out: &mut [f32], factor: f32, turns: u32) {
    let mut sums = Array::<Vector<f32, Const<4>>>::new(SUMS);
    let start = f32::cast_from(UNIT_POS);
    #[unroll]
    for i in 0..SUMS {
        sums[i] = Vector::new(start + comptime!(i as f32));
    }
    let factor = Vector::<f32, Const<4>>::new(factor);
    for _ in 0..turns {
        #[unroll]
        for i in 0..SUMS {
            sums[i] = fma(sums[i], factor, factor);
        }
    }
    let mut all = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for i in 0..SUMS {
        all += sums[i];
    }
    out[ABSOLUTE_POS] = Vector::vector_sum(all);
}

/// The same in pairs of halves.
#[cube(launch_unchecked)]
fn halves_kernel(out: &mut [f32], factor: f32, turns: u32) {
    let mut sums = Array::<Vector<f16, Const<2>>>::new(SUMS);
    let start = f32::cast_from(UNIT_POS);
    #[unroll]
    for i in 0..SUMS {
        sums[i] = Vector::new(f16::cast_from(start + comptime!(i as f32)));
    }
    let factor = Vector::<f16, Const<2>>::new(f16::cast_from(factor));
    for _ in 0..turns {
        #[unroll]
        for i in 0..SUMS {
            sums[i] = fma(sums[i], factor, factor);
        }
    }
    let mut all = Vector::<f16, Const<2>>::new(f16::new(0.0));
    #[unroll]
    for i in 0..SUMS {
        all += sums[i];
    }
    out[ABSOLUTE_POS] = f32::cast_from(all.extract(0usize)) + f32::cast_from(all.extract(1usize));
}

/// Dot products of four bytes, as many.
#[cube(launch_unchecked)]
fn bytes_kernel(out: &mut [f32], factor: i32, turns: u32) {
    let mut sums = Array::<i32>::new(SUMS);
    #[unroll]
    for i in 0..SUMS {
        sums[i] = i32::cast_from(UNIT_POS + comptime!(i as u32));
    }
    for _ in 0..turns {
        #[unroll]
        for i in 0..SUMS {
            sums[i] = dp4a(sums[i], factor, sums[i]);
        }
    }
    let mut all = 0i32;
    #[unroll]
    for i in 0..SUMS {
        all += sums[i];
    }
    out[ABSOLUTE_POS] = f32::cast_from(all);
}
