//! Activations as the products read them: rows of f32, bf16 or f16, normalized on the way where a norm comes
//! first. One cube makes a row, from what its units keep in registers.

use std::cmp::min;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::halves::{converted, converts, f16_pair, row_power};
use super::ptx::bf16_pair;
use super::tile::DEPTH;
use crate::ops::cube::commands::part;
use crate::ops::cube::matvec::{Hardware, Input};
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::{Groups, group_sum};

/// How numbers of a row of activations lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// f32, one row after the other.
    F32,
    /// bf16, two in a word; rows are filled with zeros to a multiple of 64 numbers. Only where
    /// [`Processor::row_format`](super::Processor::row_format) asks for them.
    Bf16,
    /// f16, two in a word; rows are filled with zeros to a multiple of 64 numbers, and 32 words follow of which the first
    /// is the f32 that the row's numbers are multiplied with ([`factor_word`](Self::factor_word)). Only where
    /// [`Processor::row_format`](super::Processor::row_format) asks for them.
    F16,
}

/// Words after a row of f16: as many as keep rows aligned as the caches' lines are.
const FACTOR_WORDS: usize = 32;

impl RowFormat {
    /// Numbers of a row of `cols` in memory, with what it is filled up with.
    pub const fn width(self, cols: usize) -> usize {
        match self {
            Self::F32 => cols,
            Self::Bf16 | Self::F16 => cols.next_multiple_of(DEPTH),
        }
    }

    /// What all products of such rows can write for the next: a row of f16 depends on its largest number, which none of the
    /// cubes that make it knows. Some know what none is larger than ([`writes_halves`](super::writes_halves)).
    pub const fn of_products(self) -> Self {
        match self {
            Self::F32 | Self::F16 => Self::F32,
            Self::Bf16 => Self::Bf16,
        }
    }

    /// Whether rows of `cols` numbers have nothing that they are filled up with.
    pub const fn is_full(self, cols: usize) -> bool {
        self.width(cols) == cols
    }

    /// Words from the beginning of a row of `cols` numbers to that of the next.
    pub const fn row_words(self, cols: usize) -> usize {
        match self {
            Self::F32 => self.width(cols),
            Self::Bf16 => self.width(cols) / 2,
            Self::F16 => self.width(cols) / 2 + FACTOR_WORDS,
        }
    }

    /// The word of a row of f16 that holds what its numbers are multiplied with.
    pub const fn factor_word(cols: usize) -> usize {
        Self::F16.width(cols) / 2
    }

    /// Bytes of `rows` rows of `cols` numbers.
    pub const fn bytes(self, rows: usize, cols: usize) -> usize {
        rows * self.row_words(cols) * size_of::<u32>()
    }
}

/// Rows of activations in device memory.
#[derive(Debug, Clone)]
pub struct Rows {
    /// [`RowFormat::bytes`] of them.
    pub handle: Handle,
    /// What they are.
    pub format: RowFormat,
}

impl Rows {
    /// Rows of f32, as other kernels write them.
    pub fn f32(handle: &Handle) -> Self {
        Self { handle: handle.clone(), format: RowFormat::F32 }
    }

    /// Memory for rows.
    pub fn empty(client: &Client, format: RowFormat, rows: usize, cols: usize) -> Self {
        Self { handle: client.empty(format.bytes(rows, cols)), format }
    }

    /// `count` of the rows, of `cols` numbers each, from row `first` on.
    pub fn part(&self, first: usize, count: usize, cols: usize) -> Self {
        let (start, bytes) = (self.format.bytes(first, cols), self.format.bytes(count, cols));
        Self { handle: part(&self.handle, start, bytes), format: self.format }
    }
}

/// Writes `input`, f32 \[rows, cols\], as `out`; `cols` is a multiple of 4.
pub fn write_rows(
    client: &Client,
    hardware: &Hardware,
    input: Input<'_>,
    out: &Rows,
    rows: usize,
    cols: usize,
) {
    write_rows_of_parts(client, hardware, input, 1, out, rows, cols);
}

