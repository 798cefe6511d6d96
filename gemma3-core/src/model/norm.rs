//! RMS normalization with Gemma's offset weight.

use burn::tensor::Tensor;

use crate::ops;

/// `x * rsqrt(mean(x²) + eps) * scale`, in f32.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// The multiplier \[width\]: `1 + w` of the paper's `w`.
    scale: Tensor<1>,
    eps: f64,
}

impl RmsNorm {
    /// `scale` \[width\] is the whole multiplier, `1 + w`.
    pub fn new(scale: Tensor<1>, eps: f64) -> Self {
        Self { scale, eps }
    }

    /// Normalizes each row of `x` \[rows, width\].
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::rms_norm(x, &self.scale, self.eps)
    }

    /// Normalizes each head's vector of `x` \[tokens, heads, head_dim\].
    pub(super) fn forward_heads(&self, x: Tensor<3>) -> Tensor<3> {
        let [tokens, heads, head_dim] = x.dims();
        self.forward(x.reshape([tokens * heads, head_dim])).reshape([tokens, heads, head_dim])
    }
}
