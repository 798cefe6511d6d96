//! One sequence of tokens and what the model remembers of it.

use std::ops::Range;

use super::{GenerateError, GenerateOptions, TokenStream};
use crate::CancelHandle;
use crate::cache::{CacheOptions, KvCache};
use crate::model::{EmbeddedSpan, ForwardError, Logits, Model, Segment, SegmentInput, Trace};
use crate::ops;
use crate::sampling::{LogProbs, RandomKey, TokenLogprob};

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
/// computed before is never computed again. Cloning is [`fork`](Session::fork).
#[derive(Debug, Clone)]
pub struct Session {
    pub(super) model: Model,
    pub(super) cache: KvCache,
    /// All tokens. The first `cache.len()` of them are in the cache.
    pub(super) ids: Vec<u32>,
    /// Positions whose vectors are given instead of looked up, in order.
    pub(super) spans: Vec<EmbeddedSpan>,
    /// Logits that follow the last token, once it is computed.
    logits: Option<Vec<f32>>,
    sequence: u64,
    #[cfg(feature = "cube")]
    pub(super) step: super::gpu::StepSlot,
}

/// Rows of logits that are held at once while a text is scored: 64 of Gemma's vocabulary are 64 MiB.
const SCORED_ROWS: usize = 64;

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
            #[cfg(feature = "cube")]
            step: super::gpu::StepSlot::default(),
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
        self.check_spans(ids.len(), spans)?;
        self.check_ids(ids, spans)?;
        if !ids.is_empty() {
            let start = self.len();
            self.spans.extend(spans.iter().map(|span| span.at(start + span.start)));
            self.ids.extend_from_slice(ids);
            self.logits = None;
        }
        Ok(())
    }

    fn check_spans(&self, tokens: usize, spans: &[EmbeddedSpan]) -> Result<(), GenerateError> {
        let mut after = 0;
        for span in spans {
            let range = span.range();
            self.model.decoder().check_vectors(&span.vectors)?;
            if range.start < after || range.end > tokens || range.is_empty() {
                return Err(ForwardError::SpanOutOfOrder { span: range, after, tokens }.into());
            }
            if range.len() > self.cache.chunk() {
                let (tokens, chunk) = (range.len(), self.cache.chunk());
                return Err(GenerateError::SpanLongerThanChunk { tokens, chunk });
            }
            after = range.end;
        }
        Ok(())
    }

    /// Ids outside of the spans must be in the vocabulary and stand for text.
    fn check_ids(&self, ids: &[u32], spans: &[EmbeddedSpan]) -> Result<(), GenerateError> {
        let vocab_size = self.model.decoder().config().vocab_size;
        let placeholder = self.model.config().image_tokens.map(|tokens| tokens.image);
        let mut spans = spans.iter().map(EmbeddedSpan::range).peekable();
        for (position, id) in ids.iter().enumerate() {
            while spans.next_if(|span| span.end <= position).is_some() {}
            if spans.peek().is_some_and(|span| span.contains(&position)) {
                continue;
            }
            if Some(*id) == placeholder {
                return Err(GenerateError::PlaceholderWithoutImage { id: *id, position });
            }
            if *id as usize >= vocab_size {
                return Err(ForwardError::UnknownToken { id: *id, vocab_size }.into());
            }
        }
        Ok(())
    }

    /// The next tokens to compute, up to `limit` of them; an image is not split, and no fewer are left for the next
    /// chunk than are computed like those of this one.
    fn next_chunk(&self, limit: usize) -> Range<usize> {
        let start = self.cache.len();
        let left = self.len() - start;
        let alike = ops::alike_tokens(self.model.decoder().device());
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
            let chunk = self.next_chunk(self.cache.chunk());
            let is_last = chunk.end == self.len();
            #[cfg(feature = "cube")]
            if is_last
                && chunk.len() == 1
                && !self.spans.iter().any(|span| span.range().contains(&chunk.start))
            {
                self.logits = self.step_logits(chunk.start)?;
                if self.logits.is_some() {
                    continue;
                }
            }
            let input = input(&self.model, &self.ids, &self.spans, chunk)?;
            let mut segments = [Segment { input, cache: &mut self.cache }];
            if is_last {
                self.logits = self.model.forward_last(&mut segments)?.pop();
            } else {
                self.model.forward(&mut segments, Logits::None, &mut Trace::none())?;
            }
        }
        Ok(true)
    }

    /// Computes the tokens before `end` that are not yet computed, without logits. Returns `false` if `cancel` was
    /// thrown before the end.
    pub(super) fn compute_before(
        &mut self,
        end: usize,
        cancel: &CancelHandle,
    ) -> Result<bool, GenerateError> {
        while self.cache.len() < end {
            if cancel.is_cancelled() {
                return Ok(false);
            }
            let chunk = self.next_chunk(self.cache.chunk().min(end - self.cache.len()));
            let input = input(&self.model, &self.ids, &self.spans, chunk)?;
            let mut segments = [Segment { input, cache: &mut self.cache }];
            self.model.forward(&mut segments, Logits::None, &mut Trace::none())?;
        }
        Ok(true)
    }

    #[cfg(feature = "cube")]
    pub(super) fn has_logits(&self) -> bool {
        self.logits.is_some()
    }

    #[cfg(feature = "cube")]
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
    pub fn generate(&mut self, options: GenerateOptions) -> Result<TokenStream<'_>, GenerateError> {
        TokenStream::new(self, options)
    }

    /// A second session with the same past. Memory is shared until one of the two goes on.
    pub fn fork(&self) -> Self {
        self.clone()
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
        while self.cache.len() < self.len() {
            // Images were computed by `logits`, so what is left are ids.
            let chunk = self.next_chunk(self.cache.chunk().min(SCORED_ROWS));
            let end = chunk.end;
            let input = input(&self.model, &self.ids, &self.spans, chunk.clone())?;
            let mut segments = [Segment { input, cache: &mut self.cache }];
            let mut rows = self.model.forward_all(&mut segments)?;
            for (row, position) in rows.iter().zip(chunk) {
                if position >= already
                    && let Some(next) = self.ids.get(position + 1)
                {
                    scored.push(score(row, *next, top)?);
                }
            }
            if end == self.len() {
                self.logits = rows.pop();
            }
        }
        Ok(scored)
    }

    /// The segment for a step of one token, for stepping several sessions together.
    pub(super) fn step_segment(&mut self) -> Segment<'_> {
        let start = self.cache.len();
        Segment { input: SegmentInput::Ids(&self.ids[start..]), cache: &mut self.cache }
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

/// What stands at `range`, which splits no span, as the input of a segment.
fn input<'a>(
    model: &Model,
    ids: &'a [u32],
    spans: &[EmbeddedSpan],
    range: Range<usize>,
) -> Result<SegmentInput<'a>, ForwardError> {
    let within = |span: &&EmbeddedSpan| range.contains(&span.start);
    let spans: Vec<_> = spans.iter().filter(within).map(|span| span.at(span.start - range.start)).collect();
    let ids = &ids[range];
    if spans.is_empty() {
        return Ok(SegmentInput::Ids(ids));
    }
    model.on_threads(|| model.decoder().embed_with(ids, &spans))
}

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

pub(super) fn score(logits: &[f32], id: u32, top: usize) -> Result<ScoredToken, GenerateError> {
    let logprobs = LogProbs::new(logits)?;
    let top = if top == 0 { Vec::new() } else { logprobs.top(top) };
    Ok(ScoredToken { id, logprob: logprobs.of(id)?, top })
}
