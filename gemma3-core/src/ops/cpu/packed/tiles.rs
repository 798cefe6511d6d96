//! How the rows of activations are interleaved, so that a kernel reads one stream.
//!
//! A tile is a few consecutive rows, as many as a kernel has accumulators for. Element `j` of row `r` of a
//! tile is at `j * height + r`, and a tile whose first row is `row` begins at element `row * row_len`.

use rayon::prelude::*;

/// Up to this many rows, packed weights are read as they are; with more, expanding them first pays.
pub(in crate::ops::cpu) const FEW_ROWS: usize = 8;
/// Rows of a tile at most, for weights as they are packed and as bytes.
pub(super) const TILE_ROWS: usize = 4;
/// Rows of a tile, for weights expanded to f32 or bf16.
pub(super) const WIDE_TILE_ROWS: usize = 6;

/// Elements of activations that one thread prepares at least.
pub(super) const MIN_TASK_ELEMENTS: usize = 32 * 1024;

/// Consecutive rows that are interleaved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    /// The first row.
    pub(super) row: usize,
    /// Number of rows. Of many rows, the last tile may reach beyond the end, where rows are zeros.
    pub(super) height: usize,
}

/// Divides rows into tiles: of few rows as many as possible or a smaller power of two, of many rows always
/// `max_height`.
pub(super) fn tiles(rows: usize, max_height: usize) -> impl Iterator<Item = Tile> {
    let mut row = 0;
    std::iter::from_fn(move || {
        let left = rows.saturating_sub(row);
        let largest = 1 << left.checked_ilog2()?;
        let height = if rows > FEW_ROWS { max_height } else { max_height.min(largest) };
        row += height;
        Some(Tile { row: row - height, height })
    })
}

/// Rows with those that the last tile has too many.
fn padded_rows(rows: usize, max_height: usize) -> usize {
    if rows > FEW_ROWS { rows.next_multiple_of(max_height) } else { rows }
}

/// Interleaves rows, each an iterator of `row_len` elements, on the current thread pool.
pub(super) fn interleaved<T: Copy + Default + Send, I: Iterator<Item = T>>(
    rows: usize,
    max_height: usize,
    row_len: usize,
    row: impl Fn(usize) -> I + Sync,
) -> Vec<T> {
    let mut out = vec![T::default(); padded_rows(rows, max_height) * row_len];
    if out.is_empty() {
        return out;
    }
    let fill = |tile: Tile, out: &mut [T]| {
        for r in 0..tile.height.min(rows - tile.row) {
            for (out, value) in out.iter_mut().skip(r).step_by(tile.height).zip(row(tile.row + r)) {
                *out = value;
            }
        }
    };
    if rows <= FEW_ROWS || out.len() <= MIN_TASK_ELEMENTS {
        for tile in tiles(rows, max_height) {
            fill(tile, &mut out[tile.row * row_len..][..tile.height * row_len]);
        }
    } else {
        out.par_chunks_mut(max_height * row_len).enumerate().for_each(|(n, out)| {
            fill(Tile { row: n * max_height, height: max_height }, out);
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_divided_without_a_rest() {
        let heights: Vec<usize> = tiles(7, 4).map(|tile| tile.height).collect();
        assert_eq!(heights, [4, 2, 1]);
    }

    #[test]
    fn many_rows_are_filled_up_with_zeros() {
        let out = interleaved(9, 6, 2, |row| (0..2).map(move |column| 10 * row + column + 1));
        assert_eq!(out[..12], [1, 11, 21, 31, 41, 51, 2, 12, 22, 32, 42, 52]);
        assert_eq!(out[12..], [61, 71, 81, 0, 0, 0, 62, 72, 82, 0, 0, 0]);
    }
}
