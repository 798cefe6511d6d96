//! Gemma 3's tokenizer: text to token ids and back, chat turns, and text out of a stream of ids. It knows nothing
//! of tensors, models or devices.
//!
//! # Encoding and decoding
//! A [`Tokenizer`] comes from Hugging Face's tokenizer.json or from the vocabulary inside a GGUF file
//! ([`GgufVocabulary`]); both give the same ids.
//!
//! ```
//! use gemma3_tokenizer::{Bos, Tokenizer};
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-text/tokenizer.json");
//! let tokenizer = Tokenizer::from_file(path)?;
//! let ids = tokenizer.encode("to the inn", Bos::Add)?;
//! assert_eq!(tokenizer.decode(&ids, false)?, "<bos>to the inn");
//! assert_eq!(tokenizer.decode(&ids, true)?, "to the inn");
//! # Ok::<(), gemma3_tokenizer::TokenizerError>(())
//! ```
//!
//! Gemma needs exactly one `<bos>` before everything: [`Bos`] says who adds it. What a user has typed can contain
//! the names of special tokens: [`SpecialTokens`] says whether they mean something.
//!
//! # Chats
//! [`ChatTemplate`] renders and encodes a list of [`Message`]s as Gemma 3's own template does. By default a
//! user's text is escaped: a player cannot close his own turn.
//!
//! ```
//! use gemma3_tokenizer::{Answer, ChatTemplate, Message, Tokenizer, UserText};
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-text/tokenizer.json");
//! # let tokenizer = Tokenizer::from_file(path)?;
//! let messages = [Message::system("You guard the bridge."), Message::user("Let me pass!")];
//! let mut ids = ChatTemplate::encode(&tokenizer, &messages, true, UserText::Escape)?;
//! // … the model answers, `ids` grows; then only what is new is encoded and computed:
//! let question = Message::user("Why not?");
//! ids.extend(ChatTemplate::encode_next_turn(&tokenizer, &question, Answer::Open, UserText::Escape)?);
//! # Ok::<(), gemma3_tokenizer::ChatError>(())
//! ```
//!
//! Conversations in Hugging Face's JSON are read by [`conversation_from_json`]. Turns that do not alternate
//! (two system messages, user after user, a tool's answer) are an error; [`Roles::Merge`] makes turns of them that
//! do. Models with a template of their own ([`Edition::of`] tells) need the feature `jinja`, which
//! renders it within limits and keeps a user's text escaped as well.
//!
//! # Images
//! An image in a prompt is a fixed number of soft tokens, whose vectors come from the pixels; [`Images`] says what
//! surrounds them. [`ChatTemplate::encode_with_images`] puts them where a message has an image part,
//! [`Tokenizer::encode_with_images`] where a text has `<start_of_image>`.
//!
//! ```
//! use gemma3_tokenizer::{ChatTemplate, ImageTokens, Images, Message, Part, Role, Tokenizer, UserText};
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-multimodal/tokenizer.json");
//! # let tokenizer = Tokenizer::from_file(path)?;
//! let messages = [Message::new(Role::User, ["What is this?".into(), Part::Image])];
//! // The ids are those of the vocabulary; one image, without crops.
//! let images = Images { tokens: ImageTokens::of(&tokenizer, 256)?, crops: &[0] };
//! let ids = ChatTemplate::encode_with_images(&tokenizer, &messages, true, UserText::Escape, images)?;
//! assert_eq!(ids.iter().filter(|&&id| id == images.tokens.soft_token).count(), 256);
//! # Ok::<(), gemma3_tokenizer::ChatError>(())
//! ```
//!
//! # Streaming
//! A [`StreamDecoder`] turns ids into text as they arrive, never half a character at a time.
//!
//! # Where it follows the reference
//! "The reference" is Hugging Face's tokenizers and transformers. Encoding, decoding and rendering equal it
//! exactly, on every input that the golden tests hold; the exceptions are documented where they are.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod chat;
mod decode;
mod error;
mod gguf;
mod images;
#[cfg(feature = "jinja")]
mod jinja;
#[cfg(feature = "jinja")]
mod jinja_chat;
#[cfg(feature = "jinja")]
mod jinja_values;
mod merges;
mod model;
mod parts;
mod prompt;
pub mod special;
mod steps;
mod stream;
mod template;
mod tokenizer;
mod tokenizer_json;

pub use chat::{
    Answer, ChatError, ChatTemplate, Edition, Message, NullKeys, Part, Role, Roles, UserText,
    conversation_from_json, conversation_to_json,
};
pub use error::TokenizerError;
pub use gguf::GgufVocabulary;
pub use images::{ImageTokens, Images};
#[cfg(feature = "jinja")]
pub use jinja::{JinjaError, JinjaLimits, JinjaTemplate};
pub use stream::StreamDecoder;
pub use tokenizer::{Bos, SpecialTokens, TokenizeOptions, Tokenizer};
