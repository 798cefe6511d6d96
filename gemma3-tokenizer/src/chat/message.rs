//! What a conversation is made of.

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions. Gemma has no system turn: the text is put before the first turn.
    System,
    /// The user.
    User,
    /// The model, called "assistant" in Hugging Face's conversations.
    Model,
    /// Any other name. The template accepts one in the model's place and writes it as it is ("tool").
    Other(String),
}

impl Role {
    /// The role of this name; "assistant" is the model.
    pub fn from_name(name: &str) -> Self {
        match name {
            "system" => Self::System,
            "user" => Self::User,
            "model" | "assistant" => Self::Model,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The name that the template writes after `<start_of_turn>`.
    pub fn name(&self) -> &str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Model => "model",
            Self::Other(name) if name == "assistant" => "model",
            Self::Other(name) => name,
        }
    }
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Text; the template strips white space around it (not in a system message).
    Text(String),
    /// An image, written as `<start_of_image>`. The pixels travel separately, in the same order.
    Image,
}

impl From<&str> for Part {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Part {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// One turn, or the system message.
///
/// ```
/// use gemma3_tokenizer::{Message, Part, Role};
///
/// let question = Message::user("What is this?").with(Part::Image);
/// assert_eq!(question.content.len(), 2);
/// let comparison = Message::new(Role::User, [Part::Image, "or".into(), Part::Image, "?".into()]);
/// assert_eq!(comparison.images(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What they say. The template joins the parts without anything in between; of a system message it
    /// writes only the first part, which must be text.
    pub content: Vec<Part>,
}

impl Message {
    /// A message of parts in any order; strings become text parts by `into()`.
    pub fn new(role: Role, content: impl Into<Vec<Part>>) -> Self {
        Self { role, content: content.into() }
    }

    /// A system message. It must be the first.
    pub fn system(text: impl Into<String>) -> Self {
        Self { role: Role::System, content: vec![Part::Text(text.into())] }
    }

    /// A user's turn.
    pub fn user(text: impl Into<String>) -> Self {
        Self { role: Role::User, content: vec![Part::Text(text.into())] }
    }

    /// A model's turn.
    pub fn model(text: impl Into<String>) -> Self {
        Self { role: Role::Model, content: vec![Part::Text(text.into())] }
    }

    /// Adds a part at the end.
    #[must_use]
    pub fn with(mut self, part: Part) -> Self {
        self.content.push(part);
        self
    }

    /// How many images the message has.
    pub fn images(&self) -> usize {
        self.content.iter().filter(|part| **part == Part::Image).count()
    }
}
