//! Errors name what a file says, in few words: a name in a file may have any length and any characters, also those that
//! a terminal obeys.

mod build_gguf;

use build_gguf::{GgufBuilder, string_value, tiny_config, value};
use gemma3_core::checkpoint::Checkpoint;
use gemma3_core::config::{GenerationConfig, ModelConfig};

/// 8,000 characters that clear a terminal's screen.
fn long() -> String {
    "\u{1b}[2J".repeat(2000)
}

fn tiny() -> GgufBuilder {
    build_gguf::model(&tiny_config(2))
}

fn check(error: impl std::fmt::Display) {
    let error = error.to_string();
    assert!(error.len() < 1500, "{} bytes", error.len());
    assert!(!error.contains('\u{1b}'), "{error:?}");
    // Escaped, either as text or as JSON.
    assert!(error.contains("1b[2J") || error.contains("1b}[2J"), "it names what it found: {error:?}");
}

#[test]
fn names_in_a_gguf_file_are_shortened() {
    let refuse = |file: GgufBuilder| check(Checkpoint::from_gguf_bytes(file.build()).expect_err("an error"));
    refuse(tiny().set(&long(), value(99, &[])));
    refuse(tiny().set(&long(), value(7, &[2])));
    refuse(tiny().set("general.architecture", string_value(&long())));
    let mut twice = tiny();
    twice.metadata.extend([(long(), value(0, &[1])), (long(), value(0, &[1]))]);
    refuse(twice);
    let mut outside = tiny().tensor(&long(), &[2]);
    outside.tensor_mut(&long()).offset = 1 << 40;
    refuse(outside);
    let mut overlapping = tiny().tensor(&long(), &[64]);
    overlapping.tensor_mut(&long()).offset = 0;
    refuse(overlapping);
}

#[test]
fn words_in_json_are_shortened() {
    let word = serde_json::to_string(&long()).expect("JSON");
    for config in [
        format!(r#"{{"model_type": {word}}}"#),
        format!(r#"{{"model_type": "gemma3_text", "hidden_activation": {word}}}"#),
        format!(r#"{{"model_type": "gemma3_text", "head_dim": {word}}}"#),
        format!(r#"{{{word}: 1, {word}: 2}}"#),
    ] {
        check(ModelConfig::from_json(&config).expect_err("an error"));
    }
    check(GenerationConfig::from_json(&format!(r#"{{{word}: 1, {word}: 2}}"#)).expect_err("an error"));
}

#[test]
fn names_in_a_safetensors_file_are_shortened() {
    let word = serde_json::to_string(&long()).expect("JSON");
    let config = r#"{"model_type": "gemma3_text", "num_hidden_layers": 2}"#;
    for header in [
        format!(r#"{{{word}: {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}}}"#),
        format!(r#"{{{word}: {{"dtype": "F32", "shape": [1], "data_offsets": [0, {word}]}}}}"#),
        format!(r#"{{"a": {{"dtype": {word}, "shape": [], "data_offsets": [0, 0]}}}}"#),
    ] {
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        check(Checkpoint::from_safetensors_bytes(config, None, [file]).expect_err("an error"));
    }
}
