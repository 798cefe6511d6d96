//! A sequence of an engine: what is left to compute of it, how its tokens are chosen, and when it ends.

use std::borrow::BorrowMut;

use super::engine::SlotId;
use super::scoring::{ScoredToken, score};
use super::{ContinueOptions, FinishReason, GenerateError, Session};
use crate::CancelHandle;
use crate::model::ForwardError;
use crate::ops::machine::{Choice, Fault};
use crate::sampling::{Sampler, SamplingError, TokenHistory, TokenLogprob, fresh_seed};

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The id.
    pub id: u32,
    /// ln of its probability under the model's raw logits, if asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens in its place, the most probable first, if asked for.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// One sequence that is being continued.
#[derive(Debug)]
pub(super) struct Slot<S> {
    pub(super) session: S,
    pub(super) cancel: CancelHandle,
    sampler: Sampler,
    history: TokenHistory,
    seed: u64,
    max_new_tokens: usize,
    stop_token_ids: Vec<u32>,
    logprobs: Option<usize>,
    produced: usize,
    finish: Option<FinishReason>,
    /// Whether it has ended with an error.
    has_failed: bool,
    /// Whether its steps have begun.
    pub(super) is_stepping: bool,
    /// Before its steps begin, the prompts are computed of those who were there when its own was.
    pub(super) waits_for: Option<SlotId>,
    /// Its steps whose tokens have not come yet.
    pub(super) under_way: usize,
}

/// What a slot needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: it has ended.
    Nothing,
    /// A token from logits that the session has.
    Choice,
    /// Tokens before its newest.
    Prompt,
    /// Its newest token, and from it the next one.
    Step,
}

impl<S: BorrowMut<Session>> Slot<S> {
    pub(super) fn new(
        session: S,
        options: ContinueOptions,
        cancel: CancelHandle,
    ) -> Result<Self, GenerateError> {
        let held = session.borrow();
        if held.is_empty() {
            return Err(GenerateError::EmptySession);
        }
        let mut history = TokenHistory::new();
        if options.sampling.uses_history() {
            history.push_prompt(held.ids());
        }
        let seed = options.sampling.seed.unwrap_or_else(fresh_seed);
        let mut slot = Self {
            session,
            cancel,
            sampler: Sampler::new(options.sampling)?.with_suppressed(options.suppressed_ids),
            history,
            seed,
            max_new_tokens: options.max_new_tokens.unwrap_or(usize::MAX),
            stop_token_ids: options.stop_token_ids,
            logprobs: options.logprobs,
            produced: 0,
            finish: None,
            has_failed: false,
            is_stepping: false,
            waits_for: None,
            under_way: 0,
        };
        slot.look_for_room();
        Ok(slot)
    }

    pub(super) fn session(&self) -> &Session {
        self.session.borrow()
    }

    pub(super) fn session_mut(&mut self) -> &mut Session {
        self.session.borrow_mut()
    }

    pub(super) fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether there is nothing more to do.
    pub(super) fn has_ended(&self) -> bool {
        self.finish.is_some() || self.has_failed
    }

    /// Ends with an error.
    pub(super) fn fail(&mut self) {
        self.has_failed = true;
    }

    /// Ends, if it has not ended yet.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        self.finish_with(self.finish.unwrap_or(reason));
    }

    /// Ends with a reason that takes precedence over an earlier one.
    pub(super) fn finish_with(&mut self, reason: FinishReason) {
        self.finish = Some(reason);
    }

    /// What it needs next.
    pub(super) fn need(&self) -> Need {
        let session = self.session();
        // An image's last token has a vector, which a step can't look up.
        let is_at_last = session.computed() + 1 >= session.len() && !session.ends_in_image();
        match () {
            () if self.has_ended() => Need::Nothing,
            () if session.has_logits() => Need::Choice,
            () if is_at_last => Need::Step,
            () => Need::Prompt,
        }
    }

    /// The session, and how the device is to choose its tokens, if that can be: log-probabilities are of logits, which
    /// the host has.
    pub(super) fn parts(&mut self) -> (&mut Session, Option<Choice<'_>>) {
        let Self { session, sampler, history, seed, logprobs, .. } = self;
        let session = session.borrow_mut();
        let choice = logprobs.is_none().then(|| Choice {
            options: sampler.options(),
            history,
            suppressed: sampler.suppressed(),
            seed: *seed,
            sequence: session.sequence(),
        });
        (session, choice)
    }

    /// Whether a step can be sent before the tokens of those under way are known.
    pub(super) fn may_run_ahead(&self) -> bool {
        !self.has_ended() && self.under_way < self.remaining()
    }

    /// Tokens that may still be generated.
    fn remaining(&self) -> usize {
        let session = self.session();
        let room = session.capacity() - session.len();
        room.min(self.max_new_tokens.saturating_sub(self.produced))
    }

    /// Chooses the next token from the session's logits, and appends it.
    pub(super) fn choose(&mut self) -> Result<Token, GenerateError> {
        let missing = ForwardError::Bug { what: "a token was to be chosen before its logits were computed" };
        let mut logits = self.session_mut().take_logits().ok_or(missing)?;
        // The processors write into the logits; what is reported is of the raw ones.
        let raw = self.logprobs.map(|_| logits.clone());
        let key = self.session().random_key(self.seed);
        let id = self.sampler.sample(&mut logits, &self.history, key)?;
        let token = match (self.logprobs, raw) {
            (Some(top), Some(raw)) => {
                let ScoredToken { id, logprob, top } = score(&raw, id, top)?;
                Token { id, logprob: Some(logprob), top_logprobs: top }
            }
            _ => Token { id, logprob: None, top_logprobs: Vec::new() },
        };
        Ok(self.accept(token))
    }

    /// Appends a token that the device chose in the oldest step under way.
    pub(super) fn receive(&mut self, token: Result<u32, Fault>) -> Result<Token, GenerateError> {
        match token {
            Ok(id) => {
                self.under_way = self.under_way.saturating_sub(1);
                self.session_mut().catch_up();
                Ok(self.accept(Token { id, logprob: None, top_logprobs: Vec::new() }))
            }
            Err(fault) => {
                // Its step counts as not computed, so that who goes on finds the same.
                self.fail();
                let vocab_size = self.session().model().text_config().vocab_size;
                Err(GenerateError::from(match fault {
                    Fault::Nan { id, .. } => SamplingError::NanLogit { id },
                    Fault::Infinite { id, processed } => SamplingError::infinite(id, processed),
                    Fault::NothingLeft => SamplingError::NothingLeft { vocab_size },
                }))
            }
        }
    }

    /// Appends a token that was chosen, and looks whether it ends the generation.
    fn accept(&mut self, token: Token) -> Token {
        let id = token.id;
        self.session_mut().push_generated(id);
        if self.sampler.options().uses_history() {
            self.history.push_generated(id);
        }
        self.produced += 1;
        if self.stop_token_ids.contains(&id) {
            self.finish(FinishReason::Stop);
        }
        self.look_for_room();
        token
    }

    fn look_for_room(&mut self) {
        let session = self.session();
        let is_full = session.len() >= session.capacity();
        if self.produced >= self.max_new_tokens {
            self.finish(FinishReason::Length);
        } else if is_full {
            self.finish(FinishReason::ContextFull);
        }
    }
}
