//! Each operation of the CPU's machine against its definition, through the trait, on the same input.

mod attend;
mod image;
mod passes;

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use half::{bf16, f16};

use super::machine::{Entrant, Input, Logits, Machine, Norm, Outcome, Program, Wanted};
use super::plain::Plain;
use super::vectors::{EmbeddedSpan, Vectors};
use super::{Cpu, CpuRows, MachineError, Precision};
use crate::cache::{CacheDtype, CacheShape, Ring};
use crate::checkpoint::TensorView;
use crate::formats::{Quantization, TensorFormat};

/// A machine whose rows can be made of numbers, so that operations meet the same ones on both.
trait Tested: Machine {
    /// Parts of these widths, each \[rows, width\], one after the other.
    fn rows_of(&self, values: &[f32], widths: &[usize]) -> Self::Rows;
}

impl Tested for Cpu {
    fn rows_of(&self, values: &[f32], widths: &[usize]) -> CpuRows {
        CpuRows::new(values.to_vec(), widths.to_vec())
    }
}

impl Tested for Plain {
    fn rows_of(&self, values: &[f32], widths: &[usize]) -> Vec<Tensor<2>> {
        let rows = values.len() / widths.iter().sum::<usize>();
        let mut start = 0;
        let part = |width: &usize| {
            let part = values[start..start + rows * width].to_vec();
            start += rows * width;
            Tensor::from_data(TensorData::new(part, [rows, *width]), &Device::flex())
        };
        widths.iter().map(part).collect()
    }
}

fn cpu() -> Cpu {
    Cpu { precision: Precision::Exact }
}

fn plain() -> Plain {
    Plain::new(&Device::flex())
}

/// Evenly distributed numbers up to `scale` in size.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.next() * scale).collect()
    }
}

/// How a test's weights are kept.
#[derive(Debug, Clone, Copy)]
struct Kept(TensorFormat, Quantization);

const FORMATS: [Kept; 5] = [
    Kept(TensorFormat::F32, Quantization::None),
    Kept(TensorFormat::F16, Quantization::None),
    Kept(TensorFormat::BF16, Quantization::None),
    Kept(TensorFormat::BF16, Quantization::EightBit),
    Kept(TensorFormat::F32, Quantization::FourBit),
];

/// Weights \[out, in\] for each of `outs`, one after the other in `values`.
fn matrix<M: Machine>(machine: &M, values: &[f32], outs: &[usize], kept: Kept) -> M::Matrix {
    let Kept(format, quantization) = kept;
    let width = values.len() / outs.iter().sum::<usize>();
    let mut start = 0;
    let view = |out: &usize| {
        let values = &values[start..start + out * width];
        start += values.len();
        let bytes: Vec<u8> = match format {
            TensorFormat::F16 => values.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect(),
            TensorFormat::BF16 => values.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|w| w.to_le_bytes()).collect(),
        };
        let (bytes, shape) = (Cow::Owned(bytes), vec![*out, width]);
        TensorView { file_name: "w", source: "a test", shape, format, bytes, place: None }
    };
    machine.matrix(outs.iter().map(view).collect(), quantization).expect("a matrix")
}

fn norm<M: Machine>(machine: &M, scale: &[f32], eps: f32) -> Norm<M::Vector> {
    Norm { scale: machine.vector(scale.to_vec()).expect("a vector"), eps }
}

/// The next rows of a sequence, as vectors that enter as they are.
#[derive(Debug, Clone)]
struct Next {
    /// \[rows, width\].
    x: Vec<f32>,
    /// Rows that are an image; every other is alone.
    image: Range<usize>,
    position: usize,
    logits: Logits,
}

impl Next {
    fn new(x: Vec<f32>) -> Self {
        Self { x, image: 0..0, position: 0, logits: Logits::None }
    }

