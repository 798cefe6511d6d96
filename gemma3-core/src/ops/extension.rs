//! The seam through which a backend brings its own operations.
//!
//! Methods see the backend's tensor primitives, not [`Tensor`](burn::tensor::Tensor)s; the macro
//! generates the routing from burn's run-time dispatch. A backend that is not listed panics when
//! called, therefore only the functions of [`crate::ops`] call this trait, after looking at the device.
//! To add a backend: list it here, implement the trait for it in a folder beside `cpu/`, and name it
//! in `is_accelerated`.

use std::sync::Arc;

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

use super::cpu::packed::PackedMatrix;
use super::{Precision, Visibility};

/// Weights that one input is multiplied with.
#[derive(Debug, Clone)]
pub struct PackedProducts {
    pub(crate) weights: Vec<Arc<PackedMatrix>>,
    pub(crate) precision: Precision,
}

impl PackedProducts {
    /// The width of each product.
    pub(crate) fn out_features(&self) -> Vec<usize> {
        self.weights.iter().map(|weight| weight.out_features()).collect()
    }
}

/// Sizes of a [`DecoderOps::norm_rope`].
#[derive(Debug, Clone, Copy)]
pub struct NormRope {
    pub(crate) eps: f32,
    /// What the result is multiplied with.
    pub(crate) factor: f32,
}

/// What a [`DecoderOps::cached_attention`] attends over.
#[derive(Debug, Clone)]
pub struct CachedAttention {
    pub(crate) heads: usize,
    pub(crate) visibility: Visibility,
}

/// Operations of a decoder step, and of the image encoder that is built from the same parts. Shapes and meaning
/// are those of the functions of the same names in [`crate::ops::portable`]; those whose names begin with
/// `packed` take weights in the format of their file in place of tensors.
#[backend_extension(Flex)]
pub trait DecoderOps: Backend {
    /// `x` \[rows, in\] times each of the weights \[out, in\], transposed: one \[rows, out\] after the
    /// other in one dimension.
    fn packed_linear(x: FloatTensor<Self>, products: PackedProducts) -> FloatTensor<Self>;

    /// As [`packed_linear`](DecoderOps::packed_linear) of the normalized `x`; `scale` \[in\].
    fn packed_norm_linear(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        eps: f32,
        products: PackedProducts,
    ) -> FloatTensor<Self>;

    /// The gated products of the normalized `x` with two weights, the gate first: \[rows, out\].
    fn packed_gated_linear(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        eps: f32,
        products: PackedProducts,
    ) -> FloatTensor<Self>;

    /// `residual` plus the normalized product of `x` with one weight; `scale` \[out\], `residual` and the
    /// result \[rows, out\].
    fn packed_linear_norm_add(
        x: FloatTensor<Self>,
        products: PackedProducts,
        scale: FloatTensor<Self>,
        eps: f32,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Row-wise RMS normalization of `x` \[rows, width\] with the multiplier `scale` \[width\].
    fn rms_norm(x: FloatTensor<Self>, scale: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;

    /// Normalization and rotary embedding of the heads of `x` \[tokens, heads * head_dim\] with the multiplier
    /// `scale` \[head_dim\] and `cos` and `sin` \[tokens, 1, head_dim / 2\].
    fn norm_rope(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        sizes: NormRope,
    ) -> FloatTensor<Self>;

    /// Stores `rows` \[tokens, kv_heads * head_dim\] in f32 as the entries of positions `position..` of
    /// `cache` \[kv_heads, slots, head_dim\], in its dtype, in place where nobody else holds it.
    fn write_cache(cache: FloatTensor<Self>, rows: FloatTensor<Self>, position: usize) -> FloatTensor<Self>;

    /// Attention of `q` \[tokens, heads * head_dim\] over `keys` and `values` \[kv_heads, slots, head_dim\] of
    /// any float dtype.
    fn cached_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        over: CachedAttention,
    ) -> FloatTensor<Self>;

    /// `gelu_tanh(gate) * up`, both \[rows, width\].
    fn gelu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Row-wise layer normalization of `x` \[rows, width\] with `weight` and `bias` \[width\].
    fn layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;

    /// `gelu_tanh(x + bias)` of `x` \[rows, width\] with `bias` \[width\].
    fn bias_gelu(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Attention of every position over all positions of its sequence; `q`, `k`, `v` and the result are
    /// \[sequences * tokens, heads * head_dim\].
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        heads: usize,
        sequences: usize,
        scale: f32,
    ) -> FloatTensor<Self>;
}
