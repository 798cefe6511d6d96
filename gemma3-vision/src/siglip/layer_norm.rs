//! Layer normalization.

use burn::tensor::Tensor;
use gemma3_core::ops;

/// `(x - mean) * rsqrt(variance + eps) * weight + bias` over the last axis.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    pub(crate) weight: Tensor<1>,
    pub(crate) bias: Tensor<1>,
    pub(crate) eps: f64,
}

impl LayerNorm {
    /// \[rows, width\] → \[rows, width\].
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
