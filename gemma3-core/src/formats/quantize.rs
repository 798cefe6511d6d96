//! Weights of float formats -> blocks of 8 or 4 bits, when they are loaded.
//!
//! The encodings are ggml's: the scale of a block follows from its largest element, and every element is
//! rounded to the nearest multiple. A weight is then off by half a step at most: 1/254 of its block's largest
//! with 8 bits, 1/16 (on one side 1/8, where 16 steps end) with 4.

use half::f16;
use rayon::prelude::*;

use super::TensorFormat;
use super::blocks::{BlockError, dequantize};

/// Weights of a block.
const BLOCK: usize = 32;
/// Elements that one thread encodes at a time.
const TASK_ELEMENTS: usize = 1 << 16;

/// How weights of float formats (F32, F16, BF16) are kept. Block formats stay as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// As in the file.
    #[default]
    None,
    /// 8 bits a weight and a scale for every 32 (Q8_0): 53% of bf16.
    EightBit,
    /// 4 bits a weight and a scale for every 32 (Q4_0): 28% of bf16. The embedding, which is also the head, keeps
    /// 8.
    FourBit,
}

impl Quantization {
    /// The format in which a matrix of rows of `in_features` weights is kept; `None` if it stays as it is: a
    /// block format, or rows that are no whole blocks.
    pub fn target(self, format: TensorFormat, in_features: usize) -> Option<TensorFormat> {
        let fits = !format.is_block() && in_features.is_multiple_of(BLOCK);
        match self {
            Self::EightBit if fits => Some(TensorFormat::Q8_0),
            Self::FourBit if fits => Some(TensorFormat::Q4_0),
            _ => None,
        }
    }

    /// What the embedding is kept in.
    pub(crate) fn of_embedding(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::EightBit | Self::FourBit => Self::EightBit,
        }
    }
}

/// The bytes of a tensor, row-major of `shape` in a float format, in [`TensorFormat::Q8_0`] or [`TensorFormat::Q4_0`], encoded on the current thread
/// pool. Nothing beyond the result is held but a block's weights a thread.
///
/// # Errors
///
/// Bytes that are not what the tensor's format and shape ask for, or rows that are no whole blocks.
pub(crate) fn quantize(
    format: TensorFormat,
    shape: &[usize],
    bytes: &[u8],
    target: TensorFormat,
) -> Result<Vec<u8>, BlockError> {
    let expected = format.tensor_bytes(shape)?;
    if bytes.len() != expected {
        let weights = shape.iter().product();
        return Err(BlockError::WrongByteCount { format, weights, expected, found: bytes.len() });
    }
    let mut out = vec![0; target.tensor_bytes(shape)?];
    let source_block = format.row_bytes(BLOCK)?;
    let target_block = target.row_bytes(BLOCK)?;
    let blocks = TASK_ELEMENTS / BLOCK;
    out.par_chunks_mut(blocks * target_block).zip(bytes.par_chunks(blocks * source_block)).try_for_each(
        |(out, bytes)| {
            let mut weights = [0.0; BLOCK];
            for (out, bytes) in out.chunks_exact_mut(target_block).zip(bytes.chunks_exact(source_block)) {
                dequantize(format, bytes, &mut weights)?;
                match target {
                    TensorFormat::Q4_0 => encode_q4_0(&weights, out),
                    _ => encode_q8_0(&weights, out),
                }
            }
            Ok::<(), BlockError>(())
        },
    )?;
    Ok(out)
}

/// `q = round(x / d)` with `d = max|x| / 127`.
fn encode_q8_0(weights: &[f32; BLOCK], out: &mut [u8]) {
    let largest = weights.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
    let d = largest / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let (scale, quants) = out.split_at_mut(2);
    scale.copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (quant, weight) in quants.iter_mut().zip(weights) {
        *quant = ((weight * inverse).round() as i8).cast_unsigned();
    }
}

