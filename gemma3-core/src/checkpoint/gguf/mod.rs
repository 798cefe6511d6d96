//! GGUF files, versions 2 and 3, little endian: header, metadata, tensor descriptions.
//!
//! The parser is ours because every length in such a file is a number of the file: here each is
//! compared with the bytes that are left before anything is allocated or skipped by it.

mod config;
mod error;
mod file;
mod metadata;
mod parts;
mod reader;
mod special_tokens;

pub use error::GgufError;
pub use file::GgufFile;
pub use metadata::{GgufMetadata, GgufStrings};

pub(super) use config::{format_name, model_config};
pub(super) use file::has_magic;
