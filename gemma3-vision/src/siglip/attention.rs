//! Self-attention of all patches over all patches of their image.

use burn::tensor::Tensor;
use gemma3_core::ops;

use crate::error::VisionError;

use super::Linear;

#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) out_proj: Linear,
    pub(crate) heads: usize,
    /// Where burn's own products may be tuned to fewer bits: what attends in f32 instead.
    #[cfg(feature = "cube")]
    pub(crate) exact: Option<gemma3_core::gpu::Gpu>,
}

impl Attention {
    /// `x` \[images * patches, hidden\] → the same shape.
    ///
    /// The scores of an image of 4,096 patches would be 16 x 4,096 x 4,096; they are never held at once
    /// ([`ops::attention`]).
    pub(crate) fn forward(&self, x: Tensor<2>, images: usize) -> Result<Tensor<2>, VisionError> {
        let [q, k, v] = Linear::forward_each([&self.q_proj, &self.k_proj, &self.v_proj], x)?;
        let head_dim = q.dims()[1] / self.heads;
        let scale = (head_dim as f32).powf(-0.5);
        #[cfg(feature = "cube")]
        if let Some(gpu) = &self.exact {
            let attended = attend_by(gpu, [q, k, v], self.heads, images, scale)?;
            return Ok(self.out_proj.forward(attended)?);
        }
        Ok(self.out_proj.forward(ops::attention(q, k, v, self.heads, images, scale))?)
    }
}

/// [`ops::attention`] by a kernel in f32, image by image.
#[cfg(feature = "cube")]
fn attend_by(
    gpu: &gemma3_core::gpu::Gpu,
    heads_of: [Tensor<2>; 3],
    heads: usize,
    images: usize,
    scale: f32,
) -> Result<Tensor<2>, VisionError> {
    use burn::tensor::TensorData;
    use gemma3_core::device::read;

    let [q, k, v] = heads_of;
    let ([rows, width], device) = (q.dims(), q.device());
    let (q, k, v) = (read(q)?, read(k)?, read(v)?);
    let each = rows / images.max(1) * width;
    let mut attended = Vec::with_capacity(q.len());
    for ((q, k), v) in q.chunks_exact(each).zip(k.chunks_exact(each)).zip(v.chunks_exact(each)) {
        let (q, k, v) = (gpu.upload(q, width)?, gpu.upload(k, width)?, gpu.upload(v, width)?);
        attended.extend(gpu.download(&gpu.attention([&q, &k, &v], heads, scale)?)?);
    }
    Ok(Tensor::from_data(TensorData::new(attended, [rows, width]), &device))
}
