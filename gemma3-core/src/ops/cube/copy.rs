//! Copies of buffers within a device, on the stream of the computation, and what is as simple.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Units of a cube.
const UNITS: u32 = 256;
/// Cubes of a launch; each takes turns.
const CUBES: u32 = 1024;

/// Copies a whole buffer into one of the same size, a multiple of 4 bytes.
pub(crate) fn copy(client: &Client, from: &Handle, to: &Handle) {
    copy_into(client, from, to, 0);
}

/// Copies a whole buffer, a multiple of 4 bytes, to the words of another from `first` on, as far as there are so many.
pub(crate) fn copy_into(client: &Client, from: &Handle, to: &Handle, first: usize) {
    let all = (to.size_in_used() / 4) as usize;
    let words = ((from.size_in_used() / 4) as usize).min(all.saturating_sub(first));
    let cubes = (words as u32).div_ceil(UNITS).clamp(1, CUBES);
    // SAFETY: the kernel stays below the lengths.
    unsafe {
        copy_kernel::launch_unchecked(
            client,
            CubeCount::Static(cubes, 1, 1),
            CubeDim::new_1d(UNITS),
            BufferArg::from_raw_parts(from.clone(), words),
            BufferArg::from_raw_parts(to.clone(), all),
            first as u32,
            words as u32,
        );
    }
}

#[cube(launch_unchecked)]
fn copy_kernel(from: &[u32], to: &mut [u32], first: u32, words: u32) {
    let mut at = CUBE_POS_X * UNITS + UNIT_POS_X;
    while at < words {
        to[(first + at) as usize] = from[at as usize];
        at += CUBE_COUNT_X * UNITS;
    }
}

/// Copies rows `indices` \[count\] (u32) of `from` \[rows, 4 * quads\] to `to` \[count, 4 * quads\], both of 4-byte
/// numbers. An index beyond the rows stands for the last.
pub(crate) fn gather_rows(
    client: &Client,
    from: &Handle,
    rows: usize,
    indices: &Handle,
    to: &Handle,
    count: usize,
    quads: usize,
) {
    // SAFETY: the kernel keeps indices below the rows and quads below a row's.
    unsafe {
        gather_rows_kernel::launch_unchecked(
            client,
            CubeCount::Static((quads as u32).div_ceil(UNITS), count as u32, 1),
            CubeDim::new_1d(UNITS),
            BufferArg::from_raw_parts(from.clone(), rows * quads),
            BufferArg::from_raw_parts(indices.clone(), count),
            BufferArg::from_raw_parts(to.clone(), count * quads),
            rows as u32,
            quads as u32,
        );
    }
}

#[cube(launch_unchecked)]
fn gather_rows_kernel(
    from: &[Vector<u32, Const<4>>],
    indices: &[u32],
    to: &mut [Vector<u32, Const<4>>],
    rows: u32,
    quads: u32,
) {
    let quad = CUBE_POS_X * UNITS + UNIT_POS_X;
    if quad < quads {
        let row = u32::min(indices[CUBE_POS_Y as usize], rows - 1);
        to[(CUBE_POS_Y * quads + quad) as usize] = from[(row * quads + quad) as usize];
    }
}

/// A rectangle of a matrix of quads (4 numbers of 4 bytes).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rectangle<'a> {
    /// The matrix.
    pub(crate) buffer: &'a Handle,
    /// Its width in quads.
    pub(crate) width: usize,
    /// The first row of the rectangle.
    pub(crate) row: usize,
    /// Its first column, in quads.
    pub(crate) column: usize,
}

/// Copies `rows` rows of `quads` quads each from one rectangle to another.
pub(crate) fn copy_rectangle(
    client: &Client,
    from: Rectangle<'_>,
    to: Rectangle<'_>,
    rows: usize,
    quads: usize,
) {
    copy_vectors(client, 4, from, to, rows, quads);
}

/// Copies the rows of a matrix \[rows, width\] of 4-byte numbers to columns of another, which is `to_width` wide, from
/// `column` on.
pub(crate) fn copy_columns(
    client: &Client,
    [from, to]: [&Handle; 2],
    rows: usize,
    width: usize,
    to_width: usize,
    column: usize,
) {
    let words = if [width, to_width, column].iter().all(|count| count.is_multiple_of(4)) { 4 } else { 1 };
    let from = Rectangle { buffer: from, width: width / words, row: 0, column: 0 };
    let to = Rectangle { buffer: to, width: to_width / words, row: 0, column: column / words };
    copy_vectors(client, words, from, to, rows, width / words);
}

