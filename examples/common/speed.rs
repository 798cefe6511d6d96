//! Tokens per second of one prefill or one decode.

use std::error::Error;
use std::time::Instant;

use gemma3::core::generate::Session;
use gemma3::core::model::Model;
use gemma3::{CacheOptions, SessionOptions};

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    /// Tokens that are there before.
    pub n_depth: usize,
    /// Tokens of the prefill.
    pub n_prompt: usize,
    /// Tokens of the decode, each with its greedy choice.
    pub n_gen: usize,
    /// Settings of the cache; its capacity is what is measured.
    pub cache: CacheOptions,
}

impl Speed {
    /// Measures once, in a session of its own. The first measurement of a model warms it up: pages, threads, and
    /// on GPUs kernels.
    pub fn measure(&self, model: &Model) -> Result<f64, Box<dyn Error>> {
        // Decoding needs a token to start from.
        let depth = if self.n_gen > 0 { self.n_depth.max(1) } else { self.n_depth };
        let capacity = Some(depth + self.n_prompt + self.n_gen);
        let cache = CacheOptions { capacity, ..self.cache };
        let mut session = Session::new(model, &SessionOptions { cache, sequence: 0 })?;
        if depth > 0 {
            session.prefill(&ids(model, depth))?;
        }
        model.device().sync()?;
        let start = Instant::now();
        if self.n_prompt > 0 {
            session.prefill(&ids(model, self.n_prompt))?;
        }
        for _ in 0..self.n_gen {
            let logits = session.logits()?;
            let best =
                logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as u32);
            session.prefill(&[best])?;
        }
        model.device().sync()?;
        Ok((self.n_prompt + self.n_gen) as f64 / start.elapsed().as_secs_f64())
    }
}

/// Ids that look random and are the same every time.
fn ids(model: &Model, count: usize) -> Vec<u32> {
    let vocab_size = model.text_config().vocab_size as u64;
    // The placeholder of images stands for no text.
    let placeholder = model.config().image_tokens.map(|tokens| tokens.image);
    let id = |i: u64| (i.wrapping_mul(2_654_435_761) % vocab_size) as u32;
    (0..count as u64).map(id).map(|id| if Some(id) == placeholder { 0 } else { id }).collect()
}
