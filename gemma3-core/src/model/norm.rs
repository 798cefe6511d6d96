//! RMS normalization with Gemma's offset weight.

use burn::tensor::Tensor;

use crate::ops::{self, Norm};

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

    /// The multiplier, \[width\].
    pub fn scale(&self) -> &Tensor<1> {
        &self.scale
    }

    /// What is added to the mean of the squares.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Normalizes each row of `x` \[rows, width\].
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::rms_norm(x, &self.scale, self.eps)
    }

    /// Normalizes each head's vector of `x` \[tokens, heads * head_dim\].
    pub(super) fn forward_heads(&self, x: Tensor<2>, heads: usize) -> Tensor<2> {
        let [tokens, width] = x.dims();
        self.forward(x.reshape([tokens * heads, width / heads])).reshape([tokens, width])
    }

    /// The operations' view of it.
    pub(crate) fn parts(&self) -> Norm<'_> {
        Norm { scale: &self.scale, eps: self.eps }
    }
}
