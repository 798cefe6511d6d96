//! [`DecoderOps`] for burn's CPU backend flex: rows over the threads of the current rayon pool,
//! SIMD chosen at run time by `pulp`.
//!
//! Every function receives f32 tensors ([`crate::ops`] checked that) and makes its inputs contiguous
//! first; the weights always are, so that costs nothing where it matters.

mod attention;
mod bias_gelu;
mod exp;
mod gelu_mul;
mod layer_norm;
pub(crate) mod packed;
mod product;
mod rms_norm;
mod rotate;

use burn::backend::Flex;
use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;

use super::extension::{DecoderOps, PackedProducts};
use packed::Activations;

/// Rows of a product that are done together. Each piece of weights meets all of them, so that they should stay
/// in the last-level cache: 512 of the widest activations here (15,360 in the 12B) are 31 MB, of the image
/// encoder's 9 MB.
const MAX_ROWS_AT_ONCE: usize = 512;

impl DecoderOps for Flex {
    fn packed_linear(x: FlexTensor, products: PackedProducts) -> FlexTensor {
        let [rows, in_features] = dims(&x);
        let x = x.to_contiguous();
        let outputs: usize = products.weights.iter().map(|weight| weight.out_features()).sum();
        let mut out = FlexTensor::zeros(Shape::new([rows * outputs]), DType::F32);
        let mut rest: &mut [f32] = out.storage_mut();
        let mut outs = Vec::with_capacity(products.weights.len());
        for weight in &products.weights {
            let (out, tail) = rest.split_at_mut(rows * weight.out_features());
            outs.push(out);
            rest = tail;
        }
        for start in (0..rows).step_by(MAX_ROWS_AT_ONCE) {
            let end = rows.min(start + MAX_ROWS_AT_ONCE);
            let x = &values(&x)[start * in_features..end * in_features];
            let activations = Activations::new(x, end - start, in_features, products.precision);
            for (weight, out) in products.weights.iter().zip(&mut outs) {
                let width = weight.out_features();
                weight.multiply_prepared(&activations, &mut out[start * width..end * width]);
            }
        }
        out
    }

    fn rms_norm(x: FlexTensor, scale: FlexTensor, eps: f32) -> FlexTensor {
        let [rows, width] = dims(&x);
        let (x, scale) = (x.to_contiguous(), scale.to_contiguous());
        let mut out = zeros(rows, width);
        rms_norm::rms_norm(values(&x), values(&scale), out.storage_mut(), eps);
        out
    }

    fn gelu_mul(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let [rows, width] = dims(&gate);
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let mut out = zeros(rows, width);
        gelu_mul::gelu_mul(values(&gate), values(&up), out.storage_mut());
        out
    }

    fn layer_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, eps: f32) -> FlexTensor {
        let [rows, width] = dims(&x);
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let mut out = zeros(rows, width);
        layer_norm::layer_norm(values(&x), values(&weight), values(&bias), out.storage_mut(), eps);
        out
    }

    fn bias_gelu(x: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let (mut x, bias) = (owned(x), bias.to_contiguous());
        bias_gelu::bias_gelu(x.storage_mut(), values(&bias));
        x
    }

    fn attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        heads: usize,
        sequences: usize,
        scale: f32,
    ) -> FlexTensor {
        let [rows, width] = dims(&q);
        let sizes = attention::Sizes { sequences, heads, tokens: rows / sequences, width };
        let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
        let mut out = zeros(rows, width);
        attention::attention(values(&q), values(&k), values(&v), out.storage_mut(), sizes, scale);
        out
    }

    fn rotate(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        let shape = x.layout().shape().clone();
        let (heads, head_dim) = (shape[1], shape[2]);
        let (x, cos, sin) = (x.to_contiguous(), cos.to_contiguous(), sin.to_contiguous());
        let mut out = FlexTensor::zeros(shape, DType::F32);
        rotate::rotate(values(&x), values(&cos), values(&sin), out.storage_mut(), heads, head_dim);
        out
    }
}

/// Rows and columns of a matrix.
fn dims(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

/// The elements of a contiguous tensor, which may be a window into a larger buffer.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().unwrap_or_default()
}

/// The tensor with a buffer of just its elements, to be written.
fn owned(tensor: FlexTensor) -> FlexTensor {
    let tensor = {
        let given = tensor;
        given.to_contiguous() // `given` is dropped here, so that the buffer is not shared with it.
    };
    let elements = values(&tensor);
    if elements.len() == tensor.storage::<f32>().len() {
        return tensor;
    }
    // A contiguous tensor may still be a window into a larger buffer.
    let mut copy = FlexTensor::zeros(tensor.layout().shape().clone(), DType::F32);
    copy.storage_mut().copy_from_slice(elements);
    copy
}

fn zeros(rows: usize, columns: usize) -> FlexTensor {
    FlexTensor::zeros(Shape::new([rows, columns]), DType::F32)
}
