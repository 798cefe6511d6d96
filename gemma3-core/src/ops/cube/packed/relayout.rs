//! The bytes of a file -> the words of a [`Layout`], on the host.

use rayon::prelude::*;

use crate::formats::TensorFormat;
use crate::formats::blocks::BlockError;

use super::layout::{BLOCK, Layout, PackError, SUPER_BLOCK, Scales};
use super::power::largest;

/// Rows that a thread lays out at a time.
const TASK_ROWS: usize = 16;

/// A matrix as it goes to the device: [`Layout::row_words`] and [`Layout::side_words`] for each row.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedWords {
    /// What the words are.
    pub layout: Layout,
    /// The weights.
    pub quants: Vec<u32>,
    /// What blocks share.
    pub side: Vec<u32>,
    /// No finite weight is larger.
    pub largest: f32,
}

impl PackedWords {
    /// Lays out the rows of matrices of one format and width, one after the other: several products with the
    /// same input become one. Works on the current thread pool.
    ///
    /// # Errors
    /// [`PackError`] if a part isn't whole rows of whole blocks.
    pub fn stack(format: TensorFormat, cols: usize, parts: &[&[u8]]) -> Result<Self, PackError> {
        let row_bytes = format.row_bytes(cols).map_err(BlockError::from)?;
        let mut rows = 0;
        for part in parts {
            let part_rows = part.len().checked_div(row_bytes).unwrap_or(0);
            if part_rows * row_bytes != part.len() {
                let (expected, found) = ((part_rows + 1) * row_bytes, part.len());
                let weights = (part_rows + 1) * cols;
                return Err(BlockError::WrongByteCount { format, weights, expected, found }.into());
            }
            rows += part_rows;
        }
        let layout = Layout::new(format, rows, cols)?;
        let mut quants = vec![0; rows * layout.row_words()];
        let mut side = vec![0; rows * layout.side_words()];
        let task_bytes = TASK_ROWS * row_bytes;
        let (mut row, mut most) = (0, 0.0_f32);
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let part_rows = part.len() / row_bytes;
            let quants = &mut quants[row * layout.row_words()..][..part_rows * layout.row_words()];
            let quants = quants.par_chunks_mut(TASK_ROWS * layout.row_words());
            let tasks = quants.zip(part.par_chunks(task_bytes));
            let found = if layout.side_words() == 0 {
                let found = tasks.map(|(quants, bytes)| pack_rows(&layout, bytes, quants, &mut []));
                found.reduce(|| 0.0, f32::max)
            } else {
                let side = &mut side[row * layout.side_words()..][..part_rows * layout.side_words()];
                let side = side.par_chunks_mut(TASK_ROWS * layout.side_words());
                let tasks = tasks.zip(side);
                let found = tasks.map(|((quants, bytes), side)| pack_rows(&layout, bytes, quants, side));
                found.reduce(|| 0.0, f32::max)
            };
            most = most.max(found);
            row += part_rows;
        }
        Ok(Self { layout, quants, side, largest: most })
    }
}

/// Lays out rows, and gives what no finite weight of them is larger than.
fn pack_rows(layout: &Layout, bytes: &[u8], quants: &mut [u32], side: &mut [u32]) -> f32 {
    let row_bytes = layout.cols / layout.format.block_len() * layout.format.block_bytes();
    let mut side_rows = side.chunks_exact_mut(layout.side_words().max(1));
    let rows = bytes.chunks_exact(row_bytes).zip(quants.chunks_exact_mut(layout.row_words()));
    for (bytes, quants) in rows {
        pack_row(layout, bytes, quants, side_rows.next().unwrap_or_default());
    }
    largest(layout.format, bytes)
}

fn pack_row(layout: &Layout, bytes: &[u8], quants: &mut [u32], side: &mut [u32]) {
    let format = layout.format;
    match format {
        TensorFormat::F32 => {
            for (word, bytes) in quants.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(*bytes);
            }
        }
        TensorFormat::F16 | TensorFormat::BF16 => {
            for (word, bytes) in quants.iter_mut().zip(bytes.chunks(4)) {
                let mut pair = [0; 4];
                pair[..bytes.len()].copy_from_slice(bytes);
                *word = u32::from_le_bytes(pair);
            }
        }
        _ => {
            let (high, scales) = side.split_at_mut(layout.scales_start());
            let (scales, super_scales) =
                scales.split_at_mut(layout.super_scales_start() - layout.scales_start());
            let mut row = Row { layout, quants, high, scales, super_scales };
            for (index, block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
                row.pack_block(index, block);
            }
        }
    }
}

/// The places of one row of a block format.
struct Row<'a> {
    layout: &'a Layout,
    quants: &'a mut [u32],
    high: &'a mut [u32],
    scales: &'a mut [u32],
    super_scales: &'a mut [u32],
}

