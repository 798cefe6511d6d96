//! One layer of the decoder: attention and feed-forward, each between two norms.

use super::tracing::{Inside, Tracing};
use crate::ops::MachineError;
use crate::ops::machine::{Heads, Machine, Norm};

/// A decoder layer. The post norms apply to a branch's output, before it joins the residual stream.
#[derive(Debug)]
pub(super) struct Block<M: Machine> {
    pub(super) input_layernorm: Norm<M::Vector>,
    /// Queries, keys and values.
    pub(super) qkv_proj: M::Matrix,
    pub(super) heads: Heads<M::Vector>,
    pub(super) o_proj: M::Matrix,
    pub(super) post_attention_layernorm: Norm<M::Vector>,
    pub(super) pre_feedforward_layernorm: Norm<M::Vector>,
    /// The gate and what it gates.
    pub(super) gate_up_proj: M::Matrix,
    pub(super) down_proj: M::Matrix,
    pub(super) post_feedforward_layernorm: Norm<M::Vector>,
}

impl<M: Machine> Block<M> {
    /// The residual stream `x` \[tokens, hidden\] through this layer.
    pub(super) fn forward(
        &self,
        m: &M,
        x: &mut M::Stream<'_>,
        trace: &mut Tracing<'_>,
    ) -> Result<(), MachineError> {
        let layer = self.heads.layer;
        trace.stream(m, x, layer, Inside::BeforeAttention)?;
        let qkv = m.project(x, &self.input_layernorm, &self.qkv_proj)?; // [tokens, (heads + 2 kv_heads) head_dim]
        trace.rows(m, x, layer, Inside::Projected, &qkv)?;
        let attended = m.attend(x, qkv, &self.heads)?; // [tokens, heads * head_dim]
        trace.rows(m, x, layer, Inside::Attended, &attended)?;
        m.join(x, attended, &self.o_proj, &self.post_attention_layernorm)?;

        trace.stream(m, x, layer, Inside::BeforeFeedForward)?;
        let gated = m.gate(x, &self.pre_feedforward_layernorm, &self.gate_up_proj)?; // [tokens, intermediate]
        trace.rows(m, x, layer, Inside::Gated, &gated)?;
        m.join(x, gated, &self.down_proj, &self.post_feedforward_layernorm)?;
        trace.layer(m, x, self)
    }
}
