//! One layer of the decoder: attention and feed-forward, each between two norms.

use burn::tensor::Tensor;

use super::attention::{Attention, AttentionContext};
use super::feed_forward::FeedForward;
use super::norm::RmsNorm;
use super::rope::Rotation;
use super::trace::LayerTrace;
use crate::config::LayerType;

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
    ) -> Tensor<2> {
        let h = self.input_layernorm.forward(x.clone());
        trace.record("input_layernorm", &h);
        let h = self.attention.forward(h, rotation, sequences, &mut trace);
        let h = self.post_attention_layernorm.forward(h);
        trace.record("post_attention_layernorm", &h);
        let x = x + h;

        let h = self.pre_feedforward_layernorm.forward(x.clone());
        trace.record("pre_feedforward_layernorm", &h);
        let h = self.feed_forward.forward(h);
        trace.record("mlp", &h);
        let h = self.post_feedforward_layernorm.forward(h);
        trace.record("post_feedforward_layernorm", &h);
        let x = x + h;
        trace.record_layer_output(&x);
        x
    }
}
