//! One layer of the encoder: attention and feed-forward, each after a norm and added to the residual.

use gemma3_core::ops::MachineError;
use gemma3_core::ops::image::{ImageMachine, LayerNorm, Numbers};

use super::{Attention, Mlp};

#[derive(Debug)]
pub(crate) struct EncoderLayer<M: ImageMachine> {
    pub(crate) layer_norm1: LayerNorm<M::Vector>,
    pub(crate) self_attn: Attention<M>,
    pub(crate) layer_norm2: LayerNorm<M::Vector>,
    pub(crate) mlp: Mlp<M>,
}

impl<M: ImageMachine> EncoderLayer<M> {
    /// `x` \[images * patches, hidden\] → the same shape.
    pub(crate) fn forward(&self, m: &M, x: &M::Features, images: usize) -> Result<M::Features, MachineError> {
        let normed = m.layer_norm(x, &self.layer_norm1, Numbers::Operands)?;
        let x = self.self_attn.forward_onto(m, &normed, x, images)?;
        let normed = m.layer_norm(&x, &self.layer_norm2, Numbers::Operands)?;
        self.mlp.forward_onto(m, &normed, &x)
    }
}
