//! A model's cases: prefills, and decodes of one or several sequences.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use gemma3::CacheOptions;
use gemma3::CancelHandle;
use gemma3::core::generate::{ContinueOptions, GenerateError, Session, SessionOptions, generate_batch_with};
use gemma3::core::model::Model;
use gemma3::core::sampling::SamplingOptions;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::limits::Limits;
use crate::models::RandomModel;
use crate::report::{Figure, Subject, median, percent, rounded};
use crate::work::Work;
use crate::{Failure, child};

/// What is measured.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
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

/// A case, as it was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    pub case: Case,
    /// Tokens a second of all sequences together, of each repetition.
    pub rates: Vec<f64>,
    /// Of a step of all sequences, or of the whole prefill.
    pub work: Work,
}

/// Above what [`Figure::text`] gives of a [`Measured`].
pub const HEAD: &str = "model format  backend  prompt    gen  depth batch      tok/s  of the limit";

impl Measured {
    /// Steps of all sequences a second, or whole prefills.
    fn times_a_second(&self) -> f64 {
        let tokens = if self.case.n_gen > 0 { self.case.batch } else { self.case.n_prompt };
        median(&self.rates) / tokens as f64
    }
}

impl Figure for Measured {
    const LIST: &'static str = "rows";

    fn text(&self, subject: &Subject, limits: &Limits) -> String {
        let Case { n_prompt, n_gen, n_depth, batch } = self.case;
        let Subject { model, format, backend } = subject;
        let share = percent(self.work.share(self.times_a_second(), limits));
        format!(
            "{model:>5} {format:>6} {backend:>8} {n_prompt:>7} {n_gen:>6} {n_depth:>6} {batch:>5} {:>10.1} \
             {share:>13}",
            median(&self.rates)
        )
    }

    fn json(&self, limits: &Limits) -> Value {
        let Case { n_prompt, n_gen, n_depth, batch } = self.case;
        let rate = rounded(median(&self.rates), 1);
        let share = self.work.share(self.times_a_second(), limits);
        json!({
            "n_prompt": n_prompt,
            "n_gen": n_gen,
            "n_depth": n_depth,
            "batch": batch,
            "prefill_tok_s": (n_gen == 0).then_some(rate),
            "decode_tok_s": (n_gen > 0).then_some(rate),
            "runs_tok_s": self.rates.iter().map(|rate| rounded(*rate, 1)).collect::<Vec<_>>(),
            "share_of_limit": share.map(|share| rounded(share, 3)),
        })
    }
}

/// [`Part::Model`](crate::arguments::Part::Model).
pub fn run(random: &RandomModel, arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    let begun = Instant::now();
    let model = random.load(&device, arguments)?;
    eprintln!("{random}: made and loaded in {:.1} s", begun.elapsed().as_secs_f64());
    for case in arguments.cases() {
        let rates = (0..arguments.repetitions()).map(|_| measure(&model, &case));
        match rates.collect::<Result<Vec<_>, _>>() {
            Ok(rates) => {
                let work = Work::of(&model, &case);
                child::answer(&Measured { case, rates, work })?;
            }
            // A card that is too small for one case has still others to measure.
            Err(error) => eprintln!("{random} {case:?}: {error}"),
        }
    }
    Ok(())
}

/// Tokens a second, of all sequences together. The first measurement of a shape compiles kernels outside of
/// what is timed.
fn measure(model: &Model, case: &Case) -> Result<f64, GenerateError> {
    match case.batch {
        1 if case.n_gen == 0 => prefill(model, case.n_prompt),
        1 => decode(model, case),
        _ => decode_batch(model, case),
    }
}

fn prefill(model: &Model, tokens: usize) -> Result<f64, GenerateError> {
    let mut session = session(model, tokens, tokens, 0)?;
    session.prefill(&ids(model, tokens, 0))?;
    session.clear();
    let begun = Instant::now();
    session.prefill(&ids(model, tokens, 1))?; // Ends with the logits on the host.
    Ok(tokens as f64 / begun.elapsed().as_secs_f64())
}

fn decode(model: &Model, case: &Case) -> Result<f64, GenerateError> {
    let warm = 8;
    let mut session = session(model, case.n_depth + case.n_gen + warm, 512, 0)?;
    session.append(&ids(model, case.n_depth, 0))?;
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
            session.append(&ids(model, case.n_depth, sequence))?;
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

/// Greedy, without an end of the text.
pub fn options(max_new_tokens: usize) -> ContinueOptions {
    ContinueOptions {
        sampling: SamplingOptions::greedy(),
        max_new_tokens: Some(max_new_tokens),
        ..ContinueOptions::default()
    }
}

/// A session for so many tokens.
pub fn session(
    model: &Model,
    capacity: usize,
    chunk: usize,
    sequence: u64,
) -> Result<Session, GenerateError> {
    let cache = CacheOptions { capacity: Some(capacity), chunk, ..CacheOptions::default() };
    Session::new(model, &SessionOptions { cache, sequence })
}

/// Ids that look random and are the same every time.
pub fn ids(model: &Model, count: usize, sequence: u64) -> Vec<u32> {
    let vocab_size = model.text_config().vocab_size.min(262_144) as u64;
    let id = |i: u64| (i.wrapping_mul(2_654_435_761).wrapping_add(sequence * 40_503) % vocab_size) as u32;
    (0..count as u64).map(id).collect()
}
