//! From encoder to decoder: pooling to one vector a soft token, a norm, and a product.

use gemma3_core::ops::image::{ImageMachine, Numbers};
use gemma3_core::ops::machine::Norm;

use crate::error::VisionError;
use crate::stages::{Stage, Watch};

#[derive(Debug)]
pub(crate) struct Projector<M: ImageMachine> {
    /// Gemma's norm (`1 + w`), over the encoder's width.
    pub(crate) soft_emb_norm: Norm<M::Vector>,
    /// \[hidden of the decoder, hidden of the encoder\]. The checkpoints store it the other way round
    /// (`x @ W`); it is transposed when it is loaded.
    pub(crate) input_projection: M::Matrix,
    /// Patches along a side of the image.
    pub(crate) patches_per_side: usize,
    /// Soft tokens along a side of the image.
    pub(crate) tokens_per_side: usize,
}

impl<M: ImageMachine> Projector<M> {
    /// `x` \[images * patches, hidden\] → \[images * soft tokens, hidden of the decoder\].
    ///
    /// # Errors
    ///
    /// [`VisionError::Cancelled`] if the observer said to stop, and a device that fails.
    pub(crate) fn forward(
        &self,
        m: &M,
        x: &M::Features,
        images: usize,
        watch: &mut Watch<'_>,
    ) -> Result<M::Features, VisionError> {
        let square = self.patches_per_side / self.tokens_per_side.max(1);
        let x = m.mean_of_squares(x, images, self.patches_per_side, square)?;
        watch.show(m, Stage::Pooled, &x)?;
        let x = m.rms_norm(&x, &self.soft_emb_norm)?;
        watch.show(m, Stage::Normed, &x)?;
        let x = m.linear(&x, &self.input_projection, None, Numbers::Floats)?;
        watch.show(m, Stage::Output, &x)?;
        Ok(x)
    }
}
