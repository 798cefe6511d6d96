//! The encoder as a whole.

use gemma3_core::ops::image::{ImageMachine, LayerNorm, Numbers};

use super::{EncoderLayer, PatchEmbedding};
use crate::error::VisionError;
use crate::stages::{Stage, Watch};

#[derive(Debug)]
pub(crate) struct Tower<M: ImageMachine> {
    pub(crate) embeddings: PatchEmbedding<M>,
    pub(crate) layers: Vec<EncoderLayer<M>>,
    pub(crate) post_layernorm: LayerNorm<M::Vector>,
}

impl<M: ImageMachine> Tower<M> {
    /// `pixels` \[images, channels, side, side\] → \[images * patches, hidden\].
    ///
    /// # Errors
    ///
    /// [`VisionError::Cancelled`] if whoever watches said to stop, and a device that fails.
    pub(crate) fn forward(
        &self,
        m: &M,
        pixels: Vec<f32>,
        images: usize,
        watch: &mut Watch<'_>,
    ) -> Result<M::Features, VisionError> {
        let mut x = self.embeddings.forward(m, pixels, images)?;
        watch.show(m, Stage::Embeddings, &x)?;
        for (index, layer) in self.layers.iter().enumerate() {
            watch.before_layer()?;
            x = layer.forward(m, &x, images)?;
            watch.after_layer(m);
            watch.show(m, Stage::Layer(index), &x)?;
        }
        let x = m.layer_norm(&x, &self.post_layernorm, Numbers::Floats)?;
        watch.show(m, Stage::PostLayernorm, &x)?;
        Ok(x)
    }
}
