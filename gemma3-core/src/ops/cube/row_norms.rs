//! Norms of rows: RMSNorm of the decoder and LayerNorm of the image encoder.

use std::cmp::min;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::matvec::Machine;
use super::packed::Quad;
use super::reduce::{Groups, group_of_cube, group_sum, unit_of_group};

/// Quads of a row that a unit holds at most, where more planes can share them.
const SHARE: usize = 12;

/// The division of a cube for rows of a width: a group a row, of as few planes as hold it in registers.
pub fn row_groups(machine: &Machine, width: usize) -> Groups {
    let mut planes = 1;
    while planes < 8 && (width / 4).div_ceil(planes * machine.lanes) > SHARE {
        planes *= 2;
    }
    machine.groups(planes)
}

/// What a norm reads and writes; all f32.
#[derive(Debug, Clone, Copy)]
pub struct RowNorm<'a> {
    /// \[rows, width\].
    pub x: &'a Handle,
    /// The whole multiplier, \[width\].
    pub scale: &'a Handle,
    /// Receives the rows, \[rows, width\].
    pub out: &'a Handle,
    /// Added to the mean of the squares, or to the variance.
    pub eps: f32,
}

/// `x * rsqrt(mean(x²) + eps) * scale` of each row. `width` is a multiple of 4.
pub fn rms_norm(client: &Client, norm: RowNorm<'_>, rows: usize, width: usize, groups: Groups) {
    let quads = width / 4;
    if rows == 0 {
        return;
    }
    // SAFETY: the lengths are those of the shapes; rows are bounded by comparison.
    unsafe {
        rms_norm_kernel::launch_unchecked(
            client,
            CubeCount::Static(rows.div_ceil(groups.groups) as u32, 1, 1),
            groups.dim(),
            BufferArg::from_raw_parts(norm.x.clone(), rows * quads),
            BufferArg::from_raw_parts(norm.scale.clone(), quads),
            BufferArg::from_raw_parts(norm.out.clone(), rows * quads),
            rows as u32,
            norm.eps,
            quads,
            groups,
        );
    }
}

/// `(x - mean(x)) * rsqrt(variance(x) + eps) * scale + bias` of each row, with the variance of the row itself.
/// `width` is a multiple of 4, `bias` \[width\].
pub fn layer_norm(
    client: &Client,
    norm: RowNorm<'_>,
    bias: &Handle,
    rows: usize,
    width: usize,
    groups: Groups,
) {
    let quads = width / 4;
    if rows == 0 {
        return;
    }
    // SAFETY: the lengths are those of the shapes; rows are bounded by comparison.
    unsafe {
        layer_norm_kernel::launch_unchecked(
            client,
            CubeCount::Static(rows.div_ceil(groups.groups) as u32, 1, 1),
            groups.dim(),
            BufferArg::from_raw_parts(norm.x.clone(), rows * quads),
            BufferArg::from_raw_parts(norm.scale.clone(), quads),
            BufferArg::from_raw_parts(bias.clone(), quads),
            BufferArg::from_raw_parts(norm.out.clone(), rows * quads),
            rows as u32,
            norm.eps,
            quads,
            groups,
        );
    }
}

/// A group of units a row.
#[cube(launch_unchecked)]
fn rms_norm_kernel(
    x: &[Quad],
    scale: &[Quad],
    out: &mut [Quad],
    rows: u32,
    eps: f32,
    #[comptime] quads: usize,
    #[comptime] groups: Groups,
) {
    let units = comptime!(groups.units());
    let share = comptime!(quads.div_ceil(units));
    let unit = unit_of_group(groups);
    let row = CUBE_POS_X as usize * comptime!(groups.groups) + group_of_cube(groups);
    let start = min(row, rows as usize - 1) * quads;
    let mut values = Array::<Quad>::new(share);
    let squares = load_row(x, &mut values, start, unit, quads, units);
    let mut sum = Array::<f32>::new(1usize);
    sum[0] = Vector::vector_sum(squares);
    group_sum(&mut sum, 1usize, groups);
    let inverse = f32::inverse_sqrt(sum[0] * comptime!(0.25 / quads as f32) + eps);
    #[unroll]
    for i in 0..share {
        let at = unit + comptime!(i * units);
        if at < quads && row < rows as usize {
            out[start + at] = values[i] * Quad::new(inverse) * scale[at];
        }
    }
}

