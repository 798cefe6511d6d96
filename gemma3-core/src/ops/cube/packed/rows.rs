//! Rows of a packed matrix, by ids that lie on the device: the embedding.

use std::cmp::min;
use std::sync::Arc;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{Layout, PackedMatrix, Quad, fetch_side, quad, quads_of_span, scale_pair, side_words_of_item};

/// Units of a cube.
const UNITS: u32 = 64;

/// Rows `ids` \[count\] (u32) of a matrix that lies in `parts`, one after the other, times `factor`, into `out`
/// \[count, cols\]. An id beyond the matrix stands for its last row: kernels can't fail.
pub fn rows(
    client: &Client,
    parts: &[Arc<PackedMatrix>],
    ids: &Handle,
    out: &Handle,
    count: usize,
    factor: f32,
) {
    let mut first = 0;
    for (index, part) in parts.iter().enumerate() {
        let next = first + part.layout.rows as u32;
        let last = if index + 1 == parts.len() { u32::MAX } else { next - 1 };
        rows_of_part(client, part, [first, last], [ids, out], count, factor);
        first = next;
    }
}

/// Those of the rows that lie in a part: of the ids `first` to `last`.
fn rows_of_part(
    client: &Client,
    matrix: &PackedMatrix,
    [first, last]: [u32; 2],
    [ids, out]: [&Handle; 2],
    count: usize,
    factor: f32,
) {
    let layout = matrix.layout;
    let quads = layout.cols / 4;
    let items = (layout.row_words() / 4) as u32;
    // SAFETY: the kernel clamps ids, and the lengths of the buffers follow from layout and count.
    unsafe {
        rows_kernel::launch_unchecked(
            client,
            CubeCount::Static(items.div_ceil(UNITS), count as u32, 1),
            CubeDim::new_1d(UNITS),
            BufferArg::from_raw_parts(ids.clone(), count),
            BufferArg::from_raw_parts(matrix.quants.clone(), layout.rows * layout.row_words() / 4),
            BufferArg::from_raw_parts(matrix.side.clone(), layout.side_len()),
            BufferArg::from_raw_parts(out.clone(), count * quads),
            factor,
            first,
            last,
            layout,
        );
    }
}

/// Unit `[item, i]` makes the weights of one vector of row `ids[i]`, if that is one of those from `first` to `last`.
#[cube(launch_unchecked)]
fn rows_kernel(
    ids: &[u32],
    quants: &[Vector<u32, Const<4>>],
    side: &[u32],
    out: &mut [Quad],
    factor: f32,
    first: u32,
    last: u32,
    #[comptime] layout: Layout,
) {
    let items = comptime!(layout.row_words() / 4);
    let item = ABSOLUTE_POS_X as usize;
    let position = CUBE_POS_Y as usize;
    let id = ids[position];
    if item < items && id >= first && id <= last {
        let row = min((id - first) as usize, comptime!(layout.rows - 1));
        let quads = comptime!(layout.weights_per_word());
        let span_quads = comptime!(quads_of_span(&layout, 4));
        let cols = comptime!(layout.cols / 4);
        let words = quants[row * items + item];
        let mut sides = Array::<u32>::new(comptime!(side_words_of_item(&layout, 4).max(1)));
        fetch_side::<Const<4>>(side, row, item, &mut sides, 0usize, layout);
        #[unroll]
        for q in 0..quads {
            let (scale, minimum) =
                scale_pair::<Const<4>>(&sides, item, comptime!(q / span_quads), 0usize, layout, false);
            let w = quad::<Const<4>>(words, &sides, item, q, 0usize, layout, false);
            let w = fma(w, Quad::new(scale), Quad::new(minimum));
            let at = item * quads + q;
            if at < cols {
                out[position * cols + at] = w * Quad::new(factor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::TensorFormat;
    use crate::ops::cube::testing::*;

    #[test]
    fn rows_of_every_format_are_their_weights() {
        let Some(client) = client() else { return };
        for format in TensorFormat::ALL {
            let cols = if format.block_len() == 1 { 84 } else { 3 * format.block_len() };
            let mut random = Random::new(1);
            let (matrix, weights) = random_matrix(&client, format, 7, cols, &mut random);
            let ids = [6_u32, 0, 3];
            let out = poisoned(&client, ids.len() * cols);
            let (parts, buffer) = ([Arc::new(matrix)], client.create_from_slice(u32::as_bytes(&ids)));
            rows(&client, &parts, &buffer, &out, ids.len(), 0.5);
            let expected = ids.iter().flat_map(|id| &weights[*id as usize * cols..][..cols]);
            for (found, weight) in download(&client, &out).iter().zip(expected) {
                // The products scale * q and, in K formats, those that make scale and minimum are rounded.
                let bound = 0.5 * weight.abs() * 3e-7 + 1e-8;
                assert!((found - 0.5 * weight).abs() <= bound, "{format}: {found}, not half of {weight}");
            }
        }
    }

    #[test]
    fn rows_come_from_the_part_that_they_lie_in() {
        let Some(client) = client() else { return };
        let (cols, mut random) = (64, Random::new(2));
        let parts = [8, 4, 5].map(|rows| random_matrix(&client, TensorFormat::F32, rows, cols, &mut random));
        let weights: Vec<f32> = parts.iter().flat_map(|(_, weights)| weights.clone()).collect();
        let parts = parts.map(|(matrix, _)| Arc::new(matrix));
        let ids = [0_u32, 7, 8, 11, 12, 16, 17, u32::MAX];
        let out = poisoned(&client, ids.len() * cols);
        let buffer = client.create_from_slice(u32::as_bytes(&ids));
        rows(&client, &parts, &buffer, &out, ids.len(), 1.0);
        // Those beyond are the last.
        let expected = ids.map(|id| &weights[id.min(16) as usize * cols..][..cols]).concat();
        assert_eq!(download(&client, &out), expected);
    }
}
