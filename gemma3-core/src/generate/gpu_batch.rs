//! Several sessions on a GPU, by steps of all of them together.

use std::ops::ControlFlow;

use super::batch::Row;
use super::gpu::AHEAD;
use super::{FinishReason, GenerateError, Token};
use crate::CancelHandle;
use crate::cache::DeviceCache;
use crate::model::gpu::{Choice, DecodeStep};
use crate::model::{ForwardError, Model};

/// Continues all rows on the device until they have ended. `false`, with nothing done beyond their prompts, if
/// that can't be: the model is not on a GPU, the options ask for what the device can't do, or the caches differ
/// in size.
///
/// The caches of the sessions are copied side by side for the time, and back when a row has ended.
pub(super) fn run(
    model: &Model,
    rows: &mut [Row<'_>],
    cancel: &CancelHandle,
    on_token: &mut dyn FnMut(usize, &Token) -> ControlFlow<()>,
) -> Result<bool, GenerateError> {
    let Some(gpu) = model.decoder().gpu() else { return Ok(false) };
    if rows.len() < 2 || rows.iter().any(|row| !row.is_active() || !row.session.can_step(&row.stepper)) {
        return Ok(false);
    }
    for row in rows.iter_mut() {
        let last = row.session.len() - 1;
        if !row.session.compute_before(last, cancel)? {
            return Ok(false);
        }
    }
    let caches: Option<Vec<_>> = rows.iter_mut().map(|row| row.session.cache.on_device()).collect();
    let Some(mut together) = caches.and_then(|mut caches| DeviceCache::gather(&mut caches)) else {
        return Ok(false);
    };
    let tokens: Option<Vec<u32>> = rows.iter().map(|row| row.session.ids().last().copied()).collect();
    let Some(tokens) = tokens else { return Ok(false) };
    let positions: Vec<u32> = rows.iter().map(|row| row.session.len() as u32 - 1).collect();
    let choices: Vec<Choice<'_>> = rows.iter().map(|row| row.stepper.choice(row.session)).collect();
    let mut step = DecodeStep::new(gpu, rows.len());
    if !step.begin(&tokens, &positions, &choices) {
        return Ok(false);
    }
    drop(choices);
    let mut here = vec![true; rows.len()];
    let result = steps(&mut step, &mut together, rows, &mut here, cancel, on_token);
    // Those that were cancelled, and, after an error, all that were still going.
    let mut back = Ok(());
    for (index, row) in rows.iter_mut().enumerate().filter(|(index, _)| here[*index]) {
        back = back.and(take_back(&together, index, row));
    }
    result.and(back).map(|()| true)
}

/// Steps until all rows have ended. `here` are those whose newest entries are not in their own cache yet.
fn steps(
    step: &mut DecodeStep,
    together: &mut DeviceCache,
    rows: &mut [Row<'_>],
    here: &mut [bool],
    cancel: &CancelHandle,
    on_token: &mut dyn FnMut(usize, &Token) -> ControlFlow<()>,
) -> Result<(), GenerateError> {
    while rows.iter().any(Row::is_active) {
        if cancel.is_cancelled() {
            rows.iter_mut().filter(|row| row.is_active()).for_each(|row| {
                row.stepper.finish(FinishReason::Cancelled);
            });
            break;
        }
        // No active row may run beyond its room.
        let room =
            rows.iter().filter(|row| row.is_active()).map(|row| row.session.capacity() - row.session.len());
        let ahead = AHEAD.min(room.min().unwrap_or(0)).max(1);
        while step.ahead() < ahead {
            step.send(together)?;
        }
        let tokens = step.receive()?;
        let under_way = step.ahead();
        for (index, (row, id)) in
            rows.iter_mut().zip(tokens).enumerate().filter(|(_, (row, _))| row.is_active())
        {
            let id = id.map_err(|fault| super::gpu::fault_error(fault, row.session))?;
            row.session.cache.advance(1);
            row.session.cache.note_written(under_way);
            let token = Token { id, logprob: None, top_logprobs: Vec::new() };
            let token = row.stepper.accept(row.session, token);
            if on_token(index, &token).is_break() {
                row.stepper.finish_with(FinishReason::Stop);
                row.stopped_by_caller = true;
            }
            row.tokens.push(token);
            if !row.is_active() {
                take_back(together, index, row)?;
                here[index] = false;
            }
        }
    }
    Ok(())
}

fn take_back(together: &DeviceCache, index: usize, row: &mut Row<'_>) -> Result<(), GenerateError> {
    let elsewhere = ForwardError::Bug { what: "a cache left its GPU during a batch" };
    together.take_back(index, row.session.cache.on_device().ok_or(elsewhere)?);
    Ok(())
}
