//! What lies in a model's place and isn't one: stand-ins that a download leaves, adapters, and weights that
//! other tools have packed in ways that aren't read. Each is recognized by a few of its bytes or names, so
//! that the error says what it is and what to do.

pub(super) mod adapter;
mod file_kind;
pub(super) mod quantized;
pub(super) mod stand_in;

pub(super) use file_kind::{FileKind, shown};
