//! The gated feed-forward layer: `(gelu_tanh(x Wgateᵀ) * (x Wupᵀ)) Wdownᵀ`.

use burn::tensor::Tensor;

use super::norm::RmsNorm;
use super::trace::LayerTrace;
use crate::device::DeviceFailed;
use crate::matrix::Matrix;

/// Feed-forward layer of one block.
#[derive(Debug, Clone)]
pub(super) struct FeedForward {
    pub(super) gate_proj: Matrix,
    pub(super) up_proj: Matrix,
    pub(super) down_proj: Matrix,
}

impl FeedForward {
    /// `x + post_norm(feed_forward(pre_norm(x)))`: \[tokens, hidden\] → \[tokens, hidden\].
    pub(super) fn forward(
        &self,
        x: Tensor<2>,
        pre_norm: &RmsNorm,
        post_norm: &RmsNorm,
        trace: &mut LayerTrace<'_>,
    ) -> Result<Tensor<2>, DeviceFailed> {
        trace.record_with("pre_feedforward_layernorm", || Ok(pre_norm.forward(x.clone())))?;
        let gated = Matrix::forward_gated(&self.gate_proj, &self.up_proj, x.clone(), pre_norm.parts())?;
        // gated: [tokens, intermediate]
        trace.record_with("mlp", || self.down_proj.forward(gated.clone()))?;
        trace.record_with("post_feedforward_layernorm", || {
            Ok(post_norm.forward(self.down_proj.forward(gated.clone())?))
        })?;
        self.down_proj.forward_norm_add(gated, post_norm.parts(), x)
    }
}
