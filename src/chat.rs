//! Conversations: typed turns, a cache that keeps what was said, and a choice of what to do when it is
//! full.

use gemma3_core::generate::{CancelHandle, FinishReason, GenerateError, Session, SessionOptions};
use gemma3_tokenizer::{Answer, ChatTemplate, Message, Part, Role, Tokenizer, UserText};

use crate::text::{Generation, Piece, TextStream, collect};
use crate::{Error, Gemma3, GenerateOptions};

/// The ids of a conversation up to where the model answers. Special tokens in its texts stay text.
pub(crate) fn encode(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>, Error> {
    refuse_images(messages)?;
    Ok(ChatTemplate::encode(tokenizer, messages, true, UserText::Escape)?)
}

fn refuse_images(messages: &[Message]) -> Result<(), Error> {
    let has_image = |message: &Message| message.content.contains(&Part::Image);
    if messages.iter().any(has_image) { Err(Error::ImagesUnsupported) } else { Ok(()) }
}

/// What a [`Chat`] does when the next turn does not fit the context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The turn is an error, and an answer ends with
    /// [`ContextFull`](gemma3_core::generate::FinishReason::ContextFull) where the room ends.
    #[default]
    Stop,
    /// When less than a quarter of the context (or `max_new_tokens`, if that is less) would be left for the
    /// answer, the oldest turns are forgotten, question and answer together, until a quarter is free; the
    /// system prompt stays. What remains is computed again.
    DropOldest,
}

/// Settings of a conversation that is about to start.
#[derive(Debug, Clone)]
pub struct ChatBuilder {
    gemma: Gemma3,
    system: Option<String>,
    options: GenerateOptions,
    session: SessionOptions,
    when_full: WhenFull,
    user_text: UserText,
}

impl ChatBuilder {
    pub(crate) fn new(gemma: &Gemma3) -> Self {
        Self {
            options: gemma.generate_options(),
            gemma: gemma.clone(),
            system: None,
            session: SessionOptions::default(),
            when_full: WhenFull::default(),
            user_text: UserText::Escape,
        }
    }

    /// Instructions that precede the conversation.
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.system = Some(text.into());
        self
    }

    /// How answers are generated. Default: as the model's `generation_config.json` says.
    pub fn options(mut self, options: GenerateOptions) -> Self {
        self.options = options;
        self
    }

    /// Context and chunk.
    pub fn session(mut self, options: SessionOptions) -> Self {
        self.session = options;
        self
    }

    /// What to do when the context is full.
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// Whether special tokens in what the user writes stay text (the default: a user cannot end his own
    /// turn) or are read as special tokens, as the template does.
    pub fn user_text(mut self, user_text: UserText) -> Self {
        self.user_text = user_text;
        self
    }

    /// Starts the conversation. Nothing is computed yet.
    ///
    /// # Errors
    ///
    /// A context that cannot be made.
    pub fn start(self) -> Result<Chat, Error> {
        Ok(Chat {
            session: Session::new(self.gemma.model(), &self.session)?,
            gemma: self.gemma,
            system: self.system.map(Message::system),
            turns: Vec::new(),
            options: self.options,
            when_full: self.when_full,
            user_text: self.user_text,
            is_answer_ended: false,
        })
    }
}

/// A conversation with its history and cache. Each turn computes only what is new.
///
/// ```no_run
/// # fn main() -> Result<(), gemma3::Error> {
/// # let gemma = gemma3::Gemma3::load("gemma-3-1b-it", &gemma3::Device::default())?;
/// let mut chat = gemma.chat().system("Answer in one sentence.").start()?;
/// for piece in chat.ask("Who baked the first bread?")? {
///     print!("{}", piece?.text); // dropping the stream stops the answer
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Chat {
    gemma: Gemma3,
    session: Session,
    system: Option<Message>,
    /// Questions and answers in turn.
    turns: Vec<Message>,
    options: GenerateOptions,
    when_full: WhenFull,
    user_text: UserText,
    /// Whether the session's last token is `<end_of_turn>`.
    is_answer_ended: bool,
}

