//! Attention: over a cache, as the decoder has it, and of whole sequences, as the image encoder has it.

use std::ops::Range;

use burn::tensor::{Tensor, activation};

use super::cache::entries;
use crate::ops::Visibility;

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
    let queries_at_once = queries_at_once(heads, tokens, tokens);
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

/// `softmax(q kᵀ + mask) v` over a cache: `q` \[tokens, heads * head_dim\], already scaled, `keys` and `values`
/// \[kv_heads, slots, head_dim\], which hold what the queries see → \[tokens, heads * head_dim\].
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
    let queries_at_once = queries_at_once(heads, tokens, count);

    let mut slices = Vec::with_capacity(tokens.div_ceil(queries_at_once));
    for start in (0..tokens).step_by(queries_at_once) {
        let rows = start..tokens.min(start + queries_at_once);
        let attended = probabilities(q.clone(), keys, heads, visibility, rows.clone())
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
pub fn probabilities(
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

/// So many queries that their scores fit.
fn queries_at_once(heads: usize, tokens: usize, keys: usize) -> usize {
    let score_bytes_per_query = heads * keys * size_of::<f32>();
    (MAX_SCORE_BYTES / score_bytes_per_query.max(1)).clamp(1, tokens.max(1))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::ops::plain::testing::{assert_close, tensor};

    #[test]
    fn heads_attend_on_their_own() {
        // Two tokens, two heads of width 2.
        let q = tensor(&[1.0, 0.0, 0.0, 2.0, 0.0, 1.0, 1.0, 1.0], [2, 4]);
        let k = tensor(&[1.0, 1.0, 2.0, 0.0, 0.0, 2.0, 1.0, -1.0], [2, 4]);
        let v = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [2, 4]);
        let expected =
            [2.510_163, 3.510_163, 4.075_766, 5.075_766, 3.489_837, 4.489_837, 4.075_766, 5.075_766];
        assert_close(attention(q.clone(), k.clone(), v.clone(), 2, 1, 0.5), [2, 4], &expected);
        // As sequences of their own, each sees only its own values.
        assert_close(
            attention(q, k, v.clone(), 2, 2, 0.5),
            [2, 4],
            &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        );
    }

    /// Two query heads share a key head of width 2. Positions 2 to 5 lie in four slots; the queries at 4 and 5 see
    /// three keys each.
    #[test]
    fn a_query_sees_its_window_of_the_ring() {
        let keys = tensor(&[1.0, 1.0, -1.0, 0.5, 1.0, 0.0, 0.0, 1.0], [1, 4, 2]);
        let values = tensor(&[5.0, 6.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0], [1, 4, 2]);
        let q = tensor(&[1.0, 0.0, 0.0, 2.0, 0.5, 0.5, 1.0, -1.0], [2, 4]);
        let visibility = Visibility::new(4..6, Some(3), Vec::new());
        let expected = [
            [[0.422_318_8, 0.155_362_4, 0.422_318_8, 0.0], [0.0, 0.320_401_1, 0.528_252_1, 0.151_346_8]],
            [[0.063_378_9, 0.468_310_5, 0.468_310_5, 0.0], [0.0, 0.231_223_9, 0.628_531_7, 0.140_244_4]],
        ];
        let found = probabilities(q.clone(), &keys, 2, &visibility, 0..2);
        assert_close(found, [2, 2, 4], expected.as_flattened().as_flattened());
        let expected =
            [[[3.0, 4.0], [3.809_863, 4.809_863]], [[3.451_117, 4.451_117], [3.696_086, 4.696_086]]];
        let found = cached_attention(q, &keys, &values, 2, &visibility);
        assert_close(found, [2, 4], expected.as_flattened().as_flattened());
    }
}
