//! Products of matrices inside of a fused operation, by the crate `gemm` on the calling thread.
//!
//! An element of a product is the same, bit for bit, whatever other rows and columns are computed with it, and
//! terms of zero before and after the others don't change it. So callers may divide rows among as many threads as
//! there are. `gemm` adds up the terms of an element in their order, except in products so small that it has
//! other ways for them; those are filled up with zeros here.
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

/// Rows, and columns, that are always enough for `gemm`'s usual way: up to 16 x 16 elements it sums lanes of terms,
/// and it has ways of their own for a single row or column.
const ENOUGH_SIDE: usize = 17;
/// Terms of an element that are always enough for it.
const ENOUGH_TERMS: usize = 3;

impl Operand<'_> {
    /// One past the last element.
    fn end(&self) -> usize {
        extent(self.rows, self.columns, self.row_stride, self.column_stride)
    }

    /// A copy of the matrix, row-major, with zeros to the right and below.
    fn filled_up(&self, rows: usize, columns: usize) -> Vec<f32> {
        let mut copy = vec![0.0; rows * columns];
        for (row, copy) in copy.chunks_exact_mut(columns).enumerate().take(self.rows) {
            for (column, value) in copy.iter_mut().enumerate().take(self.columns) {
                *value = self.values[row * self.row_stride + column * self.column_stride];
            }
        }
        copy
    }
}

/// Whether `gemm` sums the elements of a product of these sizes in the order of their terms.
fn is_usual(rows: usize, terms: usize, columns: usize) -> bool {
    rows > 1 && columns > 1 && rows * columns >= ENOUGH_SIDE * (ENOUGH_SIDE - 1) && terms >= ENOUGH_TERMS
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
    if is_usual(a.rows, a.columns, b.columns) {
        return call(out, out_stride, a, b, factor, accumulate);
    }
    let (rows, columns) = (a.rows.max(ENOUGH_SIDE), b.columns.max(ENOUGH_SIDE));
    let terms = a.columns.max(ENOUGH_TERMS);
    let given =
        Operand { values: out, rows: a.rows, columns: b.columns, row_stride: out_stride, column_stride: 1 };
    let mut sums = if accumulate { given.filled_up(rows, columns) } else { vec![0.0; rows * columns] };
    let (a_values, b_values) = (a.filled_up(rows, terms), b.filled_up(terms, columns));
    let (a_filled, b_filled) = (row_major(&a_values, rows, terms), row_major(&b_values, terms, columns));
    call(&mut sums, columns, a_filled, b_filled, factor, accumulate);
    for (row, sums) in sums.chunks_exact(columns).enumerate().take(a.rows) {
        out[row * out_stride..][..b.columns].copy_from_slice(&sums[..b.columns]);
    }
}

/// A matrix without gaps.
pub(super) fn row_major(values: &[f32], rows: usize, columns: usize) -> Operand<'_> {
    Operand { values, rows, columns, row_stride: columns, column_stride: 1 }
}

/// [`multiply`] of operands and a result that lie within their slices.
fn call(out: &mut [f32], out_stride: usize, a: Operand<'_>, b: Operand<'_>, factor: f32, accumulate: bool) {
    assert!(a.end() <= a.values.len() && b.end() <= b.values.len(), "an operand beyond its slice");
    assert!(extent(a.rows, b.columns, out_stride, 1) <= out.len(), "a result beyond its slice");
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

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: usize = 40;
    const TERMS: usize = 70;
    const COLUMNS: usize = 50;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|n| (((n + seed) * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// Some rows, terms and columns of a product, with `b` as it is or transposed, whose other terms are zeros.
    fn check(rows: usize, terms: std::ops::Range<usize>, columns: usize, transposed: bool) {
        let (mut a, b) = (values(ROWS * TERMS, 1), values(TERMS * COLUMNS, 2));
        for row in a.chunks_exact_mut(TERMS) {
            row[..terms.start].fill(0.0);
            row[terms.end..].fill(0.0);
        }
        let (row_stride, column_stride) = if transposed { (1, TERMS) } else { (COLUMNS, 1) };
        let all_b = Operand { values: &b, rows: TERMS, columns: COLUMNS, row_stride, column_stride };
        let part_a = Operand {
            values: &a[terms.start..],
            rows,
            columns: terms.len(),
            row_stride: TERMS,
            column_stride: 1,
        };
        let part_b = Operand { values: &b[terms.start * row_stride..], rows: terms.len(), columns, ..all_b };
        for accumulate in [false, true] {
            let given = values(ROWS * COLUMNS, 3);
            let (mut whole, mut part) = (given.clone(), given);
            multiply(&mut whole, COLUMNS, row_major(&a, ROWS, TERMS), all_b, 0.3, accumulate);
            multiply(&mut part, COLUMNS, part_a, part_b, 0.3, accumulate);
            for row in 0..rows {
                let (found, expected) = (&part[row * COLUMNS..], &whole[row * COLUMNS..]);
                let same = (0..columns).all(|n| found[n].to_bits() == expected[n].to_bits());
                assert!(same, "row {row} of {rows}, terms {terms:?}, {columns} columns, {accumulate}");
            }
        }
    }

    #[test]
    fn an_element_does_not_depend_on_what_is_computed_with_it() {
        for transposed in [false, true] {
            for rows in [1, 2, 3, 15, 16, 17, 32, 40] {
                for columns in [1, 2, 5, 16, 17, 31, 50] {
                    check(rows, 0..TERMS, columns, transposed);
                    check(rows, 3..TERMS, columns, transposed);
                    check(rows, 5..TERMS - 6, columns, transposed);
                    check(rows, 60..61, columns, transposed);
                    check(rows, 60..62, columns, transposed);
                }
            }
        }
    }

    #[test]
    fn small_products_are_those_of_the_definition() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let mut out = [1.0, 1.0, 9.0, 1.0, 1.0];
        add_product(&mut out, 3, row_major(&a, 2, 2), row_major(&b, 2, 2));
        assert_eq!(out, [20.0, 23.0, 9.0, 44.0, 51.0]);
        product(&mut out[..1], 1, row_major(&a, 1, 4), row_major(&b, 4, 1), 0.5);
        assert_eq!(out[0], 35.0);
    }
}
