//! Tokens one by one.

use super::engine::{Engine, Event, SlotId};
use super::{ContinueOptions, FinishReason, GenerateError, Session, Token};
use crate::CancelHandle;

/// An iterator over generated tokens. Each call of `next` computes one token; the first one also
/// computes what the session has not yet computed of its prompt. Dropping the stream stops, and what
/// was generated stays in the session.
///
/// After the last token, or after an error, it yields `None`, and
/// [`finish_reason`](TokenStream::finish_reason) says why.
#[derive(Debug)]
pub struct TokenStream<'a> {
    engine: Engine<Held<'a>>,
    slot: SlotId,
    seed: u64,
    cancel: CancelHandle,
    failed: bool,
}

/// A session that the caller keeps.
pub(super) type Held<'a> = &'a mut Session;

impl<'a> TokenStream<'a> {
    pub(super) fn new(session: &'a mut Session, options: ContinueOptions) -> Result<Self, GenerateError> {
        let mut engine = Engine::new(session.model());
        let cancel = CancelHandle::new();
        let slot = engine.start_with(session, options, cancel.clone())?;
        let seed = engine.slot(slot).map_or(0, |slot| slot.seed());
        Ok(Self { engine, slot, seed, cancel, failed: false })
    }

    /// Stops when `cancel` is thrown, in place of the stream's own handle.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancelHandle) -> Self {
        self.cancel = cancel.clone();
        if let Some(slot) = self.engine.slot_mut(self.slot) {
            slot.cancel = cancel;
        }
        self
    }

    /// A handle that stops this stream, also from another thread and during a long prefill.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Why the stream ended; `None` while it goes on, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.engine.finish_reason(self.slot)
    }

    /// Ends the stream with a reason that the caller found, such as a stop string. It takes precedence
    /// over a reason that the same token gave.
    pub fn finish_with(&mut self, reason: FinishReason) {
        self.engine.finish_with(self.slot, reason);
    }

    /// The seed in use: the given one, or the one that was drawn.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The ids of the session as they stand.
    pub fn ids(&self) -> &[u32] {
        self.engine.session(self.slot).map_or(&[], Session::ids)
    }

    /// Computes the prompt without choosing a token, so that the first `next` is a single step.
    /// Returns `false` if that was cancelled.
    ///
    /// # Errors
    ///
    /// Those of [`Session::compute`].
    pub fn prefill(&mut self) -> Result<bool, GenerateError> {
        match self.engine.slot_mut(self.slot) {
            Some(slot) if slot.under_way == 0 => slot.session_mut().compute(&self.cancel),
            _ => Ok(true),
        }
    }
}

impl Iterator for TokenStream<'_> {
    type Item = Result<Token, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed && self.finish_reason().is_none() {
            let error = match self.engine.tick() {
                // A token comes before what it ends, of which `finish_reason` tells.
                Ok(events) => match events.into_iter().next() {
                    Some(Event::Token { token, .. }) => return Some(Ok(token)),
                    Some(Event::Failed { error, .. }) => error,
                    Some(Event::Ended { .. }) | None => continue,
                },
                Err(error) => error,
            };
            self.failed = true;
            return Some(Err(error));
        }
        None
    }
}
