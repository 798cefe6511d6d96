//! Self-attention of all patches over all patches of their image.

use burn::tensor::Tensor;
use gemma3_core::ops;

use super::Linear;

#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) out_proj: Linear,
    pub(crate) heads: usize,
}

impl Attention {
    /// `x` \[images * patches, hidden\] → the same shape.
    ///
    /// The scores of an image of 4,096 patches would be 16 x 4,096 x 4,096; they are never held at once
    /// ([`ops::attention`]).
    pub(crate) fn forward(&self, x: Tensor<2>, images: usize) -> Tensor<2> {
        let [q, k, v] = Linear::forward_each([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let head_dim = q.dims()[1] / self.heads;
        let scale = (head_dim as f32).powf(-0.5);
        self.out_proj.forward(ops::attention(q, k, v, self.heads, images, scale))
    }
}
