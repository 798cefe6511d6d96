//! Google's Gemma 3 as an embeddable library on [burn](https://burn.dev): text and images in, text out, on CPU
//! and GPU.
//!
//! # Text
//!
//! ```no_run
//! use gemma3::{Gemma3, GenerateOptions, device};
//!
//! # fn main() -> Result<(), gemma3::Error> {
//! let device = device::open("flex")?; // or "wgpu", "cuda", ... as built in
//! let gemma = Gemma3::load("gemma-3-270m.gguf", &device)?; // or a Hugging Face folder
//!
//! let mut session = gemma.session()?;
//! session.append("The history of bread begins")?;
//! let options = GenerateOptions { max_new_tokens: Some(64), ..gemma.generate_options() };
//! for piece in session.stream(&options)? {
//!     print!("{}", piece?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Conversations
//!
//! [`Gemma3::chat`] keeps history and cache and computes only what is new at each turn;
//! [`Gemma3::respond`] answers a list of conversations at once. Both write the turns of the checkpoint's chat
//! template and keep a user from writing special tokens. Gemma's template is built in; a fine-tune's own
//! ([`Gemma3::chat_template_kind`] tells) needs the feature `jinja`.
//!
//! # Images
//!
//! The 4B, 12B and 27B see. An [`Image`] comes from a file, from encoded bytes or from pixels in memory; a
//! [`Question`] has texts and images in any order.
//!
//! ```no_run
//! use gemma3::{Gemma3, Image, Question, device};
//!
//! # fn main() -> Result<(), gemma3::Error> {
//! let gemma = Gemma3::load("gemma-3-4b-it", &device::open("flex")?)?;
//! let mut chat = gemma.chat().start()?;
//! let question = Question::new().image(Image::open("photo.jpg")?).text("What is in this picture?");
//! println!("{}", chat.answer(question)?.text);
//! # Ok(())
//! # }
//! ```
//!
//! # Token ids and tensors
//!
//! [`core`] is the decoder by itself (sessions of ids, forward passes with traces, checkpoints),
//! [`tokenizer`] the conversion between text and ids, [`vision`] the image encoder.
//!
//! # Backends
//!
//! The cargo features `flex` (default), `ndarray`, `wgpu`, `vulkan`, `metal`, `webgpu`, `cuda` and `rocm`
//! build backends in; [`device::open`] finds one by name at run time.
//!
//! # Network
//!
//! Nothing here uses the network, unless the feature `hub` is on and its module is called.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod chat;
mod chat_format;
mod chat_template;
mod error;
mod gemma3;
#[cfg(feature = "hub")]
pub mod hub;
mod images;
mod load;
mod loader;
mod neighbours;
mod options;
mod question;
mod stop_strings;
mod text;
mod text_decoder;

pub use chat::{AnswerStream, Chat, ChatBuilder, WhenFull};
pub use chat_format::{ChatOptions, TemplateChoice};
pub use chat_template::ChatTemplateKind;
pub use error::Error;
pub use gemma3::Gemma3;
pub use load::gguf_vocabulary;
pub use loader::Loader;
pub use options::GenerateOptions;
pub use question::{Question, QuestionImage};
pub use text::{Generation, Piece, TextSession, TextStream};

pub use gemma3_core as core;
pub use gemma3_core::CancelHandle;
pub use gemma3_core::cache::{CacheDtype, CacheOptions};
pub use gemma3_core::checkpoint::{Warning, WarningKind};
pub use gemma3_core::formats::Quantization;
pub use gemma3_core::generate::{FinishReason, ScoredToken, SessionOptions, Token};
pub use gemma3_core::model::{LoadOptions, LoadProgress};
pub use gemma3_core::ops::Precision;
pub use gemma3_core::sampling::SamplingOptions;
pub use gemma3_core::{Device, Threads, device};
pub use gemma3_tokenizer as tokenizer;
pub use gemma3_tokenizer::{Message, Part, Role, Roles, UserText};
pub use gemma3_vision as vision;
pub use gemma3_vision::{
    Alpha, Crop, EncodeOptions, EncodedImage, Image, ImageCache, ImageError, ImageLimits, ImageOptions,
    Mmproj, PanAndScan,
};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
