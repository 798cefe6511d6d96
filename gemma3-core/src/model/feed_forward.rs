//! The gated feed-forward layer: `(gelu_tanh(x Wgateᵀ) * (x Wupᵀ)) Wdownᵀ`.

use burn::tensor::Tensor;

use crate::matrix::Matrix;
use crate::ops;

/// Feed-forward layer of one block.
#[derive(Debug, Clone)]
pub(super) struct FeedForward {
    pub(super) gate_proj: Matrix,
    pub(super) up_proj: Matrix,
    pub(super) down_proj: Matrix,
}

impl FeedForward {
    /// `x` \[tokens, hidden\] → \[tokens, hidden\].
    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let [gate, up] = Matrix::forward_each([&self.gate_proj, &self.up_proj], x);
        self.down_proj.forward(ops::gelu_mul(gate, up)) // [tokens, intermediate] -> [tokens, hidden]
    }
}
