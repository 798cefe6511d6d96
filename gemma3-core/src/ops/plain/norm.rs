//! Normalization of rows.

use burn::tensor::Tensor;

/// `x * rsqrt(mean(x²) + eps) * scale` over the last axis of `x` \[rows, width\].
///
/// `scale` \[width\] is the whole multiplier: Gemma's checkpoints store `w` and mean `1 + w`, and
/// that sum is made once, in f32, when the weights are loaded.
pub fn rms_norm(x: Tensor<2>, scale: &Tensor<1>, eps: f32) -> Tensor<2> {
    let mean_square = (x.clone() * x.clone()).mean_dim(1);
    let inverse_rms = (mean_square + eps).sqrt().recip(); // [rows, 1]
    x * inverse_rms * scale.clone().unsqueeze::<2>()
}

/// `(x - mean(x)) * rsqrt(variance(x) + eps) * weight + bias` over the last axis of `x` \[rows, width\];
/// the variance is that of the row itself (divided by the width).
pub fn layer_norm(x: Tensor<2>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f32) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = (centred.clone() * centred.clone()).mean_dim(1);
    let inverse = (variance + eps).sqrt().recip(); // [rows, 1]
    centred * inverse * weight.clone().unsqueeze::<2>() + bias.clone().unsqueeze::<2>()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::ops::plain::testing::{assert_close, tensor};

    #[test]
    fn a_row_is_divided_by_its_root_mean_square() {
        // Mean squares of 12.5 and 0.025, to which 0.01 is added.
        let x = tensor(&[3.0, 4.0, 0.1, -0.2], [2, 2]);
        let found = rms_norm(x, &tensor(&[1.0, 0.5], [2]), 0.01);
        assert_close(found, [2, 2], &[0.848_188_9, 0.565_459_3, 0.534_522_5, -0.534_522_5]);
    }

    #[test]
    fn a_row_is_centred_and_divided_by_its_deviation() {
        // Means of 3 and 100, variances of 14/3 and 6.
        let x = tensor(&[1.0, 2.0, 6.0, 97.0, 100.0, 103.0], [2, 3]);
        let (weight, bias) = (tensor(&[1.0, 2.0, -1.0], [3]), tensor(&[0.5, 0.0, 0.25], [3]));
        let expected = [-0.424_829_7, -0.924_829_7, -1.137_244_6, -0.723_725_5, 0.0, -0.973_725_5];
        assert_close(layer_norm(x, &weight, &bias, 0.01), [2, 3], &expected);
    }
}
