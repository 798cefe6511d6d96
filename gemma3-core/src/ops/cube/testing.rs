//! What the tests of kernels share: a device, random matrices, references in f64.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::formats::TensorFormat;
use crate::formats::blocks::dequantize;

use super::gemm::{RowFormat, Rows};
use super::packed::PackedMatrix;

/// The device that tests run on: that of CUDA where it is built in, that of wgpu otherwise; `None` where there is
/// no such device, unless `GEMMA3_REQUIRE` names it.
pub(crate) fn client() -> Option<Client> {
    #[cfg(feature = "cuda")]
    let (name, device) = ("cuda", cubecl::Device::Cuda(Default::default()));
    #[cfg(not(feature = "cuda"))]
    let (name, device) = ("wgpu", cubecl::Device::Wgpu(Default::default()));
    // Looked for before it is taken: the runtime panics for a device that is not there.
    if let Err(error) = crate::device::open(name) {
        let required = std::env::var("GEMMA3_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|required| required == name), "{error}");
        println!("skipped: {name}: {error}");
        return None;
    }
    Some(device.client())
}

/// Random numbers (xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        self.bits() as f32 / (1_u64 << 52) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }
}

/// The bytes of a random matrix. Scales are of either sign, and some of them subnormal.
pub(crate) fn file_bytes(format: TensorFormat, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let len = format.tensor_bytes(&[rows, cols]).expect("whole blocks");
    let floats = |random: &mut Random| random.floats(rows * cols).into_iter();
    match format {
        TensorFormat::F32 => floats(random).flat_map(f32::to_le_bytes).collect(),
        TensorFormat::F16 => floats(random).flat_map(|w| half::f16::from_f32(w).to_le_bytes()).collect(),
        TensorFormat::BF16 => floats(random).flat_map(|w| half::bf16::from_f32(w).to_le_bytes()).collect(),
        _ => {
            let mut bytes: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
            let halves: &[usize] = match format {
                TensorFormat::Q8_0 | TensorFormat::Q4_0 | TensorFormat::Q5_0 => &[0],
                TensorFormat::Q6_K => &[208],
                _ => &[0, 2],
            };
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                for at in halves {
                    let size = if random.bits().is_multiple_of(8) { 3e-5 } else { 0.01 };
                    let scale = half::f16::from_f32(random.unit() * size);
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            bytes
        }
    }
}

/// A random matrix on the device and its values.
pub(crate) fn random_matrix(
    client: &Client,
    format: TensorFormat,
    rows: usize,
    cols: usize,
    random: &mut Random,
) -> (PackedMatrix, Vec<f32>) {
    let bytes = file_bytes(format, rows, cols, random);
    let mut values = vec![0.0; rows * cols];
    dequantize(format, &bytes, &mut values).expect("whole blocks");
    (PackedMatrix::upload(client, format, cols, &[&bytes]).expect("whole blocks"), values)
}

pub(crate) fn upload(client: &Client, values: &[f32]) -> Handle {
    client.create_from_slice(f32::as_bytes(values))
}

/// A buffer of which every number is NaN until a kernel writes it.
pub(crate) fn poisoned(client: &Client, len: usize) -> Handle {
    upload(client, &vec![f32::NAN; len])
}

pub(crate) fn download(client: &Client, handle: &Handle) -> Vec<f32> {
    f32::from_bytes(&client.read_one_unchecked(handle.clone())).to_vec()
}

/// `x Wᵀ` in f64, \[batch, rows\], and the sum of the sizes of each output's terms.
pub(crate) fn product(x: &[f64], weights: &[f32], cols: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        for row in weights.chunks_exact(cols) {
            let terms = x.iter().zip(row).map(|(x, w)| x * f64::from(*w));
            out.push(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())));
        }
    }
    out
}

/// `rms_norm(x) * scale` of each row in f64.
pub(crate) fn rms_norm(x: &[f64], scale: &[f32], eps: f64) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks_exact(scale.len()) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let inverse = 1.0 / (mean + eps).sqrt();
        out.extend(row.iter().zip(scale).map(|(x, scale)| x * inverse * f64::from(*scale)));
    }
    out
}

pub(crate) fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Whether each number found is within `tolerance` times its size of what was expected.
pub(crate) fn assert_close(found: &[f32], expected: &[(f64, f64)], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, (expected, size))) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        // NaN is not within it.
        assert!(error <= tolerance * size, "{what}: {index} is {found}, not {expected} (sizes {size})");
    }
}

/// Rows of a format as f32; what rows of halves are filled up with has to be zeros.
pub(crate) fn values(client: &Client, rows: &Rows, count: usize, cols: usize) -> Vec<f32> {
    let words = download(client, &rows.handle);
    match rows.format {
        RowFormat::F32 => words,
        RowFormat::Bf16 => {
            let width = RowFormat::Bf16.width(cols);
            let halves = words.iter().flat_map(|word| [word.to_bits() << 16, word.to_bits() & 0xffff_0000]);
            let halves: Vec<f32> = halves.map(f32::from_bits).collect();
            assert_eq!(halves.len(), count * width);
            let rows = halves.chunks_exact(width);
            assert!(rows.clone().all(|row| row[cols..].iter().all(|filling| *filling == 0.0)));
            rows.flat_map(|row| row[..cols].to_vec()).collect()
        }
        RowFormat::F16 => {
            assert_eq!(words.len(), count * RowFormat::F16.row_words(cols));
            let rows = words.chunks_exact(RowFormat::F16.row_words(cols));
            rows.flat_map(|row| {
                let (halves, after) = row.split_at(RowFormat::factor_word(cols));
                let halves =
                    halves.iter().flat_map(|word| [word.to_bits() as u16, (word.to_bits() >> 16) as u16]);
                let row: Vec<f32> =
                    halves.map(|half| half::f16::from_bits(half).to_f32() * after[0]).collect();
                assert!(row[cols..].iter().all(|filling| *filling == 0.0));
                row[..cols].to_vec()
            })
            .collect()
        }
    }
}
