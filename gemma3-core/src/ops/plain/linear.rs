//! The product with a weight.

use burn::tensor::Tensor;

/// `x Wᵀ`: `x` \[rows, in\], `weight` \[out, in\] (the layout of the checkpoints) → \[rows, out\].
pub fn linear(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    x.matmul(weight.clone().transpose())
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::ops::plain::testing::{assert_close, tensor};

    #[test]
    fn rows_of_the_weight_are_outputs() {
        let x = tensor(&[1.0, 2.0, 3.0, -1.0, 0.5, 0.0], [2, 3]);
        let weight = tensor(&[1.0, 0.0, 0.0, 0.5, -1.0, 2.0], [2, 3]);
        assert_close(linear(x, &weight), [2, 2], &[1.0, 4.5, -1.0, -1.0]);
    }
}
