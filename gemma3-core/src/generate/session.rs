//! One sequence of tokens and what the model remembers of it.

use std::ops::Range;

use super::{ContinueOptions, GenerateError, TokenStream};
use crate::CancelHandle;
use crate::cache::{CacheOptions, KvCache};
use crate::model::{EmbeddedSpan, ForwardError, Logits, Model, Trace};
use crate::ops::machine::{Input, Wanted};
use crate::run::{Receipt, Row, check_input};
use crate::sampling::RandomKey;

/// How to make a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// Capacity and chunk of the cache.
    pub cache: CacheOptions,
    /// Tells sequences that share a seed apart; part of the key of every random number.
    pub sequence: u64,
}

/// A sequence that can be extended, continued by the model, forked and cut back.
///
/// Tokens are recorded at once and computed when they are needed, so appending is cheap, and what was
/// computed before is never computed again. Cloning is a fork: a second session with the same past. Memory is
/// shared until one of the two goes on.
#[derive(Debug, Clone)]
pub struct Session {
    model: Model,
    cache: KvCache,
    /// All tokens. The first `cache.len()` of them are in the cache.
    ids: Vec<u32>,
    /// Positions whose vectors are given instead of looked up, in order.
    spans: Vec<EmbeddedSpan>,
    /// Logits that follow the last token, once it is computed.
    logits: Option<Vec<f32>>,
    sequence: u64,
}

impl Session {
    /// An empty session.
    ///
    /// # Errors
    ///
    /// [`GenerateError::Cache`], for instance a cache larger than the memory.
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Self, GenerateError> {
        Ok(Self {
            cache: model.new_cache(&options.cache)?,
            model: model.clone(),
            ids: Vec::new(),
            spans: Vec::new(),
            logits: None,
            sequence: options.sequence,
        })
    }

    /// The model of this session.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// All tokens so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Number of tokens so far.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tokens that the session can hold.
    pub fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    /// The most tokens that are computed at once.
    pub(super) fn chunk(&self) -> usize {
        self.cache.chunk()
    }

    /// Tokens that have been through the model and need not be computed again.
    pub fn computed(&self) -> usize {
        self.cache.len()
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Appends tokens without computing them.
    ///
    /// # Errors
    ///
    /// [`GenerateError::PromptTooLong`] if they do not fit, an id that the model does not know, or the
    /// placeholder of an image; the session is then unchanged.
    pub fn append(&mut self, ids: &[u32]) -> Result<(), GenerateError> {
        self.append_with(ids, &[])
    }

    /// Appends tokens of which some are given as vectors: the soft tokens of images. The positions of
    /// `spans` count from the first of `ids`; the ids in their place are recorded and not looked up. An
    /// image is always computed as a whole, whatever the chunk.
    ///
    /// # Errors
    ///
    /// Those of [`append`](Session::append), vectors of another width, dtype or device, spans that overlap or
    /// lie outside of `ids`, or a span longer than the session's chunk.
    pub fn append_with(&mut self, ids: &[u32], spans: &[EmbeddedSpan]) -> Result<(), GenerateError> {
        let capacity = self.capacity();
        if ids.len() > capacity - self.len() {
            let (prompt_tokens, held) = (ids.len(), self.len());
            return Err(GenerateError::PromptTooLong { prompt_tokens, held, capacity });
        }
        check_input(ids, spans, self.model.text_config())?;
        if let Some(span) = spans.iter().find(|span| span.len() > self.cache.chunk()) {
            let (tokens, chunk) = (span.len(), self.cache.chunk());
            return Err(GenerateError::SpanLongerThanChunk { tokens, chunk });
        }
        self.check_placeholders(ids, spans)?;
        if !ids.is_empty() {
            let start = self.len();
            self.spans.extend(spans.iter().map(|span| span.at(start + span.start)));
            self.ids.extend_from_slice(ids);
            self.logits = None;
        }
        Ok(())
    }

    /// Ids outside of the spans must stand for text.
    fn check_placeholders(&self, ids: &[u32], spans: &[EmbeddedSpan]) -> Result<(), GenerateError> {
        let Some(placeholder) = self.model.config().image_tokens.map(|tokens| tokens.image) else {
            return Ok(());
        };
        let is_given = |position: usize| spans.iter().any(|span| span.range().contains(&position));
        let positions = ids.iter().enumerate().filter(|(_, id)| **id == placeholder);
        match positions.map(|(position, _)| position).find(|position| !is_given(*position)) {
            Some(position) => Err(GenerateError::PlaceholderWithoutImage { id: placeholder, position }),
            None => Ok(()),
        }
    }

    /// The next tokens to compute, up to `limit` of them; an image is not split, and no fewer are left for the next
    /// chunk than are computed like those of this one.
    pub(super) fn next_chunk(&self, limit: usize) -> Range<usize> {
        let start = self.cache.len();
        let limit = limit.min(self.cache.chunk());
        let left = self.len() - start;
        let alike = self.model.runner().alike_tokens();
        let missing = match left.checked_sub(limit) {
            Some(rest) if rest > 0 && limit >= 2 * alike => alike.saturating_sub(rest),
            _ => 0,
        };
        let end = start + left.min(limit) - missing;
        match self.spans.iter().map(EmbeddedSpan::range).find(|span| span.start < end && end < span.end) {
            Some(image) if image.start > start => start..image.start,
            Some(image) => start..image.end,
            None => start..end,
        }
    }

    /// Appends tokens and computes everything that is not yet computed.
    ///
    /// # Errors
    ///
    /// Those of [`append`](Session::append) and of the forward pass.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<(), GenerateError> {
        self.append(ids)?;
        self.compute(&CancelHandle::new())?;
        Ok(())
    }

