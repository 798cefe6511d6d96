//! A session in text: prompts are encoded, tokens become pieces of text, stop strings stop.

use std::ops::ControlFlow;

use gemma3_core::CancelHandle;
use gemma3_core::generate;
use gemma3_core::generate::{FinishReason, ScoredToken, Session, SessionOptions, Token, TokenStream};
use gemma3_tokenizer::{Bos, SpecialTokens, TokenizeOptions};
use gemma3_vision::EncodedImage;

use crate::images::Prompt;
use crate::text_decoder::TextDecoder;
use crate::{Error, Gemma3, GenerateOptions};

/// One text with its cache. It can be extended, continued, forked and cut back; what was computed once is
/// not computed again.
#[derive(Debug, Clone)]
pub struct TextSession {
    gemma: Gemma3,
    session: Session,
}

/// A whole continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The new text, without stop string and special tokens.
    pub text: String,
    /// The new tokens, with the stop id if one ended the text.
    pub tokens: Vec<Token>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// A piece of a text that is being generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The text that can be shown now. Empty while a character or a possible stop string is incomplete.
    pub text: String,
    /// The token that was generated; `None` for text that was held back until the end.
    pub token: Option<Token>,
}

impl TextSession {
    pub(crate) fn new(gemma: &Gemma3, options: &SessionOptions) -> Result<Self, Error> {
        Ok(Self { session: Session::new(gemma.model(), options)?, gemma: gemma.clone() })
    }

    /// The model of this session.
    pub fn gemma(&self) -> &Gemma3 {
        &self.gemma
    }

    /// The session in token ids.
    pub fn tokens(&self) -> &Session {
        &self.session
    }

    /// The session in token ids, to be changed.
    pub fn tokens_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Appends text. At the beginning `<bos>` is put before it, also before a text that begins with a written
    /// `<bos>`, as transformers does: such a text, a rendered chat for instance, then begins with two, which hurts
    /// its continuation. [`Tokenizer::starts_with_bos`](gemma3_tokenizer::Tokenizer::starts_with_bos) tells;
    /// encode it with [`Bos::Once`] and use [`append_ids`](Self::append_ids). Special tokens written in the text are
    /// read as such; escape text of strangers with the tokenizer's options and
    /// [`append_ids`](Self::append_ids), or use a [`Chat`](crate::Chat). `<start_of_image>` is then a token like
    /// others; see [`append_with_images`](Self::append_with_images).
    ///
    /// # Errors
    ///
    /// [`GenerateError::PromptTooLong`](gemma3_core::generate::GenerateError::PromptTooLong).
    pub fn append(&mut self, text: &str) -> Result<(), Error> {
        let ids = self.gemma.tokenizer().encode(text, self.bos())?;
        self.append_ids(&ids)
    }

    /// Appends text with images: each `<start_of_image>` in it is the place of one image, which Gemma's
    /// processor writes as `<start_of_image>`, the soft tokens and `<end_of_image>` between empty lines.
    ///
    /// # Errors
    ///
    /// Another number of places than images, a model that takes text only, or a prompt that does not fit.
    pub fn append_with_images(&mut self, text: &str, images: &[EncodedImage]) -> Result<(), Error> {
        let options = TokenizeOptions { bos: self.bos(), special_tokens: SpecialTokens::Parse };
        let tokenizer = self.gemma.tokenizer();
        let prompt = self.gemma.prompt(images, |images| match images {
            Some(images) => tokenizer.encode_with_images(text, options, images),
            None => tokenizer.encode_with(text, options),
        })?;
        self.append_prompt(&prompt)
    }

    pub(crate) fn append_prompt(&mut self, prompt: &Prompt) -> Result<(), Error> {
        Ok(self.session.append_with(&prompt.ids, &prompt.spans)?)
    }

    fn bos(&self) -> Bos {
        if self.session.is_empty() { Bos::Add } else { Bos::None }
    }

    /// Appends token ids; nothing is added.
    ///
    /// # Errors
    ///
    /// Ids that the model does not know, or more than fit.
    pub fn append_ids(&mut self, ids: &[u32]) -> Result<(), Error> {
        Ok(self.session.append(ids)?)
    }

    /// Appends token ids and reports the log-probability of each: see
    /// [`Session::prefill_scored`].
    ///
    /// # Errors
    ///
    /// Ids that the model does not know, or more than fit.
    pub fn score_ids(&mut self, ids: &[u32], top: usize) -> Result<Vec<ScoredToken>, Error> {
        Ok(self.session.prefill_scored(ids, top)?)
    }

    /// Continues the text, piece by piece. Dropping the stream stops; what was generated stays.
    ///
    /// # Errors
    ///
    /// Invalid options, or an empty session.
    pub fn stream(&mut self, options: &GenerateOptions) -> Result<TextStream<'_>, Error> {
        TextStream::new(&self.gemma, &mut self.session, options)
    }

    /// Continues the text to its end.
    ///
    /// # Errors
    ///
    /// Invalid options, or an empty session.
    pub fn generate(&mut self, options: &GenerateOptions) -> Result<Generation, Error> {
        self.stream(options)?.into_generation()
    }
}

