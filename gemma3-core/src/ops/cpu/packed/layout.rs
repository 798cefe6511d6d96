//! How rows of a block format are laid out in panels of eight, and back.
//!
//! A panel is eight rows, block after block. Within a block, the file's bytes of the eight rows are
//! interleaved in units of four (quants) or two (halves) bytes, so that a vector of eight lanes holds the
//! same unit of eight rows: a unit at byte `o` of the file's block is at byte `8 o + unit * row` of the
//! panel's. Scales of eight rows are converted by one instruction, and no sum crosses lanes. The rows that
//! the last panel lacks are zeros.
//!
//! One thing is rearranged: the fifth bits of Q5_0 and Q5_1, [`spread_bits`].

use std::ops::Range;

use rayon::prelude::*;

use crate::formats::TensorFormat;

/// Rows in a panel.
pub(super) const PANEL_ROWS: usize = 8;

/// Panels that a thread lays out at a time.
const TASK_PANELS: usize = 16;

/// Bytes that a thread copies at a time.
const TASK_BYTES: usize = 256 << 10;

/// Bytes that are laid out before [`interleave`] says that they are done.
const STRIPE_BYTES: usize = 8 << 20;

/// A piece of a block that is interleaved in units of one size.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// First byte in the file's block.
    start: usize,
    /// One past the last byte.
    end: usize,
    /// Bytes in a unit.
    unit: usize,
}

const fn piece(start: usize, end: usize, unit: usize) -> Piece {
    Piece { start, end, unit }
}

/// The pieces of a block, in order. Plain formats have none: they aren't laid out anew.
fn pieces(format: TensorFormat) -> &'static [Piece] {
    match format {
        TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16 => &[],
        TensorFormat::Q4_0 => const { &[piece(0, 2, 2), piece(2, 18, 4)] },
        TensorFormat::Q4_1 => const { &[piece(0, 4, 2), piece(4, 20, 4)] },
        TensorFormat::Q5_0 => const { &[piece(0, 2, 2), piece(2, 22, 4)] },
        TensorFormat::Q5_1 => const { &[piece(0, 4, 2), piece(4, 24, 4)] },
        TensorFormat::Q8_0 => const { &[piece(0, 2, 2), piece(2, 34, 4)] },
        TensorFormat::Q4_K => const { &[piece(0, 4, 2), piece(4, 144, 4)] },
        TensorFormat::Q5_K => const { &[piece(0, 4, 2), piece(4, 176, 4)] },
        TensorFormat::Q6_K => const { &[piece(0, 208, 4), piece(208, 210, 2)] },
    }
}

/// Where a block's fifth bits are, if they are rearranged.
fn fifth_bits(format: TensorFormat) -> Option<usize> {
    match format {
        TensorFormat::Q5_0 => Some(2),
        TensorFormat::Q5_1 => Some(4),
        _ => None,
    }
}

/// Bit `4 s + i` goes to bit `8 i + s`: byte `i` then holds the bits that byte `i` of the quants needs in
/// each of the eight steps `s` of four weights.
fn spread_bits(bits: u32) -> u32 {
    (0..32).fold(0, |spread, bit| spread | ((bits >> bit) & 1) << (8 * (bit % 4) + bit / 4))
}

/// The reverse of [`spread_bits`].
fn gather_bits(spread: u32) -> u32 {
    (0..32).fold(0, |bits, bit| bits | ((spread >> (8 * (bit % 4) + bit / 4)) & 1) << bit)
}

/// Bytes of a panel.
pub(super) fn panel_bytes(format: TensorFormat, in_features: usize) -> usize {
    in_features / format.block_len() * format.block_bytes() * PANEL_ROWS
}

/// Bytes of the panels of a matrix.
pub(super) fn panels_bytes(format: TensorFormat, [out_features, in_features]: [usize; 2]) -> usize {
    out_features.div_ceil(PANEL_ROWS) * panel_bytes(format, in_features)
}

/// Lays the rows of a file out in `panels`, which are zeros, on the current thread pool. `bytes` are whole rows
/// of whole blocks; `done` is told of each range of them that is not read again.
pub(super) fn interleave(
    format: TensorFormat,
    in_features: usize,
    bytes: &[u8],
    panels: &mut [u8],
    done: &dyn Fn(Range<usize>),
) {
    let panel_bytes = panel_bytes(format, in_features);
    let row_bytes = panel_bytes / PANEL_ROWS;
    if row_bytes == 0 {
        return;
    }
    let stripe = STRIPE_BYTES.next_multiple_of(panel_bytes);
    let stripes = panels.chunks_mut(stripe).zip(bytes.chunks(stripe)).enumerate();
    for (index, (panels, bytes)) in stripes {
        let tasks = panels.par_chunks_mut(TASK_PANELS * panel_bytes);
        tasks.zip(bytes.par_chunks(TASK_PANELS * panel_bytes)).for_each(|(panels, bytes)| {
            for (panel, rows) in panels.chunks_mut(panel_bytes).zip(bytes.chunks(panel_bytes)) {
                for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
                    write_row(format, panel, row, bytes);
                }
            }
        });
        done(index * stripe..index * stripe + bytes.len());
    }
}

