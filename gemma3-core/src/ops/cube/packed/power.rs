//! The power of two by which a matrix becomes f16: the weights of some models exceed f16's range at either end.

use half::{bf16, f16};

use crate::formats::TensorFormat;

/// A number that no finite weight of whole blocks is larger than. Of block formats it is what their scales allow, not
/// what their integers are.
pub(super) fn largest(format: TensorFormat, bytes: &[u8]) -> f32 {
    let half = |block: &[u8], at: usize| finite(f16::from_le_bytes([block[at], block[at + 1]]).to_f32());
    let of_blocks = |bound: &dyn Fn(&[u8]) -> f32| {
        bytes.chunks_exact(format.block_bytes()).map(bound).fold(0.0, f32::max)
    };
    let scaled = |at: usize, steps: f32| of_blocks(&|block| steps * half(block, at));
    let shifted =
        |steps: f32, shifts: f32| of_blocks(&|block| steps * half(block, 0) + shifts * half(block, 2));
    match format {
        TensorFormat::F32 => {
            bytes.as_chunks::<4>().0.iter().map(|word| finite(f32::from_le_bytes(*word))).fold(0.0, f32::max)
        }
        TensorFormat::BF16 => {
            let sizes = bytes.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half) & 0x7fff);
            let finite = sizes.map(|size| if size < 0x7f80 { size } else { 0 });
            bf16::from_bits(finite.max().unwrap_or(0)).to_f32()
        }
        TensorFormat::F16 => {
            let sizes = bytes.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half) & 0x7fff);
            let finite = sizes.map(|size| if size < 0x7c00 { size } else { 0 });
            f16::from_bits(finite.max().unwrap_or(0)).to_f32()
        }
        TensorFormat::Q8_0 => scaled(0, 128.0),
        TensorFormat::Q4_0 => scaled(0, 8.0),
        TensorFormat::Q5_0 => scaled(0, 16.0),
        TensorFormat::Q6_K => scaled(208, 32.0 * 128.0),
        TensorFormat::Q4_1 => shifted(15.0, 1.0),
        TensorFormat::Q5_1 => shifted(31.0, 1.0),
        TensorFormat::Q4_K => shifted(15.0 * 63.0, 63.0),
        TensorFormat::Q5_K => shifted(31.0 * 63.0, 63.0),
    }
}

/// The size of a number, 0 of one that is not finite.
pub(super) fn finite(x: f32) -> f32 {
    if x.is_finite() { x.abs() } else { 0.0 }
}

/// The power of two that brings `largest` to 2^14 or more and below 2^15.
///
/// The least step of f16 is 2^-24, so beside the rounding to 11 bits a weight loses at most 2^-39 of the largest; one of
/// bf16 loses nothing else, and nothing at all from 2^-28 of the largest on. Infinities and what is not a number stay.
pub(super) fn power_for(largest: f32) -> f32 {
    if largest == 0.0 {
        return 1.0;
    }
    // The power and its inverse are normal numbers.
    f32::from_bits((268 - (largest.to_bits() >> 23)).min(253) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::blocks::dequantize;
    use crate::ops::cube::testing::{Random, file_bytes};

    #[test]
    fn no_weight_is_beyond_the_bound_of_its_matrix() {
        for format in TensorFormat::ALL {
            let (rows, cols) = (9, 512);
            let bytes = file_bytes(format, rows, cols, &mut Random::new(33));
            let mut weights = vec![0.0; rows * cols];
            dequantize(format, &bytes, &mut weights).unwrap();
            let found = weights.iter().map(|w| w.abs()).fold(0.0, f32::max);
            let bound = largest(format, &bytes);
            assert!(found <= bound && bound > 0.0, "{format}: {found}, {bound}");
            let power = power_for(bound);
            assert_eq!(power.to_bits() & 0x7f_ffff, 0, "{format}: {power} is no power of two");
            assert!((16_384.0..32_768.0).contains(&(bound * power)), "{format}: {bound} {power}");
        }
    }

    #[test]
    fn weights_of_bf16_lose_almost_nothing() {
        // From 2^-60 to 2^40 in size.
        let mut random = Random::new(34);
        let weights: Vec<bf16> = (0..100_000)
            .map(|_| bf16::from_f32(random.unit() * ((random.bits() % 100) as f32 - 60.0).exp2()))
            .collect();
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let largest = largest(TensorFormat::BF16, &bytes);
        let power = power_for(largest);
        for weight in weights {
            let kept = f64::from(f16::from_f32(weight.to_f32() * power).to_f32()) / f64::from(power);
            let loss = (kept - weight.to_f64()).abs() / f64::from(largest);
            let is_small = weight.to_f32().abs() < largest * (-28.0_f32).exp2();
            let bound = if is_small { (-39.0_f64).exp2() } else { 0.0 };
            assert!(loss <= bound, "{weight}: {loss}");
        }
    }

    #[test]
    fn what_is_not_finite_does_not_count_and_stays() {
        for format in [TensorFormat::BF16, TensorFormat::F32] {
            let values = [1.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
            let bytes: Vec<u8> = match format {
                TensorFormat::F32 => values.iter().flat_map(|w| w.to_le_bytes()).collect(),
                _ => values.iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect(),
            };
            assert_eq!(largest(format, &bytes), 1.5);
            let power = power_for(1.5);
            let kept = values.map(|value| f16::from_f32(value * power));
            assert_eq!(kept[..3], [f16::from_f32(1.5 * 16_384.0), f16::INFINITY, f16::NEG_INFINITY]);
            assert!(kept[3].is_nan());
        }
        assert_eq!(power_for(0.0), 1.0);
        // The least and the largest of all.
        for largest in [f32::from_bits(1), f32::MIN_POSITIVE, f32::MAX] {
            let power = power_for(largest);
            assert!(power.is_normal() && power.recip().is_normal() && largest * power < 32_768.0);
        }
    }
}
