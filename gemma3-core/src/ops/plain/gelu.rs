//! The activation: gelu in its tanh form.

use burn::tensor::{Tensor, activation};

/// `gelu_tanh(gate) * up`, where
/// `gelu_tanh(x) = 0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`: the tanh form, not the erf form. Both, and the
/// result, \[rows, width\].
pub fn gelu_mul(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    activation::gelu_approximate(gate) * up
}

/// `gelu_tanh(x + bias)` with the activation of [`gelu_mul`]: `x` \[rows, width\], `bias` \[width\] →
/// \[rows, width\].
pub fn bias_gelu(x: Tensor<2>, bias: &Tensor<1>) -> Tensor<2> {
    activation::gelu_approximate(x + bias.clone().unsqueeze::<2>())
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::ops::plain::testing::{assert_close, tensor};

    /// gelu_tanh of 1, -0.5 and 2; the erf form would give 0.8413447, -0.1542688 and 1.9544997.
    const GELU: [f32; 3] = [0.841_192, -0.154_286, 1.954_597_7];

    #[test]
    fn the_gate_goes_through_the_tanh_form() {
        let gate = tensor(&[1.0, -0.5, 2.0, 0.0], [2, 2]);
        let up = tensor(&[2.0, 1.0, -1.0, 3.0], [2, 2]);
        assert_close(gelu_mul(gate, up), [2, 2], &[GELU[0] * 2.0, GELU[1], -GELU[2], 0.0]);
    }

    #[test]
    fn the_bias_is_added_before_the_activation() {
        let x = tensor(&[0.75, 0.0, 1.75, 0.5], [2, 2]);
        let bias = tensor(&[0.25, -0.5], [2]);
        assert_close(bias_gelu(x, &bias), [2, 2], &[GELU[0], GELU[1], GELU[2], 0.0]);
    }
}
