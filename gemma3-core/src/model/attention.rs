//! Grouped-query self-attention with q/k normalization, rope and a KV cache.

use burn::tensor::Tensor;

use super::norm::RmsNorm;
use super::rope::Rotation;
use super::trace::LayerTrace;
use crate::cache::LayerView;
use crate::config::TextConfig;
use crate::device::DeviceFailed;
use crate::matrix::Matrix;
use crate::ops::Visibility;

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
    /// `query_pre_attn_scalar^-0.5`; in the 27B this is not `head_dim^-0.5`.
    pub(super) scale: f32,
}

impl AttentionShape {
    pub(super) fn new(config: &TextConfig) -> Self {
        Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
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
    pub(super) cache: LayerView<'a>,
    pub(super) visibility: &'a Visibility,
}

impl Attention {
    /// `x + post_norm(attention(pre_norm(x)))`, `x` \[tokens, hidden\] with the rows of all sequences one after
    /// the other.
    ///
    /// The projections are done for all rows together, so that the weights are read once; each
    /// sequence then attends over its own cache.
    pub(super) fn forward(
        &self,
        x: Tensor<2>,
        pre_norm: &RmsNorm,
        post_norm: &RmsNorm,
        rotation: &Rotation,
        sequences: &mut [AttentionContext<'_>],
        trace: &mut LayerTrace<'_>,
    ) -> Result<Tensor<2>, DeviceFailed> {
        let AttentionShape { heads, kv_heads, scale } = self.shape;
        trace.record_with("input_layernorm", || Ok(pre_norm.forward(x.clone())))?;

        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let [q, k, v] = Matrix::forward_normed(projections, x.clone(), pre_norm.parts())?;
        trace.record("q_proj", &q);
        trace.record("k_proj", &k);
        trace.record("v_proj", &v);

        trace.record_heads("q_norm", heads, || self.q_norm.forward_heads(q.clone(), heads));
        trace.record_heads("k_norm", kv_heads, || self.k_norm.forward_heads(k.clone(), kv_heads));
        trace.record_heads("q_rope", heads, || rotation.apply(q.clone(), &self.q_norm, 1.0));
        let q = rotation.apply(q, &self.q_norm, scale);
        let k = rotation.apply(k, &self.k_norm, 1.0);
        trace.record_heads("k_rope", kv_heads, || k.clone());

        let mut outputs = Vec::with_capacity(sequences.len());
        for sequence in sequences.iter_mut() {
            let (first, rows) = (sequence.first_row, sequence.rows);
            let own = |all: &Tensor<2>| all.clone().narrow(0, first, rows);
            let visibility = sequence.visibility;
            sequence.cache.write(visibility.queries().start, own(&k), own(&v))?;
            trace.record_probabilities(|| sequence.cache.probabilities(own(&q), heads, visibility))?;
            outputs.push(sequence.cache.attend(own(&q), heads, visibility)?);
        }
        let attended = if outputs.len() == 1 { outputs.swap_remove(0) } else { Tensor::cat(outputs, 0) };
        trace.record("attention", &attended);

        trace.record_with("o_proj", || self.o_proj.forward(attended.clone()))?;
        trace.record_with("post_attention_layernorm", || {
            Ok(post_norm.forward(self.o_proj.forward(attended.clone())?))
        })?;
        self.o_proj.forward_norm_add(attended, post_norm.parts(), x)
    }
}
