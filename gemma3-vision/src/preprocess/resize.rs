//! Resizing as Pillow 12 does with `BILINEAR`, bit for bit.
//!
//! A triangle filter whose width grows with the reduction, so that every source pixel counts: coefficients in
//! f64, rounded to 22 bits of fixed point; the horizontal pass first, except for very tall images; 8 bits
//! after each pass. The models saw images that went through these roundings.
//!
//! No library is used because none is exact: `fast_image_resize` has coefficients of 16 bits, `image` sums in
//! f32. Pillow 13 runs the vertical pass first for more sizes than 12.3, which differs by up to one level.

use std::ops::Range;

use rayon::prelude::*;

use super::Image;

/// Bits of the fixed-point coefficients: 8 bits of pixel, 2 bits of headroom.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Sums start at one half, so that the shift rounds.
const ONE_HALF: u32 = 1 << (PRECISION_BITS - 1);

/// Images that are more than this many times as high as wide go through the vertical pass first, if that
/// shrinks them: Pillow's rule since 12.3. The horizontal one would blow them up.
const VERY_TALL: u64 = 100;

/// Rows of the result that are computed together. They share most source rows.
const BAND: usize = 16;

/// `image` in another size, whatever its proportions.
///
/// The image between the two passes never exists as a whole: a row of it is added to the result's rows that
/// need it as soon as it is computed. Besides the result, memory is in proportion to the two widths.
///
/// Neither side may be zero.
pub(super) fn resize(image: &Image, width: u32, height: u32) -> Image {
    if (image.width(), image.height()) == (width, height) {
        return image.clone();
    }
    let is_very_tall = u64::from(image.height()) > VERY_TALL * u64::from(image.width());
    if is_very_tall && height < image.height() && width != image.width() {
        // A pass along a side that keeps its length changes nothing.
        return resize(&resize(image, image.width(), height), width, height);
    }
    let columns = Filter::new(image.width(), width);
    let rows = Filter::new(image.height(), height);
    let row_bytes = 3 * width as usize;
    let mut result = vec![0; row_bytes * height as usize];
    result
        .par_chunks_mut(BAND * row_bytes)
        .zip(rows.bands())
        .for_each(|(band, rows)| resize_band(image, &columns, rows, row_bytes, band));
    Image::from_parts(width, height, result)
}

/// For every pixel of one side of the result: the pixels of the source that make it up.
struct Filter {
    windows: Vec<Range<usize>>,
    /// \[windows, taps\]: one weight for each pixel of a window, then zeros. The weights of a window sum up to
    /// 2^22, give or take their rounding.
    weights: Vec<u32>,
    taps: usize,
}

impl Filter {
    /// Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, operation by operation.
    ///
    /// There are about as many weights as twice `from` or thrice `to`. A side that keeps its length, whose pass
    /// Pillow skips, gets weights that change nothing.
    fn new(from: u32, to: u32) -> Self {
        let scale = f64::from(from) / f64::from(to);
        let support = scale.max(1.0);
        let taps = 2 * support.ceil() as usize + 1;
        let mut windows = Vec::with_capacity(to as usize);
        let mut weights = vec![0; taps * to as usize];
        for (index, weights) in (0..to).zip(weights.chunks_exact_mut(taps)) {
            let centre = (f64::from(index) + 0.5) * scale;
            // `as` truncates and turns what is negative into 0.
            let start = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(from as usize);
            let raw = |pixel: usize| triangle((pixel as f64 - centre + 0.5) * (1.0 / support));
            let sum: f64 = (start..end).map(raw).sum();
            let one = f64::from(1 << PRECISION_BITS);
            for (pixel, weight) in (start..end).zip(weights) {
                *weight = (0.5 + raw(pixel) / sum * one) as u32;
            }
            windows.push(start..end);
        }
        Self { windows, weights, taps }
    }

    /// Resizes one row.
    fn apply(&self, row: &[u8], result: &mut [u8]) {
        let row = row.as_chunks::<3>().0;
        let weights = self.weights.chunks_exact(self.taps);
        for ((window, weights), pixel) in self.windows.iter().zip(weights).zip(result.as_chunks_mut::<3>().0)
        {
            let pixels = row.get(window.clone()).unwrap_or_default();
            let mut sums = [ONE_HALF; 3];
            for ([red, green, blue], weight) in pixels.iter().zip(weights) {
                sums[0] += u32::from(*red) * weight;
                sums[1] += u32::from(*green) * weight;
                sums[2] += u32::from(*blue) * weight;
            }
            *pixel = sums.map(level);
        }
    }

    /// Windows and weights of `BAND` pixels of the result at a time.
    fn bands(
        &self,
    ) -> impl IndexedParallelIterator<Item = (&[Range<usize>], std::slice::ChunksExact<'_, u32>)> {
        let weights =
            self.weights.par_chunks(BAND * self.taps).map(|weights| weights.chunks_exact(self.taps));
        self.windows.par_chunks(BAND).zip(weights)
    }
}

