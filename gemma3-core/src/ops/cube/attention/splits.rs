//! The softmaxes of parts of the keys -> the softmax of all.
//!
//! A part leaves, for each query head, its values weighted by exponentials of scores less the part's largest
//! score, and then a quad of that largest score and the sum of the exponentials.

use std::cmp::min;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::decode::DecodeAttention;
use crate::ops::cube::gemm::{RowFormat, Rows, quad_words};
use crate::ops::cube::packed::Quad;

/// A score below all others, where a shading language may lack infinity.
pub(crate) const LOWEST: f32 = -1e30;
/// Parts that a unit reads at once.
const AT_ONCE: usize = 16;
/// Parts that a row of units of the combination takes at least, and the most units of its cubes.
const SHARE: usize = 4;
const MAX_UNITS: usize = 256;

/// Combines the parts that [`decode_attention`](super::decode_attention) left in `partial` into `out`,
/// \[sequences, heads * head_dim\]; rows that are full in their format ([`RowFormat::is_full`]). Attended values are no
/// larger than values, so rows of f16 hold them as they are, with a factor of 1.
pub fn combine_splits(client: &Client, attention: DecodeAttention, partial: &Handle, out: &Rows) {
    let heads = attention.cache.sequences * attention.heads;
    let quads = attention.cache.head_dim / 4;
    let shares = attention.splits.div_ceil(SHARE).clamp(1, (MAX_UNITS / quads).max(1));
    // SAFETY: the lengths are those of the shapes, and every index follows from cube and unit.
    unsafe {
        combine_kernel::launch_unchecked(
            client,
            CubeCount::Static(heads as u32, 1, 1),
            CubeDim::new_2d(quads as u32, shares as u32),
            out.format.words_of_quad(),
            BufferArg::from_raw_parts(partial.clone(), attention.partial_floats() / 4),
            BufferArg::from_raw_parts(
                out.handle.clone(),
                attention.cache.sequences * out.format.row_elements(4 * attention.heads * quads),
            ),
            quads,
            attention.heads,
            attention.splits,
            shares,
            out.format,
        );
    }
}

/// Cube `[head]`, unit `[quad, share]`: each row of units combines its share of the parts, the first row the
/// shares.
#[cube(launch_unchecked)]
fn combine_kernel<O: Size>(
    partial: &[Quad],
    out: &mut [Vector<u32, O>],
    #[comptime] quads: usize,
    #[comptime] heads: usize,
    #[comptime] splits: usize,
    #[comptime] shares: usize,
    #[comptime] format: RowFormat,
) {
    let head = CUBE_POS_X as usize;
    let quad = UNIT_POS_X as usize;
    let share = UNIT_POS_Y as usize;
    let row = head / heads * comptime!(format.row_elements(4 * heads * quads));
    let to = row + head % heads * quads + quad;
    if comptime!(matches!(format, RowFormat::F16)) {
        put_factor::<O>(out, row + comptime!(heads * quads), to == row && share == 0);
    }
    let each = comptime!(splits.div_ceil(shares));
    let (values, statistic) = combined_range(partial, head, quad, share * each, quads, splits, each);
    if comptime!(shares == 1) {
        let attended = values / Quad::new(statistic.extract(1usize));
        out[to] = quad_words::<O>(attended, format);
    } else {
        let mut all_values = Shared::<[Quad]>::new_slice(comptime!(shares * quads));
        let mut all_statistics = Shared::<[Quad]>::new_slice(comptime!(shares * quads));
        all_values[share * quads + quad] = values;
        all_statistics[share * quads + quad] = statistic;
        sync_cube();
        if share == 0 {
            let mut highest = LOWEST.runtime();
            #[unroll]
            for s in 0..shares {
                highest = f32::max(highest, all_statistics[comptime!(s * quads) + quad].extract(0usize));
            }
            let mut sum = 0.0f32;
            let mut values = Quad::new(0.0f32);
            #[unroll]
            for s in 0..shares {
                let statistic = all_statistics[comptime!(s * quads) + quad];
                let weight = f32::exp(statistic.extract(0usize) - highest);
                sum += weight * statistic.extract(1usize);
                values = fma(Quad::new(weight), all_values[comptime!(s * quads) + quad], values);
            }
            out[to] = quad_words::<O>(values / Quad::new(sum), format);
        }
    }
}

/// Writes what a row of f16 is multiplied by; one unit of its cubes does.
#[cube]
fn put_factor<O: Size>(out: &mut [Vector<u32, O>], at: usize, is_first: bool) {
    if is_first {
        out[at] = Vector::<u32, O>::new(u32::reinterpret(1.0f32));
    }
}

/// Parts `first..first + count` of a head: values, and (largest score, sum, 0, 0).
#[cube]
fn combined_range(
    partial: &[Quad],
    head: usize,
    quad: usize,
    first: usize,
    #[comptime] quads: usize,
    #[comptime] splits: usize,
    #[comptime] count: usize,
) -> (Quad, Quad) {
    let at_once = comptime!(if count < AT_ONCE { count } else { AT_ONCE });
    let turns = comptime!(count.div_ceil(at_once));
    let row = comptime!(quads + 1);
    let head_start = head * comptime!(splits * row);
    let mut highest = LOWEST.runtime();
    let mut sum = 0.0f32;
    let mut values = Quad::new(0.0f32);
    for turn in 0..turns {
        let mut statistics = Array::<Quad>::new(at_once);
        let mut parts = Array::<Quad>::new(at_once);
        #[unroll]
        for i in 0..at_once {
            let split = min(first + turn * at_once + i, comptime!(splits - 1));
            statistics[i] = partial[head_start + split * row + quads];
            parts[i] = partial[head_start + split * row + quad];
        }
        let mut higher = highest;
        #[unroll]
        for i in 0..at_once {
            higher = f32::max(higher, statistics[i].extract(0usize));
        }
        let shrink = f32::exp(highest - higher);
        highest = higher;
        sum *= shrink;
        values *= Quad::new(shrink);
        #[unroll]
        for i in 0..at_once {
            let place = turn * at_once + i;
            let valid = place < count && first + place < splits;
            let weight = select(valid, f32::exp(statistics[i].extract(0usize) - highest), 0.0f32);
            sum += weight * statistics[i].extract(1usize);
            values = fma(Quad::new(weight), parts[i], values);
        }
    }
    let mut statistic = Quad::new(0.0f32);
    statistic.insert(0usize, highest);
    statistic.insert(1usize, sum);
    (values, statistic)
}
