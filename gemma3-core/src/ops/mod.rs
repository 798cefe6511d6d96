//! The operations of the decoder and the image encoder that have more than one implementation.
//!
//! The functions of this module are what the model calls. Each takes and returns ordinary
//! [`Tensor`]s, and each has a plain definition in [`portable`] that is its documentation, its
//! fallback on every device, and the oracle of its tests. A faster implementation enters through the
//! trait `DecoderOps` (module `extension`), burn's seam for operations of one backend; which
//! devices have one is decided here, in `is_accelerated`, so that a tensor on any other device
//! (also one that a host enabled without telling us) takes the portable path.

#[cfg(feature = "flex")]
use std::sync::Arc;

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
pub(crate) mod cpu;
#[cfg(feature = "flex")]
pub mod extension;
pub mod portable;
mod precision;

pub use precision::Precision;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
#[cfg(feature = "flex")]
use cpu::packed::PackedMatrix;
#[cfg(feature = "flex")]
use extension::{DecoderOps, PackedProducts};

/// Whether this crate brings its own operations for the device.
#[cfg(feature = "flex")]
pub(crate) fn is_flex(device: &burn::tensor::Device) -> bool {
    matches!(device.as_dispatch(), burn::backend::DispatchDevice::Flex(_))
}

/// Whether `tensor` lies on a device for which this crate brings its own operations, in the dtype
/// that they handle.
#[cfg(feature = "flex")]
fn is_accelerated<const D: usize>(tensor: &Tensor<D>) -> bool {
    is_flex(&tensor.device()) && tensor.dtype() == burn::tensor::DType::F32
}

/// `x Wᵀ` for several weights in the format of their file, which flex multiplies where they lie: `x`
/// \[rows, in\] gives a \[rows, out\] for each.
///
/// Definition: [`portable::linear`] with the weights expanded to f32.
#[cfg(feature = "flex")]
pub(crate) fn packed_linear(
    x: Tensor<2>,
    weights: Vec<Arc<PackedMatrix>>,
    precision: Precision,
) -> Vec<Tensor<2>> {
    let rows = x.dims()[0];
    let outputs: Vec<usize> = weights.iter().map(|weight| weight.out_features()).collect();
    let products = PackedProducts { weights, precision };
    let all = <Dispatch as DecoderOps>::packed_linear(x.into_dispatch(), products);
    let all: Tensor<1> = Tensor::from_dispatch(all);
    if let [outputs] = outputs[..] {
        return vec![all.reshape([rows, outputs])];
    }
    let mut start = 0;
    let mut part = |outputs| {
        let part = all.clone().narrow(0, start, rows * outputs).reshape([rows, outputs]);
        start += rows * outputs;
        part
    };
    outputs.into_iter().map(&mut part).collect()
}

/// Root-mean-square normalization of each row of `x` \[rows, width\], scaled by `scale` \[width\].
///
/// Definition: [`portable::rms_norm`].
pub fn rms_norm(x: Tensor<2>, scale: &Tensor<1>, eps: f64) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if is_accelerated(&x) && is_accelerated(scale) {
        let scale = scale.clone().into_dispatch();
        let x = x.into_dispatch();
        return Tensor::from_dispatch(<Dispatch as DecoderOps>::rms_norm(x, scale, eps as f32));
    }
    portable::rms_norm(x, scale, eps)
}

/// `gelu_tanh(gate) * up`, elementwise on two tensors \[rows, width\].
///
/// Definition: [`portable::gelu_mul`].
pub fn gelu_mul(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if is_accelerated(&gate) && is_accelerated(&up) {
        let up = up.into_dispatch();
        let gate = gate.into_dispatch();
        return Tensor::from_dispatch(<Dispatch as DecoderOps>::gelu_mul(gate, up));
    }
    portable::gelu_mul(gate, up)
}

/// Layer normalization of each row of `x` \[rows, width\] (true mean and variance), scaled by `weight` and
/// shifted by `bias` \[width\].
///
/// Definition: [`portable::layer_norm`].
pub fn layer_norm(x: Tensor<2>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if is_accelerated(&x) && is_accelerated(weight) && is_accelerated(bias) {
        let (weight, bias) = (weight.clone().into_dispatch(), bias.clone().into_dispatch());
        let x = x.into_dispatch();
        return Tensor::from_dispatch(<Dispatch as DecoderOps>::layer_norm(x, weight, bias, eps as f32));
    }
    portable::layer_norm(x, weight, bias, eps)
}

/// `gelu_tanh(x + bias)`, `x` \[rows, width\], `bias` \[width\].
///
/// Definition: [`portable::bias_gelu`].
pub fn bias_gelu(x: Tensor<2>, bias: &Tensor<1>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if is_accelerated(&x) && is_accelerated(bias) {
        let bias = bias.clone().into_dispatch();
        return Tensor::from_dispatch(<Dispatch as DecoderOps>::bias_gelu(x.into_dispatch(), bias));
    }
    portable::bias_gelu(x, bias)
}

/// Attention of every position over all positions of its own sequence, without mask:
/// `softmax(scale * q kᵀ) v` for each of `sequences` sequences and `heads` heads. `q`, `k`, `v` and the result
/// are \[sequences * tokens, heads * head_dim\].
///
/// No implementation holds all scores at once: the definition at most 64 MiB of them, flex one tile of at
/// most 256 queries and one head a thread.
///
/// Definition: [`portable::attention`].
pub fn attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    heads: usize,
    sequences: usize,
    scale: f32,
) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if is_accelerated(&q) && is_accelerated(&k) && is_accelerated(&v) {
        let (k, v) = (k.into_dispatch(), v.into_dispatch());
        let q = q.into_dispatch();
        let out = <Dispatch as DecoderOps>::attention(q, k, v, heads, sequences, scale);
        return Tensor::from_dispatch(out);
    }
    portable::attention(q, k, v, heads, sequences, scale)
}

/// Turns each head's vector of `x` \[tokens, heads, head_dim\] by the angles of its token, given as `cos`
/// and `sin` \[tokens, 1, head_dim / 2\].
///
/// Definition: [`portable::rotate`].
pub fn rotate(x: Tensor<3>, cos: &Tensor<3>, sin: &Tensor<3>) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if is_accelerated(&x) && is_accelerated(cos) && is_accelerated(sin) {
        let (cos, sin) = (cos.clone().into_dispatch(), sin.clone().into_dispatch());
        return Tensor::from_dispatch(<Dispatch as DecoderOps>::rotate(x.into_dispatch(), cos, sin));
    }
    portable::rotate(x, cos, sin)
}

#[cfg(all(test, feature = "flex"))]
mod tests;
