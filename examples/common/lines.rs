//! Lines of text from a stream that may hold anything.

use std::fmt;
use std::io::{self, BufRead, Read};

/// The longest line that is taken: several times what fills a context of 131,072 tokens.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// Why a line can't be taken. The lines after it can.
#[derive(Debug)]
pub enum LineError {
    /// It has bytes that are no text, after this many that are.
    NotText { valid_up_to: usize },
    /// It has more than [`MAX_LINE_BYTES`] bytes.
    TooLong,
}

impl fmt::Display for LineError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotText { valid_up_to } => {
                let first = valid_up_to + 1;
                write!(formatter, "the line is not UTF-8 text (from its byte {first} on); it was left out")
            }
            Self::TooLong => {
                write!(formatter, "the line has more than {MAX_LINE_BYTES} bytes; it was left out")
            }
        }
    }
}

impl std::error::Error for LineError {}

/// The next line with its end, or why it can't be taken; `None` at the end of the input.
pub fn next_line(input: &mut impl BufRead) -> io::Result<Option<Result<String, LineError>>> {
    let mut bytes = Vec::new();
    input.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() == MAX_LINE_BYTES && !bytes.ends_with(b"\n") {
        input.skip_until(b'\n')?;
        return Ok(Some(Err(LineError::TooLong)));
    }
    let line = String::from_utf8(bytes);
    Ok(Some(line.map_err(|error| LineError::NotText { valid_up_to: error.utf8_error().valid_up_to() })))
}
