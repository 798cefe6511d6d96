//! One case: a prefill, or a decode of one or several sequences.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use gemma3::CacheOptions;
use gemma3::core::generate::{
    CancelHandle, GenerateError, GenerateOptions, Session, SessionOptions, generate_batch_with,
};
use gemma3::core::model::Model;
use gemma3::core::sampling::SamplingOptions;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Tokens of a prefill.
    pub n_prompt: usize,
    /// Tokens of a decode.
    pub n_gen: usize,
    /// Tokens before them.
    pub n_depth: usize,
    /// Sequences.
    pub batch: usize,
}

/// Tokens a second, of all sequences together. The first measurement of a shape compiles kernels outside of
/// what is timed.
pub fn measure(model: &Model, case: &Case) -> Result<f64, GenerateError> {
    match case.batch {
        1 if case.n_gen == 0 => prefill(model, case.n_prompt),
        1 => decode(model, case),
        _ => decode_batch(model, case),
    }
}

fn prefill(model: &Model, tokens: usize) -> Result<f64, GenerateError> {
    let mut session = session(model, tokens, tokens, 0)?;
    session.prefill(&ids(tokens, 0))?;
    session.clear();
    let begun = Instant::now();
    session.prefill(&ids(tokens, 1))?; // Ends with the logits on the host.
    Ok(tokens as f64 / begun.elapsed().as_secs_f64())
}

fn decode(model: &Model, case: &Case) -> Result<f64, GenerateError> {
    let warm = 8;
    let mut session = session(model, case.n_depth + case.n_gen + warm, 512, 0)?;
    session.append(&ids(case.n_depth, 0))?;
    let mut stream = session.generate(options(case.n_gen + warm))?;
    for token in stream.by_ref().take(warm) {
        token?;
    }
    let begun = Instant::now();
    let mut count = 0;
    for token in stream {
        token?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

fn decode_batch(model: &Model, case: &Case) -> Result<f64, GenerateError> {
    let warm = 8;
    let capacity = case.n_depth + case.n_gen + warm;
    let mut sessions = (0..case.batch as u64)
        .map(|sequence| {
            let mut session = session(model, capacity, 512, sequence)?;
            session.append(&ids(case.n_depth, sequence))?;
            Ok(session)
        })
        .collect::<Result<Vec<_>, GenerateError>>()?;
    let mut all: Vec<_> = sessions.iter_mut().collect();
    let options = vec![options(case.n_gen + warm); case.batch];
    let (mut count, mut begun, mut took) = (0, None, Duration::ZERO);
    generate_batch_with(&mut all, &options, &CancelHandle::new(), &mut |_, _| {
        count += 1;
        if count == warm * case.batch {
            begun = Some(Instant::now());
        }
        if let Some(begun) = &begun {
            took = begun.elapsed();
        }
        ControlFlow::Continue(())
    })?;
    Ok((case.n_gen * case.batch) as f64 / took.as_secs_f64())
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: SamplingOptions::greedy(),
        max_new_tokens: Some(max_new_tokens),
        ..GenerateOptions::default()
    }
}

fn session(model: &Model, capacity: usize, chunk: usize, sequence: u64) -> Result<Session, GenerateError> {
    let cache = CacheOptions { capacity: Some(capacity), chunk, ..CacheOptions::default() };
    Session::new(model, &SessionOptions { cache, sequence })
}

/// Ids that look random and are the same every time.
fn ids(count: usize, sequence: u64) -> Vec<u32> {
    let id = |i: u64| (i.wrapping_mul(2_654_435_761).wrapping_add(sequence * 40_503) % 262_144) as u32;
    (0..count as u64).map(id).collect()
}
