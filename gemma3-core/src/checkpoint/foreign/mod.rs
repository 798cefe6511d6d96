//! What lies in a model's place and isn't one: stand-ins that a download leaves, adapters, and weights that
//! other tools have packed in ways that aren't read. Each is recognized by a few of its bytes or names, so
//! that the error says what it is and what to do.

mod adapter;
mod file_kind;
mod quantized;
mod stand_in;

pub(super) use adapter::{
    in_file as adapter_in_file, in_folder as adapter_in_folder, reject_gguf as reject_gguf_adapter,
    reject_tensors as reject_adapter_tensors,
};
pub(super) use file_kind::{FileKind, shown};
pub(super) use quantized::{
    reject_config as reject_quantized_config, reject_tensors as reject_quantized_tensors,
};
pub(super) use stand_in::reject as reject_stand_in;
