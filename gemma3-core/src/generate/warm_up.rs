//! Compiling a GPU's kernels before the first text needs them.

use super::engine::AHEAD;
use super::{ContinueOptions, Engine, Event, GenerateError, Session, SessionOptions};
use crate::CancelHandle;
use crate::model::{Logits, Model};

/// How far a warm-up has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmUpProgress {
    /// Stages that are done.
    pub done: usize,
    /// Stages altogether.
    pub total: usize,
}

/// Runs everything once that sessions with these options and generations with these options will need, so that a
/// GPU has compiled it: prompts, and steps with tokens chosen on the host and on the device. Afterwards generating
/// compiles nothing, however long the text grows.
///
/// What kernels depend on:
///
/// - the sizes and the numbers of the cache: warm up with the options that the sessions will have;
/// - whether tokens are drawn or the largest logit is taken, and whether logits are adjusted by token (penalties,
///   biases, suppressed ids); not the values of temperature, top-k and the like. Sessions that differ in this need
///   a warm-up each;
/// - the number of sequences of a batch: [`warm_up_batch`];
/// - the number of tokens that a prompt has beyond whole chunks. Up to 64, and a whole chunk, are compiled here.
///   Rests between those use kernels of their own on NVIDIA's tensor cores, of which a few may still be compiled when
///   a prompt of that length comes first; other devices, and exact mode, have none.
///
/// The image encoder, traces and [`Session::prefill_scored`] are not warmed up. On a device that compiles nothing
/// this computes a few tokens.
///
/// # Errors
///
/// Those of [`Session::new`] and of generating.
pub fn warm_up(
    model: &Model,
    session: &SessionOptions,
    options: &ContinueOptions,
    progress: &mut dyn FnMut(WarmUpProgress),
) -> Result<(), GenerateError> {
    let mut session = Session::new(model, session)?;
    let id = some_id(model);
    let lengths = model.runner().lengths_to_compile(session.chunk().min(session.capacity()));
    let total = lengths.len() + 2;
    let mut report = |done| progress(WarmUpProgress { done, total });
    for (done, length) in lengths.iter().enumerate() {
        report(done);
        session.clear();
        session.append(&vec![id; *length])?;
        match length {
            // Without logits: with them it would be a step.
            1 => drop(session.send(0..1, Logits::None)?.wait()?),
            _ => drop(session.compute(&CancelHandle::new())?),
        }
    }
    report(lengths.len());
    // Single tokens: one whose logits the host gets, and some that the device chooses if it can.
    session.clear();
    session.append(&[id])?;
    session.logits()?;
    report(lengths.len() + 1);
    if session.len() < session.capacity() {
        session.append(&[id])?;
    }
    for token in session.generate(brief(options, 3))? {
        token?;
    }
    model.runner().compile_copies();
    report(total);
    Ok(())
}

/// Tokens after which the first sequence of a batch's warm-up ends, and those after which the next does.
const FIRST_ENDS: usize = 3;
const OTHERS_END: usize = FIRST_ENDS + 2 * AHEAD[1];
/// Tokens of the prompt that joins them: with them as many rows as products of many rows need on any device.
const JOINING: usize = 9;

/// The same for [`generate_batch`](super::generate_batch) of as many sessions as there are options, and for an [`Engine`] in
/// which so many are the first to step together: others then come and go. (Where it may be fewer, each number has a warm-up.)
/// What [`warm_up`] compiles, each session's prompt first of all, is not compiled here.
///
/// # Errors
///
/// Those of [`Session::new`] and of generating.
pub fn warm_up_batch(
    model: &Model,
    session: &SessionOptions,
    options: &[ContinueOptions],
    progress: &mut dyn FnMut(WarmUpProgress),
) -> Result<(), GenerateError> {
    progress(WarmUpProgress { done: 0, total: 1 });
    let mut engine = Engine::new(model);
    // One after the other ends, so that, where the host chooses, steps of ever fewer sequences are made; all but the first so
    // late that steps which are on their way when it has ended aren't their last.
    for (options, tokens) in options.iter().zip(std::iter::once(FIRST_ENDS).chain(OTHERS_END..)) {
        let (session, options) = (short_session(model, session, 2)?, brief(options, tokens));
        engine.start(session, options)?;
    }
    let mut comes_later = options.first().filter(|_| options.len() > 1);
    while !engine.is_idle() {
        let mut has_ended = false;
        for event in engine.tick()? {
            match event {
                Event::Token { .. } => {}
                Event::Ended { slot, .. } => {
                    drop(engine.finish(slot));
                    has_ended = true;
                }
                Event::Failed { error, .. } => return Err(error),
            }
        }
        // In the place of the first that ends comes another, while the rest go on.
        if has_ended && let Some(options) = comes_later.take() {
            engine.start(short_session(model, session, JOINING)?, brief(options, 2))?;
        }
    }
    progress(WarmUpProgress { done: 1, total: 1 });
    Ok(())
}

/// A session with a prompt of so many tokens, as far as there is room.
fn short_session(model: &Model, options: &SessionOptions, tokens: usize) -> Result<Session, GenerateError> {
    let mut session = Session::new(model, options)?;
    session.append(&vec![some_id(model); tokens.min(session.capacity())])?;
    Ok(session)
}

/// Options for a few tokens, whatever they are.
fn brief(options: &ContinueOptions, tokens: usize) -> ContinueOptions {
    ContinueOptions { max_new_tokens: Some(tokens), stop_token_ids: Vec::new(), ..options.clone() }
}

/// Any id will do: the numbers are not looked at.
fn some_id(model: &Model) -> u32 {
    2.min((model.text_config().vocab_size as u32).saturating_sub(1))
}