impl Chat {
    /// The conversation so far, the system message first if there is one.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.system.iter().chain(&self.turns)
    }

    /// The conversation in token ids.
    pub fn tokens(&self) -> &Session {
        &self.session
    }

    /// How answers are generated, to be changed between turns.
    pub fn options_mut(&mut self) -> &mut GenerateOptions {
        &mut self.options
    }

    /// Forgets all turns; the system prompt stays.
    pub fn reset(&mut self) {
        self.turns.clear();
        self.session.clear();
        self.is_answer_ended = false;
    }

    /// Changes the system prompt (`None` removes it) and forgets all turns, which were answered under the
    /// old one.
    pub fn set_system(&mut self, text: Option<String>) {
        self.system = text.map(Message::system);
        self.reset();
    }

    /// Asks, and streams the answer. Dropping the stream stops the answer; what was said stays in the
    /// history.
    ///
    /// # Errors
    ///
    /// A turn that does not fit the context.
    pub fn ask(&mut self, question: impl Into<String>) -> Result<AnswerStream<'_>, Error> {
        self.ask_with(Message::user(question), CancelHandle::new())
    }

    /// [`ask`](Self::ask) with a message of several parts, and a handle that stops the answer.
    ///
    /// # Errors
    ///
    /// A message that is not the user's, has images, or does not fit the context.
    pub fn ask_with(&mut self, question: Message, cancel: CancelHandle) -> Result<AnswerStream<'_>, Error> {
        // Before anything changes.
        self.options.sampling.validate().map_err(GenerateError::from)?;
        self.append_question(question)?;
        let end_of_turn = self.gemma.tokenizer().end_of_turn_id();
        let mut options = self.options.clone();
        options.stop_token_ids.extend(end_of_turn);
        let Self { gemma, session, turns, is_answer_ended, .. } = self;
        turns.push(Message::model(String::new()));
        *is_answer_ended = false;
        let stream = TextStream::new(gemma, session, &options)?.with_cancel(cancel);
        Ok(AnswerStream { stream, turns, is_answer_ended, end_of_turn })
    }

    /// Asks and waits for the whole answer.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask), and whatever ends the answer with an error.
    pub fn answer(&mut self, question: impl Into<String>) -> Result<Generation, Error> {
        self.ask(question)?.into_generation()
    }

    /// Appends the question to history and session; on an error both are as before.
    fn append_question(&mut self, question: Message) -> Result<(), Error> {
        refuse_images(std::slice::from_ref(&question))?;
        if question.role != Role::User {
            return Err(
                gemma3_tokenizer::ChatError::NotAUserTurn { role: question.role.name().to_owned() }.into()
            );
        }
        let new_ids = if self.session.is_empty() {
            let mut all: Vec<Message> = self.messages().cloned().collect();
            all.push(question.clone());
            self.encode(&all)?
        } else {
            let answer = if self.is_answer_ended { Answer::Ended } else { Answer::Open };
            ChatTemplate::encode_next_turn(self.gemma.tokenizer(), &question, answer, self.user_text)?
        };
        let capacity = self.session.capacity();
        let tokens = self.session.len() + new_ids.len();
        // An answer needs room for at least one token, and should have more.
        let is_tight =
            self.when_full == WhenFull::DropOldest && tokens + self.room_for_an_answer() > capacity;
        if tokens < capacity && !is_tight {
            self.session.append(&new_ids)?;
        } else if self.when_full == WhenFull::DropOldest {
            self.restart_with(&question)?;
        } else {
            return Err(Error::ConversationTooLong { tokens, capacity });
        }
        self.turns.push(question);
        Ok(())
    }

    /// Tokens that an answer should have: a quarter of the context, or what it is limited to.
    fn room_for_an_answer(&self) -> usize {
        let quarter = self.session.capacity().div_ceil(4);
        self.options.max_new_tokens.map_or(quarter, |limit| limit.min(quarter))
    }

    /// Starts the session anew with as many of the latest turns as leave a quarter of the context free.
    fn restart_with(&mut self, question: &Message) -> Result<(), Error> {
        let capacity = self.session.capacity();
        let mut dropped = 0;
        loop {
            // Questions and answers come in pairs.
            let kept = self.turns.get(dropped..).unwrap_or_default();
            let all: Vec<Message> =
                self.system.iter().chain(kept).chain(std::iter::once(question)).cloned().collect();
            let ids = self.encode(&all)?;
            let fits = ids.len() <= capacity - capacity.div_ceil(4);
            let is_last_try = kept.is_empty();
            if fits || (is_last_try && ids.len() < capacity) {
                self.turns.drain(..dropped.min(self.turns.len()));
                self.session.clear();
                return Ok(self.session.append(&ids)?);
            }
            if is_last_try {
                return Err(Error::ConversationTooLong { tokens: ids.len(), capacity });
            }
            dropped += 2;
        }
    }

    fn encode(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        Ok(ChatTemplate::encode(self.gemma.tokenizer(), messages, true, self.user_text)?)
    }
}

/// An answer as it is being generated.
#[derive(Debug)]
pub struct AnswerStream<'a> {
    stream: TextStream<'a>,
    turns: &'a mut Vec<Message>,
    is_answer_ended: &'a mut bool,
    end_of_turn: Option<u32>,
}

impl AnswerStream<'_> {
    /// A handle that stops the answer, also from another thread and during the prefill.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.stream.cancel_handle()
    }

    /// Computes the question, so that the first piece is a single step. Returns `false` if that was
    /// cancelled.
    ///
    /// # Errors
    ///
    /// A forward pass that fails.
    pub fn prefill(&mut self) -> Result<bool, Error> {
        self.stream.prefill()
    }

    /// Why the answer ended; `None` while it goes on, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.stream.finish_reason()
    }

    /// Runs to the end.
    ///
    /// # Errors
    ///
    /// Whatever ends the answer with an error.
    pub fn into_generation(mut self) -> Result<Generation, Error> {
        let (text, tokens) = collect(self.by_ref())?;
        let finish_reason = self.finish_reason().unwrap_or(FinishReason::Cancelled);
        Ok(Generation { text, tokens, prompt_tokens: self.stream.prompt_tokens(), finish_reason })
    }

    fn remember(&mut self, piece: &Piece) {
        if let Some(Part::Text(answer)) = self.turns.last_mut().and_then(|turn| turn.content.first_mut()) {
            answer.push_str(&piece.text);
        }
        if let Some(token) = &piece.token {
            *self.is_answer_ended = Some(token.id) == self.end_of_turn;
        }
    }
}

impl Iterator for AnswerStream<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.stream.next()?;
        if let Ok(piece) = &piece {
            self.remember(piece);
        }
        Some(piece)
    }
}
