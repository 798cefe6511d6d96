//! Random weights of a true shape, made when they are asked for.
//!
//! Block formats are not quantized from floats: their quants are random bits and their scales follow
//! from the wanted standard deviation, so that making a tensor costs about as much as writing it.

use half::f16;
use rayon::prelude::*;

use super::tensors::{Content, Entry, StoredFormat};
use super::{TensorFormat, TextTensor};
use crate::config::TextConfig;

/// A tensor of random numbers beyond those of the decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomTensor {
    /// Its name.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// The format, if its blocks divide a row; else Q8_0 or BF16.
    pub format: TensorFormat,
    /// The mean of its numbers, for the formats without blocks; block formats are around 0.
    pub mean: f32,
    /// Their standard deviation.
    pub deviation: f32,
}

impl RandomTensor {
    pub(super) fn entry(self, seed: u64) -> (String, Entry) {
        let row_len = self.shape.last().copied().unwrap_or(1);
        let format = fitting_format(self.format, row_len);
        let generator = RandomBytes { format, seed, mean: self.mean, deviation: self.deviation };
        let content = Content::Random(generator);
        (self.name, Entry { shape: self.shape, format: StoredFormat::Known(format), content })
    }
}

/// How a tensor's numbers are drawn: uniformly around `mean`.
#[derive(Debug, Clone, Copy)]
pub(super) struct RandomBytes {
    format: TensorFormat,
    seed: u64,
    mean: f32,
    deviation: f32,
}

/// The standard deviation of embeddings. Small, so that the layers decide the logits: an embedding
/// of the residual stream's own size would make a tied model repeat its last token.
const EMBEDDING_DEVIATION: f32 = 0.02;
/// The standard deviation of logits.
const LOGIT_DEVIATION: f32 = 2.0;
/// Norm weights scatter a little, so that a norm left out is noticed.
const NORM_DEVIATION: f32 = 0.05;

/// The entry of a decoder tensor.
pub(super) fn entry(tensor: TextTensor, config: &TextConfig, format: TensorFormat, seed: u64) -> Entry {
    let shape = tensor.shape(config);
    let row_len = shape.last().copied().unwrap_or(1);
    let (mean, deviation) = distribution(tensor, config, row_len);
    let format = match tensor.is_norm() {
        true => TensorFormat::F32,
        false => fitting_format(format, row_len),
    };
    Entry {
        shape,
        format: StoredFormat::Known(format),
        content: Content::Random(RandomBytes { format, seed, mean, deviation }),
    }
}

/// The format, or the nearest one whose blocks divide the row.
fn fitting_format(format: TensorFormat, row_len: usize) -> TensorFormat {
    [format, TensorFormat::Q8_0]
        .into_iter()
        .find(|format| row_len.is_multiple_of(format.block_len()))
        .unwrap_or(TensorFormat::BF16)
}

fn distribution(tensor: TextTensor, config: &TextConfig, row_len: usize) -> (f32, f32) {
    match tensor {
        TextTensor::Embedding | TextTensor::Head => (0.0, EMBEDDING_DEVIATION),
        TextTensor::FinalNorm => {
            // Normed activations have variance 1: a logit is a sum of `hidden_size` such products.
            let plain = EMBEDDING_DEVIATION * (config.hidden_size as f32).sqrt();
            (LOGIT_DEVIATION / plain - 1.0, NORM_DEVIATION)
        }
        norm if norm.is_norm() => (0.0, NORM_DEVIATION),
        // A product with `row_len` inputs keeps their variance.
        _ => (0.0, 1.0 / (row_len as f32).sqrt()),
    }
}

impl RandomBytes {
    /// The tensor's bytes: `len`, as its shape and format ask for.
    pub(super) fn bytes(&self, name: &str, len: usize) -> Vec<u8> {
        // Pieces of whole blocks with a stream of random numbers each: the result depends neither
        // on the number of threads nor on their order.
        const BLOCKS_A_PIECE: usize = 16_384;
        let stream = mix(self.seed ^ fnv1a(name.as_bytes()));
        let mut bytes = vec![0; len];
        bytes.par_chunks_mut(self.format.block_bytes() * BLOCKS_A_PIECE).enumerate().for_each(
            |(piece, bytes)| {
                let mut random = SplitMix64(mix(stream ^ mix(piece as u64)));
                self.fill_piece(&mut random, bytes);
            },
        );
        bytes
    }

    fn fill_piece(&self, random: &mut SplitMix64, bytes: &mut [u8]) {
        match self.format {
            TensorFormat::F32 => self.fill_singles(random, bytes),
            TensorFormat::F16 => self.fill_halves(random, bytes, |x| f16::from_f32(x).to_bits()),
            TensorFormat::BF16 => self.fill_halves(random, bytes, upper_half),
            _ => {
                for block in bytes.chunks_exact_mut(self.format.block_bytes()) {
                    self.fill_quants(random, block);
                }
            }
        }
    }

