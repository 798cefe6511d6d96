//! What it costs that sequences join and leave: 256 of them over 32 slots, with 16 to 400 tokens each, over 32 that all run
//! to the end, in turns. Of those that come and go, tokens a second of the whole, at whose end slots stay empty, and of the
//! time while every slot is taken.
//!
//! ```text
//! cargo bench --bench engine -- DEVICE SIZE FORMAT [SLOTS] [SEQUENCES] [LONGEST]
//! ```

use std::time::Instant;

use gemma3::core::cache::CacheOptions;
use gemma3::core::checkpoint::{Checkpoint, TensorFormat};
use gemma3::core::config::TextConfig;
use gemma3::core::generate::{
    ContinueOptions, Engine, Event, Session, SessionOptions, warm_up, warm_up_batch,
};
use gemma3::core::model::{LoadOptions, Model};
use gemma3::core::sampling::SamplingOptions;

type Failure = Box<dyn std::error::Error>;

/// Tokens of every prompt.
const PROMPT: usize = 16;
/// Of each kind, in turns.
const REPETITIONS: usize = 3;

struct Load {
    slots: usize,
    sequences: usize,
    longest: usize,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let text = |index: usize, default: &str| arguments.get(index).map_or(default.to_owned(), Clone::clone);
    let number = |index, default: &str| text(index, default).parse::<usize>();
    let device = gemma3::device::open(&text(0, gemma3::device::built_in().first().ok_or("no device")?))?;
    let config = match &*text(1, "270m") {
        "270m" => TextConfig::gemma3_270m(),
        "1b" => TextConfig::gemma3_1b(),
        "4b" => TextConfig::gemma3_4b(),
        other => return Err(format!("unknown size `{other}`: 270m, 1b or 4b").into()),
    };
    let format: TensorFormat = text(2, "bf16").parse()?;
    let load = Load { slots: number(3, "32")?, sequences: number(4, "256")?, longest: number(5, "400")? };
    let model = Model::load(&Checkpoint::random(config, format, 0)?, &device, LoadOptions::default())?;
    warm_up(&model, &session_options(&load, 0), &options(3), &mut |_| {})?;
    warm_up_batch(&model, &session_options(&load, 0), &vec![options(3); load.slots], &mut |_| {})?;
    let (mut steady, mut whole, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        steady.push(tokens_per_second(&model, &load, load.slots, |_| load.longest)?.whole);
        let tokens = |sequence: usize| 16 + sequence * 7919 % (load.longest - 15).max(1);
        let rates = tokens_per_second(&model, &load, load.sequences, tokens)?;
        whole.push(rates.whole);
        taken.push(rates.while_taken);
    }
    let (steady, whole, taken) = (median(&mut steady), median(&mut whole), median(&mut taken));
    println!(
        "{{\"device\": {:?}, \"model\": \"{}:{}\", \"slots\": {}, \"sequences\": {}, \"steady\": {steady:.1}, \
         \"joining_and_leaving\": {whole:.1}, \"ratio\": {:.3}, \"while_every_slot_is_taken\": {taken:.1}, \
         \"ratio_while_taken\": {:.3}}}",
        text(0, ""),
        text(1, "270m"),
        text(2, "bf16"),
        load.slots,
        load.sequences,
        whole / steady,
        taken / steady
    );
    Ok(())
}

fn session_options(load: &Load, sequence: usize) -> SessionOptions {
    let capacity = (PROMPT + load.longest).next_multiple_of(64);
    let cache = CacheOptions { capacity: Some(capacity), ..CacheOptions::default() };
    SessionOptions { cache, sequence: sequence as u64 }
}

fn options(tokens: usize) -> ContinueOptions {
    let sampling = SamplingOptions::greedy();
    ContinueOptions { sampling, max_new_tokens: Some(tokens), ..ContinueOptions::default() }
}

/// Tokens a second.
struct Rates {
    whole: f64,
    /// Until the first slot stays empty.
    while_taken: f64,
}

/// Of so many sequences over the slots, prompts included.
fn tokens_per_second(
    model: &Model,
    load: &Load,
    sequences: usize,
    tokens: impl Fn(usize) -> usize,
) -> Result<Rates, Failure> {
    let mut engine = Engine::new(model);
    let mut waiting = 0..sequences;
    let (mut generated, begin) = (0, Instant::now());
    let rate = |generated: i32| f64::from(generated) / begin.elapsed().as_secs_f64();
    let mut while_taken = None;
    // Their memory is that of those who come.
    let mut ended: Vec<Session> = Vec::new();
    loop {
        while engine.len() < load.slots
            && let Some(sequence) = waiting.next()
        {
            let mut session = match ended.pop() {
                Some(session) => session,
                None => Session::new(model, &session_options(load, sequence))?,
            };
            session.clear();
            session.set_sequence(sequence as u64);
            let ids: Vec<u32> = (0..PROMPT).map(|i| 3 + (i * 37 + sequence * 91) as u32 % 1000).collect();
            session.append(&ids)?;
            engine.start(session, options(tokens(sequence)))?;
        }
        if engine.len() < load.slots {
            while_taken.get_or_insert_with(|| rate(generated));
        }
        if engine.is_empty() {
            let whole = rate(generated);
            return Ok(Rates { whole, while_taken: while_taken.unwrap_or(whole) });
        }
        for event in engine.tick()? {
            match event {
                Event::Token { .. } => generated += 1,
                Event::Ended { slot, .. } => ended.extend(engine.finish(slot)),
                Event::Failed { error, .. } => return Err(error.into()),
            }
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
