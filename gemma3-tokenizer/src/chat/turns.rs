//! Gemma 3's chat template in Rust: a conversation as a list of special tokens and texts between them.
//!
//! `<bos>`, then for each message `<start_of_turn>ROLE\nCONTENT<end_of_turn>\n`. The system text and
//! two newlines come before the content of the first turn. Contents are stripped, the system text is not.

use super::{ChatError, Message, Part, Role};
use crate::special;

/// A piece of a rendered conversation. Two texts are never adjacent: between special tokens everything,
/// the role's name and its newline included, is encoded as one text, because it merges.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    Special(&'static str),
    Text(String),
}

impl Piece {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Special(token) => token,
            Self::Text(text) => text,
        }
    }
}

/// A conversation under construction.
#[derive(Default)]
pub(crate) struct Turns(Vec<Piece>);

impl Turns {
    /// The whole conversation.
    pub fn of(messages: &[Message], add_generation_prompt: bool) -> Result<Self, ChatError> {
        let (prefix, first_index, turns) = match messages {
            [] => return Err(ChatError::Empty),
            [system, turns @ ..] if system.role.name() == "system" => {
                (format!("{}\n\n", system_text(system)?), 1, turns)
            }
            turns => (String::new(), 0, turns),
        };
        let mut this = Self::default();
        this.special(special::BOS);
        for (slot, message) in turns.iter().enumerate() {
            let is_user = message.role.name() == "user";
            if is_user != slot.is_multiple_of(2) {
                let (index, role) = (slot.saturating_add(first_index), message.role.name().to_owned());
                return Err(ChatError::RolesMustAlternate { index, role });
            }
            this.turn(message, if slot == 0 { &prefix } else { "" });
        }
        if add_generation_prompt {
            this.open(&Role::Model);
        }
        Ok(this)
    }

    /// What follows an answer: its end, the user's turn, and the beginning of the next answer.
    pub fn after_answer(message: &Message, is_answer_ended: bool) -> Result<Self, ChatError> {
        if message.role.name() != "user" {
            return Err(ChatError::NotAUserTurn { role: message.role.name().to_owned() });
        }
        let mut this = Self::default();
        if !is_answer_ended {
            this.special(special::END_OF_TURN);
        }
        this.text("\n");
        this.turn(message, "");
        this.open(&Role::Model);
        Ok(this)
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    pub fn text_of_all(&self) -> String {
        self.0.iter().map(Piece::as_str).collect()
    }

    fn turn(&mut self, message: &Message, prefix: &str) {
        self.open(&message.role);
        self.text(prefix);
        for part in &message.content {
            match part {
                Part::Text(text) => self.text(text.trim_matches(is_python_space)),
                Part::Image => self.special(special::START_OF_IMAGE),
            }
        }
        self.special(special::END_OF_TURN);
        self.text("\n");
    }

    fn open(&mut self, role: &Role) {
        self.special(special::START_OF_TURN);
        self.text(role.name());
        self.text("\n");
    }

    fn special(&mut self, token: &'static str) {
        self.0.push(Piece::Special(token));
    }

    fn text(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.0.push(Piece::Text(text.to_owned())),
        }
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