    fn spans(&self, width: usize) -> Vec<EmbeddedSpan> {
        let rows = Vectors::new(self.x.clone(), width);
        let mut spans = Vec::new();
        let mut start = 0;
        while start < rows.len() {
            let end = if start == self.image.start { self.image.end.max(start + 1) } else { start + 1 };
            spans.push(EmbeddedSpan { start, vectors: rows.rows(start..end) });
            start = end;
        }
        spans
    }
}

/// A closure as a program, and what it returned.
struct Steps<F>(F, Vec<f32>);

impl<M: Machine, F> Program<M> for Steps<F>
where
    F: FnMut(&M, &mut M::Stream<'_>) -> Result<Vec<f32>, MachineError> + Send,
{
    fn shape(&self) -> super::machine::ModelShape<'_, M> {
        unreachable!("machines that compute at once know sizes as they come")
    }

    fn run(&mut self, machine: &M, x: &mut M::Stream<'_>) -> Result<(), MachineError> {
        self.1 = (self.0)(machine, x)?;
        Ok(())
    }
}

/// A cache of one layer.
fn cache<M: Machine>(machine: &M, dtype: CacheDtype, slots: usize) -> M::Cache {
    machine.cache(&CacheShape { kv_heads: 2, head_dim: 16, rings: vec![Ring::new(slots)], dtype })
}

/// Runs a pass over rows `width` wide, each sequence with its cache.
fn pass<M: Machine, F>(
    machine: &M,
    width: usize,
    next: &[Next],
    caches: &mut [M::Cache],
    mut steps: F,
) -> Result<(Vec<f32>, Vec<Outcome>), MachineError>
where
    F: FnMut(&M, &mut M::Stream<'_>) -> Result<Vec<f32>, MachineError> + Send,
{
    let spans: Vec<_> = next.iter().map(|next| next.spans(width)).collect();
    let ids = vec![0; next.iter().map(|next| next.x.len() / width).max().unwrap_or(0)];
    let mut entrants = Vec::new();
    for ((next, spans), cache) in next.iter().zip(&spans).zip(caches) {
        let input = Input::Placed { ids: &ids[..next.x.len() / width], spans };
        let wanted = Wanted::Logits(next.logits);
        entrants.push(Entrant { input, position: next.position, cache, wanted });
    }
    let table = matrix(machine, &vec![0.0; width], &[1], FORMATS[0]);
    let mut program = Steps(
        |machine: &M, x: &mut M::Stream<'_>| {
            machine.embed(x, &table, 1.0)?;
            steps(machine, x)
        },
        Vec::new(),
    );
    let outcomes = machine.run(&mut entrants, &mut program)?.wait()?;
    Ok((program.1, outcomes))
}

