//! The entry points, one format a file.

pub mod chat_template;
mod checkpoint;
pub mod config;
pub mod gguf;
pub mod image;
pub mod safetensors;
mod text;
pub mod tokenizer;
