//! One layer of the decoder: attention and feed-forward, each between two norms.

use burn::tensor::Tensor;

use super::attention::{Attention, AttentionContext};
use super::feed_forward::FeedForward;
use super::norm::RmsNorm;
use super::rope::Rotation;
use super::trace::LayerTrace;
use crate::config::LayerType;
use crate::device::DeviceFailed;

/// A decoder layer. The post norms apply to a branch's output, before it joins the residual stream.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) kind: LayerType,
    pub(super) input_layernorm: RmsNorm,
    pub(super) attention: Attention,
    pub(super) post_attention_layernorm: RmsNorm,
    pub(super) pre_feedforward_layernorm: RmsNorm,
    pub(super) feed_forward: FeedForward,
    pub(super) post_feedforward_layernorm: RmsNorm,
}

impl Block {
    /// The residual stream `x` \[tokens, hidden\] through this layer.
    pub(super) fn forward(
        &self,
        x: Tensor<2>,
        rotation: &Rotation,
        sequences: &mut [AttentionContext<'_>],
        mut trace: LayerTrace<'_>,
    ) -> Result<Tensor<2>, DeviceFailed> {
        let (pre, post) = (&self.input_layernorm, &self.post_attention_layernorm);
        let x = self.attention.forward(x, pre, post, rotation, sequences, &mut trace)?;
        let (pre, post) = (&self.pre_feedforward_layernorm, &self.post_feedforward_layernorm);
        let x = self.feed_forward.forward(x, pre, post, &mut trace)?;
        trace.record_layer_output(&x);
        Ok(x)
    }
}
