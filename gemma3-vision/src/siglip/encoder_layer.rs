//! One layer of the encoder: attention and feed-forward, each after a norm and added to the residual.

use burn::tensor::Tensor;

use super::{Attention, LayerNorm, Mlp};
use crate::error::VisionError;

#[derive(Debug, Clone)]
pub(crate) struct EncoderLayer {
    pub(crate) layer_norm1: LayerNorm,
    pub(crate) self_attn: Attention,
    pub(crate) layer_norm2: LayerNorm,
    pub(crate) mlp: Mlp,
}

impl EncoderLayer {
    /// `x` \[images * patches, hidden\] → the same shape.
    pub(crate) fn forward(&self, x: Tensor<2>, images: usize) -> Result<Tensor<2>, VisionError> {
        let x = x.clone() + self.self_attn.forward(self.layer_norm1.forward(x), images)?;
        Ok(x.clone() + self.mlp.forward(self.layer_norm2.forward(x))?)
    }
}
