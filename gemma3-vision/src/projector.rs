//! From encoder to decoder: pooling to one vector a soft token, a norm, and a product.

use burn::tensor::Tensor;
use gemma3_core::matrix::Matrix;
use gemma3_core::model::RmsNorm;

use crate::error::VisionError;
use crate::stages::{Observer, Stage, show};

#[derive(Debug, Clone)]
pub(crate) struct Projector {
    /// Gemma's norm (`1 + w`), over the encoder's width.
    pub(crate) soft_emb_norm: RmsNorm,
    /// \[hidden of the decoder, hidden of the encoder\]. The checkpoints store it the other way round
    /// (`x @ W`); it is transposed when it is loaded.
    pub(crate) input_projection: Matrix,
    /// Patches along a side of the image.
    pub(crate) patches_per_side: usize,
    /// Soft tokens along a side of the image.
    pub(crate) tokens_per_side: usize,
}

impl Projector {
    /// `x` \[images * patches, hidden\] → \[images * soft tokens, hidden of the decoder\].
    ///
    /// # Errors
    ///
    /// [`VisionError::Cancelled`] if the observer said to stop, and a device that fails.
    pub(crate) fn forward(&self, x: Tensor<2>, observe: Observer<'_>) -> Result<Tensor<2>, VisionError> {
        let x = self.pool(x);
        show(observe, Stage::Pooled, &x)?;
        let x = self.soft_emb_norm.forward(x);
        show(observe, Stage::Normed, &x)?;
        let x = self.input_projection.forward(x)?;
        show(observe, Stage::Output, &x)?;
        Ok(x)
    }

    /// The mean of each square of patches, row by row.
    fn pool(&self, x: Tensor<2>) -> Tensor<2> {
        let [rows, hidden] = x.dims();
        let (side, tokens) = (self.patches_per_side, self.tokens_per_side);
        let kernel = side / tokens;
        let images = rows / (side * side);
        x.reshape([images * tokens, kernel, tokens, kernel, hidden])
            .mean_dim(3)
            .mean_dim(1)
            .reshape([images * tokens * tokens, hidden])
    }
}
