//! Each kernel that computes what a definition says, against that definition.

use burn::tensor::{Device, Distribution, Tensor};

use super::{attention, bias_gelu, gelu_mul, layer_norm, norm_rope, rms_norm};
use crate::ops::plain;

fn random<const D: usize>(shape: [usize; D], scale: f64, device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-scale, scale), device)
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().into_data().try_into_vec::<f32>().expect("f32")
}

fn max_difference(ours: &[f32], definition: Tensor<2>) -> f32 {
    let definition = values(&definition);
    assert_eq!(ours.len(), definition.len());
    ours.iter().zip(definition).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn rms_norm_equals_its_definition() {
    let device = Device::flex();
    for (rows, width) in [(1, 1), (1, 640), (3, 16), (5, 257), (512, 640)] {
        for magnitude in [1e-3, 1.0, 1e4] {
            let x = random([rows, width], magnitude, &device);
            let scale = random([width], 3.0, &device);
            let mut ours = vec![0.0; rows * width];
            rms_norm::rms_norm(&values(&x), &values(&scale), &mut ours, 1e-6);
            let difference = max_difference(&ours, plain::norm::rms_norm(x, &scale, 1e-6));
            // Normalized values are below sqrt(width) times the scale; a few ulp of that.
            let bound = 3.0 * (width as f32).sqrt() * 8.0 * f32::EPSILON;
            assert!(
                difference <= bound,
                "[{rows}, {width}] of magnitude {magnitude}: {difference:e} > {bound:e}"
            );
        }
    }
}

#[test]
fn rms_norm_is_added_as_by_the_definition() {
    let device = Device::flex();
    for (rows, width) in [(1, 1), (3, 17), (9, 640), (700, 70)] {
        let (y, residual) = (random([rows, width], 2.0, &device), random([rows, width], 5.0, &device));
        let scale = random([width], 2.0, &device);
        let mut ours = values(&y);
        rms_norm::rms_norm_add(&mut ours, &values(&scale), &values(&residual), 1e-6);
        let difference = max_difference(&ours, residual + plain::norm::rms_norm(y, &scale, 1e-6));
        // A normalized row is below sqrt(width) times the scale.
        let bound = (2.0 * (width as f32).sqrt() * 8.0 + 5.0) * f32::EPSILON;
        assert!(difference <= bound, "[{rows}, {width}]: {difference:e} > {bound:e}");
    }
}

#[test]
fn the_gated_activation_equals_f64_over_the_whole_range() {
    let gate: Vec<f32> =
        (-40_000..40_000).map(|i| i as f32 * 5e-4).chain([-1e30, -100.0, 100.0, 1e10, 0.0]).collect();
    let up: Vec<f32> = (0..gate.len()).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut out = vec![0.0; gate.len()];
    gelu_mul::gelu_mul(&gate, &up, &mut out);
    for ((gate, up), out) in gate.iter().zip(&up).zip(out) {
        let x = f64::from(*gate);
        let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        let exact = 0.5 * x * (1.0 + z.tanh()) * f64::from(*up);
        // f32 rounding of z (up to |z| = 9 where the result still varies) dominates: 9 ulp of z.
        let bound = 2e-6 * exact.abs() + 1e-6;
        assert!((f64::from(out) - exact).abs() <= bound, "gelu({gate}) * {up} = {out}, expected {exact}");
    }
}

#[test]
fn the_gated_activation_equals_its_definition() {
    let device = Device::flex();
    let (gate, up) = (random([9, 1000], 6.0, &device), random([9, 1000], 2.0, &device));
    let mut ours = vec![0.0; 9000];
    gelu_mul::gelu_mul(&values(&gate), &values(&up), &mut ours);
    let difference = max_difference(&ours, plain::gelu::gelu_mul(gate, up));
    assert!(difference <= 1e-5, "{difference:e}");
}

#[test]
fn layer_norm_equals_its_definition_also_far_from_zero() {
    let device = Device::flex();
    for (rows, width) in [(1, 1), (3, 16), (5, 257), (300, 1152)] {
        for offset in [0.0, 100.0] {
            let x = random([rows, width], 1.0, &device) + offset;
            let (weight, bias) = (random([width], 2.0, &device), random([width], 1.0, &device));
            let mut ours = vec![0.0; rows * width];
            layer_norm::layer_norm(&values(&x), &values(&weight), &values(&bias), &mut ours, 1e-6);
            let difference = max_difference(&ours, plain::norm::layer_norm(x, &weight, &bias, 1e-6));
            // Normalized values are below sqrt(width) times the weight; the mean of values near `offset`
            // is rounded to an ulp of it, which the normalization enlarges by up to 1 / 0.577.
            let bound = 2.0 * ((width as f32).sqrt() * 8.0 + offset * 8.0) * f32::EPSILON;
            assert!(difference <= bound, "[{rows}, {width}] around {offset}: {difference:e} > {bound:e}");
        }
    }
}

#[test]
fn bias_and_activation_equal_their_definition() {
    let device = Device::flex();
    for rows in [1, 3, 9] {
        let (x, bias) = (random([rows, 1000], 6.0, &device), random([1000], 2.0, &device));
        let mut ours = values(&x);
        bias_gelu::bias_gelu(&mut ours, &values(&bias));
        let difference = max_difference(&ours, plain::gelu::bias_gelu(x, &bias));
        assert!(difference <= 1e-5, "{rows} rows: {difference:e}");
    }
}

#[test]
fn attention_equals_its_definition() {
    let device = Device::flex();
    for (sequences, tokens, heads, head_dim) in
        [(1, 1, 1, 1), (1, 16, 3, 16), (2, 33, 2, 8), (3, 100, 4, 72), (1, 600, 2, 72)]
    {
        let width = heads * head_dim;
        let shape = [sequences * tokens, width];
        let (q, k, v) =
            (random(shape, 4.0, &device), random(shape, 4.0, &device), random(shape, 1.0, &device));
        let scale = (head_dim as f32).powf(-0.5);
        let mut ours = vec![0.0; shape[0] * width];
        let sizes = attention::Sizes { sequences, heads, tokens, width };
        attention::attention(&values(&q), &values(&k), &values(&v), &mut ours, sizes, scale);
        let definition = plain::attention::attention(q, k, v, heads, sequences, scale);
        let difference = max_difference(&ours, definition);
        // Scores below 4 * 4 * sqrt(72) = 136 with a relative error of some ulp: an absolute error of
        // 136 * 8 ulp in the exponent is a relative one of the result, a mean of values below 1.
        let bound = 136.0 * 8.0 * f32::EPSILON;
        assert!(
            difference <= bound,
            "{sequences} x {tokens}, {heads} x {head_dim}: {difference:e} > {bound:e}"
        );
    }
}

#[test]
fn heads_are_normalized_and_turned_as_by_the_definition() {
    let device = Device::flex();
    for (tokens, heads, head_dim) in [(1, 1, 2), (1, 4, 256), (5, 3, 16), (300, 4, 64)] {
        let x = random([tokens, heads * head_dim], 3.0, &device);
        let scale = random([head_dim], 2.0, &device);
        let angles = random([tokens, 1, head_dim / 2], 3.0, &device);
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let mut ours = values(&x);
        norm_rope::norm_rope(&mut ours, &values(&scale), 1e-6, &values(&cos), &values(&sin), heads, 0.0625);
        let definition = plain::rope::norm_rope(x, &scale, 1e-6, &cos, &sin, 0.0625);
        let difference = max_difference(&ours, definition);
        let bound = 2.0 * (head_dim as f32).sqrt() * 8.0 * f32::EPSILON;
        assert!(difference <= bound, "{tokens} x {heads} x {head_dim}: {difference:e} > {bound:e}");
    }
}
