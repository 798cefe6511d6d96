//! The plain kernel, which the fast ones are checked against and began as: one unit makes one output.

use cubecl::prelude::*;

use crate::ops::cube::packed::{
    Layout, Quad, fetch_side, quad, quads_of_span, scale_pair, side_words_of_item,
};

/// `x Wᵀ`: unit `[n, m]` makes output `n` of input row `m`.
#[cube(launch_unchecked)]
pub(crate) fn plain_kernel(
    x: &[Quad],
    quants: &[Vector<u32, Const<4>>],
    side: &[u32],
    out: &mut [f32],
    #[comptime] layout: Layout,
) {
    let row = ABSOLUTE_POS_X as usize;
    if row < layout.rows {
        let m = CUBE_POS_Y as usize;
        let quads = comptime!(layout.weights_per_word());
        let span_quads = comptime!(quads_of_span(&layout, 4));
        let items = comptime!(layout.row_words() / 4);
        let cols = comptime!(layout.cols / 4);
        let mut sides = Array::<u32>::new(comptime!(side_words_of_item(&layout, 4).max(1)));
        let mut sum = 0.0f32;
        for item in 0..items {
            let words = quants[row * items + item];
            fetch_side::<Const<4>>(side, row, item, &mut sides, 0usize, layout);
            #[unroll]
            for q in 0..quads {
                let (scale, minimum) =
                    scale_pair::<Const<4>>(&sides, item, comptime!(q / span_quads), 0usize, layout, false);
                let w = quad::<Const<4>>(words, &sides, item, q, 0usize, layout, false);
                let w = fma(w, Quad::new(scale), Quad::new(minimum));
                let at = item * quads + q;
                if at < cols {
                    sum += Vector::vector_sum(w * x[m * cols + at]);
                }
            }
        }
        out[m * comptime!(layout.rows) + row] = sum;
    }
}
