//! Conversations: typed turns, a cache that keeps what was said, and a choice of what to do when it is
//! full.

use gemma3_core::CancelHandle;
use gemma3_core::generate::{FinishReason, GenerateError, Session, SessionOptions};
use gemma3_tokenizer::{Answer, ChatTemplate, Message, Part, Role, Roles, UserText};
use gemma3_vision::{EncodeOptions, EncodedImage, ImageCache};

use crate::chat_format::{ChatFormat, TemplateChoice, refuse_unseen_images};
use crate::images::Prompt;
use crate::question::Question;
use crate::text::{Generation, Piece, TextStream, collect};
use crate::{Error, Gemma3, GenerateOptions};

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
    history: Vec<Message>,
    roles: Roles,
    options: GenerateOptions,
    session: SessionOptions,
    when_full: WhenFull,
    template: TemplateChoice,
    user_text: UserText,
    images: ImageSettings,
}

/// How the images of questions are encoded.
#[derive(Debug, Clone, Default)]
struct ImageSettings {
    options: EncodeOptions,
    cache: Option<ImageCache>,
}

impl ChatBuilder {
    pub(crate) fn new(gemma: &Gemma3) -> Self {
        Self {
            options: gemma.generate_options(),
            gemma: gemma.clone(),
            system: None,
            history: Vec::new(),
            roles: Roles::default(),
            session: SessionOptions::default(),
            when_full: WhenFull::default(),
            template: TemplateChoice::default(),
            user_text: UserText::Escape,
            images: ImageSettings::default(),
        }
    }

    /// Instructions that precede the conversation.
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.system = Some(text.into());
        self
    }

    /// What was said before, without images; a system message in front is [`system`](Self::system) if that is not
    /// given. It is computed with the first question.
    ///
    /// It should end with an answer. Whether its roles alternate is found out with the first question.
    pub fn history(mut self, messages: impl Into<Vec<Message>>) -> Self {
        self.history = messages.into();
        self
    }

    /// What becomes of roles in the [`history`](Self::history) that do not alternate. Default: they are an error.
    /// With [`Roles::Merge`] it may end with a user's turn as well, which the first question then goes on.
    pub fn roles(mut self, roles: Roles) -> Self {
        self.roles = roles;
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

    /// Which template writes the turns. Default: the one that came with the checkpoint.
    pub fn template(mut self, template: TemplateChoice) -> Self {
        self.template = template;
        self
    }

    /// Whether special tokens in what the user writes stay text (the default: a user cannot end his own
    /// turn) or are read as special tokens, as the template does.
    pub fn user_text(mut self, user_text: UserText) -> Self {
        self.user_text = user_text;
        self
    }

    /// How the images of questions are encoded: pan-and-scan, and how much memory they may take.
    pub fn images(mut self, options: EncodeOptions) -> Self {
        self.images.options = options;
        self
    }

    /// Remembers the images of questions in a cache, which several conversations can share. Without one each
    /// question's images are encoded anew.
    pub fn image_cache(mut self, cache: ImageCache) -> Self {
        self.images.cache = Some(cache);
        self
    }

    /// Starts the conversation. Nothing is computed yet.
    ///
    /// # Errors
    ///
    /// A context that cannot be made, [`Error::OtherChatTemplate`], and a template of the checkpoint's that is not
    /// valid.
    pub fn start(self) -> Result<Chat, Error> {
        let mut history = self.history;
        let mut system = self.system.map(Message::system);
        if system.is_none() && history.first().is_some_and(|first| first.role == Role::System) {
            system = Some(history.remove(0));
        }
        let turn = |message| Turn { message, images: Vec::new() };
        Ok(Chat {
            format: ChatFormat::new(&self.gemma, self.template)?,
            session: Session::new(self.gemma.model(), &self.session)?,
            gemma: self.gemma,
            system,
            turns: history.into_iter().map(turn).collect(),
            roles: self.roles,
            options: self.options,
            when_full: self.when_full,
            user_text: self.user_text,
            images: self.images,
            is_answer_ended: false,
        })
    }
}

/// A conversation with its history and cache. Each turn computes only what is new; where the template is not
/// Gemma's and writes the past differently as the conversation goes on, all from the first difference.
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
    turns: Vec<Turn>,
    /// For those of them that were said before the conversation started here.
    roles: Roles,
    options: GenerateOptions,
    when_full: WhenFull,
    format: ChatFormat,
    user_text: UserText,
    images: ImageSettings,
    /// Whether the session's last token is `<end_of_turn>`.
    is_answer_ended: bool,
}

/// A question with its images, or an answer.
#[derive(Debug, Clone)]
struct Turn {
    message: Message,
    images: Vec<EncodedImage>,
}

