//! Single tokens on a GPU: recorded steps, which choose their tokens there, ahead of the host that reads them.

use std::fmt;

use super::stepper::Stepper;
use super::{GenerateError, Session, Token};
use crate::CancelHandle;
use crate::model::ForwardError;
use crate::model::gpu::{Choice, DecodeStep, Fault};
use crate::sampling::SamplingError;

/// The recorded step of a session: it is bound to the session's cache, so a fork makes its own.
#[derive(Default)]
pub(super) struct StepSlot(Option<Box<DecodeStep>>);

impl Clone for StepSlot {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for StepSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "StepSlot(recorded)" } else { "StepSlot(none)" })
    }
}

/// Steps that are sent before the token of the first is read: while the host reads and decides, the device has
/// something to do.
pub(super) const AHEAD: usize = 2;

/// How a stream of tokens chooses them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// Not decided yet.
    #[default]
    Unknown,
    /// On the device, by steps under way.
    Device,
    /// On the host, from logits: the device has no model, or can't do what the options ask.
    Host,
}

impl Session {
    /// Computes the token at a position as a step of its own; `None` where the model isn't on a GPU.
    pub(super) fn step_logits(&mut self, position: usize) -> Result<Option<Vec<f32>>, GenerateError> {
        let model = self.model.clone();
        let (Some(gpu), Some(cache), Some(id)) =
            (model.decoder().gpu(), self.cache.on_device(), self.ids.get(position))
        else {
            return Ok(None);
        };
        let step = self.step.0.get_or_insert_with(|| Box::new(DecodeStep::new(gpu, 1)));
        let logits = step.logits(cache, *id, position)?;
        self.cache.advance(1);
        Ok(Some(logits))
    }

    /// Whether the last token is of an image: it has a vector, which a step can't look up.
    fn ends_in_image(&self) -> bool {
        let last = self.len().saturating_sub(1);
        self.spans.last().is_some_and(|span| span.range().contains(&last))
    }

    /// Whether steps on the device can go on from here.
    pub(super) fn can_step(&self, stepper: &Stepper) -> bool {
        stepper.logprobs.is_none() && !self.has_logits() && !self.is_empty() && !self.ends_in_image()
    }

    /// Sets out to choose tokens on the device; `false` where the host has to.
    fn begin_steps(&mut self, choice: Choice<'_>) -> bool {
        let model = self.model.clone();
        let (Some(gpu), Some(last)) = (model.decoder().gpu(), self.ids.last()) else { return false };
        let position = self.len() - 1;
        if self.ends_in_image() {
            return false;
        }
        let step = self.step.0.get_or_insert_with(|| Box::new(DecodeStep::new(gpu, 1)));
        step.begin(&[*last], &[position as u32], &[choice])
    }

    /// Sends steps until `ahead` are under way, then waits for the token of the first.
    fn next_step(&mut self, ahead: usize) -> Result<Result<u32, Fault>, GenerateError> {
        let (Some(step), Some(cache)) = (&mut self.step.0, self.cache.on_device()) else {
            return Err(ForwardError::Bug { what: "steps go on that never began" }.into());
        };
        while step.ahead() < ahead {
            step.send(cache)?;
        }
        let [token] = step.receive()?[..] else {
            return Err(ForwardError::Bug { what: "a session's step chose tokens for several" }.into());
        };
        let under_way = step.ahead();
        if token.is_ok() {
            self.cache.advance(1);
            // What is under way has written one slot more for each step.
            self.cache.note_written(under_way);
        } else {
            self.cache.note_written(under_way + 1);
        }
        Ok(token)
    }
}

impl Stepper {
    /// How the session's next tokens are chosen.
    pub(super) fn choice(&self, session: &Session) -> Choice<'_> {
        Choice {
            options: self.sampler.options(),
            history: &self.history,
            suppressed: self.sampler.suppressed(),
            seed: self.seed(),
            sequence: session.sequence(),
        }
    }

    /// Chooses the next token on the device, if the model is there and the options allow it. The session must
    /// not have logits.
    pub(super) fn step_on_device(
        &mut self,
        session: &mut Session,
        cancel: &CancelHandle,
    ) -> Result<Option<Token>, GenerateError> {
        if self.place == Place::Host || self.logprobs.is_some() || session.has_logits() {
            return Ok(None);
        }
        if self.place == Place::Unknown {
            if session.model.decoder().gpu().is_none() {
                self.place = Place::Host;
                return Ok(None);
            }
            // Everything but the last token, which the first step computes.
            if !session.compute_before(session.len() - 1, cancel)? {
                return Ok(None);
            }
            let choice = self.choice(session);
            let begun = session.begin_steps(choice);
            self.place = if begun { Place::Device } else { Place::Host };
            if !begun {
                return Ok(None);
            }
        }
        let ahead = AHEAD.min(self.remaining(session)).max(1);
        let id = session.next_step(ahead)?.map_err(|fault| fault_error(fault, session))?;
        Ok(Some(self.accept(session, Token { id, logprob: None, top_logprobs: Vec::new() })))
    }
}

/// What the host's sampler says of the same logits.
pub(super) fn fault_error(fault: Fault, session: &Session) -> SamplingError {
    let vocab_size = session.model.decoder().config().vocab_size;
    match fault {
        Fault::Nan { id, .. } => SamplingError::NanLogit { id },
        Fault::Infinite { id, processed } => SamplingError::infinite(id, processed),
        Fault::NothingLeft => SamplingError::NothingLeft { vocab_size },
    }
}
