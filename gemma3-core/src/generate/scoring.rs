//! Scoring a given text: how the model rates each of its tokens.

use super::{GenerateError, Session};
use crate::model::Logits;
use crate::sampling::{LogProbs, TokenLogprob};

/// Rows of logits that are held at once while a text is scored: 64 of Gemma's vocabulary are 64 MiB.
const SCORED_ROWS: usize = 64;

/// A token of a given text and how the model rated it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// The token.
    pub id: u32,
    /// ln of its probability after the tokens before it.
    pub logprob: f32,
    /// The most probable tokens in its place, the most probable first.
    pub top: Vec<TokenLogprob>,
}

impl Session {
    /// Appends tokens and reports, for each of them that has one before it, its log-probability (of
    /// the model's raw logits, natural logarithm) and the `top` most probable tokens in its place.
    ///
    /// For the first token of an empty session there is none, so the result is then one shorter than
    /// `ids`.
    ///
    /// # Errors
    ///
    /// Those of [`append`](Session::append) and of the forward pass.
    pub fn prefill_scored(&mut self, ids: &[u32], top: usize) -> Result<Vec<ScoredToken>, GenerateError> {
        let mut scored = Vec::with_capacity(ids.len());
        if !self.is_empty() && !ids.is_empty() {
            let first = ids[0];
            scored.push(score(self.logits()?, first, top)?);
        }
        let already = self.len();
        self.append(ids)?;
        while self.computed() < self.len() {
            // Images were computed by `logits`, so what is left are ids.
            let chunk = self.next_chunk(SCORED_ROWS);
            let outcome = self.send(chunk.clone(), Logits::All)?.wait();
            if outcome.is_err() {
                self.distrust();
            }
            let mut rows = outcome?.pop().unwrap_or_default().logits;
            for (row, position) in rows.iter().zip(chunk) {
                if position >= already
                    && let Some(next) = self.ids().get(position + 1)
                {
                    scored.push(score(row, *next, top)?);
                }
            }
            if self.computed() == self.len()
                && let Some(last) = rows.pop()
            {
                self.set_logits(last);
            }
        }
        Ok(scored)
    }
}

pub(super) fn score(logits: &[f32], id: u32, top: usize) -> Result<ScoredToken, GenerateError> {
    let logprobs = LogProbs::new(logits)?;
    let top = if top == 0 { Vec::new() } else { logprobs.top(top) };
    Ok(ScoredToken { id, logprob: logprobs.of(id)?, top })
}
