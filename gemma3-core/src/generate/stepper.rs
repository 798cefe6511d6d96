//! One generation's bookkeeping: choosing tokens from logits until there is a reason to stop. Streams
//! and batches share it.

use super::session::{ScoredToken, score};
use super::{FinishReason, GenerateError, GenerateOptions, Session};
use crate::model::ForwardError;
use crate::sampling::{Sampler, TokenHistory, TokenLogprob, fresh_seed};

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

#[derive(Debug)]
pub(super) struct Stepper {
    pub(super) sampler: Sampler,
    pub(super) history: TokenHistory,
    seed: u64,
    max_new_tokens: usize,
    stop_token_ids: Vec<u32>,
    pub(super) logprobs: Option<usize>,
    produced: usize,
    finish: Option<FinishReason>,
    #[cfg(feature = "cube")]
    pub(super) place: super::gpu::Place,
}

impl Stepper {
    pub(super) fn new(session: &Session, options: GenerateOptions) -> Result<Self, GenerateError> {
        if session.is_empty() {
            return Err(GenerateError::EmptySession);
        }
        let mut history = TokenHistory::new();
        if options.sampling.uses_history() {
            history.push_prompt(session.ids());
        }
        let seed = options.sampling.seed.unwrap_or_else(fresh_seed);
        let mut stepper = Self {
            sampler: Sampler::new(options.sampling)?.with_suppressed(options.suppressed_ids),
            history,
            seed,
            max_new_tokens: options.max_new_tokens.unwrap_or(usize::MAX),
            stop_token_ids: options.stop_token_ids,
            logprobs: options.logprobs,
            produced: 0,
            finish: None,
            #[cfg(feature = "cube")]
            place: super::gpu::Place::default(),
        };
        stepper.look_for_room(session);
        Ok(stepper)
    }

    pub(super) fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    pub(super) fn finish(&mut self, reason: FinishReason) {
        self.finish.get_or_insert(reason);
    }

    /// Ends with a reason that takes precedence over an earlier one.
    pub(super) fn finish_with(&mut self, reason: FinishReason) {
        self.finish = Some(reason);
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses the next token from the session's logits, which have been computed, and appends it.
    pub(super) fn step(&mut self, session: &mut Session) -> Result<Token, GenerateError> {
        let missing = ForwardError::Bug { what: "a token was to be chosen before its logits were computed" };
        let mut logits = session.take_logits().ok_or(missing)?;
        // The processors write into the logits; what is reported is of the raw ones.
        let raw = self.logprobs.map(|_| logits.clone());
        let key = session.random_key(self.seed);
        let id = self.sampler.sample(&mut logits, &self.history, key)?;
        let token = match (self.logprobs, raw) {
            (Some(top), Some(raw)) => {
                let ScoredToken { id, logprob, top } = score(&raw, id, top)?;
                Token { id, logprob: Some(logprob), top_logprobs: top }
            }
            _ => Token { id, logprob: None, top_logprobs: Vec::new() },
        };
        Ok(self.accept(session, token))
    }

    /// Appends a token that was chosen, and looks whether it ends the generation.
    pub(super) fn accept(&mut self, session: &mut Session, token: Token) -> Token {
        let id = token.id;
        session.push_generated(id);
        if self.sampler.options().uses_history() {
            self.history.push_generated(id);
        }
        self.produced += 1;
        if self.stop_token_ids.contains(&id) {
            self.finish(FinishReason::Stop);
        }
        self.look_for_room(session);
        token
    }

    /// Tokens that may still be generated.
    #[cfg(feature = "cube")]
    pub(super) fn remaining(&self, session: &Session) -> usize {
        let room = session.capacity() - session.len();
        room.min(self.max_new_tokens.saturating_sub(self.produced))
    }

    fn look_for_room(&mut self, session: &Session) {
        if self.produced >= self.max_new_tokens {
            self.finish(FinishReason::Length);
        } else if session.len() >= session.capacity() {
            self.finish(FinishReason::ContextFull);
        }
    }
}
