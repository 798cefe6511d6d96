//! The encoder as a whole.

use burn::tensor::Tensor;

use super::{EncoderLayer, LayerNorm, PatchEmbedding};
use crate::error::VisionError;
use crate::stages::{Observer, Stage, show};

#[derive(Debug, Clone)]
pub(crate) struct Tower {
    pub(crate) embeddings: PatchEmbedding,
    pub(crate) layers: Vec<EncoderLayer>,
    pub(crate) post_layernorm: LayerNorm,
}

impl Tower {
    /// `pixels` \[images, channels, side, side\] → \[images * patches, hidden\].
    ///
    /// # Errors
    ///
    /// [`VisionError::Cancelled`] if the observer said to stop, and a device that fails.
    pub(crate) fn forward(&self, pixels: Tensor<4>, observe: Observer<'_>) -> Result<Tensor<2>, VisionError> {
        let images = pixels.dims()[0];
        let mut x = self.embeddings.forward(pixels)?;
        show(observe, Stage::Embeddings, &x)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, images)?;
            show(observe, Stage::Layer(index), &x)?;
        }
        let x = self.post_layernorm.forward(x);
        show(observe, Stage::PostLayernorm, &x)?;
        Ok(x)
    }
}
