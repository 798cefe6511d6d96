//! The feed-forward layer: `fc2(gelu_tanh(fc1(x)))`.

use burn::tensor::Tensor;
use gemma3_core::device::DeviceFailed;
use gemma3_core::ops;

use super::Linear;

#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    pub(crate) fc1: Linear,
    pub(crate) fc2: Linear,
}

impl Mlp {
    /// \[rows, hidden\] → \[rows, hidden\].
    pub(crate) fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>, DeviceFailed> {
        let x = ops::bias_gelu(self.fc1.product(x)?, &self.fc1.bias); // [rows, intermediate]
        self.fc2.forward(x)
    }
}
