//! Products of matrices inside of a fused operation, by the crate `gemm` on the calling thread.
//!
//! This is where the operations of the CPU cross into `unsafe`: `gemm` takes pointers and strides.
#![allow(unsafe_code)]

/// A matrix that is read: `rows` x `columns` elements at `row * row_stride + column * column_stride`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl Operand<'_> {
    /// One past the last element.
    fn end(&self) -> usize {
        extent(self.rows, self.columns, self.row_stride, self.column_stride)
    }
}

/// One past the last element of a strided matrix; saturates, which no slice reaches.
fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 {
        return 0;
    }
    let last_row = (rows - 1).saturating_mul(row_stride);
    let last_column = (columns - 1).saturating_mul(column_stride);
    last_row.saturating_add(last_column).saturating_add(1)
}

/// `out = factor * a b`, with `out` \[a.rows, b.columns\] in rows of `out_stride` elements.
///
/// # Panics
///
/// When the sizes do not fit each other or the slices: a mistake of this crate, not of its input.
pub(super) fn product(out: &mut [f32], out_stride: usize, a: Operand<'_>, b: Operand<'_>, factor: f32) {
    multiply(out, out_stride, a, b, factor, false);
}

/// `out += a b`, with `out` \[a.rows, b.columns\] in rows of `out_stride` elements.
///
/// # Panics
///
/// As [`product`].
pub(super) fn add_product(out: &mut [f32], out_stride: usize, a: Operand<'_>, b: Operand<'_>) {
    multiply(out, out_stride, a, b, 1.0, true);
}

/// `factor * a b`, added to what `out` holds if `accumulate`, else in its place.
fn multiply(
    out: &mut [f32],
    out_stride: usize,
    a: Operand<'_>,
    b: Operand<'_>,
    factor: f32,
    accumulate: bool,
) {
    assert_eq!(a.columns, b.rows, "inner sizes");
    assert!(a.end() <= a.values.len() && b.end() <= b.values.len(), "an operand beyond its slice");
    let end = extent(a.rows, b.columns, out_stride, 1);
    assert!(end <= out.len() && (a.rows <= 1 || out_stride >= b.columns), "a result beyond its slice");
    // SAFETY: `gemm` reads and writes exactly the elements of the three strided matrices, all of which
    // lie within their slices (asserted above, and a slice's indices fit `isize`). Rows of `out` do not
    // overlap (its stride is at least its width), and `out` is borrowed mutably, so it overlaps
    // neither operand.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            if accumulate { 1.0 } else { 0.0 },
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