/// Copies `bytes`, on the current thread pool; `done` is told of each range that is not read again.
pub(super) fn copy(bytes: &[u8], out: &mut [u8], done: &dyn Fn(Range<usize>)) {
    for (index, (out, bytes)) in out.chunks_mut(STRIPE_BYTES).zip(bytes.chunks(STRIPE_BYTES)).enumerate() {
        let tasks = out.par_chunks_mut(TASK_BYTES).zip(bytes.par_chunks(TASK_BYTES));
        tasks.for_each(|(out, bytes)| out.copy_from_slice(bytes));
        done(index * STRIPE_BYTES..index * STRIPE_BYTES + bytes.len());
    }
}

fn write_row(format: TensorFormat, panel: &mut [u8], row: usize, bytes: &[u8]) {
    let block_bytes = format.block_bytes();
    let blocks = panel.chunks_exact_mut(PANEL_ROWS * block_bytes).zip(bytes.chunks_exact(block_bytes));
    for (panel, block) in blocks {
        for Piece { start, end, unit } in pieces(format) {
            let (panel, bytes) = (&mut panel[PANEL_ROWS * start..PANEL_ROWS * end], &block[*start..*end]);
            match unit {
                2 => write_units::<2>(panel, row, bytes),
                _ => write_units::<4>(panel, row, bytes),
            }
        }
        if let Some(at) = fifth_bits(format) {
            rearrange(&mut panel[PANEL_ROWS * at + 4 * row..][..4], spread_bits);
        }
    }
}

/// Writes the units of a row between those of the others. Of a size that the compiler knows, since loading a model
/// is mostly this.
fn write_units<const UNIT: usize>(panel: &mut [u8], row: usize, bytes: &[u8]) {
    let units = panel.as_chunks_mut::<UNIT>().0.chunks_exact_mut(PANEL_ROWS);
    for (panel, unit) in units.zip(bytes.as_chunks::<UNIT>().0) {
        panel[row] = *unit;
    }
}

/// Reads a row back as it was in the file.
pub(super) fn read_row(format: TensorFormat, panel: &[u8], row: usize, bytes: &mut [u8]) {
    let block_bytes = format.block_bytes();
    let blocks = panel.chunks_exact(PANEL_ROWS * block_bytes).zip(bytes.chunks_exact_mut(block_bytes));
    for (panel, block) in blocks {
        for Piece { start, end, unit } in pieces(format) {
            let panel = panel[PANEL_ROWS * start..PANEL_ROWS * end].chunks_exact(PANEL_ROWS * unit);
            for (panel, bytes) in panel.zip(block[*start..*end].chunks_exact_mut(*unit)) {
                bytes.copy_from_slice(&panel[row * unit..][..*unit]);
            }
        }
        if let Some(at) = fifth_bits(format) {
            rearrange(&mut block[at..][..4], gather_bits);
        }
    }
}

fn rearrange(bytes: &mut [u8], bits: fn(u32) -> u32) {
    if let Some(bytes) = bytes.first_chunk_mut::<4>() {
        *bytes = bits(u32::from_le_bytes(*bytes)).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_block_is_in_one_piece() {
        for format in TensorFormat::ALL.into_iter().filter(|format| format.is_block()) {
            let mut end = 0;
            for piece in pieces(format) {
                assert_eq!((piece.start, (piece.end - piece.start) % piece.unit), (end, 0), "{format}");
                end = piece.end;
            }
            assert_eq!(end, format.block_bytes(), "{format}");
        }
    }

    #[test]
    fn rows_read_back_as_they_were_written() {
        for format in TensorFormat::ALL.into_iter().filter(|format| format.is_block()) {
            let (rows, in_features) = (11, 2 * format.block_len());
            let row_bytes = format.row_bytes(in_features).unwrap();
            let bytes: Vec<u8> = (0..rows * row_bytes).map(|i| (i * 89 % 251) as u8).collect();
            let mut panels = vec![0; panels_bytes(format, [rows, in_features])];
            interleave(format, in_features, &bytes, &mut panels, &|_| ());
            for (row, expected) in bytes.chunks(row_bytes).enumerate() {
                let mut found = vec![0; row_bytes];
                let panel = panels.chunks(PANEL_ROWS * row_bytes).nth(row / PANEL_ROWS).unwrap();
                read_row(format, panel, row % PANEL_ROWS, &mut found);
                assert_eq!(found, expected, "{format} row {row}");
            }
        }
    }
}
