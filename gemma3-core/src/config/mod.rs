//! What a Gemma 3 model is made of: sizes, layer pattern, rope parameters, token ids.
//!
//! [`ModelConfig::from_json`] reads every `config.json` layout in circulation; [`TextConfig`] has the
//! five released sizes as plain constructors. The metadata of a GGUF file is read in
//! [`crate::checkpoint`], which ends in the same types. Nothing here knows tensors or files.

mod error;
mod generation;
mod huggingface;
pub(crate) mod json;
mod model;
mod note;
mod rope;
mod sizes;
mod text;
mod vision;

pub use error::ConfigError;
pub use generation::GenerationConfig;
pub(crate) use huggingface::{ConfigFile, TieFlags};
pub(crate) use model::{DEFAULT_BOS, DEFAULT_EOS, DEFAULT_PAD};
pub use model::{ImageTokens, ModelConfig};
pub(crate) use note::{Note, Topic};
pub use text::{LayerType, TextConfig};
pub(crate) use text::{MAX_LAYERS, layer_types_from_pattern};
pub use vision::VisionConfig;