/// [`copy_rectangle`] of vectors of so many words in the place of quads.
fn copy_vectors(
    client: &Client,
    words: usize,
    from: Rectangle<'_>,
    to: Rectangle<'_>,
    rows: usize,
    columns: usize,
) {
    let start = |part: &Rectangle<'_>| (part.row * part.width + part.column) as u32;
    let end = |part: &Rectangle<'_>| (part.row + rows) * part.width;
    // SAFETY: the last index of a rectangle is below the end of its last row.
    unsafe {
        copy_rectangle_kernel::launch_unchecked(
            client,
            CubeCount::Static((columns as u32).div_ceil(UNITS), rows as u32, 1),
            CubeDim::new_1d(UNITS),
            words,
            BufferArg::from_raw_parts(from.buffer.clone(), end(&from)),
            BufferArg::from_raw_parts(to.buffer.clone(), end(&to)),
            start(&from),
            from.width as u32,
            start(&to),
            to.width as u32,
            columns as u32,
        );
    }
}

#[cube(launch_unchecked)]
fn copy_rectangle_kernel<N: Size>(
    from: &[Vector<u32, N>],
    to: &mut [Vector<u32, N>],
    from_start: u32,
    from_width: u32,
    to_start: u32,
    to_width: u32,
    columns: u32,
) {
    let column = CUBE_POS_X * UNITS + UNIT_POS_X;
    if column < columns {
        let row = CUBE_POS_Y;
        to[(to_start + row * to_width + column) as usize] =
            from[(from_start + row * from_width + column) as usize];
    }
}

/// Adds `vector` \[4 * quads\] to each of `rows` rows of f32.
pub(crate) fn add_to_rows(client: &Client, to: &Handle, vector: &Handle, rows: usize, quads: usize) {
    // SAFETY: the kernel keeps quads below a row's.
    unsafe {
        add_to_rows_kernel::launch_unchecked(
            client,
            CubeCount::Static((quads as u32).div_ceil(UNITS), rows as u32, 1),
            CubeDim::new_1d(UNITS),
            BufferArg::from_raw_parts(to.clone(), rows * quads),
            BufferArg::from_raw_parts(vector.clone(), quads),
            quads as u32,
        );
    }
}

#[cube(launch_unchecked)]
fn add_to_rows_kernel(to: &mut [Vector<f32, Const<4>>], vector: &[Vector<f32, Const<4>>], quads: u32) {
    let quad = CUBE_POS_X * UNITS + UNIT_POS_X;
    if quad < quads {
        let at = (CUBE_POS_Y * quads + quad) as usize;
        to[at] += vector[quad as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cube::testing::*;

    #[test]
    fn rows_and_rectangles_are_copied_where_they_belong() {
        let Some(client) = client() else { return };
        let mut random = Random::new(40);
        let (rows, width) = (5, 12);
        let from = random.floats(rows * width);
        let handle = upload(&client, &from);

        let copied = poisoned(&client, from.len());
        copy(&client, &handle, &copied);
        assert_eq!(download(&client, &copied), from);

        let gathered = poisoned(&client, 3 * width);
        let indices = client.create_from_slice(u32::as_bytes(&[4_u32, 0, 9]));
        gather_rows(&client, &handle, rows, &indices, &gathered, 3, width / 4);
        let row = |index: usize| &from[index * width..][..width];
        assert_eq!(download(&client, &gathered), [row(4), row(0), row(4)].concat());

        // Columns 4..8 of rows 1..3 become columns 8..12 of rows 0..2 of a matrix of 16.
        let to = poisoned(&client, 2 * 16);
        let source = Rectangle { buffer: &handle, width: width / 4, row: 1, column: 1 };
        let target = Rectangle { buffer: &to, width: 4, row: 0, column: 2 };
        copy_rectangle(&client, source, target, 2, 1);
        for (index, value) in download(&client, &to).iter().enumerate() {
            let (row, column) = (index / 16, index % 16);
            if (8..12).contains(&column) {
                assert_eq!(*value, from[(row + 1) * width + column - 4]);
            } else {
                assert!(value.is_nan(), "{index} was written");
            }
        }
    }

    #[test]
    fn columns_are_put_beside_others() {
        let Some(client) = client() else { return };
        let mut random = Random::new(42);
        for (width, to_width, column) in [(8, 20, 4), (5, 13, 6), (4, 7, 3)] {
            let from = random.floats(3 * width);
            let to = poisoned(&client, 3 * to_width);
            copy_columns(&client, [&upload(&client, &from), &to], 3, width, to_width, column);
            for (row, found) in download(&client, &to).chunks_exact(to_width).enumerate() {
                assert_eq!(found[column..column + width], from[row * width..][..width]);
                let others = found[..column].iter().chain(&found[column + width..]);
                assert!(others.copied().all(f32::is_nan), "{width} in {to_width}");
            }
        }
    }

    #[test]
    fn a_vector_is_added_to_every_row() {
        let Some(client) = client() else { return };
        let mut random = Random::new(41);
        let (rows, width) = (3, 1028);
        let (from, vector) = (random.floats((rows + 1) * width), random.floats(width));
        let to = upload(&client, &from);
        add_to_rows(&client, &to, &upload(&client, &vector), rows, width / 4);
        let (added, rest) = from.split_at(rows * width);
        let mut expected: Vec<f32> = added.iter().zip(vector.iter().cycle()).map(|(x, v)| x + v).collect();
        expected.extend(rest);
        assert_eq!(download(&client, &to), expected);
    }
}