/// A pass of one sequence that needs no cache.
fn one<M: Machine, F>(machine: &M, width: usize, x: &[f32], steps: F) -> Vec<f32>
where
    F: FnMut(&M, &mut M::Stream<'_>) -> Result<Vec<f32>, MachineError> + Send,
{
    let mut caches = [cache(machine, CacheDtype::F32, 1)];
    pass(machine, width, &[Next::new(x.to_vec())], &mut caches, steps).expect("a pass").0
}

fn max_difference(ours: &[f32], definition: &[f32]) -> f32 {
    assert_eq!(ours.len(), definition.len());
    ours.iter().zip(definition).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// More rows than are done together, and several weights over the same input.
#[test]
fn products_of_many_rows_equal_their_definition() {
    for kept in FORMATS {
        for (rows, width) in [(1, 64), (9, 64), (1030, 32)] {
            let mut random = Random(1);
            let (x, scale) = (random.values(rows * width, 1.0), random.values(width, 1.0));
            let weights = random.values(33 * width, 1.0);
            fn projected<M: Tested>(m: &M, x: &[f32], scale: &[f32], w: &[f32], kept: Kept) -> Vec<f32> {
                let (weights, norm) = (matrix(m, w, &[24, 9], kept), norm(m, scale, 1e-6));
                one(m, scale.len(), x, |m, x| {
                    let rows = m.project(x, &norm, &weights)?;
                    m.look_at(x, &rows)?.wait()
                })
            }
            let ours = projected(&cpu(), &x, &scale, &weights, kept);
            let definition = projected(&plain(), &x, &scale, &weights, kept);
            let difference = max_difference(&ours, &definition);
            // Sums of `width` products, of weights up to 1 (a block's largest may be rounded up by 1/16) and
            // normalized values below sqrt(3), as values that are evenly distributed have them, few ulp off.
            let bound = 8.0 * 1.1 * width as f32 * f32::EPSILON;
            assert!(difference <= bound, "{kept:?}, {rows} rows: {difference:e} > {bound:e}");

            // Those that traces compute aside: without a norm.
            let product = |w: &[f32]| {
                let ours = cpu().multiply(&x, &matrix(&cpu(), w, &[24, 9], kept)).expect("a product");
                let plain = plain().multiply(&x, &matrix(&plain(), w, &[24, 9], kept)).expect("a product");
                max_difference(&ours, &plain)
            };
            let (difference, bound) = (product(&weights), 1.1 * width as f32 * f32::EPSILON);
            assert!(difference <= bound, "{kept:?}, {rows} rows, multiplied: {difference:e} > {bound:e}");
        }
    }
}

#[test]
fn gated_products_equal_their_definition() {
    for kept in FORMATS {
        for (rows, width, out) in [(1, 64, 48), (3, 32, 17), (8, 64, 640), (9, 96, 33), (700, 32, 70)] {
            let mut random = Random(2);
            let (x, scale) = (random.values(rows * width, 2.0), random.values(width, 1.0));
            let weights = random.values(2 * out * width, 0.3);
            fn gated<M: Tested>(m: &M, x: &[f32], scale: &[f32], w: &[f32], kept: Kept) -> Vec<f32> {
                let out = w.len() / scale.len() / 2;
                let (weights, norm) = (matrix(m, w, &[out, out], kept), norm(m, scale, 1e-6));
                one(m, scale.len(), x, |m, x| {
                    let rows = m.gate(x, &norm, &weights)?;
                    m.look_at(x, &rows)?.wait()
                })
            }
            let ours = gated(&cpu(), &x, &scale, &weights, kept);
            let difference = max_difference(&ours, &gated(&plain(), &x, &scale, &weights, kept));
            // Gate and product are below 40 in size and off by some ulp of that, and so is what they make.
            let bound = 40.0 * 40.0 * 8.0 * f32::EPSILON;
            assert!(difference <= bound, "{kept:?}, {rows} rows: {difference:e} > {bound:e}");
        }
    }
}

#[test]
fn a_branch_joins_the_stream_as_by_the_definition() {
    for kept in FORMATS {
        for (rows, width, out) in [(1, 64, 48), (3, 32, 17), (8, 64, 640), (9, 96, 33), (700, 32, 70)] {
            let mut random = Random(3);
            let (x, branch) = (random.values(rows * out, 5.0), random.values(rows * width, 2.0));
            let (scale, weights) = (random.values(out, 2.0), random.values(out * width, 0.3));
            fn joined<M: Tested>(m: &M, [x, branch, scale, w]: [&[f32]; 4], kept: Kept) -> Vec<f32> {
                let (out, width) = (scale.len(), w.len() / scale.len());
                let (weights, norm) = (matrix(m, w, &[out], kept), norm(m, scale, 1e-6));
                one(m, out, x, |m, x| {
                    m.join(x, m.rows_of(branch, &[width]), &weights, &norm)?;
                    m.look(x)?.wait()
                })
            }
            let given = [&x[..], &branch, &scale, &weights];
            let difference = max_difference(&joined(&cpu(), given, kept), &joined(&plain(), given, kept));
            // A normalized row is below sqrt(width) times the scale.
            let bound = 2.0 * (out as f32).sqrt() * 16.0 * f32::EPSILON;
            assert!(difference <= bound, "{kept:?}, {rows} rows: {difference:e} > {bound:e}");
        }
    }
}
