//! Products against the formats' definitions, in f64.

use half::f16;

use super::{Activations, PackedError, PackedMatrix, Precision, SharedBytes, SimdLevel};
use crate::formats::blocks::{BlockError, dequantize};
use crate::formats::{FormatError, TensorFormat};

/// A small generator, so that the tests need no crate for it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Near enough to a normal distribution.
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| (self.next() % 65536) as f32 / 65536.0 - 0.5).sum::<f32>() * std::f32::consts::SQRT_2
    }

    fn half(&mut self) -> [u8; 2] {
        let sign = if self.next().is_multiple_of(2) { 0.02 } else { -0.02 };
        f16::from_f32(sign * (0.5 + (self.next() % 1024) as f32 / 1024.0)).to_le_bytes()
    }
}

/// Random weights: every bit of the quants, scales of a sane size.
fn random_weights(format: TensorFormat, rows: usize, in_features: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; format.tensor_bytes(&[rows, in_features]).unwrap()];
    for block in bytes.chunks_mut(format.block_bytes()) {
        block.fill_with(|| random.next() as u8);
        match format {
            TensorFormat::F32 => block.copy_from_slice(&random.normal().to_le_bytes()),
            TensorFormat::F16 => block.copy_from_slice(&f16::from_f32(random.normal()).to_le_bytes()),
            TensorFormat::BF16 => {
                block.copy_from_slice(&half::bf16::from_f32(random.normal()).to_le_bytes());
            }
            TensorFormat::Q4_0 | TensorFormat::Q5_0 | TensorFormat::Q8_0 => {
                block[..2].copy_from_slice(&random.half());
            }
            TensorFormat::Q6_K => block[208..].copy_from_slice(&random.half()),
            TensorFormat::Q4_1 | TensorFormat::Q5_1 | TensorFormat::Q4_K | TensorFormat::Q5_K => {
                block[..2].copy_from_slice(&random.half());
                block[2..4].copy_from_slice(&random.half());
            }
        }
    }
    bytes
}

/// Random weights and activations, and their product in f64.
struct Case {
    matrix: PackedMatrix,
    x: Vec<f32>,
    rows: usize,
    expected: Vec<f64>,
    /// Per result: the sum of the sizes of its products, for the bounds of errors.
    sizes: Vec<f64>,
    /// The sum of the squares of all products.
    squares: f64,
}

impl Case {
    fn new(format: TensorFormat, [out_features, in_features]: [usize; 2], rows: usize) -> Self {
        let mut random = Random(0x9e37_79b9 + (out_features * 31 + in_features * 7 + rows) as u64);
        let bytes = random_weights(format, out_features, in_features, &mut random);
        let mut weights = vec![0.0; out_features * in_features];
        dequantize(format, &bytes, &mut weights).unwrap();
        let x: Vec<f32> = (0..rows * in_features).map(|_| random.normal()).collect();
        let (mut expected, mut sizes, mut squares) = (Vec::new(), Vec::new(), 0.0);
        for x in x.chunks(in_features) {
            for weights in weights.chunks(in_features) {
                let products = || weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                expected.push(products().sum());
                sizes.push(products().map(f64::abs).sum());
                squares += products().map(|product| product * product).sum::<f64>();
            }
        }
        let matrix = PackedMatrix::new(format, [out_features, in_features], bytes.into()).unwrap();
        Self { matrix, x, rows, expected, sizes, squares }
    }

    fn product(&self, precision: Precision, level: SimdLevel) -> Vec<f32> {
        let in_features = self.matrix.in_features();
        let x = Activations::with_level(&self.x, self.rows, in_features, precision, level);
        // Not zeros: every element must be written.
        let mut out = vec![f32::NAN; self.expected.len()];
        self.matrix.multiply_prepared(&x, &mut out);
        out
    }

    /// The root mean square of the error over that of a sum of as many products of either sign: what an
    /// independent error of every activation, relative to the activations' deviation, comes to.
    fn relative_error(&self, found: &[f32]) -> f64 {
        let errors = found.iter().zip(&self.expected).map(|(found, expected)| f64::from(*found) - expected);
        (errors.map(|error| error * error).sum::<f64>() / self.squares).sqrt()
    }
}

/// Widths: one block, and the models'.
fn shapes(format: TensorFormat) -> Vec<[usize; 2]> {
    match format.block_len() {
        256 => vec![[5, 256], [19, 2048], [40, 2560], [8, 6912]],
        32 => vec![[3, 32], [16, 640], [13, 1152], [70, 2048], [9, 6912]],
        _ => vec![[1, 1], [3, 37], [7, 32], [16, 640], [21, 1152], [70, 2048], [9, 6912]],
    }
}