/// A group of units a row.
#[cube(launch_unchecked)]
fn layer_norm_kernel(
    x: &[Quad],
    scale: &[Quad],
    bias: &[Quad],
    out: &mut [Quad],
    rows: u32,
    eps: f32,
    #[comptime] quads: usize,
    #[comptime] groups: Groups,
) {
    let units = comptime!(groups.units());
    let share = comptime!(quads.div_ceil(units));
    let unit = unit_of_group(groups);
    let row = CUBE_POS_X as usize * comptime!(groups.groups) + group_of_cube(groups);
    let start = min(row, rows as usize - 1) * quads;
    let mut values = Array::<Quad>::new(share);
    load_row(x, &mut values, start, unit, quads, units);
    let mut total = Quad::new(0.0f32);
    #[unroll]
    for i in 0..share {
        total += values[i];
    }
    let mut sum = Array::<f32>::new(1usize);
    sum[0] = Vector::vector_sum(total);
    group_sum(&mut sum, 1usize, groups);
    let mean = Quad::new(sum[0] * comptime!(0.25 / quads as f32));
    let mut squares = Quad::new(0.0f32);
    #[unroll]
    for i in 0..share {
        let centred = select(unit + comptime!(i * units) < quads, values[i] - mean, Quad::new(0.0f32));
        squares = fma(centred, centred, squares);
        values[i] = centred;
    }
    sum[0] = Vector::vector_sum(squares);
    group_sum(&mut sum, 1usize, groups);
    let inverse = f32::inverse_sqrt(sum[0] * comptime!(0.25 / quads as f32) + eps);
    #[unroll]
    for i in 0..share {
        let at = unit + comptime!(i * units);
        if at < quads && row < rows as usize {
            out[start + at] = fma(values[i] * Quad::new(inverse), scale[at], bias[at]);
        }
    }
}

/// A unit's share of a row, with zeros after the row's end; returns the sums of its squares.
#[cube]
fn load_row(
    x: &[Quad],
    values: &mut Array<Quad>,
    start: usize,
    unit: usize,
    #[comptime] quads: usize,
    #[comptime] units: usize,
) -> Quad {
    let mut squares = Quad::new(0.0f32);
    #[unroll]
    for i in 0..comptime!(quads.div_ceil(units)) {
        let at = unit + comptime!(i * units);
        let value = select(at < quads, x[start + min(at, comptime!(quads - 1))], Quad::new(0.0f32));
        squares = fma(value, value, squares);
        values[i] = value;
    }
    squares
}

#[cfg(test)]
mod tests {
    use super::{RowNorm, layer_norm, rms_norm, row_groups};
    use crate::ops::cube::matvec::Machine;
    use crate::ops::cube::testing::{self, Random, assert_close, client, download, poisoned, to_f64, upload};

    #[test]
    fn rows_are_normalized() {
        let Some(client) = client() else { return };
        let machine = Machine::of(&client);
        // Less than a quad for each unit, more, and several planes a row; rows that fill no whole cube.
        for (width, rows) in [(64, 11), (1220, 3), (4304, 2)] {
            let groups = row_groups(&machine, width);
            let mut random = Random::new(30);
            let x: Vec<f32> = random.floats(rows * width).iter().map(|x| x + 3.0).collect();
            let (scale, bias) = (random.floats(width), random.floats(width));
            let out = poisoned(&client, rows * width);
            let norm =
                RowNorm { x: &upload(&client, &x), scale: &upload(&client, &scale), out: &out, eps: 1e-6 };
            rms_norm(&client, norm, rows, width, groups);
            let expected = testing::rms_norm(&to_f64(&x), &scale, 1e-6);
            let expected: Vec<_> = expected.into_iter().map(|y| (y, 2.0)).collect();
            // A few roundings of numbers up to 2.
            assert_close(&download(&client, &out), &expected, 1e-6, "rms_norm");

            layer_norm(&client, norm, &upload(&client, &bias), rows, width, groups);
            let expected: Vec<_> =
                to_f64(&x).chunks_exact(width).flat_map(|row| layer_norm_of(row, &scale, &bias)).collect();
            // The mean of numbers around 3 is rounded before it is subtracted, and the rest grows by 1.7.
            assert_close(&download(&client, &out), &expected, 1e-6, "layer_norm");
        }
    }

    fn layer_norm_of(row: &[f64], scale: &[f32], bias: &[f32]) -> Vec<(f64, f64)> {
        let count = row.len() as f64;
        let mean = row.iter().sum::<f64>() / count;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let inverse = 1.0 / (variance + 1e-6).sqrt();
        let affine = row.iter().zip(scale).zip(bias);
        affine
            .map(|((x, scale), bias)| ((x - mean) * inverse * f64::from(*scale) + f64::from(*bias), 4.0))
            .collect()
    }
}
