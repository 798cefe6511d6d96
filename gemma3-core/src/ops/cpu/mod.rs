//! [`DecoderOps`] for burn's CPU backend flex: rows over the threads of the current rayon pool,
//! SIMD chosen at run time by `pulp`.
//!
//! Every function receives f32 tensors ([`crate::ops`] checked that) and makes its inputs contiguous
//! first; the weights always are, so that costs nothing where it matters.

mod gelu_mul;
mod matvec;
mod rms_norm;
mod rotate;

use burn::backend::Flex;
use burn::tensor::{DType, Shape};
use burn_flex::FlexTensor;

use super::extension::DecoderOps;

impl DecoderOps for Flex {
    fn matvec(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let [rows, _] = dims(&x);
        let [out_features, in_features] = dims(&weight);
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let mut out = zeros(rows, out_features);
        matvec::matvec(values(&x), values(&weight), out.storage_mut(), in_features);
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

fn zeros(rows: usize, columns: usize) -> FlexTensor {
    FlexTensor::zeros(Shape::new([rows, columns]), DType::F32)
}
