//! Rotary position embedding, half-rotation ("NeoX") form.

use burn::tensor::Tensor;

use super::norm::rms_norm;

/// Half-rotation of the last axis of `x` \[tokens, heads, head_dim\]: for `j < head_dim / 2`,
/// `out[j] = x[j] cos[j] - x[j + head_dim/2] sin[j]` and
/// `out[j + head_dim/2] = x[j + head_dim/2] cos[j] + x[j] sin[j]`, with `cos` and `sin`
/// \[tokens, 1, head_dim / 2\].
pub fn rotate(x: Tensor<3>, cos: &Tensor<3>, sin: &Tensor<3>) -> Tensor<3> {
    let half = x.dims()[2] / 2;
    let first = x.clone().narrow(2, 0, half);
    let second = x.narrow(2, half, half);
    let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let turned_second = second * cos.clone() + first * sin.clone();
    Tensor::cat(vec![turned_first, turned_second], 2)
}

/// Each head's vector of `x` \[tokens, heads * head_dim\] normalized ([`rms_norm`]), turned ([`rotate`]) and
/// multiplied with `factor`; `scale` is \[head_dim\] wide.
pub fn norm_rope(
    x: Tensor<2>,
    scale: &Tensor<1>,
    eps: f32,
    cos: &Tensor<3>,
    sin: &Tensor<3>,
    factor: f32,
) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let [head_dim] = scale.dims();
    let heads = width / head_dim;
    let x = rms_norm(x.reshape([tokens * heads, head_dim]), scale, eps);
    let x = rotate(x.reshape([tokens, heads, head_dim]), cos, sin);
    (x * factor).reshape([tokens, width])
}

/// Cosines and sines of `position * inv_freq[j]`, each \[positions, head_dim / 2\], on the host.
///
/// The angle is the f32 product that the reference forms; its cosine is then exact to f32. In bf16 a position is
/// exact only up to 256.
pub fn cos_sin(positions: impl Iterator<Item = usize>, inv_freq: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let angles = positions.flat_map(|position| inv_freq.iter().map(move |f| position as f32 * f));
    let turned = angles.map(|angle| {
        let (sin, cos) = f64::from(angle).sin_cos();
        (cos as f32, sin as f32)
    });
    turned.unzip()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::ops::plain::testing::{assert_close, tensor};

    /// Cosines and sines of the angles 0.5 and -1.
    const COS: [f32; 2] = [0.877_582_6, 0.540_302_3];
    const SIN: [f32; 2] = [0.479_425_5, -0.841_471];

    #[test]
    fn pairs_are_half_a_head_apart() {
        let x = tensor(&[1.0, 2.0, 3.0, 4.0, -1.0, 0.0, 0.5, 2.0], [1, 2, 4]);
        let found = rotate(x, &tensor(&COS, [1, 1, 2]), &tensor(&SIN, [1, 1, 2]));
        let expected = [
            [-0.560_694_1, 4.446_488_6, 3.112_173_2, 0.478_267_3],
            [-1.117_295_3, 1.682_942, -0.040_634_3, 1.080_604_6],
        ];
        assert_close(found, [1, 2, 4], expected.as_flattened());
    }

    #[test]
    fn heads_are_normalized_before_they_are_turned() {
        let x = tensor(&[1.0, 2.0, 3.0, 4.0, -1.0, 0.0, 0.5, 2.0], [1, 8]);
        let scale = tensor(&[1.0, 2.0, 0.5, 1.0], [4]);
        let found = norm_rope(x, &scale, 1e-6, &tensor(&COS, [1, 1, 2]), &tensor(&SIN, [1, 1, 2]), 0.5);
        let expected = [
            [0.028_927_8, 1.009_104_5, 0.327_866_6, -0.219_942_5],
            [-0.435_317_9, 0.734_495_8, -0.113_486_3, 0.471_614_3],
        ];
        assert_close(found, [1, 8], expected.as_flattened());
    }

    #[test]
    fn angles_are_products_of_f32() {
        let (cos, sin) = cos_sin([3, 1000].into_iter(), &[1.0, 0.01]);
        let expected = [-0.989_992_5, 0.999_550_03, 0.562_379_1, -0.839_071_5];
        assert!(cos.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{cos:?}");
        let expected = [0.141_120_01, 0.029_995_5, 0.826_879_5, -0.544_021_1];
        assert!(sin.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{sin:?}");
        // 123,457 times the f32 nearest to 0.1 is 12,345.700184 before it is rounded to 12,345.700195.
        let (cos, _) = cos_sin(std::iter::once(123_457), &[0.1]);
        assert!((cos[0] - 0.725_570_5).abs() < 1e-6, "{cos:?}");
    }
}
