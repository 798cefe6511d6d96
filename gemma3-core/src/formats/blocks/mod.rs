//! Stored weights -> f32: the definition of each format, in plain code.
//!
//! Every format has a file that states its layout and decodes it with the exact order of f32
//! operations of its definition, so that the results are equal to the reference bit for bit. Packed
//! kernels are measured against these.

mod halves;
mod plain;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

use std::ops::Range;

use rayon::prelude::*;
use thiserror::Error;

use super::{FormatError, TensorFormat};

/// Why bytes couldn't be decoded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BlockError {
    /// The bytes aren't as many as the weights ask for.
    #[error("{weights} {format} weights take {expected} bytes, found {found}")]
    WrongByteCount {
        /// The format.
        format: TensorFormat,
        /// Weights to decode.
        weights: usize,
        /// Bytes that they take.
        expected: usize,
        /// Bytes that were passed.
        found: usize,
    },
    /// The number of weights isn't a whole number of blocks, or too large.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Rows that the matrix doesn't have.
    #[error("expected rows within the {rows} of the matrix, found {start}..{end}")]
    NoSuchRows {
        /// Rows of the matrix.
        rows: usize,
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
    },
    /// The output isn't as long as the rows.
    #[error("expected room for {expected} weights, found {found}")]
    WrongOutputLength {
        /// Weights in the rows.
        expected: usize,
        /// Length of the output.
        found: usize,
    },
}

/// Decodes `out.len()` weights.
///
/// # Errors
/// [`BlockError`] unless `bytes` are exactly the whole blocks of as many weights.
pub fn dequantize(format: TensorFormat, bytes: &[u8], out: &mut [f32]) -> Result<(), BlockError> {
    let expected = format.row_bytes(out.len())?;
    if bytes.len() != expected {
        return Err(BlockError::WrongByteCount { format, weights: out.len(), expected, found: bytes.len() });
    }
    match format {
        TensorFormat::F32 => plain::decode_f32(bytes, out),
        TensorFormat::F16 => plain::decode_f16(bytes, out),
        TensorFormat::BF16 => plain::decode_bf16(bytes, out),
        TensorFormat::Q4_0 => q4_0::decode(bytes, out),
        TensorFormat::Q4_1 => q4_1::decode(bytes, out),
        TensorFormat::Q5_0 => q5_0::decode(bytes, out),
        TensorFormat::Q5_1 => q5_1::decode(bytes, out),
        TensorFormat::Q8_0 => q8_0::decode(bytes, out),
        TensorFormat::Q4_K => q4_k::decode(bytes, out),
        TensorFormat::Q5_K => q5_k::decode(bytes, out),
        TensorFormat::Q6_K => q6_k::decode(bytes, out),
    }
    Ok(())
}

/// Elements that one thread decodes at a time: enough to hide the hand-over, few enough to balance.
const TASK_ELEMENTS: usize = 1 << 16;

/// Decodes a tensor of `shape`, row-major, on the current thread pool.
///
/// # Errors
/// [`BlockError`] unless `bytes` are exactly the whole blocks of the tensor.
pub fn expand(format: TensorFormat, shape: &[usize], bytes: &[u8]) -> Result<Vec<f32>, BlockError> {
    let expected = format.tensor_bytes(shape)?;
    let weights = shape.iter().product();
    if bytes.len() != expected {
        return Err(BlockError::WrongByteCount { format, weights, expected, found: bytes.len() });
    }
    let mut out = vec![0.0; weights];
    let task = TASK_ELEMENTS.next_multiple_of(format.block_len());
    let task_bytes = task / format.block_len() * format.block_bytes();
    out.par_chunks_mut(task)
        .zip(bytes.par_chunks(task_bytes))
        .try_for_each(|(out, bytes)| dequantize(format, bytes, out))?;
    Ok(out)
}

