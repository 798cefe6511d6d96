//! The real Gemma 3 270M (base, from its Q4_K_M GGUF) against Hugging Face transformers on the same
//! dequantized weights (variant `gguf_f32`), in exact mode.
//!
//! Tolerances are those of the goldens' README: 1e-3 on logits and log-probabilities, 1e-4 on the mean of
//! the paragraph, greedy ids up to the first step whose top-2 gap is below 0.02.
//!
//! The file is found by `GEMMA3_MODEL`, or where the example `generate` keeps it. It runs on flex, or on
//! the devices that `GEMMA3_DEVICES` names.

#[path = "../gemma3-core/tests/common/mod.rs"]
mod common;

use std::path::PathBuf;

use common::{assert_close, golden_json, ids, numbers, skip};
use gemma3::core::sampling::{LogProbs, top_logits};
use gemma3::tokenizer::Bos;
use gemma3::{CacheOptions, Device, Gemma3, GenerateOptions, SessionOptions, TextSession};
use serde_json::Value;

/// The real model's file, or a named skip.
fn real_model() -> Option<PathBuf> {
    let named = std::env::var_os("GEMMA3_MODEL").map(PathBuf::from);
    let found = named.clone().or_else(|| gemma3::hub::cached_default_model(&Default::default()));
    match found {
        Some(path) if path.is_file() => Some(path),
        _ => {
            let hint = "the real 270M is not cached; run `cargo run --release --example generate -- Hello`";
            skip(
                "model",
                named.map_or(hint.to_owned(), |path| format!("{} does not exist", path.display())).as_str(),
            );
            None
        }
    }
}

fn devices() -> Vec<(&'static str, Device)> {
    if std::env::var_os("GEMMA3_DEVICES").is_some() {
        return common::devices();
    }
    // 1 GiB of f32 weights is too slow for a software GPU, and ndarray is tested at tiny sizes.
    match gemma3::device::open("flex") {
        Ok(device) => vec![("flex", device)],
        Err(error) => {
            skip("flex", &error.to_string());
            Vec::new()
        }
    }
}

fn session(gemma: &Gemma3, ids: &[u32]) -> TextSession {
    let cache = CacheOptions { capacity: Some(1024), ..CacheOptions::default() };
    let mut session = gemma.session_with(&SessionOptions { cache, sequence: 0 }).expect("a session");
    session.append_ids(ids).expect("room");
    session
}

#[test]
fn the_real_model_equals_the_reference() {
    let Some(index) = golden_json("real_270m.json") else { return };
    let Some(path) = real_model() else { return };
    let variant = &index["variants"]["gguf_f32"];
    for (name, device) in devices() {
        println!("the real 270M on {name}");
        let gemma = Gemma3::loader(&path).device(&device).options(common::exact()).load().expect("the model");
        for prompt in variant["prompts"].as_array().expect("prompts") {
            let what = prompt["prompt"].as_str().unwrap_or("a prompt");
            println!("{what:?}");
            log_probabilities_and_best_logits(&gemma, prompt);
            greedy_continuation(&gemma, prompt);
        }
        paragraph(&gemma, &ids(&index["paragraph_ids"]), &variant["paragraph"]);
    }
}

/// What the fast mode adds on flex to the exact one, on a file of 5- and 8-bit weights: activations rounded to
/// 8 or 14 bits, a cache of f16, and on some processors other roundings than on others (see docs/quantization.md).
/// With AVX2 log-probabilities were off by 0.058 in the root mean square and by 0.0024 in the mean; the bounds are
/// three times the first, and five standard errors of a mean of that many. A wrong scale or kernel is off by far
/// more.
#[test]
fn the_fast_mode_stays_near_the_reference() {
    const MAX_RMS: f64 = 0.2;
    const MAX_MEAN: f64 = 0.03;
    let Some(index) = golden_json("real_270m.json") else { return };
    let Some(path) = real_model() else { return };
    let Ok(device) = gemma3::device::open("flex") else { return };
    let gemma = Gemma3::load(&path, &device).expect("the model");
    let ids = ids(&index["paragraph_ids"]);
    let reference = numbers(&index["variants"]["gguf_f32"]["paragraph"]["logprobs"]);
    // As a prompt, and as decoding computes it.
    for chunk in [512, 1] {
        let cache = CacheOptions { capacity: Some(1024), chunk, ..CacheOptions::default() };
        let mut session = gemma.session_with(&SessionOptions { cache, sequence: 0 }).expect("a session");
        let scored = session.score_ids(&ids, 0).expect("scores");
        assert_eq!(scored.len(), reference.len());
        let differences = scored.iter().zip(&reference).map(|(token, x)| f64::from(token.logprob) - x);
        let count = reference.len() as f64;
        let rms = (differences.clone().map(|d| d * d).sum::<f64>() / count).sqrt();
        let mean = differences.sum::<f64>() / count;
        println!("{chunk} at once: off by {rms:.4} in the root mean square, {mean:+.4} in the mean");
        assert!(rms <= MAX_RMS && mean.abs() <= MAX_MEAN, "{chunk} at once: {rms} and {mean}");
    }
}