    /// Two numbers out of each random word.
    fn fill_singles(&self, random: &mut SplitMix64, bytes: &mut [u8]) {
        let step = self.half_width() / 2_147_483_648.0;
        for pair in bytes.chunks_mut(8) {
            let word = random.next();
            for (bytes, lane) in pair.as_chunks_mut::<4>().0.iter_mut().zip(0..) {
                let centred = ((word >> (32 * lane)) as u32).cast_signed();
                *bytes = (self.mean + step * centred as f32).to_le_bytes();
            }
        }
    }

    /// Four numbers out of each random word: 16 bits are more than the formats resolve.
    fn fill_halves(&self, random: &mut SplitMix64, bytes: &mut [u8], encode: impl Fn(f32) -> u16) {
        let step = self.half_width() / 32_768.0;
        let mut four = || {
            let word = random.next();
            let mut bytes = [0; 8];
            for (bytes, lane) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(0..) {
                let centred = ((word >> (16 * lane)) as u16).cast_signed();
                *bytes = encode(self.mean + step * f32::from(centred)).to_le_bytes();
            }
            bytes
        };
        let (fours, rest) = bytes.as_chunks_mut::<8>();
        fours.iter_mut().for_each(|bytes| *bytes = four());
        write(rest, 0, &four());
    }

    /// Half the range of a uniform distribution with this tensor's deviation.
    fn half_width(&self) -> f32 {
        self.deviation * 3_f32.sqrt()
    }

    /// A block of random quants under scales that give the wanted deviation. The divisors are the
    /// standard deviations of the formats' values under scale 1 and uniform quants.
    fn fill_quants(&self, random: &mut SplitMix64, block: &mut [u8]) {
        random.fill(block);
        let vary = 0.75 + 0.5 * random.unit();
        let scale = |deviation: f32| self.deviation * vary / deviation;
        let half = |value: f32| f16::from_f32(value).to_le_bytes();
        /// Of integers from 0 to 15.
        const NIBBLE: f32 = 4.61;
        /// Of integers from 0 to 31.
        const FIVE_BITS: f32 = 9.23;
        /// Of integers from 0 to 255.
        const BYTE: f32 = 73.9;
        /// Root mean square of 6-bit scales from 0 to 63.
        const SIX_BIT_SCALE: f32 = 36.5;
        /// Of integers from 0 to 63.
        const SIX_BITS: f32 = 18.5;
        match self.format {
            TensorFormat::Q4_0 => write(block, 0, &half(scale(NIBBLE))),
            TensorFormat::Q5_0 => write(block, 0, &half(scale(FIVE_BITS))),
            TensorFormat::Q8_0 => write(block, 0, &half(scale(BYTE))),
            TensorFormat::Q4_1 => {
                let scale = scale(NIBBLE);
                write(block, 0, &half(scale));
                write(block, 2, &half(-7.5 * scale));
            }
            TensorFormat::Q5_1 => {
                let scale = scale(FIVE_BITS);
                write(block, 0, &half(scale));
                write(block, 2, &half(-15.5 * scale));
            }
            TensorFormat::Q4_K => {
                let scale = scale(NIBBLE * SIX_BIT_SCALE);
                write(block, 0, &half(scale));
                write(block, 2, &half(7.5 * scale));
                centre_groups(block);
            }
            TensorFormat::Q5_K => {
                let scale = scale(FIVE_BITS * SIX_BIT_SCALE);
                write(block, 0, &half(scale));
                write(block, 2, &half(15.5 * scale));
                centre_groups(block);
            }
            TensorFormat::Q6_K => write(block, 208, &half(scale(SIX_BITS * BYTE))),
            TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16 => {}
        }
    }
}