/// Resizes the source rows that a band of the result needs, one by one, and adds each where it belongs.
fn resize_band(
    image: &Image,
    columns: &Filter,
    (windows, weights): (&[Range<usize>], std::slice::ChunksExact<'_, u32>),
    row_bytes: usize,
    band: &mut [u8],
) {
    let (Some(first), Some(last)) = (windows.first(), windows.last()) else { return };
    let mut sums = vec![ONE_HALF; band.len()];
    let mut resized = vec![0; row_bytes];
    for (index, row) in image.rows().enumerate().take(last.end).skip(first.start) {
        columns.apply(row, &mut resized);
        let windows = windows.iter().zip(weights.clone());
        for ((window, weights), sums) in windows.zip(sums.chunks_exact_mut(row_bytes)) {
            let Some(weight) = index.checked_sub(window.start).and_then(|at| weights.get(at)) else {
                continue;
            };
            if *weight > 0 {
                for (sum, level) in sums.iter_mut().zip(&resized) {
                    *sum += u32::from(*level) * weight;
                }
            }
        }
    }
    for (result, sum) in band.iter_mut().zip(sums) {
        *result = level(sum);
    }
}

/// The triangle filter.
fn triangle(distance: f64) -> f64 {
    (1.0 - distance.abs()).max(0.0)
}

/// A sum as a level. Sums stay below 2^32: the weights of a window sum up to 2^22 and one half for each of at
/// most 2^21 + 3 pixels ([`Image::MAX_SIDE`]), and levels are at most 255.
fn level(sum: u32) -> u8 {
    (sum >> PRECISION_BITS).min(255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u32, height: u32, pixels: &[u8]) -> Image {
        Image::from_rgb8(width, height, pixels).expect("an image")
    }

    /// Literals from Pillow 12.3: `Image.resize(size, Image.BILINEAR)`.
    #[test]
    fn small_sizes_equal_pillow() {
        let source =
            image(3, 2, &[0, 10, 250, 90, 40, 5, 255, 70, 130, 33, 254, 66, 128, 1, 200, 7, 77, 177]);
        assert_eq!(resize(&source, 2, 1).pixels(), [52, 90, 137, 123, 54, 135]);
        let larger = [
            [0, 10, 250, 56, 29, 97, 152, 51, 52, 255, 70, 130],
            [17, 132, 158, 74, 63, 124, 118, 41, 122, 131, 74, 154],
            [33, 254, 66, 92, 96, 150, 83, 30, 191, 7, 77, 177],
        ];
        assert_eq!(resize(&source, 4, 3).pixels(), larger.concat());
    }

    /// Literals from Pillow 12.3; with the passes in the other order, some levels differ by 1.
    #[test]
    fn only_very_tall_images_go_through_the_vertical_pass_first() {
        let source = |height: u32| {
            let pixels: Vec<u8> = (0..9 * height).map(|index| (index * index * 37 % 251) as u8).collect();
            image(3, height, &pixels)
        };
        let very_tall =
            [134, 134, 134, 133, 129, 129, 132, 132, 131, 132, 132, 133, 129, 133, 131, 134, 134, 130];
        assert_eq!(resize(&source(303), 2, 3).pixels(), very_tall);
        let tall = [134, 135, 134, 133, 129, 129, 132, 131, 131, 131, 132, 133, 129, 133, 131, 133, 134, 131];
        assert_eq!(resize(&source(300), 2, 3).pixels(), tall);
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let pixels: Vec<u8> = (0..=254).collect();
        let source = image(17, 5, &pixels);
        assert_eq!(resize(&source, 17, 5), source);
        // Nor does a pass along a side that keeps its length.
        let [wider, taller] = [resize(&source, 34, 5), resize(&source, 17, 10)];
        assert_eq!(resize(&wider, 17, 10), resize(&resize(&wider, 17, 5), 17, 10));
        assert_eq!(resize(&taller, 34, 5), resize(&resize(&taller, 34, 10), 34, 5));
    }

    #[test]
    fn a_single_colour_stays_that_colour_in_every_size() {
        for (width, height) in [(1, 1), (1, 3000), (2999, 1), (64, 48)] {
            let source = image(width, height, &[255, 128, 1].repeat((width * height) as usize));
            assert_eq!(resize(&source, 37, 41).pixels(), [255, 128, 1].repeat(37 * 41), "{width}x{height}");
        }
    }

    /// Sums are the closest to their limit in the longest side.
    #[test]
    fn the_longest_side_does_not_overflow() {
        let side = Image::MAX_SIDE;
        let source = image(side, 1, &vec![255; 3 * side as usize]);
        assert_eq!(resize(&source, 1, 1).pixels(), [255; 3]);
    }
}
