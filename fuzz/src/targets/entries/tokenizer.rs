//! `tokenizer.json`.

use gemma3::tokenizer::Tokenizer;

use super::super::bounds::{check_error, within};
use super::text;

/// A token takes a few bytes of the file, and entries in tables of texts, ids and bytes.
const BYTES_PER_BYTE: usize = 512;
/// A regular expression and what it is run with, at most: of a few bytes, where letters of all scripts are meant.
const BYTES_PER_EXPRESSION: usize = 16 << 20;
/// Those that a tokenizer may have.
const MOST_EXPRESSIONS: usize = 3 * 16;

/// Reads one file.
pub fn run(file: &[u8]) {
    let expressions = file.array_windows().filter(|name| *name == b"\"Regex\"").count().min(MOST_EXPRESSIONS);
    within(BYTES_PER_BYTE * file.len() + BYTES_PER_EXPRESSION * expressions, || match Tokenizer::from_bytes(
        file,
    ) {
        Ok(tokenizer) => text::check(&tokenizer),
        Err(error) => check_error(&error),
    });
}
