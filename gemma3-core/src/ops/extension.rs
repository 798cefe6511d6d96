//! The seam through which a backend brings its own operations.
//!
//! Methods see the backend's tensor primitives, not [`Tensor`](burn::tensor::Tensor)s; the macro
//! generates the routing from burn's run-time dispatch. A backend that is not listed panics when
//! called, therefore only the functions of [`crate::ops`] call this trait, after looking at the device.
//! To add a backend: list it here, implement the trait for it in a folder beside `cpu/`, and name it
//! in `is_accelerated`.

use std::sync::Arc;

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

use super::Precision;
use super::cpu::packed::PackedMatrix;

/// Weights that one input is multiplied with.
#[derive(Debug, Clone)]
pub struct PackedProducts {
    pub(crate) weights: Vec<Arc<PackedMatrix>>,
    pub(crate) precision: Precision,
}

/// Operations of a decoder step, and of the image encoder that is built from the same parts. Shapes and meaning are those of the functions of the same names in
/// [`crate::ops::portable`]; `packed_linear` is `linear` with several packed weights.
#[backend_extension(Flex)]
pub trait DecoderOps: Backend {
    /// `x` \[rows, in\] times each of the weights \[out, in\], transposed: one \[rows, out\] after the
    /// other in one dimension.
    fn packed_linear(x: FloatTensor<Self>, products: PackedProducts) -> FloatTensor<Self>;

    /// Row-wise RMS normalization of `x` \[rows, width\] with the multiplier `scale` \[width\].
    fn rms_norm(x: FloatTensor<Self>, scale: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;

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

    /// Rotary embedding of `x` \[tokens, heads, head_dim\] by `cos` and `sin` \[tokens, 1, head_dim / 2\].
    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
}