    /// Computes the tokens that are not yet computed, chunk by chunk, and the logits after the last.
    ///
    /// Returns `false` if `cancel` was thrown before the end; the chunks that are done stay done.
    ///
    /// # Errors
    ///
    /// [`GenerateError::EmptySession`], and those of the forward pass.
    pub fn compute(&mut self, cancel: &CancelHandle) -> Result<bool, GenerateError> {
        if self.is_empty() {
            return Err(GenerateError::EmptySession);
        }
        while self.logits.is_none() {
            if cancel.is_cancelled() {
                return Ok(false);
            }
            let chunk = self.next_chunk(usize::MAX);
            let is_last = chunk.end == self.len();
            let logits = if is_last { Logits::Last } else { Logits::None };
            let outcome = self.send(chunk, logits)?.wait();
            if outcome.is_err() {
                self.distrust();
            }
            let outcome = outcome?.pop();
            if is_last {
                let missing =
                    ForwardError::Bug { what: "a pass has not given the logits that were asked for" };
                self.logits = Some(outcome.and_then(|mut outcome| outcome.logits.pop()).ok_or(missing)?);
            }
        }
        Ok(true)
    }

    /// Forgets what is computed: a device that fails leaves nothing of use in the cache.
    pub(super) fn distrust(&mut self) {
        self.cache.clear();
        self.logits = None;
    }

    /// Sends what stands at `range`, which follows what is computed and splits no span, on its way.
    pub(super) fn send(&mut self, range: Range<usize>, logits: Logits) -> Result<Receipt, ForwardError> {
        let model = self.model.clone();
        let spans = self.spans_in(&range);
        let mut rows = [self.row(range, &spans, Wanted::Logits(logits))];
        model.send(&mut rows, &mut Trace::none())
    }

    /// The spans at a range of positions, counted from its start.
    pub(super) fn spans_in(&self, range: &Range<usize>) -> Vec<EmbeddedSpan> {
        let within = self.spans.iter().filter(|span| range.contains(&span.start));
        within.map(|span| span.at(span.start - range.start)).collect()
    }

