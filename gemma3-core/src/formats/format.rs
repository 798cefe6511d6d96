//! The numeric formats of stored tensors and the bytes they take.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How the numbers of a tensor are stored, little endian. The block formats are those of GGUF:
/// consecutive weights of a row share scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names of the field, as files show them")]
pub enum TensorFormat {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// 4 bits and an f16 scale for 32 weights.
    Q4_0,
    /// 4 bits, an f16 scale and an f16 minimum for 32 weights.
    Q4_1,
    /// 5 bits and an f16 scale for 32 weights.
    Q5_0,
    /// 5 bits, an f16 scale and an f16 minimum for 32 weights.
    Q5_1,
    /// 8 bits and an f16 scale for 32 weights.
    Q8_0,
    /// 4 bits; 256 weights in eight groups with 6-bit scales and minima.
    Q4_K,
    /// 5 bits; 256 weights in eight groups with 6-bit scales and minima.
    Q5_K,
    /// 6 bits; 256 weights in sixteen groups with 8-bit scales.
    Q6_K,
}

/// Why a tensor of some shape can't have a format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// A row isn't a whole number of blocks, which never cross rows.
    #[error("{format} stores blocks of {block_len} weights: rows of {row_len} aren't whole blocks")]
    PartialBlock {
        /// The format.
        format: TensorFormat,
        /// Weights in a row.
        row_len: usize,
        /// Weights in a block.
        block_len: usize,
    },
    /// The number of bytes doesn't fit the address space.
    #[error("a {format} tensor of shape {shape:?} has more bytes than an address can hold")]
    Overflow {
        /// The format.
        format: TensorFormat,
        /// The shape.
        shape: Vec<usize>,
    },
    /// No format has this name.
    #[error("unknown format `{name}`; known: {}", TensorFormat::names())]
    UnknownName {
        /// The name.
        name: String,
    },
}

impl TensorFormat {
    /// Every format, in the order of the enumeration.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Weights in a block; 1 for the plain formats.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Whether weights share scales.
    pub const fn is_block(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a row of `row_len` weights.
    ///
    /// # Errors
    /// [`FormatError::PartialBlock`] or [`FormatError::Overflow`].
    pub fn row_bytes(self, row_len: usize) -> Result<usize, FormatError> {
        self.tensor_bytes(&[row_len])
    }

    /// Bytes of a row-major tensor, whose rows are its last dimension. A shape without dimensions
    /// is one number.
    ///
    /// # Errors
    /// [`FormatError::PartialBlock`] or [`FormatError::Overflow`].
    pub fn tensor_bytes(self, shape: &[usize]) -> Result<usize, FormatError> {
        let row_len = shape.last().copied().unwrap_or(1);
        if !row_len.is_multiple_of(self.block_len()) {
            return Err(FormatError::PartialBlock { format: self, row_len, block_len: self.block_len() });
        }
        let rows = shape.iter().rev().skip(1);
        let row_bytes = (row_len / self.block_len()).checked_mul(self.block_bytes());
        rows.fold(row_bytes, |bytes, dim| bytes?.checked_mul(*dim))
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .ok_or_else(|| FormatError::Overflow { format: self, shape: shape.to_vec() })
    }

    /// The name in lower case, as [`FromStr`] reads and [`fmt::Display`] writes it: `"q4_k"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q4_K => "q4_k",
            Self::Q5_K => "q5_k",
            Self::Q6_K => "q6_k",
        }
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for TensorFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for TensorFormat {
    type Err = FormatError;

    /// Reads a name in either case.
    fn from_str(name: &str) -> Result<Self, FormatError> {
        Self::ALL
            .into_iter()
            .find(|format| format.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| FormatError::UnknownName { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_in_either_case() {
        for format in TensorFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            assert_eq!(format.name().to_uppercase().parse(), Ok(format));
        }
        let error = "q3_k".parse::<TensorFormat>().unwrap_err();
        assert!(error.to_string().contains("q4_k"), "{error}");
    }

    #[test]
    fn bytes_follow_rows_of_blocks() {
        assert_eq!(TensorFormat::Q4_0.tensor_bytes(&[2, 64]), Ok(72));
        assert_eq!(TensorFormat::Q6_K.row_bytes(512), Ok(420));
        assert_eq!(TensorFormat::F32.tensor_bytes(&[]), Ok(4));
        assert_eq!(TensorFormat::BF16.tensor_bytes(&[0, 7]), Ok(0));
    }

    #[test]
    fn a_row_of_partial_blocks_is_an_error_even_where_the_total_is_whole() {
        let error = TensorFormat::Q4_K.tensor_bytes(&[256, 640]).unwrap_err();
        assert!(matches!(error, FormatError::PartialBlock { row_len: 640, .. }));
    }

    #[test]
    fn shapes_that_overflow_are_an_error() {
        for shape in [vec![usize::MAX, 32], vec![1 << 40, 1 << 40], vec![usize::MAX - 31]] {
            let error = TensorFormat::Q8_0.tensor_bytes(&shape);
            assert!(error.is_err(), "{shape:?}");
        }
        let error = TensorFormat::F32.tensor_bytes(&[usize::MAX]).unwrap_err();
        assert!(matches!(error, FormatError::Overflow { .. }));
    }
}