impl Row<'_> {
    /// Packs block `index` of the file, of 32 or 256 weights.
    fn pack_block(&mut self, index: usize, block: &[u8]) {
        let mut values = [0; SUPER_BLOCK];
        let first = index * self.layout.format.block_len();
        match self.layout.format {
            TensorFormat::Q8_0 => {
                for (value, byte) in values.iter_mut().zip(&block[2..]) {
                    *value = byte ^ 0x80; // q + 128: kernels need no sign
                }
                put_half(self.scales, index, &block[..2]);
            }
            TensorFormat::Q4_0 => {
                nibble_halves(&block[2..], &mut values);
                put_half(self.scales, index, &block[..2]);
            }
            TensorFormat::Q4_1 => {
                nibble_halves(&block[4..], &mut values);
                self.scales[index] = word(block, 0);
            }
            TensorFormat::Q5_0 => {
                nibble_halves(&block[6..], &mut values);
                fifth_bits(word(block, 2), &mut values);
                put_half(self.scales, index, &block[..2]);
            }
            TensorFormat::Q5_1 => {
                nibble_halves(&block[8..], &mut values);
                fifth_bits(word(block, 4), &mut values);
                self.scales[index] = word(block, 0);
            }
            TensorFormat::Q4_K => {
                nibble_groups(&block[16..], &mut values);
                self.put_group_scales(index, block);
            }
            TensorFormat::Q5_K => {
                nibble_groups(&block[48..], &mut values);
                for (position, value) in values.iter_mut().enumerate() {
                    *value |= ((block[16 + position % 32] >> (position / 32)) & 1) << 4;
                }
                self.put_group_scales(index, block);
            }
            TensorFormat::Q6_K => {
                for (position, value) in values.iter_mut().enumerate() {
                    *value = six_bits(block, position);
                }
                for (pair, scales) in block[192..208].chunks_exact(2).enumerate() {
                    put_half(self.scales, 8 * index + pair, scales);
                }
                put_half(self.super_scales, index, &block[208..210]);
            }
            TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16 => {}
        }
        self.put_values(first, &values[..self.layout.format.block_len()]);
    }

    /// Writes the weights from `first` on, each a few bits.
    fn put_values(&mut self, first: usize, values: &[u8]) {
        let per_word = self.layout.weights_per_word();
        let high_bits = self.layout.high_bits();
        let bits = 32 / per_word;
        let low_mask = ((1_u32 << bits) - 1) as u8;
        for (offset, values) in values.chunks_exact(per_word).enumerate() {
            let word = first / per_word + offset;
            for (place, value) in values.iter().enumerate() {
                self.quants[word] |= u32::from(value & low_mask) << (bits * place);
                if let Some(words) = 4_usize.checked_div(high_bits) {
                    // So many words of quants does one high word serve.
                    let shift = 8 * (place / 2) + high_bits * (2 * (word % words) + place % 2);
                    self.high[word / words] |= u32::from(value >> 4) << shift;
                }
            }
        }
    }

    /// The scales of a super-block of Q4_K or Q5_K, from 6 bits to bytes.
    fn put_group_scales(&mut self, index: usize, block: &[u8]) {
        debug_assert_eq!(self.layout.scales(), Scales::BytePair);
        self.super_scales[index] = word(block, 0);
        let packed = &block[4..16];
        for group in 0..8 {
            let (scale, minimum) = if group < 4 {
                (packed[group] & 63, packed[group + 4] & 63)
            } else {
                let (low, top) = (packed[group + 4], |at: usize| (packed[at] >> 6) << 4);
                ((low & 15) | top(group - 4), (low >> 4) | top(group))
            };
            put_half(self.scales, 8 * index + group, &[scale, minimum]);
        }
    }
}

/// The u32 at byte `at`.
fn word(block: &[u8], at: usize) -> u32 {
    block[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// Writes two bytes as 16-bit element `index`.
fn put_half(words: &mut [u32], index: usize, bytes: &[u8]) {
    let half = u32::from(bytes[0]) | u32::from(bytes[1]) << 8;
    words[index / 2] |= half << (16 * (index % 2));
}

/// 32 weights: the low halves of 16 bytes, then the high halves.
fn nibble_halves(bytes: &[u8], values: &mut [u8; SUPER_BLOCK]) {
    for (position, byte) in bytes.iter().enumerate() {
        values[position] = byte & 15;
        values[position + BLOCK / 2] = byte >> 4;
    }
}

/// 256 weights: of each 32 bytes, the low halves, then the high halves.
fn nibble_groups(bytes: &[u8], values: &mut [u8; SUPER_BLOCK]) {
    for (pair, bytes) in bytes.chunks_exact(32).enumerate() {
        for (position, byte) in bytes.iter().enumerate() {
            values[64 * pair + position] = byte & 15;
            values[64 * pair + 32 + position] = byte >> 4;
        }
    }
}

fn fifth_bits(bits: u32, values: &mut [u8; SUPER_BLOCK]) {
    for (position, value) in values[..BLOCK].iter_mut().enumerate() {
        *value |= (((bits >> position) & 1) << 4) as u8;
    }
}

/// Weight `position` of a block of Q6_K, whose halves are made of four quarters of 32 weights.
fn six_bits(block: &[u8], position: usize) -> u8 {
    let (half, within) = (position / 128, position % 128);
    let (quarter, at) = (within / 32, within % 32);
    let low = block[64 * half + 32 * (quarter % 2) + at] >> (4 * (quarter / 2));
    let high = block[128 + 32 * half + at] >> (2 * quarter);
    (low & 15) | (high & 3) << 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cube::testing::{Random, file_bytes};

    #[test]
    fn matrices_are_stacked_row_by_row() {
        for format in [TensorFormat::BF16, TensorFormat::Q6_K] {
            // More rows than a thread takes at a time, and not a multiple of that.
            let bytes = file_bytes(format, 21, 512, &mut Random::new(30));
            let whole = PackedWords::stack(format, 512, &[&bytes]).unwrap();
            let (first, second) = bytes.split_at(bytes.len() / 21 * 5);
            assert_eq!(PackedWords::stack(format, 512, &[first, &[], second]).unwrap(), whole, "{format}");
        }
    }

    #[test]
    fn partial_rows_are_an_error() {
        let error = PackedWords::stack(TensorFormat::F32, 8, &[&[0; 64], &[0; 33]]).unwrap_err();
        assert!(matches!(error, PackError::Blocks(BlockError::WrongByteCount { found: 33, .. })));
    }
}
