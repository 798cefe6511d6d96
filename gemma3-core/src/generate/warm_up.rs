//! Compiling a GPU's kernels before the first text needs them.

use super::{CancelHandle, GenerateError, GenerateOptions, Session, SessionOptions};
use crate::model::Model;

/// How far a [`warm_up`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmUpProgress {
    /// Stages that are done.
    pub done: usize,
    /// Stages altogether.
    pub total: usize,
}

/// Runs everything once that sessions with these options and generations with these options will need, so that a
/// GPU has compiled it: prompts of a whole chunk and short ones, and steps with tokens chosen on the host and on the
/// device. Kernels depend on the sizes of the cache: warm up with the options that the sessions will have.
///
/// On a device that compiles nothing this computes a few tokens.
///
/// # Errors
///
/// Those of [`Session::new`] and of generating.
pub fn warm_up(
    model: &Model,
    session: &SessionOptions,
    options: &GenerateOptions,
    progress: &mut dyn FnMut(WarmUpProgress),
) -> Result<(), GenerateError> {
    const TOTAL: usize = 3;
    let mut report = |done| progress(WarmUpProgress { done, total: TOTAL });
    report(0);
    let mut session = Session::new(model, session)?;
    // Any id will do: the numbers are not looked at.
    let id = 2.min(model.decoder().config().vocab_size as u32 - 1);
    let chunk = session.cache.chunk().min(session.capacity());
    session.append(&vec![id; chunk])?;
    session.compute(&CancelHandle::new())?;
    report(1);
    let few = chunk.min(4);
    session.rewind(few);
    session.logits()?;
    report(2);
    session.rewind(few - 1);
    session.append(&[id])?;
    let options = GenerateOptions { max_new_tokens: Some(3), stop_token_ids: Vec::new(), ..options.clone() };
    for token in session.generate(options)? {
        token?;
    }
    report(TOTAL);
    Ok(())
}
