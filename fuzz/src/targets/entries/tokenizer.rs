//! `tokenizer.json`.

use gemma3::tokenizer::Tokenizer;

use super::super::bounds::{check_error, within};
use super::text;

/// A token takes a few bytes of the file, and entries in tables of texts, ids and bytes.
const BYTES_PER_BYTE: usize = 512;

/// Reads one file.
pub fn run(file: &[u8]) {
    within(BYTES_PER_BYTE * file.len(), || match Tokenizer::from_bytes(file) {
        Ok(tokenizer) => text::check(&tokenizer),
        Err(error) => check_error(&error),
    });
}
