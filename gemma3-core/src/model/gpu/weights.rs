//! What of a decoder lies on the device.

use std::sync::Arc;

use cubecl::server::Handle;

use crate::config::LayerType;
use crate::matrix::{DeviceMatrix, Matrix};
use crate::model::ForwardError;
use crate::model::decoder::Decoder;
use crate::model::norm::RmsNorm;
use crate::ops::cube::packed::PackedMatrix;
use crate::ops::cube::stream::Stream;

/// Everything that a pass reads.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) embedding: Arc<PackedMatrix>,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) final_norm: Handle,
    pub(super) head: Arc<PackedMatrix>,
    /// Radians per position, \[head_dim / 2\].
    pub(super) local_frequencies: Handle,
    pub(super) global_frequencies: Handle,
}

/// One layer's.
#[derive(Debug)]
pub(super) struct LayerWeights {
    pub(super) kind: LayerType,
    pub(super) qkv: Projections,
    pub(super) output: Arc<PackedMatrix>,
    pub(super) gate_up: Projections,
    pub(super) down: Arc<PackedMatrix>,
    pub(super) input_norm: Handle,
    pub(super) q_norm: Handle,
    pub(super) k_norm: Handle,
    pub(super) post_attention_norm: Handle,
    pub(super) pre_feedforward_norm: Handle,
    pub(super) post_feedforward_norm: Handle,
}

/// Matrices with the same input: one after the other in one, or, where their formats differ, several.
#[derive(Debug)]
pub(super) struct Projections {
    pub(super) parts: Vec<Arc<PackedMatrix>>,
}

impl LayerWeights {
    /// Whether some matrices of one input lie apart.
    pub(super) fn has_parts(&self) -> bool {
        self.qkv.parts.len() > 1 || self.gate_up.parts.len() > 1
    }
}

impl Projections {
    /// Width of all outputs side by side.
    pub(super) fn outputs(&self) -> usize {
        self.parts.iter().map(|part| part.layout.rows).sum()
    }

    fn of(matrices: &[&Matrix]) -> Option<Self> {
        let mut parts = Vec::new();
        let mut rest = matrices;
        while !rest.is_empty() {
            let longest = (1..=rest.len()).rev();
            let (len, part) = longest
                .into_iter()
                .find_map(|len| DeviceMatrix::whole_stack(&rest[..len]).map(|stack| (len, stack)))?;
            parts.push(part);
            rest = &rest[len..];
        }
        Some(Self { parts })
    }
}

impl Weights {
    pub(super) fn of(decoder: &Decoder, stream: &Stream) -> Result<Self, ForwardError> {
        let missing = || ForwardError::Bug { what: "a matrix of a GPU's decoder lies elsewhere" };
        let one = |matrix: &Matrix| DeviceMatrix::whole_stack(&[matrix]).ok_or_else(missing);
        let several = |matrices: &[&Matrix]| Projections::of(matrices).ok_or_else(missing);
        let norm = |norm: &RmsNorm| stream.upload_tensor(norm.parts().scale.clone());
        let layers = decoder.blocks.iter().map(|block| {
            let (attention, feed_forward) = (&block.attention, &block.feed_forward);
            Ok(LayerWeights {
                kind: block.kind,
                qkv: several(&[&attention.q_proj, &attention.k_proj, &attention.v_proj])?,
                output: one(&attention.o_proj)?,
                gate_up: several(&[&feed_forward.gate_proj, &feed_forward.up_proj])?,
                down: one(&feed_forward.down_proj)?,
                input_norm: norm(&block.input_layernorm)?,
                q_norm: norm(&attention.q_norm)?,
                k_norm: norm(&attention.k_norm)?,
                post_attention_norm: norm(&block.post_attention_layernorm)?,
                pre_feedforward_norm: norm(&block.pre_feedforward_layernorm)?,
                post_feedforward_norm: norm(&block.post_feedforward_layernorm)?,
            })
        });
        let embedding = one(decoder.embedding.table())?;
        Ok(Self {
            layers: layers.collect::<Result<_, ForwardError>>()?,
            final_norm: norm(&decoder.norm)?,
            head: decoder.head.as_ref().map_or_else(|| Ok(embedding.clone()), one)?,
            embedding,
            local_frequencies: stream.upload(decoder.local_rope.inv_freq()),
            global_frequencies: stream.upload(decoder.global_rope.inv_freq()),
        })
    }
}
