//! The one error type of this crate.

use std::path::PathBuf;

use gemma3_core::cache::CacheError;
use gemma3_core::checkpoint::CheckpointError;
use gemma3_core::config::ConfigError;
use gemma3_core::device::DeviceError;
use gemma3_core::generate::GenerateError;
use gemma3_core::model::LoadError;
use gemma3_tokenizer::{ChatError, TokenizerError};
use gemma3_vision::{ImageError, MmprojError, SoftTokensError, VisionError};

use crate::WhenFull;

/// Anything that can go wrong between a path and a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// GGUF metadata of the tokenizer has the wrong type.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device does not exist.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The cache cannot be made.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Generating failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Text and ids cannot be converted.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A conversation is not valid.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The checkpoint's chat template is not Gemma's and this build cannot render it.
    #[error(
        "the chat template of this checkpoint is not Gemma 3's, so its conversations are written otherwise: build with \
         the feature `jinja` to render it, or ask for Gemma's turns nevertheless (`TemplateChoice::Gemma`)"
    )]
    OtherChatTemplate,
    /// The checkpoint comes without a tokenizer.
    #[error(
        "{}: no tokenizer: expected tokenizer.json in the folder, or a vocabulary in the GGUF file; {advice}",
        path.display()
    )]
    NoTokenizer {
        /// The checkpoint.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
    },
    /// An image was given to a model that takes text only.
    #[error(
        "this model takes text only; images need the 4B, 12B or 27B with its image encoder: a Hugging Face folder, or a GGUF file together with its mmproj file"
    )]
    ImagesUnsupported,
    /// An image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image encoder cannot be loaded or refuses an image.
    #[error(transparent)]
    Vision(#[from] VisionError),
    /// The GGUF file given as image encoder is none.
    #[error(transparent)]
    Mmproj(#[from] MmprojError),
    /// Images and their placeholders do not fit each other.
    #[error(transparent)]
    SoftTokens(#[from] SoftTokensError),
    /// Another number of lists of images than conversations.
    #[error("{conversations} conversations were given with {images} lists of images; expected one list each")]
    ImageLists {
        /// Conversations given.
        conversations: usize,
        /// Lists of images given.
        images: usize,
    },
    /// The conversation does not fit the context.
    #[error("the conversation has {tokens} tokens and the context {capacity}; {}", room(*when_full))]
    ConversationTooLong {
        /// Tokens of the conversation with its next turn; where old turns are dropped, of what is left when all
        /// of them are.
        tokens: usize,
        /// The session's capacity.
        capacity: usize,
        /// What the conversation does when the context is full.
        when_full: WhenFull,
    },
}

/// What makes room for a conversation.
fn room(when_full: WhenFull) -> &'static str {
    match when_full {
        WhenFull::Stop => {
            "make the context larger, or choose to drop the oldest turns (`WhenFull::DropOldest`)"
        }
        WhenFull::DropOldest => {
            "no turn is left to drop: make the context larger, or the question or the system prompt shorter"
        }
    }
}
