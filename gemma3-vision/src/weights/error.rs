//! Why a GGUF file is not an image encoder of Gemma 3.

use gemma3_core::checkpoint::CheckpointError;
use gemma3_core::config::ConfigError;

/// Why a file beside a GGUF language model could not be opened as its image encoder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MmprojError {
    /// The file cannot be read as GGUF.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// It is the language model, whose image encoder is another file.
    #[error(
        "{file}: expected an image encoder (`general.architecture` \"clip\"), found a language model (\"gemma3\"); its \
         image encoder is in another file, usually called mmproj-….gguf"
    )]
    LanguageModel {
        /// The file.
        file: String,
    },
    /// Its metadata describe something else.
    #[error("{file}: {source}")]
    Config {
        /// The file.
        file: String,
        /// The key and its value.
        source: ConfigError,
    },
}
