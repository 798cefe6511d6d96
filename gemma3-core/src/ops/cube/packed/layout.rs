//! How a matrix of each format lies in device memory.
//!
//! A row has two parts, each in a buffer of its own, so that both are read in whole aligned words:
//!
//! | part | content |
//! |---|---|
//! | quants | the weights in their order, the first of a word in its lowest bits; zeros to whole 16 bytes |
//! | side | what blocks share: fifth and sixth bits, then scales, then the scales of super-blocks |
//!
//! | format | quants | high bits, of 32 weights | scales, of 32 weights | of 256 |
//! |---|---|---|---|---|
//! | F32, F16, BF16 | as in the file | | | |
//! | Q8_0 | q + 128, 8 bits | | f16 | |
//! | Q4_0 | 4 bits | | f16 | |
//! | Q4_1 | 4 bits | | f16 scale, f16 minimum | |
//! | Q5_0 | low 4 bits | 1 word | f16 | |
//! | Q5_1 | low 4 bits | 1 word | f16 scale, f16 minimum | |
//! | Q4_K | 4 bits | | 8-bit scale, 8-bit minimum | f16, f16 |
//! | Q5_K | low 4 bits | 1 word | 8-bit scale, 8-bit minimum | f16, f16 |
//! | Q6_K | low 4 bits | 2 words | two i8 scales, of 16 weights | f16 |
//!
//! High bits lie where one shift and one mask bring those of four weights into place: byte `b` of a
//! high word has, from its lowest bits on, those of weight `2b` and of `2b + 1` of its first word of quants,
//! then those of its second, and so on. (One bit each serves four words, two bits each serve two.)
//!
//! Only the 6-bit scales of Q4_K and Q5_K grow, to bytes: by 2.8% and 2.3% of the matrix.

use thiserror::Error;

use crate::formats::TensorFormat;
use crate::formats::blocks::BlockError;

/// The largest access of a device, in words.
pub(super) const VECTOR_WORDS: usize = 4;
/// Weights that share a scale in the formats with blocks (Q6_K: two scales).
pub(super) const BLOCK: usize = 32;
/// Weights of a super-block of the K formats.
pub(super) const SUPER_BLOCK: usize = 256;

/// Why weights cannot be packed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PackError {
    /// The bytes are not what format and shape ask for.
    #[error(transparent)]
    Blocks(#[from] BlockError),
    /// Kernels read the input four numbers at a time.
    #[error("expected rows of a multiple of 4 weights, found {cols}")]
    UnevenRows {
        /// Weights in a row.
        cols: usize,
    },
    /// Rows are divided among buffers, but not the numbers of a row.
    #[error(
        "four rows of {row_bytes} bytes don't fit the {buffer_bytes} bytes that the device allows in a buffer"
    )]
    WideRows {
        /// Bytes of a row in device memory.
        row_bytes: u64,
        /// The most bytes of a buffer.
        buffer_bytes: u64,
    },
}

/// Format and shape of a packed matrix, from which every offset follows. A constant of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The format of the file that the weights came from.
    pub format: TensorFormat,
    /// Rows: outputs of a product.
    pub rows: usize,
    /// Columns: inputs of a product. A multiple of 4 and of the format's block.
    pub cols: usize,
}

/// Scales of a format, as kernels read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scales {
    /// Weights are their values.
    None,
    /// An f16 for 32 weights.
    Half,
    /// An f16 scale and an f16 minimum for 32 weights.
    HalfPair,
    /// A scale and a minimum in bytes for 32 weights, two f16 for 256.
    BytePair,
    /// Two i8 for 16 weights each, an f16 for 256.
    SignedBytes,
}

impl Layout {
    /// The layout of a matrix.
    ///
    /// # Errors
    /// [`PackError`] if rows aren't whole blocks or not a multiple of 4 weights.
    pub fn new(format: TensorFormat, rows: usize, cols: usize) -> Result<Self, PackError> {
        format.tensor_bytes(&[rows, cols]).map_err(BlockError::from)?;
        if !cols.is_multiple_of(4) {
            return Err(PackError::UnevenRows { cols });
        }
        Ok(Self { format, rows, cols })
    }

    /// Whether weights are integers with scales of their blocks.
    pub const fn has_blocks(&self) -> bool {
        !matches!(self.format, TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16)
    }

    /// Weights in a word of the quants.
    pub const fn weights_per_word(&self) -> usize {
        match self.format {
            TensorFormat::F32 => 1,
            TensorFormat::F16 | TensorFormat::BF16 => 2,
            TensorFormat::Q8_0 => 4,
            _ => 8,
        }
    }

    /// Words of a row's quants.
    pub const fn row_words(&self) -> usize {
        self.cols.div_ceil(self.weights_per_word()).next_multiple_of(VECTOR_WORDS)
    }

    /// High bits of a weight, beyond the four of the quants.
    pub(crate) const fn high_bits(&self) -> usize {
        match self.format {
            TensorFormat::Q5_0 | TensorFormat::Q5_1 | TensorFormat::Q5_K => 1,
            TensorFormat::Q6_K => 2,
            _ => 0,
        }
    }