/// The ids of a prompt, which the goldens give as text.
fn prompt_ids(gemma: &Gemma3, prompt: &Value) -> Vec<u32> {
    match prompt["prompt"].as_str() {
        Some(text) => gemma.tokenizer().encode(text, Bos::Add).expect("ids"),
        None => ids(&prompt["ids"]),
    }
}

fn log_probabilities_and_best_logits(gemma: &Gemma3, prompt: &Value) {
    let prompt_ids = prompt_ids(gemma, prompt);
    let mut session = session(gemma, &[]);
    let scored = session.score_ids(&prompt_ids, 0).expect("scores");
    let found: Vec<f32> = scored.iter().map(|token| token.logprob).collect();
    assert_close("log-probabilities of the prompt", &found, &floats(&prompt["prompt_logprobs"]), 1e-3);

    let logits = session.tokens_mut().logits().expect("logits").to_vec();
    let expected_ids = ids(&prompt["last_top_ids"]);
    let expected: Vec<f32> = floats(&prompt["last_top_logits"]);
    let found: Vec<f32> = expected_ids.iter().map(|id| logits[*id as usize]).collect();
    assert_close("the ten best logits", &found, &expected, 1e-3);
    let top = top_logits(&logits, expected.len());
    for (place, (id, logit)) in top.iter().enumerate() {
        // Neighbours closer than the tolerance may change places.
        assert!(*id == expected_ids[place] || (logit - expected[place]).abs() <= 1e-3, "place {place}: {id}");
    }
    let log_sum_exp = LogProbs::new(&logits).expect("finite logits").log_sum_exp();
    let expected = prompt["last_logsumexp"].as_f64().expect("a number");
    assert!((log_sum_exp - expected).abs() <= 1e-3, "log-sum-exp {log_sum_exp}, expected {expected}");
}

fn greedy_continuation(gemma: &Gemma3, prompt: &Value) {
    let expected = ids(&prompt["greedy_ids"]);
    let gaps = numbers(&prompt["greedy_gaps"]);
    let options = GenerateOptions {
        max_new_tokens: Some(expected.len()),
        ignore_eos: true,
        ..GenerateOptions::greedy()
    };
    let generation = session(gemma, &prompt_ids(gemma, prompt)).generate(&options).expect("a continuation");
    let found: Vec<u32> = generation.tokens.iter().map(|token| token.id).collect();
    let sure = gaps.iter().position(|gap| *gap < 0.02).unwrap_or(expected.len()).min(expected.len());
    println!("{sure} of {} greedy ids are certain", expected.len());
    assert_eq!(found[..sure.min(found.len())], expected[..sure]);
}

fn paragraph(gemma: &Gemma3, paragraph_ids: &[u32], expected: &Value) {
    let scored = session(gemma, &[]).score_ids(paragraph_ids, 0).expect("scores");
    let found: Vec<f32> = scored.iter().map(|token| token.logprob).collect();
    let reference: Vec<f32> = floats(&expected["logprobs"]);
    assert_close("log-probabilities of the paragraph", &found, &reference, 1e-3);
    let mean = found.iter().map(|x| f64::from(*x)).sum::<f64>() / found.len() as f64;
    let expected = expected["mean_logprob"].as_f64().expect("a number");
    assert!((mean - expected).abs() <= 1e-4, "mean log-probability {mean}, expected {expected}");
}

fn floats(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|x| x as f32).collect()
}