/// The same of an input whose `branch`, or whose `x` where there is none, lies in parts that are added up first, f32
/// \[parts, rows, cols\], as [`linear_parts`](super::linear_parts) leaves them.
pub fn write_rows_of_parts(
    client: &Client,
    hardware: &Hardware,
    input: Input<'_>,
    parts: usize,
    out: &Rows,
    rows: usize,
    cols: usize,
) {
    if rows == 0 {
        return;
    }
    let quads = cols / 4;
    let groups = hardware.groups(1).cube();
    let count = CubeCount::Static(rows as u32, 1, 1);
    let words = out.format.words_of_quad();
    let native = converts(client);
    // SAFETY: the lengths are those that the kernels compute their indices from.
    let floats = |handle: &Handle, len| unsafe { BufferArg::from_raw_parts(handle.clone(), len) };
    let written = floats(&out.handle, rows * out.format.row_elements(cols));
    match input {
        Input::Plain { x } | Input::Normed { x, .. } => {
            let (scale, eps, normed) = match input {
                Input::Normed { scale, eps, .. } => (scale, eps, true),
                _ => (x, 0.0, false), // not read
            };
            // SAFETY: as above.
            unsafe {
                rows_kernel::launch_unchecked(
                    client,
                    count,
                    groups.dim(),
                    words,
                    floats(x, parts * rows * quads),
                    floats(scale, quads),
                    written,
                    eps,
                    parts,
                    quads,
                    out.format,
                    native,
                    normed,
                    groups,
                );
            }
        }
        // SAFETY: as above.
        Input::Residual { x, branch, branch_scale, scale, stream, eps } => unsafe {
            residual_rows_kernel::launch_unchecked(
                client,
                count,
                groups.dim(),
                words,
                floats(x, rows * quads),
                floats(branch, parts * rows * quads),
                floats(branch_scale, quads),
                floats(scale, quads),
                floats(stream, rows * quads),
                written,
                eps,
                parts,
                quads,
                out.format,
                native,
                groups,
            );
        },
    }
}

