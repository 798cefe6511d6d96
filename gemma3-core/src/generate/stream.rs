//! Tokens one by one.

use super::stepper::Stepper;
use super::{FinishReason, GenerateError, GenerateOptions, Session, Token};
use crate::CancelHandle;

/// An iterator over generated tokens. Each call of `next` computes one token; the first one also
/// computes what the session has not yet computed of its prompt. Dropping the stream stops, and what
/// was generated stays in the session.
///
/// After the last token, or after an error, it yields `None`, and
/// [`finish_reason`](TokenStream::finish_reason) says why.
#[derive(Debug)]
pub struct TokenStream<'a> {
    session: &'a mut Session,
    stepper: Stepper,
    cancel: CancelHandle,
    failed: bool,
}

impl<'a> TokenStream<'a> {
    pub(super) fn new(session: &'a mut Session, options: GenerateOptions) -> Result<Self, GenerateError> {
        let stepper = Stepper::new(session, options)?;
        Ok(Self { session, stepper, cancel: CancelHandle::new(), failed: false })
    }

    /// Stops when `cancel` is thrown, in place of the stream's own handle.
    pub fn with_cancel(mut self, cancel: CancelHandle) -> Self {
        self.cancel = cancel;
        self
    }

    /// A handle that stops this stream, also from another thread and during a long prefill.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Why the stream ended; `None` while it goes on, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.stepper.finish_reason()
    }

    /// Ends the stream with a reason that the caller found, such as a stop string. It takes precedence
    /// over a reason that the same token gave.
    pub fn finish_with(&mut self, reason: FinishReason) {
        self.stepper.finish_with(reason);
    }

    /// The seed in use: the given one, or the one that was drawn.
    pub fn seed(&self) -> u64 {
        self.stepper.seed()
    }

    /// The session as it stands.
    pub fn session(&self) -> &Session {
        self.session
    }

    /// Computes the prompt without choosing a token, so that the first `next` is a single step.
    /// Returns `false` if that was cancelled.
    ///
    /// # Errors
    ///
    /// Those of [`Session::compute`].
    pub fn prefill(&mut self) -> Result<bool, GenerateError> {
        self.session.compute(&self.cancel)
    }

    fn step(&mut self) -> Result<Option<Token>, GenerateError> {
        #[cfg(feature = "cube")]
        if !self.cancel.is_cancelled()
            && let Some(token) = self.stepper.step_on_device(self.session, &self.cancel)?
        {
            return Ok(Some(token));
        }
        if self.cancel.is_cancelled() || !self.session.compute(&self.cancel)? {
            self.stepper.finish(FinishReason::Cancelled);
            return Ok(None);
        }
        self.stepper.step(self.session).map(Some)
    }
}

impl Iterator for TokenStream<'_> {
    type Item = Result<Token, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.stepper.finish_reason().is_some() {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}
