//! The entry points of `fuzz/` over mutated seeds, a few seconds each. `fuzz/src/targets/explore.rs` says how to run
//! one for longer, and how to run a failing input again.

#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

use targets::Target;
use targets::explore::explore;

const SECONDS: u64 = 8;
/// Far fewer than a busy machine tries: that mutations are tried at all.
const FEWEST_INPUTS: u64 = 20;

fn holds(target: &Target) {
    let count = explore(target, SECONDS);
    assert!(count >= FEWEST_INPUTS, "{count} inputs in {SECONDS} s");
}

#[test]
fn any_gguf_file_opens_whole_or_is_an_error() {
    holds(&targets::GGUF);
}

#[test]
fn any_safetensors_file_or_index_opens_whole_or_is_an_error() {
    holds(&targets::SAFETENSORS);
}

#[test]
fn any_configuration_is_valid_or_an_error() {
    holds(&targets::CONFIG);
}

#[test]
fn any_tokenizer_encodes_and_decodes_within_its_vocabulary_or_is_an_error() {
    holds(&targets::TOKENIZER);
}

#[test]
fn any_chat_template_renders_within_its_limits_or_is_an_error() {
    holds(&targets::CHAT_TEMPLATE);
}

#[test]
fn any_image_decodes_within_its_limits_or_is_an_error() {
    holds(&targets::IMAGE);
}
