//! The definitions are differentiable: gradients of a loss flow through every operation of a layer, and through the keys
//! and values that an earlier pass left in the cache, to each matrix and to given vectors. So whatever is trained through
//! this library, adapters or prompts, needs no model of its own.
//!
//! Needs burn's `autodiff`, which no other build of the workspace has; `.ci/run` has the command.

use std::any::TypeId;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use gemma3_core::cache::{CacheDtype, CacheShape, Ring};
use gemma3_core::config::LayerType;
use gemma3_core::device;
use gemma3_core::ops::image::ImageMachine;
use gemma3_core::ops::machine::{
    BlockShape, Entrant, Heads, Input, Logits, Machine, ModelShape, Norm, Program, Wanted,
};
use gemma3_core::ops::plain::{Plain, PlainCache, PlainRows, PlainVector};
use gemma3_core::ops::vectors::{EmbeddedSpan, Vectors};
use gemma3_core::ops::{MachineError, OnMachine, Precision, on_machine};

const HIDDEN: usize = 6;
const HEADS: usize = 2;
const KV_HEADS: usize = 1;
const HEAD_DIM: usize = 4;
const INTERMEDIATE: usize = 5;
const VOCAB: usize = 7;

/// Keys that a query of the first layer sees. Its ring comes around in the second pass.
const WINDOW: usize = 2;
const SLOTS: usize = 4;

/// Half the distance of the nearer two of a finite difference's four losses.
const STEP: f32 = 1.0 / 64.0;

/// How far a gradient may be from its finite difference, which is extrapolated, so that what it leaves out goes with
/// STEP⁴: at twice the step it is at most 2e-3, so 1e-4 here. A loss is a sum of some tens in f32, whose rounding, some
/// 1e-6, is divided by STEP: another 1e-4. Where a path of a gradient is lost it is off by far more: the largest of each
/// tensor are 0.8 to 5.
const TOLERANCE: f32 = 1e-3;

/// What is trained: given vectors, and matrices \[out, in\].
fn shapes() -> Vec<(String, [usize; 2])> {
    let (queries, keys) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let matrices = [
        ("q", [queries, HIDDEN]),
        ("k", [keys, HIDDEN]),
        ("v", [keys, HIDDEN]),
        ("o", [HIDDEN, queries]),
        ("gate", [INTERMEDIATE, HIDDEN]),
        ("up", [INTERMEDIATE, HIDDEN]),
        ("down", [HIDDEN, INTERMEDIATE]),
    ];
    let layers = (0..2).flat_map(|layer| matrices.map(|(name, shape)| (format!("{layer}.{name}"), shape)));
    let outside = [("given vectors", [2, HIDDEN]), ("table", [VOCAB, HIDDEN]), ("head", [VOCAB, HIDDEN])];
    outside.map(|(name, shape)| (name.to_owned(), shape)).into_iter().chain(layers).collect()
}

/// Numbers without a pattern, up to 1 in size.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|n| ((n * n * 7 + n * 13 + seed * 29 + 5) as f32 * 0.37).sin()).collect()
}

struct Layer {
    qkv: Vec<Tensor<2>>,
    output: Vec<Tensor<2>>,
    gate_up: Vec<Tensor<2>>,
    down: Vec<Tensor<2>>,
    heads: Heads<PlainVector>,
}

/// The calls of a decoder, and the logits of every row as tensors, which no `Outcome` is.
struct Model {
    table: Vec<Tensor<2>>,
    layers: Vec<Layer>,
    head: Vec<Tensor<2>>,
    norm: Norm<PlainVector>,
    logits: Vec<Tensor<2>>,
}

impl Model {
    fn new(machine: &Plain, weights: &[Tensor<2>]) -> Self {
        let vector = |values: Vec<f32>| machine.vector(values).expect("a device of the host");
        let norm = |width, seed| {
            let scale = numbers(width, seed).iter().map(|n| 1.0 + n / 4.0).collect();
            Norm { scale: vector(scale), eps: 1e-6 }
        };
        let [table, head, layers @ ..] = weights else { panic!("a table and a head") };
        let layer = |(layer, matrices): (usize, &[Tensor<2>])| {
            let [q, k, v, output, gate, up, down] = matrices else { panic!("seven matrices") };
            let heads = Heads {
                layer,
                kind: [LayerType::SlidingAttention, LayerType::FullAttention][layer],
                heads: HEADS,
                kv_heads: KV_HEADS,
                head_dim: HEAD_DIM,
                query_factor: 0.5,
                window: [Some(WINDOW), None][layer],
                q_norm: norm(HEAD_DIM, 40 + layer),
                k_norm: norm(HEAD_DIM, 50 + layer),
                inv_freq: vector(vec![1.0, 0.1]),
            };
            Layer {
                qkv: vec![q.clone(), k.clone(), v.clone()],
                output: vec![output.clone()],
                gate_up: vec![gate.clone(), up.clone()],
                down: vec![down.clone()],
                heads,
            }
        };
        Self {
            table: vec![table.clone()],
            layers: layers.chunks(7).enumerate().map(layer).collect(),
            head: vec![head.clone()],
            norm: norm(HIDDEN, 60),
            logits: Vec::new(),
        }
    }
}

