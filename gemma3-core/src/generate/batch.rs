//! Several sessions at once.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::engine::{Engine, Event};
use super::{ContinueOptions, FinishReason, GenerateError, Session, Token};
use crate::CancelHandle;

/// What one session of a batch generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The tokens, the stop id included.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Whether the caller's own condition ended it.
    pub stopped_by_caller: bool,
}

/// Continues several sessions together, each with its own options, until all have ended.
///
/// The prompts may differ in length; nothing is padded. Each step reads the weights once for all
/// sequences that are still going. The tokens agree with those of one session after the other: within
/// rounding, and exactly in everything random. Where sequences come and go, an [`Engine`] continues them.
///
/// # Errors
///
/// Sessions of different models, another number of options than sessions, and whatever ends a single
/// generation with an error.
pub fn generate_batch(
    sessions: &mut [&mut Session],
    options: &[ContinueOptions],
    cancel: &CancelHandle,
) -> Result<Vec<Completion>, GenerateError> {
    generate_batch_with(sessions, options, cancel, &mut |_, _| ControlFlow::Continue(()))
}

/// [`generate_batch`] with a look at each token as it comes: `on_token` is given the index of the session
/// and the token, and ends that session with [`FinishReason::Stop`] by breaking.
///
/// # Errors
///
/// Those of [`generate_batch`].
pub fn generate_batch_with(
    sessions: &mut [&mut Session],
    options: &[ContinueOptions],
    cancel: &CancelHandle,
    on_token: &mut dyn FnMut(usize, &Token) -> ControlFlow<()>,
) -> Result<Vec<Completion>, GenerateError> {
    let Some(model) = sessions.first().map(|session| session.model().clone()) else {
        return Ok(Vec::new());
    };
    if sessions.len() != options.len() {
        return Err(GenerateError::BatchLength { sessions: sessions.len(), options: options.len() });
    }
    let mut engine = Engine::new(&model);
    let mut places = HashMap::new();
    let mut completions = Vec::with_capacity(sessions.len());
    for (index, (session, options)) in sessions.iter_mut().zip(options).enumerate() {
        let slot = engine.start_with(&mut **session, options.clone(), cancel.clone())?;
        places.insert(slot, index);
        completions.push(Completion {
            tokens: Vec::new(),
            // There may be no room for a token, of which no event tells.
            finish_reason: engine.finish_reason(slot).unwrap_or(FinishReason::Cancelled),
            stopped_by_caller: false,
        });
    }
    while !engine.is_idle() {
        for event in engine.tick()? {
            match event {
                Event::Token { slot, token } => {
                    let index = places[&slot];
                    let completion = &mut completions[index];
                    if on_token(index, &token).is_break() {
                        engine.finish_with(slot, FinishReason::Stop);
                        completion.finish_reason = FinishReason::Stop;
                        completion.stopped_by_caller = true;
                    }
                    completion.tokens.push(token);
                }
                Event::Ended { slot, reason } => {
                    let completion = &mut completions[places[&slot]];
                    if !completion.stopped_by_caller {
                        completion.finish_reason = reason;
                    }
                }
                Event::Failed { error, .. } => return Err(error),
            }
        }
    }
    Ok(completions)
}
