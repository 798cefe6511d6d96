//! The operations of the decoder and the image encoder that have more than one implementation.
//!
//! The functions of this module are what the model calls. Each takes and returns ordinary
//! [`Tensor`]s, and each has a plain definition in [`portable`] that is its documentation, its
//! fallback on every device, and the oracle of its tests. A faster implementation enters through the
//! trait `DecoderOps` (module `extension`), burn's seam for operations of one backend; which
//! devices have one is decided here, in `is_accelerated`, so that a tensor on any other device
//! (also one that a host enabled without telling us) takes the portable path.

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(feature = "flex")]
pub mod extension;
pub mod portable;
mod precision;
mod visibility;

pub use precision::Precision;
pub use visibility::Visibility;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
#[cfg(feature = "flex")]
use extension::{CachedAttention, DecoderOps, NormRope, PackedProducts};

/// Whether this crate brings its own operations for the device.
#[cfg(feature = "flex")]
pub(crate) fn is_flex(device: &burn::tensor::Device) -> bool {
    matches!(device.as_dispatch(), burn::backend::DispatchDevice::Flex(_))
}

#[cfg(not(feature = "flex"))]
pub(crate) fn is_flex(_: &burn::tensor::Device) -> bool {
    false
}

/// From how many tokens of one sequence on a pass computes each as it would among any others, bit for bit: fewer are
/// rounded otherwise on flex, where a prompt is therefore not divided so that a few are left. (GPUs have kernels for
/// few classes of lengths, and are given whole chunks.)
pub(crate) fn alike_tokens(device: &burn::tensor::Device) -> usize {
    #[cfg(feature = "flex")]
    if is_flex(device) {
        return cpu::ALIKE_ROWS;
    }
    let _ = device;
    1
}

/// Whether the decoder runs as launches of our own kernels on the device.
#[cfg(feature = "cube")]
pub(crate) fn is_gpu(device: &burn::tensor::Device) -> bool {
    matches!(device.as_dispatch(), burn::backend::DispatchDevice::Cube(_))
}

#[cfg(not(feature = "cube"))]
pub(crate) fn is_gpu(_: &burn::tensor::Device) -> bool {
    false
}

/// Whether `tensor` lies on a device for which this crate brings its own operations, in the dtype
/// that they handle.
#[cfg(feature = "flex")]
fn is_accelerated<const D: usize>(tensor: &Tensor<D>) -> bool {
    is_flex(&tensor.device()) && tensor.dtype() == burn::tensor::DType::F32
}

/// Whether flex's own operations read and write a cache of this dtype.
#[cfg(feature = "flex")]
fn reads_cache(cache: &Tensor<3>) -> bool {
    use burn::tensor::DType;
    is_flex(&cache.device()) && matches!(cache.dtype(), DType::F32 | DType::BF16 | DType::F16)
}

/// An RMS normalization: the multiplier \[width\], and what is added to the mean square.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `1 + w` of the paper's `w`, \[width\].
    pub scale: &'a Tensor<1>,
    /// Added to the mean square.
    pub eps: f64,
}

/// `x Wᵀ` for several weights in the format of their file, which flex multiplies where they lie: `x`
/// \[rows, in\] gives a \[rows, out\] for each.
///
/// Definition: [`portable::linear`] with the weights expanded to f32.
#[cfg(feature = "flex")]
pub(crate) fn packed_linear(x: Tensor<2>, products: PackedProducts) -> Vec<Tensor<2>> {
    let (rows, outputs) = (x.dims()[0], products.out_features());
    let all = <Dispatch as DecoderOps>::packed_linear(x.into_dispatch(), products);
    split(Tensor::from_dispatch(all), rows, &outputs)
}

/// `norm(x) Wᵀ` for several weights in the format of their file, on flex.
///
/// Definition: [`portable::norm_linear`] with the weights expanded to f32.
#[cfg(feature = "flex")]
pub(crate) fn packed_norm_linear(x: Tensor<2>, norm: Norm<'_>, products: PackedProducts) -> Vec<Tensor<2>> {
    let (rows, outputs) = (x.dims()[0], products.out_features());
    let scale = norm.scale.clone().into_dispatch();
    let x = x.into_dispatch();
    let all = <Dispatch as DecoderOps>::packed_norm_linear(x, scale, norm.eps as f32, products);
    split(Tensor::from_dispatch(all), rows, &outputs)
}

