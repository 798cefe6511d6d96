//! From pixels to patch vectors: a convolution whose stride is its kernel, which is a product with the
//! pixels of each patch, plus a learned vector for each position.

use burn::tensor::Tensor;
use gemma3_core::device::DeviceFailed;

use super::Linear;

#[derive(Debug, Clone)]
pub(crate) struct PatchEmbedding {
    /// The convolution's kernel as a matrix \[hidden, channels * patch * patch\]: channel, row, column.
    pub(crate) projection: Linear,
    /// \[patches, hidden\].
    pub(crate) position: Tensor<2>,
    pub(crate) patch_size: usize,
}

impl PatchEmbedding {
    /// `pixels` \[images, channels, side, side\] → \[images * patches, hidden\], the patches of an image row
    /// by row.
    pub(crate) fn forward(&self, pixels: Tensor<4>) -> Result<Tensor<2>, DeviceFailed> {
        let [images, channels, height, width] = pixels.dims();
        let patch = self.patch_size;
        let (rows, columns) = (height / patch, width / patch);
        let patches = pixels
            .reshape([images, channels, rows, patch, columns, patch])
            .permute([0, 2, 4, 1, 3, 5]) // [images, rows, columns, channels, patch, patch]
            .reshape([images * rows * columns, channels * patch * patch]);
        let embedded = self.projection.forward(patches)?;
        let [all, hidden] = embedded.dims();
        let by_image = embedded.reshape([images, rows * columns, hidden]);
        Ok((by_image + self.position.clone().unsqueeze::<3>()).reshape([all, hidden]))
    }
}
