//! Between an image and the vectors of its patches.

use burn::tensor::Tensor;

/// The patches of images, row by row: `pixels` \[images, channels, height, width\] →
/// \[images * patches, channels * patch * patch\], of each its channels, of these its rows.
pub fn patches(pixels: Tensor<4>, patch: usize) -> Tensor<2> {
    let [images, channels, height, width] = pixels.dims();
    let (rows, columns) = (height / patch, width / patch);
    pixels
        .reshape([images, channels, rows, patch, columns, patch])
        .permute([0, 2, 4, 1, 3, 5]) // [images, rows, columns, channels, patch, patch]
        .reshape([images * rows * columns, channels * patch * patch])
}

/// The mean of each square of `size` by `size` rows, which lie in squares of `side` by `side`: `x`
/// \[images * side * side, width\] → \[images * (side / size)², width\].
pub fn mean_of_squares(x: Tensor<2>, side: usize, size: usize) -> Tensor<2> {
    let [rows, width] = x.dims();
    let (images, means) = (rows / (side * side), side / size);
    x.reshape([images * means, size, means, size, width])
        .mean_dim(3)
        .mean_dim(1)
        .reshape([images * means * means, width])
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::ops::plain::testing::{assert_close, tensor};

    #[test]
    fn a_patch_is_channels_of_rows() {
        // Two images of two channels, 4 by 2 pixels in two patches of 2 by 2.
        let pixels: Vec<f32> = (0..32).map(|n| n as f32 / 4.0).collect();
        let of = |first: f32| [0.0, 1.0, 4.0, 5.0, 8.0, 9.0, 12.0, 13.0].map(|n| (first + n) / 4.0);
        let expected = [of(0.0), of(2.0), of(16.0), of(18.0)];
        let found = patches(tensor(&pixels, [2, 2, 2, 4]), 2);
        assert_close(found, [4, 8], expected.as_flattened());
    }

    #[test]
    fn a_mean_is_that_of_a_square_of_one_image() {
        // One number a row; two images of 4 by 4, of which the second is the first and 16 more.
        let x: Vec<f32> = (0..32).map(|n| n as f32 / 4.0).collect();
        let of = |first: f32| [2.5, 4.5, 10.5, 12.5].map(|n| (first + n) / 4.0);
        let found = mean_of_squares(tensor(&x, [32, 1]), 4, 2);
        assert_close(found, [8, 1], [of(0.0), of(16.0)].as_flattened());
        let alone = mean_of_squares(tensor(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [4, 2]), 2, 2);
        assert_close(alone, [1, 2], &[3.0, 4.0]);
    }
}