fn for_each_case(check: impl Fn(&Case, TensorFormat, SimdLevel)) {
    for format in TensorFormat::ALL {
        for shape in shapes(format) {
            for rows in [1, 2, 3, 4, 5, 8, 9, 17] {
                let case = Case::new(format, shape, rows);
                for level in SimdLevel::available() {
                    check(&case, format, level);
                }
            }
        }
    }
}

#[test]
fn exact_products_are_off_by_roundings_of_f32_only() {
    for_each_case(|case, format, level| {
        let found = case.product(Precision::Exact, level);
        for ((found, expected), size) in found.iter().zip(&case.expected).zip(&case.sizes) {
            // Each rounding is at most 2^-24 of a partial sum, which the sum of sizes bounds; the offsets
            // of a block, multiplied by themselves, are up to 16 times the size of its products, and
            // there are some tens of roundings on the way of a product into the result, whose errors
            // mostly cancel.
            let bound = 64.0 * size * f64::from(f32::EPSILON) / 2.0;
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= bound, "{format} {level:?} rows {}: {found} {expected}", case.rows);
        }
    });
}

#[test]
fn fast_products_are_off_by_the_rounding_to_eight_bits() {
    for_each_case(|case, format, level| {
        let found = case.product(Precision::Fast, level);
        // Normal activations have their largest of 32 near 2.1 deviations; a step of 1/127 of it, with
        // an error of 1/sqrt(12) steps, is 0.5% of a deviation. Few rows are few samples of it, where
        // weights have offsets in common. bf16 has 1/512 at most.
        let bound = 0.012;
        let error = case.relative_error(&found);
        assert!(error <= bound, "{format} {level:?} rows {} error {error}", case.rows);
    });
}

#[test]
fn a_prompt_of_512_rows_is_as_exact() {
    for format in TensorFormat::ALL {
        let case = Case::new(format, [24, 512], 512);
        for level in SimdLevel::available() {
            let exact = case.relative_error(&case.product(Precision::Exact, level));
            assert!(exact <= 1e-6, "{format} {level:?}: {exact}");
            let fast = case.relative_error(&case.product(Precision::Fast, level));
            assert!(fast <= 0.008, "{format} {level:?}: {fast}");
        }
    }
}

#[test]
fn levels_agree_on_the_rounding_of_activations() {
    for format in TensorFormat::ALL.into_iter().filter(|format| format.is_block()) {
        for rows in [1, 17] {
            let case = Case::new(format, [24, 512], rows);
            let reference = case.product(Precision::Fast, SimdLevel::available()[0]);
            for level in SimdLevel::available() {
                let found = case.product(Precision::Fast, level);
                for ((found, reference), size) in found.iter().zip(&reference).zip(&case.sizes) {
                    assert!(f64::from((found - reference).abs()) <= 1e-5 * size, "{format} {level:?}");
                }
            }
        }
    }
}

