//! Conversations: typed messages, their rendering as Gemma 3's chat template does it, and their encoding
//! with or without the special tokens that a user may have typed.

mod json;
mod message;
mod published;
mod roles;
mod template;
mod turns;

pub use json::{NullKeys, conversation_from_json, conversation_to_json};
pub use message::{Message, Part, Role};
pub use published::Edition;
pub use roles::Roles;
pub use template::{Answer, ChatTemplate, UserText};

#[cfg(feature = "jinja")]
pub(crate) use turns::is_python_space;

use crate::error::TokenizerError;

/// Why a conversation cannot be rendered or encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// There is no message.
    #[error("the conversation is empty: expected at least one message")]
    Empty,

    /// The turns are not in the order that Gemma knows.
    #[error(
        "message {index} has the role {role:?}: conversation roles must alternate \
         user/assistant/user/assistant/... after an optional system message; `Roles::Merge` makes such turns of \
         others (developer, tool, several messages of one role)"
    )]
    RolesMustAlternate {
        /// The position in the conversation, the system message included.
        index: usize,
        /// The role found there.
        role: String,
    },

    /// The system message has no text to put before the first turn.
    #[error("the system message has {found} content: expected text, or a list that begins with a text part")]
    SystemWithoutText {
        /// What its content is.
        found: &'static str,
    },

    /// The message to append to a running conversation is not a user's.
    #[error("the next message has the role {role:?}: after an answer expected a user message")]
    NotAUserTurn {
        /// The role found.
        role: String,
    },

    /// JSON that is not a list of messages.
    #[error("the conversation is {found}: expected a list of messages")]
    NotAConversation {
        /// What it is.
        found: &'static str,
    },

    /// A JSON message without a role, or whose role is not a string.
    #[error("message {index} has no role: expected \"system\", \"user\" or \"assistant\"")]
    MissingRole {
        /// The position in the conversation.
        index: usize,
    },

    /// A JSON message with content of another kind ("Invalid content type" in the reference).
    #[error(
        "message {index} has {found} content: expected text, or a list of parts; `NullKeys::Drop` reads null as \
         no content"
    )]
    InvalidContent {
        /// The position in the conversation.
        index: usize,
        /// What its content is.
        found: &'static str,
    },

    /// A JSON text part whose text is not a string. (The reference renders Python's notation of it,
    /// which this crate does only for whole numbers, true, false and null.)
    #[error("message {index} has a text part that is {found}: expected a string")]
    InvalidText {
        /// The position in the conversation.
        index: usize,
        /// What the text is.
        found: &'static str,
    },

    /// The rendered text could not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),

    /// A custom template failed, or refused the conversation.
    #[cfg(feature = "jinja")]
    #[error(transparent)]
    Jinja(#[from] crate::jinja::JinjaError),
}