/// An iterator over the pieces of a text that is being generated.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokens: TokenStream<'a>,
    decoder: TextDecoder,
    prompt_tokens: usize,
    done: bool,
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(
        gemma: &Gemma3,
        session: &'a mut Session,
        options: &GenerateOptions,
    ) -> Result<Self, Error> {
        let prompt_tokens = session.len();
        Ok(Self {
            tokens: session.generate(gemma.core_options(options))?,
            decoder: TextDecoder::new(gemma.tokenizer(), &options.stop),
            prompt_tokens,
            done: false,
        })
    }

    /// A handle that stops this stream, also from another thread and during a long prefill.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.tokens.cancel_handle()
    }

    /// Stops when `cancel` is thrown, in place of the stream's own handle.
    pub fn with_cancel(mut self, cancel: CancelHandle) -> Self {
        self.tokens = self.tokens.with_cancel(cancel);
        self
    }

    /// Computes the prompt, so that the first piece is a single step. Returns `false` if that was
    /// cancelled.
    ///
    /// # Errors
    ///
    /// A forward pass that fails.
    pub fn prefill(&mut self) -> Result<bool, Error> {
        Ok(self.tokens.prefill()?)
    }

    /// Why the stream ended; `None` while it goes on, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.tokens.finish_reason()
    }

    /// The seed in use: the given one, or the one that was drawn.
    pub fn seed(&self) -> u64 {
        self.tokens.seed()
    }

    /// Tokens of the session when this stream began.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The text that was held back, at the end; it may hold a stop string.
    fn finish(&mut self) -> Result<String, Error> {
        let (text, stopped) = self.decoder.finish()?;
        if stopped {
            self.tokens.finish_with(FinishReason::Stop);
        }
        Ok(text)
    }

    /// Runs to the end.
    ///
    /// # Errors
    ///
    /// Whatever ends the stream with an error.
    pub fn into_generation(mut self) -> Result<Generation, Error> {
        let (text, tokens) = collect(self.by_ref())?;
        let finish_reason = self.finish_reason().unwrap_or(FinishReason::Cancelled);
        Ok(Generation { text, tokens, prompt_tokens: self.prompt_tokens, finish_reason })
    }
}

impl Iterator for TextStream<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let token = match self.tokens.next() {
            Some(Ok(token)) => token,
            Some(Err(error)) => {
                self.done = true;
                return Some(Err(error.into()));
            }
            None => {
                // Cancelled, or no room from the start: what was held back is all that is left.
                self.done = true;
                return match self.finish() {
                    Ok(text) if text.is_empty() => None,
                    rest => Some(rest.map(|text| Piece { text, token: None })),
                };
            }
        };
        let (mut text, stopped) = match self.decoder.push(token.id) {
            Ok(pushed) => pushed,
            Err(error) => {
                self.done = true;
                return Some(Err(error));
            }
        };
        if stopped {
            self.tokens.finish_with(FinishReason::Stop);
            self.done = true;
        } else if self.tokens.finish_reason().is_some() {
            self.done = true;
            match self.finish() {
                Ok(rest) => text += &rest,
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(Piece { text, token: Some(token) }))
    }
}

/// The text and the tokens of a stream that runs to its end.
pub(crate) fn collect(
    pieces: impl Iterator<Item = Result<Piece, Error>>,
) -> Result<(String, Vec<Token>), Error> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for piece in pieces {
        let piece = piece?;
        text += &piece.text;
        tokens.extend(piece.token);
    }
    Ok((text, tokens))
}

/// Continues several sessions together; see [`generate::generate_batch`].
pub(crate) fn generate_batch(
    sessions: &mut [TextSession],
    options: &GenerateOptions,
    cancel: &CancelHandle,
) -> Result<Vec<Generation>, Error> {
    let Some(gemma) = sessions.first().map(|session| session.gemma.clone()) else {
        return Ok(Vec::new());
    };
    let prompt_tokens: Vec<usize> = sessions.iter().map(|session| session.session.len()).collect();
    let mut decoders: Vec<_> = sessions
        .iter()
        .map(|_| (TextDecoder::new(gemma.tokenizer(), &options.stop), String::new()))
        .collect();
    let core_options = vec![gemma.core_options(options); sessions.len()];
    let mut references: Vec<&mut Session> = sessions.iter_mut().map(|session| &mut session.session).collect();
    let mut failed = None;
    let mut on_token = |row: usize, token: &Token| {
        let (decoder, text) = &mut decoders[row];
        match decoder.push(token.id) {
            Ok((piece, stopped)) => {
                *text += &piece;
                if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
            Err(error) => {
                failed.get_or_insert(error);
                ControlFlow::Break(())
            }
        }
    };
    let completions = generate::generate_batch_with(&mut references, &core_options, cancel, &mut on_token)?;
    if let Some(error) = failed {
        return Err(error);
    }
    let mut generations = Vec::with_capacity(completions.len());
    for ((completion, (mut decoder, mut text)), prompt_tokens) in
        completions.into_iter().zip(decoders).zip(prompt_tokens)
    {
        let generate::Completion { tokens, mut finish_reason, stopped_by_caller } = completion;
        if !stopped_by_caller {
            let (rest, stopped) = decoder.finish()?;
            text += &rest;
            if stopped {
                finish_reason = FinishReason::Stop;
            }
        }
        generations.push(Generation { text, tokens, prompt_tokens, finish_reason });
    }
    Ok(generations)
}
