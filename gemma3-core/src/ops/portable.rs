//! The definitions, in plain burn. They run on every device.

use burn::tensor::{Tensor, activation};

/// `x Wᵀ`: `x` \[rows, in\], `weight` \[out, in\] (the layout of the checkpoints) → \[rows, out\].
pub fn linear(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    x.matmul(weight.clone().transpose())
}

/// `x * rsqrt(mean(x²) + eps) * scale` over the last axis of `x` \[rows, width\].
///
/// `scale` \[width\] is the whole multiplier: Gemma's checkpoints store `w` and mean `1 + w`, and
/// that sum is made once, in f32, when the weights are loaded.
pub fn rms_norm(x: Tensor<2>, scale: &Tensor<1>, eps: f64) -> Tensor<2> {
    let mean_square = (x.clone() * x.clone()).mean_dim(1);
    let inverse_rms = (mean_square + eps).sqrt().recip(); // [rows, 1]
    x * inverse_rms * scale.clone().unsqueeze::<2>()
}

/// `gelu_tanh(gate) * up`, where
/// `gelu_tanh(x) = 0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`: the tanh form, not the erf form.
pub fn gelu_mul(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    activation::gelu_approximate(gate) * up
}
