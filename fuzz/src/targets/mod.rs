//! Fuzzing: everything that reads what a stranger made, with what must be true of it whatever the bytes are.
//!
//! A [`Target`] is an entry point with seeds and a mutator that knows the format. It runs in two ways:
//!
//! - as an ordinary test (`tests/fuzz.rs`) over mutated seeds, some seconds each; `GEMMA3_FUZZ_SECONDS` lengthens
//!   that, [`explore`] says more;
//! - under libFuzzer, which looks at the coverage: `cargo +nightly fuzz run gguf`. A target begins with its seeds in
//!   an empty corpus: `cargo +nightly fuzz run gguf fuzz/corpus/gguf` after
//!   `GEMMA3_FUZZ_SEEDS=fuzz/corpus/gguf cargo +nightly fuzz run gguf -- -runs=0`.
//!
//! An entry point checks more than that nothing panics: what opens answers for all that it promises, what does not
//! says why, and [`bounds`] holds memory and time to the size of the input.
#![allow(dead_code, reason = "the targets and the ordinary test use a part each")]

pub mod bounds;
mod entries;
pub mod explore;
mod mutate;
mod random;
mod seeds;

pub use random::Random;

/// An entry point with what is needed to explore it.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, for messages and folders.
    pub name: &'static str,
    /// Reads one input. Panics where a property does not hold.
    pub run: fn(&[u8]),
    /// Well-formed inputs to begin with, small, so that a mutation meets what matters.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Changes the first input; may take parts of the second.
    pub mutate: fn(&mut Random, &mut Vec<u8>, &[u8]),
}

/// GGUF files: language model, image encoder, vocabulary.
pub const GGUF: Target =
    Target { name: "gguf", run: entries::gguf::run, seeds: seeds::gguf, mutate: mutate::bytes };
/// Safetensors files, and the index of a model of several.
pub const SAFETENSORS: Target = Target {
    name: "safetensors",
    run: entries::safetensors::run,
    seeds: seeds::safetensors,
    mutate: mutate::safetensors,
};
/// `config.json`, `generation_config.json` and `preprocessor_config.json`.
pub const CONFIG: Target =
    Target { name: "config", run: entries::config::run, seeds: seeds::config, mutate: mutate::json };
/// `tokenizer.json`, then encoding and decoding with it.
pub const TOKENIZER: Target =
    Target { name: "tokenizer", run: entries::tokenizer::run, seeds: seeds::tokenizer, mutate: mutate::json };
/// Chat templates in Jinja, and conversations in JSON.
pub const CHAT_TEMPLATE: Target = Target {
    name: "chat_template",
    run: entries::chat_template::run,
    seeds: seeds::chat_template,
    mutate: mutate::template,
};
/// Encoded images, then preprocessing.
pub const IMAGE: Target =
    Target { name: "image", run: entries::image::run, seeds: seeds::image, mutate: mutate::image };
