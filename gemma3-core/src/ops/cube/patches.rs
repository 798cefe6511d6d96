//! Between an image and the vectors of its patches.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::gemm::{RowFormat, Rows, bf16_pair};
use super::packed::Quad;

/// Units of a cube.
const UNITS: usize = 128;

/// How a square image is divided, a constant of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Patches {
    /// Planes of an image.
    pub channels: usize,
    /// Pixels along a side of the image; whole patches.
    pub side: usize,
    /// Pixels along a side of a patch.
    pub patch: usize,
}

impl Patches {
    /// Patches along a side.
    pub const fn per_side(&self) -> usize {
        self.side / self.patch
    }

    /// Numbers of a patch.
    pub const fn width(&self) -> usize {
        self.channels * self.patch * self.patch
    }

    /// Numbers of an image.
    pub const fn pixels(&self) -> usize {
        self.channels * self.side * self.side
    }
}

/// Writes the patches of an image, row by row, as `out` \[patches, channels * patch * patch\]: of each its channels,
/// of these its rows. `pixels` f32 \[channels, side, side\].
///
/// # Panics
/// Rows of f16, whose factor no unit knows.
pub fn write_patches(client: &Client, pixels: &Handle, patches: Patches, out: &Rows) {
    assert_ne!(out.format, RowFormat::F16, "patches are written without their largest number");
    let count = patches.per_side().pow(2);
    let words = out.format.bytes(1, patches.width()) / size_of::<u32>();
    // SAFETY: the lengths are those of the shapes; units are below a row's words by comparison.
    unsafe {
        patches_kernel::launch_unchecked(
            client,
            CubeCount::Static(words.div_ceil(UNITS) as u32, count as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            BufferArg::from_raw_parts(pixels.clone(), patches.pixels()),
            BufferArg::from_raw_parts(out.handle.clone(), count * words),
            patches,
            out.format,
        );
    }
}

/// Cube `[block, patch]`: a word of a patch for each unit.
#[cube(launch_unchecked)]
fn patches_kernel(
    pixels: &[f32],
    out: &mut [u32],
    #[comptime] patches: Patches,
    #[comptime] format: RowFormat,
) {
    let words = comptime!(format.bytes(1, patches.width()) / size_of::<u32>());
    let at = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
    if at < words {
        let patch = CUBE_POS_Y as usize;
        let to = patch * words + at;
        if comptime!(matches!(format, RowFormat::Bf16)) {
            let first = pixel(pixels, patch, 2 * at, patches);
            let second = pixel(pixels, patch, 2 * at + 1, patches);
            out[to] = bf16_pair(first, second);
        } else {
            out[to] = u32::reinterpret(pixel(pixels, patch, at, patches));
        }
    }
}

/// A number of a patch; zeros fill its row up.
#[cube]
fn pixel(pixels: &[f32], patch: usize, at: usize, #[comptime] patches: Patches) -> f32 {
    let (side, size) = comptime!((patches.side, patches.patch));
    let inside = at < comptime!(patches.width());
    let at = select(inside, at, 0usize);
    let channel = at / comptime!(size * size);
    let row = patch / comptime!(patches.per_side()) * size + at % comptime!(size * size) / size;
    let column = patch % comptime!(patches.per_side()) * size + at % size;
    select(inside, pixels[(channel * side + row) * side + column], 0.0f32)
}

/// The mean of each square of `size` by `size` patches: `x` f32 \[side * side, width\] to `out` f32
/// \[(side / size)², width\]. `width` is a multiple of 4, `side` of `size`.
pub fn mean_of_squares(client: &Client, x: &Handle, out: &Handle, side: usize, size: usize, width: usize) {
    let (quads, means) = (width / 4, (side / size).pow(2));
    // SAFETY: the lengths are those of the shapes; units are below a row's quads by comparison.
    unsafe {
        mean_kernel::launch_unchecked(
            client,
            CubeCount::Static(quads.div_ceil(UNITS) as u32, means as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            BufferArg::from_raw_parts(x.clone(), side * side * quads),
            BufferArg::from_raw_parts(out.clone(), means * quads),
            side,
            size,
            quads,
        );
    }
}

/// Cube `[block, square]`: a quad of a mean for each unit.
#[cube(launch_unchecked)]
fn mean_kernel(
    x: &[Quad],
    out: &mut [Quad],
    #[comptime] side: usize,
    #[comptime] size: usize,
    #[comptime] quads: usize,
) {
    let at = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
    if at < quads {
        let square = CUBE_POS_Y as usize;
        let each = comptime!(side / size);
        let first = square / each * comptime!(size * side) + square % each * size;
        let mut sum = Quad::new(0.0f32);
        for row in 0..size {
            for column in 0..size {
                sum += x[(first + row * side + column) * quads + at];
            }
        }
        out[square * quads + at] = sum * Quad::new(comptime!(1.0 / (size * size) as f32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Precision;
    use crate::ops::cube::gemm::Processor;
    use crate::ops::cube::testing::*;

    #[test]
    fn patches_are_the_squares_of_an_image() {
        let Some(client) = client() else { return };
        let patches = Patches { channels: 3, side: 42, patch: 14 };
        let x = Random::new(60).floats(patches.pixels());
        let mut expected = Vec::new();
        for (row, column) in (0..9).map(|patch| (patch / 3 * 14, patch % 3 * 14)) {
            for at in (0..3).flat_map(|channel| (0..14).map(move |r| (channel * 42 + row + r) * 42 + column))
            {
                expected.extend(x[at..at + 14].iter().map(|x| f64::from(*x)));
            }
        }
        let mut formats = vec![(RowFormat::F32, 0.0)];
        if Processor::of(&client).row_format(Precision::Fast) == RowFormat::Bf16 {
            formats.push((RowFormat::Bf16, 1.0 / 512.0)); // Of numbers up to 1.
        }
        for (format, tolerance) in formats {
            let out = Rows { handle: poisoned(&client, format.bytes(9, patches.width()) / 4), format };
            write_patches(&client, &upload(&client, &x), patches, &out);
            let expected: Vec<_> = expected.iter().map(|x| (*x, 1.0)).collect();
            let found = values(&client, &out, 9, patches.width());
            assert_close(&found, &expected, tolerance, &format!("{format:?}"));
        }
    }

    #[test]
    fn squares_of_patches_become_their_mean() {
        let Some(client) = client() else { return };
        let (side, size, width) = (6, 3, 520);
        let x = Random::new(61).floats(side * side * width);
        let out = poisoned(&client, 4 * width);
        mean_of_squares(&client, &upload(&client, &x), &out, side, size, width);
        let mut expected = Vec::new();
        for (square, column) in (0..4).flat_map(|square| (0..width).map(move |column| (square, column))) {
            let first = square / 2 * size * side + square % 2 * size;
            let of = |i: usize| f64::from(x[(first + i / size * side + i % size) * width + column]);
            expected.push(((0..9).map(of).sum::<f64>() / 9.0, 1.0));
        }
        // Nine additions of numbers up to 1.
        assert_close(&download(&client, &out), &expected, 1e-6, "means");
    }
}