/// `q = round(x / d) + 8` in 0..16 with `d = x_max / -8`, where `x_max` is the element of largest size with its
/// sign: it gets the one end of the range that the other lacks.
fn encode_q4_0(weights: &[f32; BLOCK], out: &mut [u8]) {
    let largest = weights.iter().fold(0.0_f32, |max, w| if w.abs() > max.abs() { *w } else { max });
    let d = largest / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let (scale, quants) = out.split_at_mut(2);
    scale.copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let quant = |weight: f32| (weight * inverse + 8.5).clamp(0.0, 15.0) as u8;
    let (low, high) = weights.split_at(BLOCK / 2);
    for (byte, (low, high)) in quants.iter_mut().zip(low.iter().zip(high)) {
        *byte = quant(*low) | quant(*high) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(weights: &[f32]) -> Vec<u8> {
        weights.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn round_trip(weights: &[f32], target: TensorFormat) -> Vec<f32> {
        let shape = [weights.len() / BLOCK, BLOCK];
        let bytes = quantize(TensorFormat::F32, &shape, &bytes_of(weights), target).expect("blocks");
        let mut out = vec![0.0; weights.len()];
        dequantize(target, &bytes, &mut out).expect("weights");
        out
    }

    /// Blocks of very different sizes; enough of them for several tasks.
    fn weights() -> Vec<f32> {
        let value = |i: usize| {
            let mixed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            (mixed as f32 / (1 << 23) as f32 - 1.0) * 10.0_f32.powi((i / BLOCK % 7) as i32 - 3)
        };
        (0..5 * TASK_ELEMENTS / 2).map(value).collect()
    }

    #[test]
    fn a_weight_is_off_by_half_a_step_at_most() {
        let weights = weights();
        for (target, steps) in [(TensorFormat::Q8_0, 127.0), (TensorFormat::Q4_0, 8.0)] {
            let decoded = round_trip(&weights, target);
            for (block, decoded) in weights.chunks(BLOCK).zip(decoded.chunks(BLOCK)) {
                let largest = block.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
                let step = largest / steps;
                for (weight, decoded) in block.iter().zip(decoded) {
                    // The scale is rounded to f16: by 2^-11 of it, or for tiny ones by half of f16's smallest
                    // step, times up to `steps` steps. With 4 bits the end that the largest element does not
                    // take is one step short.
                    let short = if target == TensorFormat::Q4_0 { 0.5 * step } else { 0.0 };
                    let bound = 0.5 * step + short + largest * 6e-4 + steps * 2.0_f32.powi(-25);
                    assert!((weight - decoded).abs() <= bound, "{target}: {weight} became {decoded}");
                }
            }
        }
    }

    #[test]
    fn the_largest_weight_of_a_block_keeps_its_value() {
        let mut block = [0.25; BLOCK];
        block[7] = -8.0;
        for target in [TensorFormat::Q8_0, TensorFormat::Q4_0] {
            let decoded = round_trip(&block, target);
            assert!((decoded[7] + 8.0).abs() < 8.0 * 5e-4, "{target}: {}", decoded[7]);
        }
        // What Q8_0 and Q4_0 make of 0.25 beside 8: 0.25 / 0.063 = 3.97 steps, and 0.25 steps.
        assert!((round_trip(&block, TensorFormat::Q8_0)[0] - 4.0 * 8.0 / 127.0).abs() < 1e-3);
        assert_eq!(round_trip(&block, TensorFormat::Q4_0)[0], 0.0);
    }

    #[test]
    fn zeros_stay_zeros() {
        for target in [TensorFormat::Q8_0, TensorFormat::Q4_0] {
            assert!(round_trip(&[0.0; 2 * BLOCK], target).iter().all(|w| *w == 0.0));
        }
    }

    #[test]
    fn what_is_no_float_or_no_whole_block_stays_as_it_is() {
        assert_eq!(Quantization::EightBit.target(TensorFormat::BF16, 64), Some(TensorFormat::Q8_0));
        assert_eq!(Quantization::FourBit.target(TensorFormat::F32, 32), Some(TensorFormat::Q4_0));
        assert_eq!(Quantization::FourBit.target(TensorFormat::F32, 33), None);
        assert_eq!(Quantization::EightBit.target(TensorFormat::Q4_K, 256), None);
        assert_eq!(Quantization::None.target(TensorFormat::F32, 32), None);
    }

    #[test]
    fn bytes_of_another_length_are_an_error() {
        let bytes = bytes_of(&[1.0; 64]);
        let result = quantize(TensorFormat::F32, &[2, 32], &bytes[..255], TensorFormat::Q8_0);
        assert!(matches!(result, Err(BlockError::WrongByteCount { expected: 256, found: 255, .. })));
    }
}
