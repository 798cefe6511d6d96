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

/// `(x - mean(x)) * rsqrt(variance(x) + eps) * weight + bias` over the last axis of `x` \[rows, width\];
/// the variance is that of the row itself (divided by the width).
pub fn layer_norm(x: Tensor<2>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = (centred.clone() * centred.clone()).mean_dim(1);
    let inverse = (variance + eps).sqrt().recip(); // [rows, 1]
    centred * inverse * weight.clone().unsqueeze::<2>() + bias.clone().unsqueeze::<2>()
}

/// `gelu_tanh(x + bias)` with the activation of [`gelu_mul`].
pub fn bias_gelu(x: Tensor<2>, bias: &Tensor<1>) -> Tensor<2> {
    activation::gelu_approximate(x + bias.clone().unsqueeze::<2>())
}

/// Bytes of attention scores that are held at once.
const MAX_SCORE_BYTES: usize = 64 << 20;

/// `softmax(scale * q kᵀ) v` for each sequence and head, in slices of queries whose scores fit
/// 64 MiB; all \[sequences * tokens, heads * head_dim\].
pub fn attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    heads: usize,
    sequences: usize,
    scale: f32,
) -> Tensor<2> {
    let [rows, width] = q.dims();
    let (tokens, head_dim) = (rows / sequences, width / heads);
    let score_bytes_per_query = heads * tokens * size_of::<f32>();
    let queries_at_once = (MAX_SCORE_BYTES / score_bytes_per_query.max(1)).clamp(1, tokens.max(1));
    // [heads, tokens, head_dim]
    let of_sequence = |x: &Tensor<2>, sequence: usize| {
        x.clone().narrow(0, sequence * tokens, tokens).reshape([tokens, heads, head_dim]).swap_dims(0, 1)
    };
    let mut slices = Vec::new();
    for sequence in 0..sequences {
        let q = of_sequence(&q, sequence) * scale;
        let k = of_sequence(&k, sequence).swap_dims(1, 2);
        let v = of_sequence(&v, sequence);
        for start in (0..tokens).step_by(queries_at_once) {
            let count = queries_at_once.min(tokens - start);
            let scores = q.clone().narrow(1, start, count).matmul(k.clone()); // [heads, count, tokens]
            let attended = activation::softmax(scores, 2).matmul(v.clone());
            slices.push(attended.swap_dims(0, 1).reshape([count, width]));
        }
    }
    if slices.len() == 1 { slices.swap_remove(0) } else { Tensor::cat(slices, 0) }
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
