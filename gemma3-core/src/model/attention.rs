//! Grouped-query self-attention with q/k normalization, rope and a KV cache.

use burn::tensor::{Tensor, activation};

use super::mask::Visibility;
use super::norm::RmsNorm;
use super::rope::Rotation;
use super::trace::LayerTrace;
use crate::cache::LayerCache;
use crate::config::TextConfig;
use crate::matrix::Matrix;

/// Bytes of attention scores that are held at once. Longer prefills are done in slices of queries.
const MAX_SCORE_BYTES: usize = 64 << 20;

/// Self-attention of one layer.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    pub(super) q_proj: Matrix,
    pub(super) k_proj: Matrix,
    pub(super) v_proj: Matrix,
    pub(super) o_proj: Matrix,
    pub(super) q_norm: RmsNorm,
    pub(super) k_norm: RmsNorm,
    pub(super) shape: AttentionShape,
}

/// Sizes of the heads.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionShape {
    /// Query heads.
    pub(super) heads: usize,
    /// Key and value heads; `heads / kv_heads` query heads share one.
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) head_dim: usize,
    /// `query_pre_attn_scalar^-0.5`; in the 27B this is not `head_dim^-0.5`.
    pub(super) scale: f32,
}

impl AttentionShape {
    pub(super) fn new(config: &TextConfig) -> Self {
        Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: config.query_pre_attn_scalar.powf(-0.5) as f32,
        }
    }
}

/// One sequence's share of a forward pass over one layer.
pub(super) struct AttentionContext<'a> {
    /// Rows of the batch that belong to this sequence.
    pub(super) first_row: usize,
    /// Number of those rows.
    pub(super) rows: usize,
    /// Position of the first of them in the sequence.
    pub(super) position: usize,
    pub(super) cache: &'a mut LayerCache,
    pub(super) visibility: &'a Visibility,
}

impl Attention {
    /// `x` \[tokens, hidden\], the rows of all sequences one after the other → \[tokens, hidden\].
    ///
    /// The projections are done for all rows together, so that the weights are read once; each
    /// sequence then attends over its own cache.
    pub(super) fn forward(
        &self,
        x: Tensor<2>,
        rotation: &Rotation,
        sequences: &mut [AttentionContext<'_>],
        trace: &mut LayerTrace<'_>,
    ) -> Tensor<2> {
        let tokens = x.dims()[0];
        let AttentionShape { heads, kv_heads, head_dim, scale } = self.shape;

        let [q, k, v] = Matrix::forward_each([&self.q_proj, &self.k_proj, &self.v_proj], x);
        trace.record("q_proj", &q);
        trace.record("k_proj", &k);
        trace.record("v_proj", &v);

        let q = self.q_norm.forward_heads(q.reshape([tokens, heads, head_dim]));
        let k = self.k_norm.forward_heads(k.reshape([tokens, kv_heads, head_dim]));
        trace.record_heads("q_norm", &q);
        trace.record_heads("k_norm", &k);
        let q = rotation.apply(q);
        let k = rotation.apply(k);
        trace.record_heads("q_rope", &q);
        trace.record_heads("k_rope", &k);

        // [heads, tokens, head_dim]
        let q = (q * scale).swap_dims(0, 1);
        let k = k.swap_dims(0, 1);
        let v = v.reshape([tokens, kv_heads, head_dim]).swap_dims(0, 1);

        let mut outputs = Vec::with_capacity(sequences.len());
        for sequence in sequences.iter_mut() {
            let (first, rows) = (sequence.first_row, sequence.rows);
            let own = |all: &Tensor<3>| all.clone().narrow(1, first, rows);
            sequence.cache.write(sequence.position, own(&k), own(&v));
            outputs.push(attend(own(&q), kv_heads, sequence, trace));
        }
        let attended = if outputs.len() == 1 { outputs.swap_remove(0) } else { Tensor::cat(outputs, 0) };
        trace.record("attention", &attended);

        let out = self.o_proj.forward(attended);
        trace.record("o_proj", &out);
        out
    }
}

/// `softmax(q kᵀ + mask) v` of one sequence, `q` already scaled: \[heads, rows, head_dim\] →
/// \[rows, heads * head_dim\].
fn attend(
    q: Tensor<3>,
    kv_heads: usize,
    sequence: &AttentionContext<'_>,
    trace: &mut LayerTrace<'_>,
) -> Tensor<2> {
    let Visibility { keys, mask } = sequence.visibility;
    let (k, v) = sequence.cache.read(keys.start, keys.end);
    let [heads, rows, head_dim] = q.dims();
    let score_bytes_per_row = heads * keys.len() * size_of::<f32>();
    let rows_at_once = (MAX_SCORE_BYTES / score_bytes_per_row.max(1)).clamp(1, rows);
    let group = heads / kv_heads;

    let mut slices = Vec::with_capacity(rows.div_ceil(rows_at_once));
    for start in (0..rows).step_by(rows_at_once) {
        let count = rows_at_once.min(rows - start);
        // The query heads that share a key head become rows of one product.
        let q = q.clone().narrow(1, start, count).reshape([kv_heads, group * count, head_dim]);
        let scores = q.matmul(k.clone().swap_dims(1, 2)).reshape([heads, count, keys.len()]);
        let scores = match mask {
            Some(mask) => scores + mask.clone().narrow(0, start, count).unsqueeze::<3>(),
            None => scores,
        };
        let probabilities = activation::softmax(scores, 2);
        trace.record_rows("probs", &probabilities);
        let attended = probabilities
            .reshape([kv_heads, group * count, keys.len()])
            .matmul(v.clone())
            .reshape([heads, count, head_dim])
            .swap_dims(0, 1) // [rows, heads, head_dim]
            .reshape([count, heads * head_dim]);
        slices.push(attended);
    }
    if slices.len() == 1 { slices.swap_remove(0) } else { Tensor::cat(slices, 0) }
}
