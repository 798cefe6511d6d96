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

/// Half-rotation of the last axis of `x` \[tokens, heads, head_dim\]: for `j < head_dim / 2`,
/// `out[j] = x[j] cos[j] - x[j + head_dim/2] sin[j]` and
/// `out[j + head_dim/2] = x[j + head_dim/2] cos[j] + x[j] sin[j]`, with `cos` and `sin`
/// \[tokens, 1, head_dim / 2\].
pub fn rotate(x: Tensor<3>, cos: &Tensor<3>, sin: &Tensor<3>) -> Tensor<3> {
    let half = x.dims()[2] / 2;
    let first = x.clone().narrow(2, 0, half);
    let second = x.narrow(2, half, half);
    let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let turned_second = second * cos.clone() + first * sin.clone();
    Tensor::cat(vec![turned_first, turned_second], 2)
}
