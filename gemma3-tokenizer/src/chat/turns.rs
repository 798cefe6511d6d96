//! Gemma 3's chat template in Rust: a conversation as a list of special tokens, images and texts.
//!
//! `<bos>`, then for each message `<start_of_turn>ROLE\nCONTENT<end_of_turn>\n`. The system text and
//! two newlines come before the content of the first turn. Contents are stripped, the system text is not.

use super::{ChatError, Edition, Message, Part, Role};
use crate::error::shorten;
use crate::special;

/// A piece of a rendered conversation. Texts side by side belong together: they merge when they are encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Piece<'a> {
    Special(&'static str),
    /// A part of a message, never something typed.
    Image,
    Text(&'a str),
}

impl<'a> Piece<'a> {
    fn as_str(self) -> &'a str {
        match self {
            Self::Special(token) => token,
            Self::Image => special::START_OF_IMAGE,
            Self::Text(text) => text,
        }
    }
}

/// A conversation under construction.
#[derive(Default)]
pub(crate) struct Turns<'a>(Vec<Piece<'a>>);

impl<'a> Turns<'a> {
    /// The whole conversation.
    pub fn of(messages: &'a [Message], add_generation_prompt: bool) -> Result<Self, ChatError> {
        Self::of_edition(Edition::Current, messages, add_generation_prompt)
    }

    /// The whole conversation in one of the template's editions.
    pub fn of_edition(
        edition: Edition,
        messages: &'a [Message],
        add_generation_prompt: bool,
    ) -> Result<Self, ChatError> {
        let (mut system, first_index, turns) = match messages {
            [] => return Err(ChatError::Empty),
            [system, turns @ ..] if system.role.name() == "system" => (Some(system_text(system)?), 1, turns),
            turns => (None, 0, turns),
        };
        let mut this = Self::default();
        this.special(special::BOS);
        for (slot, message) in turns.iter().enumerate() {
            let is_user = message.role.name() == "user";
            if is_user != slot.is_multiple_of(2) {
                let (index, role) = (slot.saturating_add(first_index), shorten(message.role.name()));
                return Err(ChatError::RolesMustAlternate { index, role });
            }
            this.turn(message, system.take().map(|system| (system, edition.system_end())));
        }
        if add_generation_prompt {
            this.open(&Role::Model);
        }
        Ok(this)
    }

    /// What follows an answer: its end, the user's turn, and the beginning of the next answer.
    pub fn after_answer(message: &'a Message, is_answer_ended: bool) -> Result<Self, ChatError> {
        if message.role.name() != "user" {
            return Err(ChatError::NotAUserTurn { role: shorten(message.role.name()) });
        }
        let mut this = Self::default();
        if !is_answer_ended {
            this.special(special::END_OF_TURN);
        }
        this.text("\n");
        this.turn(message, None);
        this.open(&Role::Model);
        Ok(this)
    }

    pub fn pieces(&self) -> &[Piece<'a>] {
        &self.0
    }

    pub fn text_of_all(&self) -> String {
        self.0.iter().map(|piece| piece.as_str()).collect()
    }

    /// How many images the messages have, where the template writes them.
    pub fn images(&self) -> usize {
        self.0.iter().filter(|piece| **piece == Piece::Image).count()
    }

    fn turn(&mut self, message: &'a Message, system: Option<(&'a str, &'static str)>) {
        self.open(&message.role);
        if let Some((system, end)) = system {
            self.text(system);
            self.text(end);
        }
        for part in &message.content {
            match part {
                Part::Text(text) => self.text(text.trim_matches(is_python_space)),
                Part::Image => self.0.push(Piece::Image),
            }
        }
        self.special(special::END_OF_TURN);
        self.text("\n");
    }

    fn open(&mut self, role: &'a Role) {
        self.special(special::START_OF_TURN);
        self.text(role.name());
        self.text("\n");
    }

    fn special(&mut self, token: &'static str) {
        self.0.push(Piece::Special(token));
    }

    fn text(&mut self, text: &'a str) {
        self.0.push(Piece::Text(text));
    }
}

fn system_text(message: &Message) -> Result<&str, ChatError> {
    match message.content.first() {
        Some(Part::Text(text)) => Ok(text),
        Some(Part::Image) => Err(ChatError::SystemWithoutText { found: "an image as" }),
        None => Err(ChatError::SystemWithoutText { found: "no" }),
    }
}

/// What Python's `str.strip()` strips: unlike Rust's `trim` also the separators U+001C to U+001F.
pub(crate) fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}