/// Decodes some rows of a row-major matrix of which `bytes` are all rows of `row_len` weights.
/// Rows are independent: callers may divide a matrix among threads.
///
/// # Errors
/// [`BlockError`] if rows aren't whole blocks, the matrix doesn't have these rows, or `out` isn't
/// exactly as long as they are.
pub fn dequantize_rows(
    format: TensorFormat,
    bytes: &[u8],
    row_len: usize,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<(), BlockError> {
    let row_bytes = format.row_bytes(row_len)?;
    let row_count = bytes.len().checked_div(row_bytes).unwrap_or(0);
    let range = |width: usize| Some(rows.start.checked_mul(width)?..rows.end.checked_mul(width)?);
    let selected = range(row_bytes).filter(|_| rows.end <= row_count).and_then(|range| bytes.get(range));
    let Some(selected) = selected else {
        return Err(BlockError::NoSuchRows { rows: row_count, start: rows.start, end: rows.end });
    };
    let expected = rows.len().saturating_mul(row_len);
    if out.len() != expected {
        return Err(BlockError::WrongOutputLength { expected, found: out.len() });
    }
    dequantize(format, selected, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_decode_as_in_the_whole_matrix() {
        let (rows, row_len) = (5, 256);
        for format in TensorFormat::ALL {
            let len = format.tensor_bytes(&[rows, row_len]).unwrap();
            // Scales in every format are small halves when every byte is small.
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 53) as u8).collect();
            let mut whole = vec![0.0; rows * row_len];
            dequantize(format, &bytes, &mut whole).unwrap();
            let mut some = vec![0.0; 2 * row_len];
            dequantize_rows(format, &bytes, row_len, 2..4, &mut some).unwrap();
            assert_eq!(some, whole[2 * row_len..4 * row_len], "{format}");
        }
    }

    #[test]
    fn a_tensor_expands_as_its_rows_do() {
        // More than one task, and the last one not whole.
        let shape = [5, 3, TASK_ELEMENTS / 8];
        for format in TensorFormat::ALL {
            let len = format.tensor_bytes(&shape).unwrap();
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 53) as u8).collect();
            let mut whole = vec![0.0; shape.iter().product()];
            dequantize(format, &bytes, &mut whole).unwrap();
            assert_eq!(expand(format, &shape, &bytes).unwrap(), whole, "{format}");
            let error = expand(format, &shape, &bytes[1..]).unwrap_err();
            assert!(matches!(error, BlockError::WrongByteCount { found, .. } if found == len - 1));
        }
    }

    #[test]
    fn bytes_of_another_length_are_an_error() {
        let mut out = [0.0; 32];
        let error = dequantize(TensorFormat::Q8_0, &[0; 33], &mut out).unwrap_err();
        assert!(matches!(error, BlockError::WrongByteCount { expected: 34, found: 33, .. }));
    }

    #[test]
    fn weights_that_are_no_whole_blocks_are_an_error() {
        let mut out = [0.0; 31];
        let error = dequantize(TensorFormat::Q4_0, &[0; 18], &mut out).unwrap_err();
        assert!(matches!(error, BlockError::Format(FormatError::PartialBlock { .. })));
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges, reason = "what a caller may pass by mistake")]
    fn rows_outside_the_matrix_are_an_error() {
        let bytes = [0; 68];
        for rows in [1..3, 2..3, 1..0, usize::MAX - 1..usize::MAX] {
            let mut out = [0.0; 32];
            let result = dequantize_rows(TensorFormat::Q8_0, &bytes, 32, rows.clone(), &mut out);
            assert!(matches!(result, Err(BlockError::NoSuchRows { rows: 2, .. })), "{rows:?}");
        }
    }

    #[test]
    fn an_output_of_another_length_is_an_error() {
        let mut out = [0.0; 64];
        let error = dequantize_rows(TensorFormat::Q8_0, &[0; 68], 32, 0..1, &mut out).unwrap_err();
        assert!(matches!(error, BlockError::WrongOutputLength { expected: 32, found: 64 }));
    }
}
