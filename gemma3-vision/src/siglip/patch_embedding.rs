//! From pixels to patch vectors: a convolution whose stride is its kernel, which is a product with the
//! pixels of each patch, plus a learned vector for each position.

use gemma3_core::ops::MachineError;
use gemma3_core::ops::image::{ImageMachine, PatchShape};

use super::Linear;

#[derive(Debug)]
pub(crate) struct PatchEmbedding<M: ImageMachine> {
    /// The convolution's kernel as a matrix \[hidden, channels * patch * patch\]: channel, row, column.
    pub(crate) projection: Linear<M>,
    /// \[patches, hidden\].
    pub(crate) position: M::Features,
    pub(crate) shape: PatchShape,
}

impl<M: ImageMachine> PatchEmbedding<M> {
    /// `pixels` \[images, channels, side, side\] → \[images * patches, hidden\], the patches of an image row
    /// by row.
    pub(crate) fn forward(
        &self,
        m: &M,
        pixels: Vec<f32>,
        images: usize,
    ) -> Result<M::Features, MachineError> {
        let patches = m.patches(pixels, images, self.shape)?;
        self.projection.forward_onto(m, &patches, &self.position)
    }
}
