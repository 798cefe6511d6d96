//! Layer normalization of rows on their way into a product. One cube makes a row.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::halves::converts;
use super::rows::{RowFormat, Rows, normalized_by, read_row, write_row};
use crate::ops::cube::matvec::Hardware;
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::{Groups, group_sum};

/// What layer normalization reads; all f32.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// \[rows, cols\].
    pub x: &'a Handle,
    /// The multiplier, \[cols\].
    pub scale: &'a Handle,
    /// What is added, \[cols\].
    pub bias: &'a Handle,
    /// Added to the variance.
    pub eps: f32,
}

/// Writes `(x - mean(x)) * rsqrt(variance(x) + eps) * scale + bias` of each row as `out`, with the variance of the
/// row itself. `cols` is a multiple of 4.
pub fn write_layer_norm(
    client: &Client,
    hardware: &Hardware,
    norm: LayerNorm<'_>,
    out: &Rows,
    rows: usize,
    cols: usize,
) {
    let quads = cols / 4;
    if rows == 0 {
        return;
    }
    let groups = hardware.groups(1).cube();
    // SAFETY: the lengths are those of the shapes, which bound every index of the kernel.
    unsafe {
        layer_norm_kernel::launch_unchecked(
            client,
            CubeCount::Static(rows as u32, 1, 1),
            groups.dim(),
            out.format.words_of_quad(),
            BufferArg::from_raw_parts(norm.x.clone(), rows * quads),
            BufferArg::from_raw_parts(norm.scale.clone(), quads),
            BufferArg::from_raw_parts(norm.bias.clone(), quads),
            BufferArg::from_raw_parts(out.handle.clone(), rows * out.format.row_elements(cols)),
            norm.eps,
            quads,
            out.format,
            converts(client),
            groups,
        );
    }
}

/// Cube `m` writes row `m`.
#[cube(launch_unchecked)]
fn layer_norm_kernel<O: Size>(
    x: &[Quad],
    scale: &[Quad],
    bias: &[Quad],
    out: &mut [Vector<u32, O>],
    eps: f32,
    #[comptime] quads: usize,
    #[comptime] format: RowFormat,
    #[comptime] native: bool,
    #[comptime] groups: Groups,
) {
    let units = comptime!(groups.cube_units());
    let share = comptime!((format.width(4 * quads) / 4).div_ceil(units));
    let mut values = Array::<Quad>::new(share);
    read_row(x, &mut values, 1usize, quads, share, groups);
    let mut total = Quad::new(0.0f32);
    #[unroll]
    for i in 0..share {
        total += values[i];
    }
    let mut sum = Array::<f32>::new(1usize);
    sum[0] = Vector::vector_sum(total);
    group_sum(&mut sum, 1usize, groups);
    let mean = Quad::new(sum[0] * comptime!(0.25 / quads as f32));
    #[unroll]
    for i in 0..share {
        let inside = UNIT_POS as usize + comptime!(i * units) < quads;
        values[i] = select(inside, values[i] - mean, Quad::new(0.0f32));
    }
    normalized_by(&mut values, scale, eps, quads, share, groups);
    #[unroll]
    for i in 0..share {
        let at = UNIT_POS as usize + comptime!(i * units);
        if at < quads {
            values[i] += bias[at];
        }
    }
    write_row::<O>(&values, out, quads, share, format, native, groups);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Precision;
    use crate::ops::cube::gemm::Processor;
    use crate::ops::cube::testing::*;

    #[test]
    fn rows_are_normalized_around_their_mean() {
        let Some(client) = client() else { return };
        let hardware = Hardware::of(&client);
        // The mean of numbers around 3 is rounded before it is subtracted, and the rest grows by 1.7.
        let mut formats = vec![(RowFormat::F32, 1e-6)];
        match Processor::of(&client).row_format(Precision::Fast) {
            RowFormat::F32 => {}
            // Results up to 4 in size, off by 2^-9; those of f16 by less.
            format => formats.push((format, 1.0 / 512.0 + 1e-6)),
        }
        for (format, tolerance) in formats {
            // Less than a quad for each unit, and more.
            for (cols, rows) in [(64, 11), (1220, 3)] {
                let mut random = Random::new(30);
                let x: Vec<f32> = random.floats(rows * cols).iter().map(|x| x + 3.0).collect();
                let (scale, bias) = (random.floats(cols), random.floats(cols));
                let out = Rows { handle: poisoned(&client, format.bytes(rows, cols) / 4), format };
                let norm = LayerNorm {
                    x: &upload(&client, &x),
                    scale: &upload(&client, &scale),
                    bias: &upload(&client, &bias),
                    eps: 1e-6,
                };
                write_layer_norm(&client, &hardware, norm, &out, rows, cols);
                let expected: Vec<_> =
                    to_f64(&x).chunks_exact(cols).flat_map(|row| definition(row, &scale, &bias)).collect();
                let found = values(&client, &out, rows, cols);
                assert_close(&found, &expected, tolerance, &format!("{format:?}"));
            }
        }
    }

    fn definition(row: &[f64], scale: &[f32], bias: &[f32]) -> Vec<(f64, f64)> {
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