impl Program<Plain> for Model {
    fn shape(&self) -> ModelShape<'_, Plain> {
        let blocks = self.layers.iter().map(|Layer { qkv, output, gate_up, down, heads }| BlockShape {
            qkv,
            heads,
            output,
            gate_up,
            down,
        });
        ModelShape { embedding: &self.table, blocks: blocks.collect(), head: &self.head }
    }

    fn run(&mut self, m: &Plain, x: &mut <Plain as Machine>::Stream<'_>) -> Result<(), MachineError> {
        m.embed(x, &self.table, 2.0)?;
        for layer in &self.layers {
            let qkv = m.project(x, &self.norm, &layer.qkv)?;
            let attended = m.attend(x, qkv, &layer.heads)?;
            m.join(x, attended, &layer.output, &self.norm)?;
            let gated = m.gate(x, &self.norm, &layer.gate_up)?;
            m.join(x, gated, &layer.down, &self.norm)?;
        }
        self.logits = m.project(x, &self.norm, &self.head)?;
        Ok(())
    }
}

/// A number that depends on everything: two passes, of a sequence that is given vectors in the middle of its first, and
/// of its next tokens beside those of another.
fn loss(device: &Device, trained: &[Tensor<2>]) -> Tensor<1> {
    let machine = Plain::new(device);
    let [given, weights @ ..] = trained else { panic!("given vectors") };
    let mut model = Model::new(&machine, weights);
    let rings = vec![Ring::new(SLOTS), Ring::new(16)];
    let shape = CacheShape { kv_heads: KV_HEADS, head_dim: HEAD_DIM, rings, dtype: CacheDtype::F32 };
    let mut caches = [machine.cache(&shape), machine.cache(&shape)];
    let [first, second] = &mut caches;

    fn entrant<'a>(input: Input<'a>, position: usize, cache: &'a mut PlainCache) -> Entrant<'a, Plain> {
        Entrant { input, position, cache, wanted: Wanted::Logits(Logits::None) }
    }
    let vectors = Vectors::of_machine(Arc::new(PlainRows(given.clone())));
    let spans = [EmbeddedSpan { start: 1, vectors }];
    let placed = Input::Placed { ids: &[1, 0, 0, 6], spans: &spans };
    machine.run(&mut [entrant(placed, 0, first)], &mut model).expect("the first pass");
    let mut entrants = [entrant(Input::Ids(&[3, 5]), 4, first), entrant(Input::Ids(&[2, 4, 0]), 0, second)];
    machine.run(&mut entrants, &mut model).expect("the second pass");

    let [logits] = &model.logits[..] else { panic!("one head") };
    let [rows, width] = logits.dims();
    let target = TensorData::new(numbers(rows * width, 70), [rows, width]);
    (logits.clone() * Tensor::from_data(target, device)).sum()
}

/// What is trained, of such values.
fn tensors_of(values: &[Vec<f32>], device: &Device) -> Vec<Tensor<2>> {
    let tensor = |(values, (_, shape)): (&Vec<f32>, (String, [usize; 2]))| {
        Tensor::from_data(TensorData::new(values.clone(), shape), device)
    };
    values.iter().zip(shapes()).map(tensor).collect()
}

/// Which machine a device gets.
struct Kind;

impl OnMachine for Kind {
    type Output = TypeId;

    fn on<M: ImageMachine>(self, _machine: M) -> TypeId {
        TypeId::of::<M>()
    }
}

/// The devices of this build that compute on the host.
fn hosts() -> Vec<Device> {
    let names = device::built_in().into_iter().filter(|name| ["flex", "ndarray"].contains(name));
    names.map(|name| device::open(name).expect("the host is there")).collect()
}

#[test]
fn a_device_with_autodiff_takes_the_definitions() {
    for host in hosts() {
        let kind = on_machine(&host.autodiff(), Precision::Fast, false, Kind);
        assert_eq!(kind, TypeId::of::<Plain>());
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    hosts().iter().for_each(compare_with_finite_differences);
}

fn compare_with_finite_differences(host: &Device) {
    let shapes = shapes();
    let mut values: Vec<_> =
        shapes.iter().enumerate().map(|(seed, (_, [rows, width]))| numbers(rows * width, seed)).collect();

    let device = host.clone().autodiff();
    let trained: Vec<_> = tensors_of(&values, &device).into_iter().map(Tensor::require_grad).collect();
    let gradients = loss(&device, &trained).backward();

    for (index, (name, _)) in shapes.iter().enumerate() {
        let gradient = trained[index].grad(&gradients).unwrap_or_else(|| panic!("{name} has no gradient"));
        let gradient = gradient.into_data().try_into_vec::<f32>().expect("f32");
        assert_eq!(gradient.len(), values[index].len(), "{name}");
        let largest = gradient.iter().fold(0.0f32, |most, g| most.max(g.abs()));
        assert!(largest > 0.5, "{name}: no gradient is larger than {largest}");
        for (element, gradient) in gradient.iter().enumerate() {
            let mut at = |steps: f32| {
                let value = values[index][element];
                values[index][element] = value + steps * STEP;
                let tensors = tensors_of(&values, host);
                values[index][element] = value;
                loss(host, &tensors).into_scalar::<f32>()
            };
            let mut over = |steps: f32| (at(steps) - at(-steps)) / (2.0 * steps * STEP);
            let difference = (4.0 * over(1.0) - over(2.0)) / 3.0;
            assert!(
                (gradient - difference).abs() < TOLERANCE,
                "{name}, element {element}: {gradient}, where finite differences give {difference}"
            );
        }
    }
}
