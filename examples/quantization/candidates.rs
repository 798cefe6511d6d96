//! What is compared with the baseline, and loading it.

use std::error::Error;
use std::path::Path;

use gemma3::core::checkpoint::{Checkpoint, LayerTensor, TextTensor};
use gemma3::core::model::Model;
use gemma3::{CacheDtype, CacheOptions, Device, LoadOptions, Precision, Quantization};

/// One way to load one checkpoint: a row of the table.
#[derive(Debug, Clone)]
pub struct Candidate {
    checkpoint: Checkpoint,
    pub quantization: Quantization,
    pub precision: Precision,
    /// `None`: what suits the precision.
    pub cache_dtype: Option<CacheDtype>,
}

/// All that is compared with `baseline` (in [`Precision::Exact`], as it is in its file), in the order of the
/// table.
pub fn candidates(baseline: &Checkpoint, others: &[Checkpoint], with_exact: bool) -> Vec<Candidate> {
    let mut weights = vec![(baseline, Quantization::None)];
    if has_float_matrices(baseline) {
        weights.extend([(baseline, Quantization::EightBit), (baseline, Quantization::FourBit)]);
    }
    weights.extend(others.iter().map(|other| (other, Quantization::None)));

    let mut candidates = Vec::new();
    for (index, (checkpoint, quantization)) in weights.into_iter().enumerate() {
        let mut add = |precision, cache_dtype| {
            let checkpoint = checkpoint.clone();
            candidates.push(Candidate { checkpoint, quantization, precision, cache_dtype })
        };
        add(Precision::Fast, None);
        // The first in exact mode is the baseline itself: what is left to ask there is the cache.
        match (with_exact, index) {
            (true, 0) => {
                add(Precision::Exact, Some(CacheDtype::F16));
                add(Precision::Exact, Some(CacheDtype::BF16));
            }
            (true, _) => add(Precision::Exact, None),
            (false, _) => {}
        }
    }
    candidates
}

/// Whether quantizing at load changes anything: block formats stay as they are.
fn has_float_matrices(checkpoint: &Checkpoint) -> bool {
    [TextTensor::Embedding, TextTensor::Layer(0, LayerTensor::QProj)]
        .into_iter()
        .filter_map(|tensor| checkpoint.tensor(tensor).ok())
        .any(|view| !view.format.is_block())
}

impl Candidate {
    /// The baseline's own row.
    pub fn baseline(checkpoint: Checkpoint) -> Self {
        let (quantization, precision, cache_dtype) = (Quantization::None, Precision::Exact, None);
        Self { checkpoint, quantization, precision, cache_dtype }
    }

    /// Loads the weights, to compute on the threads of the baseline.
    ///
    /// # Errors
    ///
    /// What loading fails with, and a vocabulary of another size than the baseline's.
    pub fn load(&self, baseline: &Model, device: &Device) -> Result<Model, Box<dyn Error>> {
        let found = self.checkpoint.config().text.vocab_size;
        let expected = baseline.text_config().vocab_size;
        if found != expected {
            let source = self.checkpoint.source();
            let reason = format!("`{source}` has {found} tokens and the baseline {expected}");
            return Err(format!("{reason}: their distributions cannot be compared").into());
        }
        let (precision, quantization) = (self.precision, self.quantization);
        let options = LoadOptions { precision, quantization, ..LoadOptions::default() };
        let lent_threads = Some(baseline.threads().clone());
        Ok(Model::load(&self.checkpoint, device, LoadOptions { lent_threads, ..options })?)
    }

    /// The cache's settings except its capacity, for passes of `chunk` tokens.
    pub fn cache(&self, chunk: usize) -> CacheOptions {
        CacheOptions { chunk, dtype: self.cache_dtype, ..CacheOptions::default() }
    }

    /// The file or folder, without where it lies.
    pub fn model_name(&self) -> String {
        let source = self.checkpoint.source();
        Path::new(source)
            .file_name()
            .map_or_else(|| source.to_owned(), |name| name.to_string_lossy().into_owned())
    }

    /// What the weights are: the file's format, or what they become at load.
    pub fn format_name(&self) -> &str {
        match self.quantization {
            Quantization::None => self.checkpoint.format_name(),
            Quantization::EightBit => "8 bits at load",
            Quantization::FourBit => "4 bits at load",
        }
    }

    /// Precision and cache, for people.
    pub fn mode_name(&self) -> &'static str {
        match (self.precision, self.cache_dtype) {
            (Precision::Fast, _) => "fast",
            (Precision::Exact, None | Some(CacheDtype::F32)) => "exact",
            (Precision::Exact, Some(CacheDtype::BF16)) => "exact, bf16 cache",
            (Precision::Exact, Some(CacheDtype::F16)) => "exact, f16 cache",
        }
    }
}