    pub(crate) const fn scales(&self) -> Scales {
        match self.format {
            TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16 => Scales::None,
            TensorFormat::Q8_0 | TensorFormat::Q4_0 | TensorFormat::Q5_0 => Scales::Half,
            TensorFormat::Q4_1 | TensorFormat::Q5_1 => Scales::HalfPair,
            TensorFormat::Q4_K | TensorFormat::Q5_K => Scales::BytePair,
            TensorFormat::Q6_K => Scales::SignedBytes,
        }
    }

    /// First word of a row's scales in its side; the high bits lie before it.
    pub(crate) const fn scales_start(&self) -> usize {
        self.cols / BLOCK * self.high_bits()
    }

    /// First word of the scales of a row's super-blocks in its side.
    pub(crate) const fn super_scales_start(&self) -> usize {
        let blocks = self.cols / BLOCK;
        self.scales_start()
            + match self.scales() {
                Scales::None => 0,
                Scales::HalfPair => blocks,
                Scales::Half | Scales::BytePair | Scales::SignedBytes => blocks.div_ceil(2),
            }
    }

    /// Words of a row's side.
    pub const fn side_words(&self) -> usize {
        let super_blocks = self.cols / SUPER_BLOCK;
        self.super_scales_start()
            + match self.scales() {
                Scales::BytePair => super_blocks,
                Scales::SignedBytes => super_blocks.div_ceil(2),
                _ => 0,
            }
    }

    /// Words of the side of all rows, whose buffer is never empty.
    pub fn side_len(&self) -> usize {
        (self.rows * self.side_words()).max(1)
    }

    /// Rows of each part of the matrix where its rows are divided among as few buffers of at most so many bytes as hold
    /// them: all, or a multiple of 64, so that the outputs of a part begin where bindings may; of 4 if no more fit.
    ///
    /// # Errors
    /// [`PackError::WideRows`] if not even four fit.
    pub fn rows_of_part(&self, buffer_bytes: u64) -> Result<usize, PackError> {
        let row_words =
            if self.row_words() > self.side_words() { self.row_words() } else { self.side_words() };
        let row_bytes = (row_words * size_of::<u32>()) as u64;
        let most = usize::try_from(buffer_bytes / row_bytes.max(1)).unwrap_or(usize::MAX);
        if self.rows <= most {
            return Ok(self.rows);
        }
        let granularity = if most >= 64 { 64 } else { 4 };
        match most / granularity * granularity {
            0 => Err(PackError::WideRows { row_bytes, buffer_bytes }),
            most => Ok(self.rows.div_ceil(self.rows.div_ceil(most)).next_multiple_of(granularity)),
        }
    }

    /// Bytes of device memory of the whole matrix.
    pub const fn bytes(&self) -> usize {
        self.rows * (self.row_words() + self.side_words()) * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_format_grows_by_more_than_a_twentieth() {
        for format in TensorFormat::ALL {
            let cols = 27 * SUPER_BLOCK;
            let layout = Layout::new(format, 3, cols).unwrap();
            let file = format.tensor_bytes(&[3, cols]).unwrap();
            assert!(layout.bytes() * 20 <= file * 21, "{format}: {} of {file}", layout.bytes());
        }
    }

    #[test]
    fn parts_of_alike_sizes_fit_the_buffers() {
        // The heads of the 1B and the 4B where buffers are as small as WebGPU allows them to be.
        let most = 128 << 20;
        for (format, cols, parts) in [
            (TensorFormat::BF16, 1152, 5),
            (TensorFormat::Q4_0, 1152, 2),
            (TensorFormat::BF16, 2560, 11),
            (TensorFormat::Q6_K, 2560, 3),
        ] {
            let layout = Layout::new(format, 262_144, cols).unwrap();
            let each = layout.rows_of_part(most).unwrap();
            assert_eq!((layout.rows.div_ceil(each), each % 64), (parts, 0), "{format} {cols}");
            let part = Layout { rows: each, ..layout };
            assert!((part.rows * part.row_words() * 4) as u64 <= most, "{format} {cols}");
        }
        let layout = Layout::new(TensorFormat::F32, 100, 64).unwrap();
        assert_eq!(layout.rows_of_part(100 * 256), Ok(100));
        assert_eq!(layout.rows_of_part(70 * 256), Ok(64));
        assert_eq!(layout.rows_of_part(11 * 256), Ok(8));
        let error = PackError::WideRows { row_bytes: 256, buffer_bytes: 3 * 256 };
        assert_eq!(layout.rows_of_part(3 * 256), Err(error));
    }

    #[test]
    fn rows_of_partial_blocks_are_an_error() {
        let error = Layout::new(TensorFormat::Q6_K, 1, 1152);
        assert!(matches!(error, Err(PackError::Blocks(BlockError::Format(_)))));
    }

    #[test]
    fn rows_of_a_width_that_four_does_not_divide_are_an_error() {
        let error = Layout::new(TensorFormat::F32, 1, 6);
        assert_eq!(error, Err(PackError::UnevenRows { cols: 6 }));
    }
}