/// `gelu_tanh(norm(x) gateᵀ) * (norm(x) upᵀ)`, on flex; the weights are the gate and what it gates.
///
/// Definition: [`portable::gated_linear`] with the weights expanded to f32.
#[cfg(feature = "flex")]
pub(crate) fn packed_gated_linear(x: Tensor<2>, norm: Norm<'_>, products: PackedProducts) -> Tensor<2> {
    let scale = norm.scale.clone().into_dispatch();
    let x = x.into_dispatch();
    let out = <Dispatch as DecoderOps>::packed_gated_linear(x, scale, norm.eps as f32, products);
    Tensor::from_dispatch(out)
}

/// `residual + norm(x Wᵀ)`, on flex, for one weight.
///
/// Definition: [`portable::linear_norm_add`] with the weights expanded to f32.
#[cfg(feature = "flex")]
pub(crate) fn packed_linear_norm_add(
    x: Tensor<2>,
    products: PackedProducts,
    norm: Norm<'_>,
    residual: Tensor<2>,
) -> Tensor<2> {
    let scale = norm.scale.clone().into_dispatch();
    let (x, residual) = (x.into_dispatch(), residual.into_dispatch());
    let eps = norm.eps as f32;
    let out = <Dispatch as DecoderOps>::packed_linear_norm_add(x, products, scale, eps, residual);
    Tensor::from_dispatch(out)
}

/// Matrices \[rows, outputs\] that lie one after the other.
#[cfg(feature = "flex")]
fn split(all: Tensor<1>, rows: usize, outputs: &[usize]) -> Vec<Tensor<2>> {
    if let [outputs] = outputs {
        return vec![all.reshape([rows, *outputs])];
    }
    let mut start = 0;
    let mut part = |outputs: &usize| {
        let part = all.clone().narrow(0, start, rows * outputs).reshape([rows, *outputs]);
        start += rows * outputs;
        part
    };
    outputs.iter().map(&mut part).collect()
}

/// Normalizes each head's vector of `x` \[tokens, heads * head_dim\], turns it by the angles of its token, given
/// as `cos` and `sin` \[tokens, 1, head_dim / 2\], and multiplies it with `factor`.
///
/// Definition: [`portable::norm_rope`].
pub fn norm_rope(x: Tensor<2>, norm: Norm<'_>, cos: &Tensor<3>, sin: &Tensor<3>, factor: f32) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if is_accelerated(&x) && is_accelerated(norm.scale) && is_accelerated(cos) && is_accelerated(sin) {
        let (cos, sin) = (cos.clone().into_dispatch(), sin.clone().into_dispatch());
        let (x, scale) = (x.into_dispatch(), norm.scale.clone().into_dispatch());
        let sizes = NormRope { eps: norm.eps as f32, factor };
        return Tensor::from_dispatch(<Dispatch as DecoderOps>::norm_rope(x, scale, cos, sin, sizes));
    }
    portable::norm_rope(x, norm, cos, sin, factor)
}

/// Stores `rows` \[tokens, kv_heads * head_dim\], f32, as the entries of positions `position..` in `cache`
/// \[kv_heads, slots, head_dim\] of any float dtype: position `p` is in slot `p % slots`. In place, if the
/// tensor that is given is the only one of its memory.
///
/// Definition: [`portable::write_cache`].
pub fn write_cache(cache: Tensor<3>, rows: Tensor<2>, position: usize) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if is_accelerated(&rows) && reads_cache(&cache) {
        let (cache, rows) = (cache.into_dispatch(), rows.into_dispatch());
        return Tensor::from_dispatch(<Dispatch as DecoderOps>::write_cache(cache, rows, position));
    }
    portable::write_cache(cache, rows, position)
}

/// Attention of the newest positions of a sequence over its cache: `q` \[tokens, heads * head_dim\], already
/// scaled, over `keys` and `values` \[kv_heads, slots, head_dim\] of any float dtype. Flex reads the entries
/// where they lie, never those that no query sees, and holds the scores of one tile of queries and keys a
/// thread.
///
/// Definition: [`portable::cached_attention`].
pub fn cached_attention(
    q: Tensor<2>,
    keys: &Tensor<3>,
    values: &Tensor<3>,
    heads: usize,
    visibility: &Visibility,
) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if is_accelerated(&q) && reads_cache(keys) && keys.dtype() == values.dtype() {
        let (keys, values) = (keys.clone().into_dispatch(), values.clone().into_dispatch());
        let over = CachedAttention { heads, visibility: visibility.clone() };
        let out = <Dispatch as DecoderOps>::cached_attention(q.into_dispatch(), keys, values, over);
        return Tensor::from_dispatch(out);
    }
    portable::cached_attention(q, keys, values, heads, visibility)
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

#[cfg(all(test, feature = "flex"))]
mod tests;