#[test]
fn the_largest_quants_do_not_overflow() {
    // All bits set, and activations at both ends: the largest sums that 16 bits must hold.
    for format in TensorFormat::ALL.into_iter().filter(|format| format.is_block()) {
        for byte in [0xff, 0x80, 0x7f] {
            let mut random = Random(7);
            let mut bytes = random_weights(format, 8, 256, &mut random);
            let scales = bytes.clone();
            bytes.fill(byte);
            for (block, scales) in
                bytes.chunks_mut(format.block_bytes()).zip(scales.chunks(format.block_bytes()))
            {
                let header = if format == TensorFormat::Q6_K { 208..210 } else { 0..2 };
                block[header.clone()].copy_from_slice(&scales[header]);
                if matches!(format.name(), "q4_1" | "q5_1" | "q4_k" | "q5_k") {
                    block[2..4].copy_from_slice(&scales[2..4]);
                }
            }
            let mut weights = vec![0.0; 8 * 256];
            dequantize(format, &bytes, &mut weights).unwrap();
            let matrix = PackedMatrix::new(format, [8, 256], bytes.into()).unwrap();
            for (value, rows) in [(1.0, 1), (-1.0, 1), (1.0, 16), (-1.0, 16)] {
                let x = vec![value; rows * 256];
                for level in SimdLevel::available() {
                    let activations = Activations::with_level(&x, rows, 256, Precision::Fast, level);
                    let mut out = vec![0.0; rows * 8];
                    matrix.multiply_prepared(&activations, &mut out);
                    for row in out.chunks(8) {
                        for (found, weights) in row.iter().zip(weights.chunks(256)) {
                            let expected: f32 = weights.iter().map(|weight| weight * value).sum();
                            let size: f32 = weights.iter().map(|weight| weight.abs()).sum();
                            assert!((found - expected).abs() <= 1e-5 * size, "{format} {level:?} {byte:x}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rows_are_those_of_the_definition_bit_for_bit() {
    for format in TensorFormat::ALL {
        let (rows, in_features) = (19, 2 * format.block_len().max(16));
        let mut random = Random(3);
        let bytes = random_weights(format, rows, in_features, &mut random);
        let mut expected = vec![0.0; rows * in_features];
        dequantize(format, &bytes, &mut expected).unwrap();
        let matrix = PackedMatrix::new(format, [rows, in_features], bytes.into()).unwrap();
        for (index, expected) in expected.chunks(in_features).enumerate() {
            let mut found = vec![0.0; in_features];
            matrix.row(index, &mut found);
            assert!(found.iter().zip(expected).all(|(f, e)| f.to_bits() == e.to_bits()), "{format} {index}");
        }
    }
}

#[test]
fn activations_that_are_not_numbers_stay_visible() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let case = Case::new(TensorFormat::Q4_0, [8, 64], 1);
        let mut x = case.x.clone();
        x[40] = value;
        for precision in [Precision::Exact, Precision::Fast] {
            let mut out = vec![0.0; 8];
            case.matrix.multiply(&x, 1, &mut out, precision);
            assert!(out.iter().all(|value| !value.is_finite()), "{value} {precision:?}");
        }
    }
}

#[test]
fn tiny_and_zero_activations_are_no_trouble() {
    let case = Case::new(TensorFormat::Q8_0, [8, 64], 1);
    for value in [0.0, 1e-44, f32::MIN_POSITIVE] {
        let mut out = vec![1.0; 8];
        case.matrix.multiply(&[value; 64], 1, &mut out, Precision::Fast);
        assert!(out.iter().all(|out| out.abs() <= 64.0 * 127.0 * value), "{value}");
    }
}

#[test]
fn memory_is_that_of_the_file() {
    let mut random = Random(5);
    for format in TensorFormat::ALL {
        let bytes = random_weights(format, 16, 256, &mut random);
        let len = bytes.len() as u64;
        assert_eq!(PackedMatrix::new(format, [16, 256], bytes.into()).unwrap().bytes(), len, "{format}");
    }
}

#[test]
fn empty_matrices_multiply() {
    for (shape, rows) in [([0, 64], 2), ([8, 0], 2), ([8, 64], 0)] {
        for format in [TensorFormat::BF16, TensorFormat::Q4_0] {
            let bytes = vec![0; format.tensor_bytes(&shape).unwrap()];
            let matrix = PackedMatrix::new(format, shape, bytes.into()).unwrap();
            let mut out = vec![1.0; rows * shape[0]];
            matrix.multiply(&vec![1.0; rows * shape[1]], rows, &mut out, Precision::Fast);
            assert!(out.iter().all(|value| *value == 0.0));
        }
    }
}

#[test]
fn bytes_of_another_length_are_an_error() {
    for format in TensorFormat::ALL {
        let len = format.tensor_bytes(&[8, 256]).unwrap();
        for found in [0, len - 1, len + 1] {
            let error = PackedMatrix::new(format, [8, 256], vec![0; found].into()).unwrap_err();
            let expected = BlockError::WrongByteCount { format, weights: 2048, expected: len, found };
            assert_eq!(error, PackedError::Block(expected));
        }
    }
}

#[test]
fn rows_of_partial_blocks_are_an_error() {
    let error = PackedMatrix::new(TensorFormat::Q4_K, [2, 640], vec![0; 720].into()).unwrap_err();
    assert!(matches!(error, PackedError::Format(FormatError::PartialBlock { row_len: 640, .. })));
}

#[test]
fn sizes_beyond_any_memory_are_an_error() {
    for shape in [[usize::MAX, 256], [256, usize::MAX - 255], [1 << 40, 1 << 40]] {
        for format in TensorFormat::ALL {
            let error = PackedMatrix::new(format, shape, Vec::new().into()).unwrap_err();
            assert!(matches!(error, PackedError::Format(_)), "{format} {shape:?} {error}");
        }
    }
}

#[test]
#[allow(clippy::reversed_empty_ranges, reason = "what a caller may pass by mistake")]
fn bytes_that_the_owner_does_not_have_are_an_error() {
    let owner: std::sync::Arc<Vec<u8>> = std::sync::Arc::new(vec![0; 8]);
    for range in [0..9, 9..9, 5..4, usize::MAX..usize::MAX] {
        let error = SharedBytes::new(owner.clone(), range.clone()).unwrap_err();
        assert_eq!(error, PackedError::NoSuchBytes { range, len: 8 });
    }
    assert!(SharedBytes::new(owner, 8..8).is_ok());
}
