//! The entry points of `fuzz/` over mutated seeds, a few seconds each. `fuzz/src/targets/explore.rs` says how to run
//! one for longer, and how to run a failing input again.

#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

use targets::explore::explore;

const SECONDS: u64 = 8;

#[test]
fn any_gguf_file_opens_whole_or_is_an_error() {
    explore(&targets::GGUF, SECONDS);
}

#[test]
fn any_safetensors_file_or_index_opens_whole_or_is_an_error() {
    explore(&targets::SAFETENSORS, SECONDS);
}

#[test]
fn any_configuration_is_valid_or_an_error() {
    explore(&targets::CONFIG, SECONDS);
}

#[test]
fn any_tokenizer_encodes_and_decodes_within_its_vocabulary_or_is_an_error() {
    explore(&targets::TOKENIZER, SECONDS);
}

#[test]
fn any_chat_template_renders_within_its_limits_or_is_an_error() {
    explore(&targets::CHAT_TEMPLATE, SECONDS);
}

#[test]
fn any_image_decodes_within_its_limits_or_is_an_error() {
    explore(&targets::IMAGE, SECONDS);
}
