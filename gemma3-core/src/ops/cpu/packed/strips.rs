//! The output, divided among threads by columns.
//!
//! Threads compute different columns of every row: parts of one slice that interleave, which safe slices
//! can't express.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// Consecutive columns of all rows of a row-major matrix.
pub(super) struct Strip<'a> {
    /// The first of the columns in the first row.
    start: *mut f32,
    /// Elements from a row to the next.
    stride: usize,
    rows: usize,
    columns: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a strip is a mutable borrow of its elements, which no other strip has.
unsafe impl Send for Strip<'_> {}

impl<'a> Strip<'a> {
    /// Divides a matrix of `width` columns into strips of `columns`, of which the last may have fewer.
    ///
    /// # Panics
    ///
    /// When `matrix` isn't whole rows: a mistake of this crate.
    pub(super) fn divide(matrix: &'a mut [f32], width: usize, columns: usize) -> Vec<Self> {
        if matrix.is_empty() {
            return Vec::new();
        }
        let rows = matrix.len() / width;
        assert_eq!(rows * width, matrix.len(), "rows of the output");
        let start = matrix.as_mut_ptr();
        (0..width)
            .step_by(columns)
            .map(|column| Self {
                // SAFETY: `column < width`, and the matrix has at least one row.
                start: unsafe { start.add(column) },
                stride: width,
                rows,
                columns: columns.min(width - column),
                matrix: PhantomData,
            })
            .collect()
    }

    /// The strip's part of a row.
    ///
    /// # Panics
    ///
    /// When there is no such row.
    #[inline(always)]
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "a row beyond the output");
        // SAFETY: rows are `stride` apart and `row < rows`, so that this starts within the matrix, and
        // `columns` don't reach beyond the row: `divide` made them so. The elements belong to this strip
        // alone, which is borrowed mutably as long as the result is.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.columns) }
    }

    /// Columns of the strip.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Writes eight values from `column` of `row` on, or as many as the strip has; adds them to what is
    /// there if `accumulate`.
    #[inline(always)]
    pub(super) fn put(&mut self, row: usize, column: usize, values: [f32; 8], accumulate: bool) {
        let out = &mut self.row(row)[column..];
        if let Some(out) = out.first_chunk_mut::<8>() {
            for (out, value) in out.iter_mut().zip(values) {
                *out = if accumulate { *out + value } else { value };
            }
            return;
        }
        for (out, value) in out.iter_mut().zip(values) {
            *out = if accumulate { *out + value } else { value };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_cover_the_matrix() {
        let mut matrix = vec![0.0; 3 * 21];
        for (n, mut strip) in Strip::divide(&mut matrix, 21, 8).into_iter().enumerate() {
            for row in 0..3 {
                strip.row(row).fill((10 * row + n) as f32);
            }
        }
        let expected = |i: usize| (10 * (i / 21) + i % 21 / 8) as f32;
        assert!(matrix.iter().enumerate().all(|(i, value)| *value == expected(i)));
    }

    #[test]
    fn values_beyond_the_strip_are_dropped() {
        let mut matrix = vec![1.0; 2 * 11];
        let mut strips = Strip::divide(&mut matrix, 11, 8);
        strips[1].put(1, 0, [2.0; 8], true);
        assert_eq!(matrix[19..], [3.0; 3]);
        assert_eq!(matrix[..19], [1.0; 19]);
    }

    #[test]
    #[should_panic(expected = "a row beyond the output")]
    fn a_row_beyond_the_matrix_is_refused() {
        let mut matrix = vec![1.0; 4];
        Strip::divide(&mut matrix, 2, 1)[0].row(2);
    }
}
