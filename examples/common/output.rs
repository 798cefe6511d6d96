//! Writing to stdout and stderr. `println!` panics where it can't write; a closed pipe or a full disk is an error
//! here, and the program ends as others do.

use std::fmt;
use std::io::{self, ErrorKind, Write};

/// Stdout can't be written.
#[derive(Debug)]
pub struct OutputError(pub io::Error);

impl OutputError {
    /// Whether nobody reads any more, as behind `| head`: no fault of anybody.
    pub fn is_closed_pipe(&self) -> bool {
        self.0.kind() == ErrorKind::BrokenPipe
    }
}

impl fmt::Display for OutputError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot write to stdout: {}", self.0)
    }
}

impl std::error::Error for OutputError {}

/// Writes a line to stdout; `Err` of an [`OutputError`] where that fails.
macro_rules! out {
    ($($text:tt)*) => { $crate::common::write_line(format_args!($($text)*)) };
}

/// Writes a line to stderr. Notes are not what was asked for: where they can't be written, the program goes on.
macro_rules! note {
    ($($text:tt)*) => { $crate::common::write_note(format_args!($($text)*)) };
}

pub(crate) use {note, out};

/// What [`out!`] calls.
pub fn write_line(line: fmt::Arguments<'_>) -> Result<(), OutputError> {
    writeln!(io::stdout(), "{line}").map_err(OutputError)
}

/// What [`note!`] calls.
pub fn write_note(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Shows a part of a line at once.
pub fn show(text: &str) -> Result<(), OutputError> {
    io::stdout().write_all(text.as_bytes()).map_err(OutputError)?;
    flush()
}

/// Makes sure that everything is written.
pub fn flush() -> Result<(), OutputError> {
    io::stdout().flush().map_err(OutputError)
}