    /// What stands at a range of positions as the row of a pass; `spans` are [`spans_in`](Self::spans_in) it.
    pub(super) fn row<'a>(
        &'a mut self,
        range: Range<usize>,
        spans: &'a [EmbeddedSpan],
        wanted: Wanted<'a>,
    ) -> Row<'a> {
        let ids = &self.ids[range];
        let input = if spans.is_empty() { Input::Ids(ids) } else { Input::Placed { ids, spans } };
        Row { cache: &mut self.cache, input, wanted }
    }

    /// The row of a step whose token the device still holds.
    pub(super) fn row_of_chosen<'a>(&'a mut self, wanted: Wanted<'a>) -> Row<'a> {
        Row { cache: &mut self.cache, input: Input::Chosen, wanted }
    }

    /// Whether the last token is of an image: it has a vector, which a step can't look up.
    pub(super) fn ends_in_image(&self) -> bool {
        let last = self.len().saturating_sub(1);
        self.spans.last().is_some_and(|span| span.range().contains(&last))
    }

    /// Records that the step has come back that computed the newest token.
    pub(super) fn catch_up(&mut self) {
        self.cache.catch_up();
    }

    pub(super) fn has_logits(&self) -> bool {
        self.logits.is_some()
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The logits after the last token, \[vocab\]; computes what is not yet computed.
    ///
    /// # Errors
    ///
    /// Those of [`compute`](Session::compute).
    pub fn logits(&mut self) -> Result<&[f32], GenerateError> {
        self.compute(&CancelHandle::new())?;
        let missing = ForwardError::Bug { what: "a session was computed and has no logits" };
        Ok(self.logits.as_deref().ok_or(missing)?)
    }

    /// Continues the sequence. Nothing is computed until the stream is asked for its first token.
    ///
    /// # Errors
    ///
    /// Invalid options, or an empty session.
    pub fn generate(&mut self, options: ContinueOptions) -> Result<TokenStream<'_>, GenerateError> {
        TokenStream::new(self, options)
    }

    /// Sets the number that tells this sequence's random numbers from those of others.
    pub fn set_sequence(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// Forgets all but the first `len` tokens, if the cache still holds what that needs.
    ///
    /// The token before the cut is computed again when the session goes on, because its logits are not
    /// kept; if it belongs to an image, what remains of the image is.
    ///
    /// # Errors
    ///
    /// [`CacheError::CannotTruncate`](crate::cache::CacheError::CannotTruncate), with the session
    /// unchanged, if sliding-window layers have already overwritten what lies before the cut.
    /// [`rewind`](Session::rewind) then computes it anew.
    pub fn truncate(&mut self, len: usize) -> Result<(), GenerateError> {
        if len >= self.len() {
            return Ok(());
        }
        let last = len.saturating_sub(1);
        let image = self.spans.iter().map(EmbeddedSpan::range).find(|span| span.contains(&last));
        self.cache.truncate(image.map_or(last, |image| image.start))?;
        self.forget_after(len);
        Ok(())
    }

    fn forget_after(&mut self, len: usize) {
        self.ids.truncate(len);
        self.spans =
            std::mem::take(&mut self.spans).into_iter().filter_map(|span| span.before(len)).collect();
        self.logits = None;
    }

    /// Forgets all but the first `len` tokens, at the price of computing them again where
    /// [`truncate`](Session::truncate) cannot.
    pub fn rewind(&mut self, len: usize) {
        if self.truncate(len).is_err() {
            self.cache.clear();
            self.forget_after(len);
        }
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.cache.clear();
        self.forget_after(0);
    }

    pub(super) fn set_logits(&mut self, logits: Vec<f32>) {
        self.logits = Some(logits);
    }

    pub(super) fn take_logits(&mut self) -> Option<Vec<f32>> {
        self.logits.take()
    }

    /// Records a token that was chosen from the logits. There is always room: generating stops when
    /// the session is full.
    pub(super) fn push_generated(&mut self, id: u32) {
        self.ids.push(id);
        self.logits = None;
    }

    /// The key of the random number that chooses the next token.
    pub(super) fn random_key(&self, seed: u64) -> RandomKey {
        RandomKey { seed, sequence: self.sequence, position: self.len() as u64 }
    }
}
