//! Each operation of flex against its portable definition.

use std::sync::Arc;

use burn::tensor::{DType, Device, Distribution, Tensor, TensorCreationOptions, TensorData};

use super::cpu::packed::{PackedMatrix, SharedBytes};
use super::extension::PackedProducts;
use super::{
    Norm, Precision, Visibility, attention, bias_gelu, cached_attention, gelu_mul, layer_norm, norm_rope,
    packed_gated_linear, packed_linear, packed_linear_norm_add, packed_norm_linear, portable, rms_norm,
    write_cache,
};
use crate::formats::TensorFormat;

fn random<const D: usize>(shape: [usize; D], scale: f64, device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-scale, scale), device)
}

fn max_difference(a: Tensor<2>, b: Tensor<2>) -> f32 {
    (a - b).abs().max().into_scalar()
}

#[test]
fn rms_norm_equals_its_definition() {
    let device = Device::flex();
    for (rows, width) in [(1, 1), (1, 640), (3, 16), (5, 257), (512, 640)] {
        for magnitude in [1e-3, 1.0, 1e4] {
            let x = random([rows, width], magnitude, &device);
            let scale = random([width], 3.0, &device);
            let difference =
                max_difference(rms_norm(x.clone(), &scale, 1e-6), portable::rms_norm(x, &scale, 1e-6));
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
fn the_gated_activation_equals_f64_over_the_whole_range() {
    let device = Device::flex();
    let gate: Vec<f32> =
        (-40_000..40_000).map(|i| i as f32 * 5e-4).chain([-1e30, -100.0, 100.0, 1e10, 0.0]).collect();
    let n = gate.len();
    let up: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
    let tensor = |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [1, n]), &device);
    let out = gelu_mul(tensor(&gate), tensor(&up)).into_data().try_into_vec::<f32>().expect("f32 output");
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
fn the_gated_activation_equals_its_portable_definition() {
    let device = Device::flex();
    let (gate, up) = (random([9, 1000], 6.0, &device), random([9, 1000], 2.0, &device));
    let difference = max_difference(gelu_mul(gate.clone(), up.clone()), portable::gelu_mul(gate, up));
    assert!(difference <= 1e-5, "{difference:e}");
}

#[test]
fn layer_norm_equals_its_definition_also_far_from_zero() {
    let device = Device::flex();
    for (rows, width) in [(1, 1), (3, 16), (5, 257), (300, 1152)] {
        for offset in [0.0, 100.0] {
            let x = random([rows, width], 1.0, &device) + offset;
            let (weight, bias) = (random([width], 2.0, &device), random([width], 1.0, &device));
            let ours = layer_norm(x.clone(), &weight, &bias, 1e-6);
            let difference = max_difference(ours, portable::layer_norm(x, &weight, &bias, 1e-6));
            // Normalized values are below sqrt(width) times the weight; the mean of values near `offset`
            // is rounded to an ulp of it, which the normalization enlarges by up to 1 / 0.577.
            let bound = 2.0 * ((width as f32).sqrt() * 8.0 + offset * 8.0) * f32::EPSILON;
            assert!(difference <= bound, "[{rows}, {width}] around {offset}: {difference:e} > {bound:e}");
        }
    }
}

#[test]
fn bias_and_activation_equal_their_definition_and_leave_a_shared_input_alone() {
    let device = Device::flex();
    let (x, bias) = (random([9, 1000], 6.0, &device), random([1000], 2.0, &device));
    let before = x.clone().into_data();
    let difference = max_difference(bias_gelu(x.clone(), &bias), portable::bias_gelu(x.clone(), &bias));
    assert!(difference <= 1e-5, "{difference:e}");
    assert_eq!(x.clone().into_data(), before);
    // A window into a larger buffer.
    let window = x.narrow(0, 2, 3);
    let difference = max_difference(bias_gelu(window.clone(), &bias), portable::bias_gelu(window, &bias));
    assert!(difference <= 1e-5, "{difference:e}");
}

#[test]
fn attention_equals_its_definition() {
    let device = Device::flex();
    for (sequences, tokens, heads, head_dim) in
        [(1, 1, 1, 1), (1, 16, 3, 16), (2, 33, 2, 8), (3, 100, 4, 72), (1, 600, 2, 72)]
    {
        let shape = [sequences * tokens, heads * head_dim];
        let (q, k, v) =
            (random(shape, 4.0, &device), random(shape, 4.0, &device), random(shape, 1.0, &device));
        let scale = (head_dim as f32).powf(-0.5);
        let ours = attention(q.clone(), k.clone(), v.clone(), heads, sequences, scale);
        let difference = max_difference(ours, portable::attention(q, k, v, heads, sequences, scale));
        // Scores below 4 * 4 * sqrt(72) = 136 with a relative error of some ulp: an absolute error of
        // 136 * 8 ulp in the exponent is a relative one of the result, a mean of values below 1.
        let bound = 136.0 * 8.0 * f32::EPSILON;
        assert!(
            difference <= bound,
            "{sequences} x {tokens}, {heads} x {head_dim}: {difference:e} > {bound:e}"
        );
    }
}

fn packed(weight: &Tensor<2>) -> Arc<PackedMatrix> {
    let values = weight.clone().into_data().try_into_vec::<f32>().expect("f32");
    let bytes: Vec<u8> = values.iter().flat_map(|w| w.to_le_bytes()).collect();
    let matrix = PackedMatrix::new(TensorFormat::F32, weight.dims(), SharedBytes::from(bytes));
    Arc::new(matrix.expect("a matrix"))
}

fn products(weights: &[Tensor<2>]) -> PackedProducts {
    PackedProducts { weights: weights.iter().map(packed).collect(), precision: Precision::Exact }
}

/// More rows than are done together, and several weights over the same input.
#[test]
fn products_of_many_rows_equal_their_definition() {
    let device = Device::flex();
    let (rows, in_features) = (1030, 40);
    let x = random([rows, in_features], 1.0, &device);
    let weights = [24, 9].map(|out| random([out, in_features], 1.0, &device));
    let scale = random([in_features], 1.0, &device);
    let norm = Norm { scale: &scale, eps: 1e-6 };
    let plain = packed_linear(x.clone(), products(&weights));
    let normed = packed_norm_linear(x.clone(), norm, products(&weights));
    for ((plain, normed), weight) in plain.into_iter().zip(normed).zip(&weights) {
        let difference = max_difference(plain, portable::linear(x.clone(), weight));
        // Sums of `in` products below 1, in another order.
        assert!(difference <= in_features as f32 * f32::EPSILON, "{difference:e}");
        let difference = max_difference(normed, portable::norm_linear(x.clone(), norm, weight));
        // Normalized values are below sqrt(3) for values that are evenly distributed, few ulp off.
        assert!(difference <= 8.0 * in_features as f32 * f32::EPSILON, "{difference:e}");
    }
}

#[test]
fn fused_products_equal_their_definitions() {
    let device = Device::flex();
    for (rows, in_features, out_features) in
        [(1, 64, 48), (3, 40, 17), (8, 64, 640), (9, 72, 33), (700, 40, 70)]
    {
        let x = random([rows, in_features], 2.0, &device);
        let [gate, up] = [(); 2].map(|()| random([out_features, in_features], 0.3, &device));
        let scale = random([in_features], 1.0, &device);
        let norm = Norm { scale: &scale, eps: 1e-6 };
        let ours = packed_gated_linear(x.clone(), norm, products(&[gate.clone(), up.clone()]));
        let difference = max_difference(ours, portable::gated_linear(x.clone(), norm, &gate, &up));
        // Gate and product are below 40 in size and off by some ulp of that, and so is what they make.
        assert!(difference <= 40.0 * 40.0 * 8.0 * f32::EPSILON, "gated, {rows} rows: {difference:e}");

        let (residual, scale) =
            (random([rows, out_features], 5.0, &device), random([out_features], 2.0, &device));
        let norm = Norm { scale: &scale, eps: 1e-6 };
        let ours =
            packed_linear_norm_add(x.clone(), products(std::slice::from_ref(&up)), norm, residual.clone());
        let difference = max_difference(ours, portable::linear_norm_add(x, &up, norm, residual));
        // A normalized row is below sqrt(width) times the scale.
        let bound = 2.0 * (out_features as f32).sqrt() * 16.0 * f32::EPSILON;
        assert!(difference <= bound, "added, {rows} rows: {difference:e} > {bound:e}");
    }
}

#[test]
fn heads_are_normalized_and_turned_as_by_the_definition() {
    let device = Device::flex();
    for (tokens, heads, head_dim) in [(1, 1, 2), (1, 4, 256), (5, 3, 16), (300, 4, 64)] {
        let x = random([tokens, heads * head_dim], 3.0, &device);
        let before = x.clone().into_data();
        let scale = random([head_dim], 2.0, &device);
        let norm = Norm { scale: &scale, eps: 1e-6 };
        let angles = random([tokens, 1, head_dim / 2], 3.0, &device);
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let ours = norm_rope(x.clone(), norm, &cos, &sin, 0.0625);
        let difference = max_difference(ours, portable::norm_rope(x.clone(), norm, &cos, &sin, 0.0625));
        let bound = 2.0 * (head_dim as f32).sqrt() * 8.0 * f32::EPSILON;
        assert!(difference <= bound, "{tokens} x {heads} x {head_dim}: {difference:e} > {bound:e}");
        assert_eq!(x.into_data(), before, "a shared input is left alone");
    }
}

/// Chunks as a prefill writes them, on rings that come around, in every dtype of a cache.
#[test]
fn writing_to_a_cache_and_attending_over_it_equal_their_definitions() {
    let device = Device::flex();
    let (heads, kv_heads, head_dim) = (4, 2, 16);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (slots, window) in [(64, None), (23, Some(7))] {
            let options = TensorCreationOptions::new(device.clone()).with_dtype(dtype);
            let empty = || Tensor::<3>::zeros([kv_heads, slots, head_dim], options.clone());
            let [mut ours, mut plain] = [(); 2].map(|()| [empty(), empty()]);
            let mut position = 0;
            for count in [16, 1, 1, 13, 1, 9, 2, 1] {
                let rows = [(); 2].map(|()| random([count, kv_heads * head_dim], 2.0, &device));
                for (n, rows) in rows.into_iter().enumerate() {
                    ours[n].inplace(|cache| write_cache(cache, rows.clone(), position));
                    plain[n].inplace(|cache| portable::write_cache(cache, rows, position));
                    assert_eq!(ours[n].clone().into_data(), plain[n].clone().into_data(), "{dtype:?}");
                }
                let image = position + count / 3..position + count / 2;
                let images = if image.is_empty() { Vec::new() } else { vec![image] };
                let visibility = Visibility::new(position..position + count, window, images);
                let q = random([count, heads * head_dim], 1.0, &device);
                let [keys, values] = &ours;
                let difference = max_difference(
                    cached_attention(q.clone(), keys, values, heads, &visibility),
                    portable::cached_attention(q, keys, values, heads, &visibility),
                );
                // Scores below 32 are off by some ulp of that, which is the relative error of their exponentials;
                // the result is a mean of values below 2.
                assert!(difference <= 32.0 * 2.0 * 8.0 * f32::EPSILON, "{dtype:?}: {difference:e}");
                position += count;
            }
        }
    }
}
