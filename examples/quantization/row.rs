//! A model, what it makes of the text beside the baseline, and how fast it is.

use std::error::Error;

use gemma3::CacheOptions;
use gemma3::core::cache::KvCache;
use gemma3::core::model::{Model, Segment, SegmentInput};
use gemma3::core::sampling::SamplingError;
use indicatif::ProgressBar;
use rayon::prelude::*;

use crate::candidates::Candidate;
use crate::common::{Outcome, Speed};
use crate::divergence::{Comparison, Distribution};
use crate::text::Window;

/// A row of the table: a loaded model and what has been found of it.
pub struct Row {
    pub candidate: Candidate,
    pub model: Model,
    cache: KvCache,
    /// One a position.
    pub comparisons: Vec<Comparison>,
    /// Tokens per second, one a repetition.
    pub prefill: Vec<f64>,
    /// Tokens per second, one a repetition.
    pub decode: Vec<f64>,
}

impl Row {
    /// `window` are the most tokens to score with an empty cache, of which `chunk` are computed at once.
    pub fn new(
        candidate: Candidate,
        model: Model,
        window: usize,
        chunk: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let options = CacheOptions { capacity: Some(window), ..candidate.cache(chunk) };
        let cache = model.new_cache(&options)?;
        Ok(Self { candidate, model, cache, comparisons: vec![], prefill: vec![], decode: vec![] })
    }

    pub fn weight_bytes(&self) -> u64 {
        self.model.weight_bytes()
    }

    /// Appends `ids` and returns the logits after each, \[vocab\].
    fn logits(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>, Box<dyn Error>> {
        let mut segments = [Segment { input: SegmentInput::Ids(ids), cache: &mut self.cache }];
        Ok(self.model.forward_all(&mut segments)?)
    }

    /// Tokens per second of a prefill of 512, and of decoding 64 after 128.
    fn measure_speed(&self) -> Result<(f64, f64), Box<dyn Error>> {
        let cache = self.candidate.cache(512);
        let prefill = Speed { n_depth: 0, n_prompt: 512, n_gen: 0, cache };
        let decode = Speed { n_depth: 128, n_prompt: 0, n_gen: 64, cache };
        Ok((prefill.measure(&self.model)?, decode.measure(&self.model)?))
    }
}

/// Compares every position of the windows, chunk by chunk: all models read the same tokens in turn, so that no
/// distribution is kept.
pub fn score(baseline: &mut Row, rows: &mut [Row], windows: &[Window<'_>], chunk: usize) -> Outcome {
    let bar = ProgressBar::new(windows.iter().map(|window| window.next.len() as u64).sum());
    let threads = baseline.model.threads().clone();
    baseline.comparisons.clear(); // Of the round before.
    for window in windows {
        baseline.cache.clear();
        rows.iter_mut().for_each(|row| row.cache.clear());
        for (inputs, next) in window.inputs.chunks(chunk).zip(window.next.chunks(chunk)) {
            let logits = baseline.logits(inputs)?;
            let references = threads.run(|| distributions(&logits))?;
            let compare = |logits: &[Vec<f32>]| threads.run(|| compare(&references, logits, next));
            baseline.comparisons.extend(compare(&logits)?);
            for row in rows.iter_mut() {
                let logits = row.logits(inputs)?;
                row.comparisons.extend(compare(&logits)?);
            }
            bar.inc(next.len() as u64);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn distributions(logits: &[Vec<f32>]) -> Result<Vec<Distribution<'_>>, SamplingError> {
    logits.par_iter().map(|logits| Distribution::new(logits)).collect()
}

fn compare(
    baseline: &[Distribution<'_>],
    logits: &[Vec<f32>],
    next: &[u32],
) -> Result<Vec<Comparison>, SamplingError> {
    let positions = baseline.par_iter().zip(logits).zip(next);
    positions
        .map(|((baseline, own), next)| Ok(Distribution::new(own)?.compare_with(baseline, *next)))
        .collect()
}

/// Measures every model once in each repetition, so that what else the machine does meets all alike.
pub fn measure_speeds(baseline: &mut Row, rows: &mut [Row], repetitions: usize) -> Outcome {
    if repetitions == 0 {
        return Ok(());
    }
    let mut all: Vec<&mut Row> = std::iter::once(baseline).chain(rows).collect();
    for row in &all {
        row.measure_speed()?; // To warm up.
    }
    for _ in 0..repetitions {
        for row in &mut all {
            let (prefill, decode) = row.measure_speed()?;
            row.prefill.push(prefill);
            row.decode.push(decode);
        }
    }
    Ok(())
}
