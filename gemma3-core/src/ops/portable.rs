//! The definitions, in plain burn. They run on every device.

use std::ops::Range;

use burn::tensor::{DType, Tensor, activation};

use super::{Norm, Visibility};

/// `x Wᵀ`: `x` \[rows, in\], `weight` \[out, in\] (the layout of the checkpoints) → \[rows, out\].
pub fn linear(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    x.matmul(weight.clone().transpose())
}

/// `norm(x) Wᵀ`: `x` \[rows, in\], `weight` \[out, in\] → \[rows, out\].
pub fn norm_linear(x: Tensor<2>, norm: Norm<'_>, weight: &Tensor<2>) -> Tensor<2> {
    linear(rms_norm(x, norm.scale, norm.eps), weight)
}

/// `gelu_tanh(norm(x) gateᵀ) * (norm(x) upᵀ)`: `x` \[rows, in\], `gate` and `up` \[out, in\] → \[rows, out\].
pub fn gated_linear(x: Tensor<2>, norm: Norm<'_>, gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    let x = rms_norm(x, norm.scale, norm.eps);
    gelu_mul(linear(x.clone(), gate), linear(x, up))
}

/// `residual + norm(x Wᵀ)`: `x` \[rows, in\], `weight` \[out, in\], `residual` \[rows, out\] → \[rows, out\].
pub fn linear_norm_add(x: Tensor<2>, weight: &Tensor<2>, norm: Norm<'_>, residual: Tensor<2>) -> Tensor<2> {
    residual + rms_norm(linear(x, weight), norm.scale, norm.eps)
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

/// Each head's vector of `x` \[tokens, heads * head_dim\] normalized, turned ([`rotate`]) and multiplied with
/// `factor`; `norm` is \[head_dim\] wide.
pub fn norm_rope(x: Tensor<2>, norm: Norm<'_>, cos: &Tensor<3>, sin: &Tensor<3>, factor: f32) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let [head_dim] = norm.scale.dims();
    let heads = width / head_dim;
    let x = rms_norm(x.reshape([tokens * heads, head_dim]), norm.scale, norm.eps);
    let x = rotate(x.reshape([tokens, heads, head_dim]), cos, sin);
    (x * factor).reshape([tokens, width])
}

/// `rows` \[tokens, kv_heads * head_dim\] as the entries of positions `position..` in `cache`
/// \[kv_heads, slots, head_dim\], in its dtype: position `p` is in slot `p % slots`. There must not be more rows
/// than slots.
pub fn write_cache(mut cache: Tensor<3>, rows: Tensor<2>, position: usize) -> Tensor<3> {
    let [kv_heads, slots, head_dim] = cache.dims();
    let [tokens, _] = rows.dims();
    let dtype = cache.dtype();
    let rows = rows.reshape([tokens, kv_heads, head_dim]).swap_dims(0, 1); // [kv_heads, tokens, head_dim]
    let rows = if dtype == DType::F32 { rows } else { rows.cast(dtype) };
    let mut written = 0;
    for run in ring_runs(position..position + tokens, slots) {
        let part = rows.clone().narrow(1, written, run.len());
        written += run.len();
        cache = cache.slice_assign([0..kv_heads, run, 0..head_dim], part);
    }
    cache
}

/// `softmax(q kᵀ + mask) v` over a cache: `q` \[tokens, heads * head_dim\], already scaled, `keys` and `values`
/// \[kv_heads, slots, head_dim\] with position `p` in slot `p % slots` → \[tokens, heads * head_dim\].
/// `heads / kv_heads` query heads share a key head. In slices of queries whose scores fit 64 MiB.
pub fn cached_attention(
    q: Tensor<2>,
    keys: &Tensor<3>,
    values: &Tensor<3>,
    heads: usize,
    visibility: &Visibility,
) -> Tensor<2> {
    let [tokens, width] = q.dims();
    let [kv_heads, _, head_dim] = keys.dims();
    let values = entries(values, visibility.keys());
    let count = visibility.keys().len();
    let score_bytes_per_query = heads * count * size_of::<f32>();
    let queries_at_once = (MAX_SCORE_BYTES / score_bytes_per_query.max(1)).clamp(1, tokens.max(1));

    let mut slices = Vec::with_capacity(tokens.div_ceil(queries_at_once));
    for start in (0..tokens).step_by(queries_at_once) {
        let rows = start..tokens.min(start + queries_at_once);
        let attended = attention_probabilities(q.clone(), keys, heads, visibility, rows.clone())
            .reshape([kv_heads, heads / kv_heads * rows.len(), count])
            .matmul(values.clone())
            .reshape([heads, rows.len(), head_dim])
            .swap_dims(0, 1) // [rows, heads, head_dim]
            .reshape([rows.len(), width]);
        slices.push(attended);
    }
    if slices.len() == 1 { slices.swap_remove(0) } else { Tensor::cat(slices, 0) }
}

/// The softmax of [`cached_attention`] for some rows of `q`: \[heads, rows, keys\], with the keys of
/// [`Visibility::keys`].
pub fn attention_probabilities(
    q: Tensor<2>,
    keys: &Tensor<3>,
    heads: usize,
    visibility: &Visibility,
    rows: Range<usize>,
) -> Tensor<3> {
    let [tokens, _] = q.dims();
    let [kv_heads, _, head_dim] = keys.dims();
    let mask = visibility.mask(&q.device());
    let keys = entries(keys, visibility.keys());
    let (start, count) = (rows.start, rows.len());
    // The query heads that share a key head become rows of one product.
    let q = q.reshape([tokens, heads, head_dim]).narrow(0, start, count).swap_dims(0, 1).reshape([
        kv_heads,
        heads / kv_heads * count,
        head_dim,
    ]);
    let scores = q.matmul(keys.swap_dims(1, 2)).reshape([heads, count, visibility.keys().len()]);
    let scores = match mask {
        Some(mask) => scores + mask.narrow(0, start, count).unsqueeze::<3>(),
        None => scores,
    };
    activation::softmax(scores, 2)
}

/// The entries of consecutive positions of a cache in f32, in order: a view where they lie together, a copy
/// where they wrap around the ring's end.
pub(crate) fn entries(cache: &Tensor<3>, positions: Range<usize>) -> Tensor<3> {
    let slots = cache.dims()[1];
    let mut parts: Vec<_> = ring_runs(positions, slots)
        .map(|run| cache.clone().narrow(1, run.start, run.len()))
        .map(|part| if part.dtype() == DType::F32 { part } else { part.cast(DType::F32) })
        .collect();
    if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(parts, 1) }
}

/// The runs of slots that hold consecutive positions, at most two: position `p` is in slot `p % slots`.
fn ring_runs(positions: Range<usize>, slots: usize) -> impl Iterator<Item = Range<usize>> {
    let first = positions.start % slots;
    let end = first + positions.len();
    [first..end.min(slots), 0..end.saturating_sub(slots)].into_iter().filter(|run| !run.is_empty())
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
