//! Between an image and the vectors of its patches: numbers put elsewhere, and means.

use rayon::prelude::*;

use crate::ops::image::PatchShape;

/// The patches of images: `pixels` \[images, channels, side, side\] → `out`
/// \[images * patches, channels * patch * patch\]. A task is a row of patches.
pub(super) fn patches(pixels: &[f32], shape: PatchShape, out: &mut [f32]) {
    let PatchShape { side, patch, .. } = shape;
    let (per_side, width) = (shape.per_side(), shape.width());
    if width == 0 || per_side == 0 {
        return;
    }
    out.par_chunks_mut(per_side * width).enumerate().for_each(|(row, out)| {
        let image = &pixels[row / per_side * shape.pixels()..][..shape.pixels()];
        let top = row % per_side * patch;
        for (column, out) in out.chunks_exact_mut(width).enumerate() {
            for (line, out) in out.chunks_exact_mut(patch).enumerate() {
                let (channel, line) = (line / patch, line % patch);
                let first = (channel * side + top + line) * side + column * patch;
                out.copy_from_slice(&image[first..][..patch]);
            }
        }
    });
}

/// The mean of each square of `size` by `size` rows: `x` \[images * side * side, width\] → `out`
/// \[images * (side / size)², width\]. A task is a mean; as in the definition it is a mean of means, of the columns first.
pub(super) fn mean_of_squares(x: &[f32], side: usize, size: usize, width: usize, out: &mut [f32]) {
    let means = side.checked_div(size).unwrap_or_default();
    if width == 0 || means == 0 {
        return;
    }
    out.par_chunks_mut(width).enumerate().for_each_init(
        || vec![0.0; width],
        |of_row, (index, out)| {
            let (image, mean) = (index / (means * means), index % (means * means));
            let (top, left) = (mean / means * size, mean % means * size);
            out.fill(0.0);
            for row in top..top + size {
                let first = (image * side * side + row * side + left) * width;
                of_row.fill(0.0);
                for x in x[first..][..size * width].chunks_exact(width) {
                    of_row.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
                }
                out.iter_mut().zip(&*of_row).for_each(|(sum, x)| *sum += x / size as f32);
            }
            out.iter_mut().for_each(|sum| *sum /= size as f32);
        },
    );
}