impl Chat {
    /// The conversation so far, the system message first if there is one.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.system.iter().chain(self.turns.iter().map(|turn| &turn.message))
    }

    /// The images of the conversation so far, in order.
    pub fn images(&self) -> impl Iterator<Item = &EncodedImage> {
        self.turns.iter().flat_map(|turn| &turn.images)
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
    /// A question is a text, or a [`Question`] of texts and images. Its images are encoded before this
    /// returns.
    ///
    /// # Errors
    ///
    /// A turn that does not fit the context, or images for a model that takes text only.
    pub fn ask(&mut self, question: impl Into<Question>) -> Result<AnswerStream<'_>, Error> {
        self.ask_with(question, CancelHandle::new())
    }

    /// [`ask`](Self::ask) with a handle that stops the answer.
    ///
    /// # Errors
    ///
    /// Those of [`ask`](Self::ask), and [`VisionError::Cancelled`](gemma3_vision::VisionError::Cancelled)
    /// when the handle is thrown while images are encoded; the conversation is then as before.
    pub fn ask_with(
        &mut self,
        question: impl Into<Question>,
        cancel: CancelHandle,
    ) -> Result<AnswerStream<'_>, Error> {
        // Before anything changes.
        self.options.sampling.validate().map_err(GenerateError::from)?;
        let (message, images) = question.into().into_message();
        let options = EncodeOptions { cancel: Some(cancel.clone()), ..self.images.options.clone() };
        let images = self.gemma.encode_question_images(images, &options, self.images.cache.as_ref())?;
        self.append_question(Turn { message, images })?;
        let end_of_turn = self.gemma.tokenizer().end_of_turn_id();
        let options = self.format.ending_turns(&self.gemma, &self.options);
        let Self { gemma, session, turns, is_answer_ended, .. } = self;
        turns.push(Turn { message: Message::model(String::new()), images: Vec::new() });
        *is_answer_ended = false;
        let stream = TextStream::new(gemma, session, &options)?.with_cancel(cancel);
        Ok(AnswerStream { stream, turns, is_answer_ended, end_of_turn })
    }

    /// Asks and waits for the whole answer.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask), and whatever ends the answer with an error.
    pub fn answer(&mut self, question: impl Into<Question>) -> Result<Generation, Error> {
        self.ask(question)?.into_generation()
    }

    /// Appends the question to history and session; on an error both are as before.
    fn append_question(&mut self, question: Turn) -> Result<(), Error> {
        let (kept, new) = self.continued(&question)?;
        let capacity = self.session.capacity();
        let tokens = kept + new.ids.len();
        // An answer needs room for at least one token, and should have more.
        let is_tight =
            self.when_full == WhenFull::DropOldest && tokens + self.room_for_an_answer() > capacity;
        if tokens < capacity && !is_tight {
            self.session.rewind(kept);
            self.session.append_with(&new.ids, &new.spans)?;
        } else if self.when_full == WhenFull::DropOldest {
            self.restart_with(&question)?;
        } else {
            let when_full = self.when_full;
            return Err(Error::ConversationTooLong { tokens, capacity, when_full });
        }
        self.turns.push(question);
        Ok(())
    }

    /// How many tokens of the session stay, and what follows them with a question.
    fn continued(&self, question: &Turn) -> Result<(usize, Prompt), Error> {
        if self.format.is_gemma() && !self.session.is_empty() {
            return Ok((self.session.len(), self.encode_next(question)?));
        }
        // Another template may write the past anew with each turn (as those that drop earlier thoughts).
        Ok(self.encode(&self.turns, question)?.after(self.session.ids()))
    }

    /// The ids of a question after those that the session has.
    fn encode_next(&self, question: &Turn) -> Result<Prompt, Error> {
        let answer = if self.is_answer_ended { Answer::Ended } else { Answer::Open };
        let (tokenizer, message) = (self.gemma.tokenizer(), &question.message);
        refuse_unseen_images(&self.gemma, std::slice::from_ref(message))?;
        self.gemma.prompt(&question.images, |images| match images {
            Some(images) => {
                ChatTemplate::encode_next_turn_with_images(tokenizer, message, answer, self.user_text, images)
            }
            None => ChatTemplate::encode_next_turn(tokenizer, message, answer, self.user_text),
        })
    }

    /// Tokens that an answer should have: a quarter of the context, or what it is limited to.
    fn room_for_an_answer(&self) -> usize {
        let quarter = self.session.capacity().div_ceil(4);
        self.options.max_new_tokens.map_or(quarter, |limit| limit.min(quarter))
    }

    /// Starts the session anew with as many of the latest turns as leave a quarter of the context free.
    fn restart_with(&mut self, question: &Turn) -> Result<(), Error> {
        let capacity = self.session.capacity();
        let mut dropped = 0;
        loop {
            // Questions and answers come in pairs.
            let kept = self.turns.get(dropped..).unwrap_or_default();
            let prompt = self.encode(kept, question)?;
            let tokens = prompt.ids.len();
            let fits = tokens <= capacity - capacity.div_ceil(4);
            let is_last_try = kept.is_empty();
            if fits || (is_last_try && tokens < capacity) {
                self.turns.drain(..dropped.min(self.turns.len()));
                self.session.clear();
                return Ok(self.session.append_with(&prompt.ids, &prompt.spans)?);
            }
            if is_last_try {
                let when_full = self.when_full;
                return Err(Error::ConversationTooLong { tokens, capacity, when_full });
            }
            dropped += 2;
        }
    }

    /// A conversation of the system message, `turns` and a question.
    fn encode(&self, turns: &[Turn], question: &Turn) -> Result<Prompt, Error> {
        let turns = || turns.iter().chain(std::iter::once(question));
        let messages: Vec<Message> =
            self.system.iter().chain(turns().map(|turn| &turn.message)).cloned().collect();
        let images: Vec<EncodedImage> = turns().flat_map(|turn| &turn.images).cloned().collect();
        self.format.encode(&self.gemma, &self.roles.apply(&messages), &images, self.user_text)
    }
}

/// An answer as it is being generated.
#[derive(Debug)]
pub struct AnswerStream<'a> {
    stream: TextStream<'a>,
    turns: &'a mut Vec<Turn>,
    is_answer_ended: &'a mut bool,
    end_of_turn: Option<u32>,
}

impl AnswerStream<'_> {
    /// A handle that stops the answer, also from another thread and during the prefill.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.stream.cancel_handle()
    }

    /// Tokens of the conversation when the answer began.
    pub fn prompt_tokens(&self) -> usize {
        self.stream.prompt_tokens()
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
        let answer = self.turns.last_mut().and_then(|turn| turn.message.content.first_mut());
        if let Some(Part::Text(answer)) = answer {
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
