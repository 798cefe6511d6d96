//! The encoder as a whole.

use burn::tensor::Tensor;

use super::{EncoderLayer, LayerNorm, PatchEmbedding};
use crate::stages::{Observer, Stage};

#[derive(Debug, Clone)]
pub(crate) struct Tower {
    pub(crate) embeddings: PatchEmbedding,
    pub(crate) layers: Vec<EncoderLayer>,
    pub(crate) post_layernorm: LayerNorm,
}

impl Tower {
    /// `pixels` \[images, channels, side, side\] → \[images * patches, hidden\]; `None` if the observer said
    /// to stop.
    pub(crate) fn forward(&self, pixels: Tensor<4>, observe: Observer<'_>) -> Option<Tensor<2>> {
        let images = pixels.dims()[0];
        let mut x = self.embeddings.forward(pixels);
        observe(Stage::Embeddings, &x).is_continue().then_some(())?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, images);
            observe(Stage::Layer(index), &x).is_continue().then_some(())?;
        }
        let x = self.post_layernorm.forward(x);
        observe(Stage::PostLayernorm, &x).is_continue().then_some(())?;
        Some(x)
    }
}