/// A finite number as the nearest BF16, ties to even.
fn upper_half(value: f32) -> u16 {
    let bits = value.to_bits();
    // No overflow: the bits of a finite number are below those of the infinities.
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

/// Makes the 6-bit minimum of each group equal to its 6-bit scale, so that no group has a bias.
/// The twelve bytes after the two halves hold both: see the definition of Q4_K.
fn centre_groups(block: &mut [u8]) {
    let Some(scales) = block.get_mut(4..16) else {
        return;
    };
    scales.copy_within(0..4, 4);
    for byte in scales.iter_mut().skip(8) {
        let low = *byte & 15;
        *byte = low | (low << 4);
    }
}

fn write(block: &mut [u8], at: usize, bytes: &[u8]) {
    for (target, byte) in block.iter_mut().skip(at).zip(bytes) {
        *target = *byte;
    }
}

/// Steele, Lea and Flood's SplitMix64: small, fast, and the same everywhere.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// From 0 to below 1, a multiple of 2^-24.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 * (1.0 / 16_777_216.0)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            write(word, 0, &self.next().to_le_bytes());
        }
    }
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// Fowler, Noll and Vo's hash, for names.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, LayerTensor};
    use crate::config::TextConfig;
    use crate::formats::blocks::dequantize;

    fn config() -> TextConfig {
        TextConfig {
            vocab_size: 300,
            hidden_size: 512,
            intermediate_size: 768,
            num_hidden_layers: 2,
            layer_types: TextConfig::gemma3_1b().layer_types[..2].to_vec(),
            ..TextConfig::gemma3_1b()
        }
    }

    fn weights(checkpoint: &Checkpoint, tensor: TextTensor) -> Vec<f32> {
        let view = checkpoint.tensor(tensor).unwrap();
        let mut weights = vec![0.0; view.shape.iter().product()];
        dequantize(view.format, &view.bytes, &mut weights).unwrap();
        weights
    }

    fn mean_and_deviation(weights: &[f32]) -> (f64, f64) {
        let mean = |values: &dyn Fn(f64) -> f64| {
            let sum: f64 = weights.iter().map(|w| values(f64::from(*w))).sum();
            sum / weights.len() as f64
        };
        let average = mean(&|w| w);
        (average, mean(&|w| (w - average).powi(2)).sqrt())
    }

    #[test]
    fn every_format_has_the_wanted_deviation_and_no_bias() {
        for format in TensorFormat::ALL {
            let checkpoint = Checkpoint::random(config(), format, 7).unwrap();
            for (tensor, wanted) in [
                (TextTensor::Embedding, f64::from(EMBEDDING_DEVIATION)),
                (TextTensor::Layer(1, LayerTensor::QProj), 512_f64.powf(-0.5)),
                (TextTensor::Layer(0, LayerTensor::DownProj), 768_f64.powf(-0.5)),
            ] {
                assert_eq!(checkpoint.tensor(tensor).unwrap().format, format);
                let (mean, deviation) = mean_and_deviation(&weights(&checkpoint, tensor));
                let ratio = deviation / wanted;
                // Scales vary by a quarter, which adds 1%; the divisors are rounded.
                assert!((0.97..1.05).contains(&ratio), "{format} {tensor:?}: {ratio}");
                // Quants of one-sided formats are centred half a step off.
                assert!(mean.abs() < 0.12 * wanted, "{format} {tensor:?}: {mean}");
            }
        }
    }

    #[test]
    fn norms_are_f32_and_the_last_one_makes_logits_of_the_wanted_size() {
        let checkpoint = Checkpoint::random(config(), TensorFormat::Q4_0, 7).unwrap();
        let norm = checkpoint.tensor(TextTensor::FinalNorm).unwrap();
        assert_eq!(norm.format, TensorFormat::F32);
        assert!(!checkpoint.norms_include_one());
        let (mean, _) = mean_and_deviation(&weights(&checkpoint, TextTensor::FinalNorm));
        let logit_deviation = (1.0 + mean) * 512_f64.sqrt() * f64::from(EMBEDDING_DEVIATION);
        assert!((logit_deviation - 2.0).abs() < 0.05, "{logit_deviation}");
    }

    #[test]
    fn the_same_seed_gives_the_same_weights_on_any_number_of_threads() {
        let tensor = TextTensor::Embedding;
        let bytes = |seed, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                let checkpoint = Checkpoint::random(config(), TensorFormat::BF16, seed).unwrap();
                checkpoint.tensor(tensor).unwrap().bytes.into_owned()
            })
        };
        assert_eq!(bytes(7, 1), bytes(7, 3));
        assert_ne!(bytes(7, 1), bytes(8, 1));
    }

    #[test]
    fn tensors_of_one_seed_differ() {
        let checkpoint = Checkpoint::random(config(), TensorFormat::F32, 7).unwrap();
        let [keys, values] = [LayerTensor::KProj, LayerTensor::VProj]
            .map(|tensor| weights(&checkpoint, TextTensor::Layer(0, tensor)));
        assert_ne!(keys, values);
    }

    #[test]
    fn rows_that_a_format_does_not_fit_are_q8_0_and_otherwise_bf16() {
        let sizes = TextConfig { hidden_size: 640, intermediate_size: 100, ..config() };
        let checkpoint = Checkpoint::random(sizes, TensorFormat::Q4_K, 7).unwrap();
        let format = |tensor| checkpoint.tensor(TextTensor::Layer(0, tensor)).unwrap().format;
        assert_eq!(format(LayerTensor::QProj), TensorFormat::Q8_0);
        assert_eq!(format(LayerTensor::OProj), TensorFormat::Q4_K);
        assert_eq!(format(LayerTensor::DownProj), TensorFormat::BF16);
    }

    #[test]
    fn sizes_that_do_not_fit_together_are_an_error() {
        let sizes = TextConfig { num_key_value_heads: 3, ..config() };
        assert!(Checkpoint::random(sizes, TensorFormat::F32, 7).is_err());
    }

    #[test]
    fn another_configuration_of_the_same_shapes_may_replace_the_first() {
        let checkpoint = Checkpoint::random(config(), TensorFormat::F32, 7).unwrap();
        let other = TextConfig { query_pre_attn_scalar: 99.0, ..config() };
        let replaced = checkpoint.with_text_config(other.clone()).unwrap();
        assert_eq!(replaced.config().text, other);
        assert_eq!(checkpoint.config().text, config());
        let wider = TextConfig { vocab_size: 301, ..config() };
        assert!(checkpoint.with_text_config(wider).is_err());
    }
}
