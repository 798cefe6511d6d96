//! Several sessions at once.

use std::ops::ControlFlow;

use super::stepper::Stepper;
use super::{FinishReason, GenerateError, GenerateOptions, Session, Token};
use crate::CancelHandle;
use crate::model::Model;

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
/// rounding, and exactly in everything random.
///
/// # Errors
///
/// Sessions of different models, another number of options than sessions, and whatever ends a single
/// generation with an error.
pub fn generate_batch(
    sessions: &mut [&mut Session],
    options: &[GenerateOptions],
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
    options: &[GenerateOptions],
    cancel: &CancelHandle,
    on_token: &mut dyn FnMut(usize, &Token) -> ControlFlow<()>,
) -> Result<Vec<Completion>, GenerateError> {
    let Some(model) = sessions.first().map(|session| session.model().clone()) else {
        return Ok(Vec::new());
    };
    if sessions.len() != options.len() {
        return Err(GenerateError::BatchLength { sessions: sessions.len(), options: options.len() });
    }
    if let Some(index) = sessions.iter().position(|session| !session.model().is_same(&model)) {
        return Err(GenerateError::MixedModels { index });
    }
    let mut rows = Vec::with_capacity(sessions.len());
    for (session, options) in sessions.iter_mut().zip(options) {
        let stepper = Stepper::new(session, options.clone())?;
        rows.push(Row { session, stepper, tokens: Vec::new(), stopped_by_caller: false });
    }
    #[cfg(feature = "cube")]
    if super::gpu_batch::run(&model, &mut rows, cancel, on_token)? {
        return Ok(rows.into_iter().map(Row::into_completion).collect());
    }
    for row in &mut rows {
        // Prompts are long enough to use the hardware well one at a time.
        if row.is_active() && !row.session.compute(cancel)? {
            row.stepper.finish(FinishReason::Cancelled);
        }
    }
    while rows.iter().any(Row::is_active) {
        step(&model, &mut rows, cancel, on_token)?;
    }
    Ok(rows.into_iter().map(Row::into_completion).collect())
}

pub(super) struct Row<'a> {
    pub(super) session: &'a mut Session,
    pub(super) stepper: Stepper,
    pub(super) tokens: Vec<Token>,
    pub(super) stopped_by_caller: bool,
}

impl Row<'_> {
    pub(super) fn is_active(&self) -> bool {
        self.stepper.finish_reason().is_none()
    }

    fn into_completion(self) -> Completion {
        // Every row is finished when this is called.
        let finish_reason = self.stepper.finish_reason().unwrap_or(FinishReason::Cancelled);
        Completion { tokens: self.tokens, finish_reason, stopped_by_caller: self.stopped_by_caller }
    }
}

/// Chooses a token for each active row, then computes those tokens together.
fn step(
    model: &Model,
    rows: &mut [Row<'_>],
    cancel: &CancelHandle,
    on_token: &mut dyn FnMut(usize, &Token) -> ControlFlow<()>,
) -> Result<(), GenerateError> {
    for (index, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.is_active()) {
        if cancel.is_cancelled() {
            row.stepper.finish(FinishReason::Cancelled);
            continue;
        }
        let token = row.stepper.step(row.session)?;
        if on_token(index, &token).is_break() {
            row.stepper.finish_with(FinishReason::Stop);
            row.stopped_by_caller = true;
        }
        row.tokens.push(token);
    }
    let mut active: Vec<_> = rows.iter_mut().filter(|row| row.is_active()).collect();
    if active.is_empty() {
        return Ok(());
    }
    let mut segments: Vec<_> = active.iter_mut().map(|row| row.session.step_segment()).collect();
    let logits = model.forward_last(&mut segments)?;
    for (row, logits) in active.iter_mut().zip(logits) {
        row.session.set_logits(logits);
    }
    Ok(())
}