impl RowFormat {
    /// Words that four numbers take.
    pub(crate) const fn words_of_quad(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Elements of [`words_of_quad`](Self::words_of_quad) words from the beginning of a row to that of the next.
    pub(crate) const fn row_elements(self, cols: usize) -> usize {
        self.row_words(cols) / self.words_of_quad()
    }
}

/// Cube `m` writes row `m` of `x`, or of `rms_norm(x) * scale`.
#[cube(launch_unchecked)]
fn rows_kernel<O: Size>(
    x: &[Quad],
    scale: &[Quad],
    out: &mut [Vector<u32, O>],
    eps: f32,
    #[comptime] parts: usize,
    #[comptime] quads: usize,
    #[comptime] format: RowFormat,
    #[comptime] native: bool,
    #[comptime] normed: bool,
    #[comptime] groups: Groups,
) {
    let share = comptime!((format.width(4 * quads) / 4).div_ceil(groups.cube_units()));
    let mut values = Array::<Quad>::new(share);
    read_row(x, &mut values, parts, quads, share, groups);
    if comptime!(normed) {
        normalized_by(&mut values, scale, eps, quads, share, groups);
    }
    write_row::<O>(&values, out, quads, share, format, native, groups);
}

/// Cube `m` writes row `m` of `rms_norm(h) * scale` and of `h = x + rms_norm(branch) * branch_scale`.
#[cube(launch_unchecked)]
fn residual_rows_kernel<O: Size>(
    x: &[Quad],
    branch: &[Quad],
    branch_scale: &[Quad],
    scale: &[Quad],
    stream: &mut [Quad],
    out: &mut [Vector<u32, O>],
    eps: f32,
    #[comptime] parts: usize,
    #[comptime] quads: usize,
    #[comptime] format: RowFormat,
    #[comptime] native: bool,
    #[comptime] groups: Groups,
) {
    let units = comptime!(groups.cube_units());
    let share = comptime!((format.width(4 * quads) / 4).div_ceil(units));
    let row = CUBE_POS_X as usize * quads;
    let mut values = Array::<Quad>::new(share);
    read_row(branch, &mut values, parts, quads, share, groups);
    normalized_by(&mut values, branch_scale, eps, quads, share, groups);
    #[unroll]
    for i in 0..share {
        let at = UNIT_POS as usize + comptime!(i * units);
        if at < quads {
            values[i] += x[row + at];
            stream[row + at] = values[i];
        }
    }
    normalized_by(&mut values, scale, eps, quads, share, groups);
    write_row::<O>(&values, out, quads, share, format, native, groups);
}

/// A unit's share of its cube's row, the sum of `parts` rows that lie `CUBE_COUNT_X` rows apart; zeros beyond the end.
#[cube]
pub(super) fn read_row(
    x: &[Quad],
    values: &mut Array<Quad>,
    #[comptime] parts: usize,
    #[comptime] quads: usize,
    #[comptime] share: usize,
    #[comptime] groups: Groups,
) {
    let row = CUBE_POS_X as usize * quads;
    #[unroll]
    for i in 0..share {
        let at = UNIT_POS as usize + comptime!(i * groups.cube_units());
        let place = row + min(at, comptime!(quads - 1));
        let mut value = x[place];
        #[unroll]
        for part in 1..parts {
            value += x[place + CUBE_COUNT_X as usize * comptime!(part * quads)];
        }
        values[i] = select(at < quads, value, Quad::new(0.0f32));
    }
}

/// `values` -> `rms_norm(values) * scale`; of values around their mean that is their layer norm.
#[cube]
pub(super) fn normalized_by(
    values: &mut Array<Quad>,
    scale: &[Quad],
    eps: f32,
    #[comptime] quads: usize,
    #[comptime] share: usize,
    #[comptime] groups: Groups,
) {
    let inverse = inverse_rms(&*values, eps, quads, share, groups);
    #[unroll]
    for i in 0..share {
        let at = min(UNIT_POS as usize + comptime!(i * groups.cube_units()), comptime!(quads - 1));
        values[i] = values[i] * Quad::new(inverse) * scale[at];
    }
}

/// Writes a unit's share of its cube's row, and of the zeros after it; of a row of f16 also its factor. `native`: whether
/// the device [`converts`]. Every unit of the cube has to come here.
#[cube]
pub(super) fn write_row<O: Size>(
    values: &Array<Quad>,
    out: &mut [Vector<u32, O>],
    #[comptime] quads: usize,
    #[comptime] share: usize,
    #[comptime] format: RowFormat,
    #[comptime] native: bool,
    #[comptime] groups: Groups,
) {
    let written = comptime!(format.width(4 * quads) / 4);
    let row = CUBE_POS_X as usize * comptime!(format.row_elements(4 * quads));
    let mut power = 1.0f32;
    if comptime!(matches!(format, RowFormat::F16)) {
        let (up, down) = row_power(values, share, groups);
        power = up;
        if UNIT_POS == 0 {
            let mut factor = Vector::<u32, O>::new(0u32);
            factor.insert(0usize, u32::reinterpret(down));
            out[row + written] = factor;
        }
    }
    #[unroll]
    for i in 0..share {
        let at = UNIT_POS as usize + comptime!(i * groups.cube_units());
        if at < written {
            if comptime!(native && matches!(format, RowFormat::F16)) {
                let pairs = converted(values[i] * Quad::new(power));
                let mut words = Vector::<u32, O>::empty();
                words.insert(0usize, pairs.extract(0usize));
                words.insert(1usize, pairs.extract(1usize));
                out[row + at] = words;
            } else if comptime!(matches!(format, RowFormat::F16)) {
                out[row + at] = quad_words::<O>(values[i] * Quad::new(power), format);
            } else {
                out[row + at] = quad_words::<O>(values[i], format);
            }
        }
    }
}

/// Four neighbouring numbers of a row as they lie in memory, in [`RowFormat::words_of_quad`] words; those of a row of
/// f16 already fit.
#[cube]
pub(crate) fn quad_words<O: Size>(quad: Quad, #[comptime] format: RowFormat) -> Vector<u32, O> {
    let mut words = Vector::<u32, O>::empty();
    if comptime!(matches!(format, RowFormat::Bf16)) {
        words.insert(0usize, bf16_pair(quad.extract(0usize), quad.extract(1usize)));
        words.insert(1usize, bf16_pair(quad.extract(2usize), quad.extract(3usize)));
    } else if comptime!(matches!(format, RowFormat::F16)) {
        words.insert(0usize, f16_pair(quad.extract(0usize), quad.extract(1usize)));
        words.insert(1usize, f16_pair(quad.extract(2usize), quad.extract(3usize)));
    } else {
        #[unroll]
        for j in 0..4usize {
            words.insert(j, u32::reinterpret(quad.extract(j)));
        }
    }
    words
}

/// `1 / sqrt(mean + eps)` of the squares of a row.
#[cube]
fn inverse_rms(
    values: &Array<Quad>,
    eps: f32,
    #[comptime] quads: usize,
    #[comptime] share: usize,
    #[comptime] groups: Groups,
) -> f32 {
    let mut squares = Quad::new(0.0f32);
    #[unroll]
    for i in 0..share {
        squares = fma(values[i], values[i], squares);
    }
    let mut sum = Array::<f32>::new(1usize);
    sum[0] = Vector::vector_sum(squares);
    group_sum(&mut sum, 1usize, groups);
    f32::inverse_sqrt(sum[0] * comptime!(0.25 / quads as f32) + eps)
}
