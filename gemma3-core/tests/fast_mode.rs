//! What fast mode may cost on every device: prompts, steps and batches beside transformers in f32.
//!
//! Transformers in bf16, where every operation rounds, differs from itself in f32 by up to 0.41 of a logit and by 0.055
//! in the mean on these checkpoints (the README of the goldens; logits have a standard deviation of 2). Fast mode rounds
//! less: the factors of some products and the cache, never the residual stream. So it has to stay within that, whatever
//! it uses: tensor cores in bf16 or f16 for prompts and batches, 8-bit activations for block formats, a cache of f16. A
//! single step of bf16 weights has f32 activations: only its cache is rounded, to 11 bits.

mod common;

use common::{Tensors, devices, golden, golden_json, ids};
use gemma3_core::CancelHandle;
use gemma3_core::Device;
use gemma3_core::cache::CacheOptions;
use gemma3_core::checkpoint::Checkpoint;
use gemma3_core::generate::{ContinueOptions, Session, SessionOptions, generate_batch};
use gemma3_core::model::{LoadOptions, Model, Segment, SegmentInput};
use gemma3_core::ops::Precision;
use gemma3_core::sampling::SamplingOptions;
use serde_json::Value;

/// The largest difference of a logit, and the mean.
const BF16: (f32, f32) = (0.41, 0.055);
/// The same where activations are rounded to 8 bits a block: each is off by 1/440 of the block's largest in the root
/// mean square, so by 0.55% of the size of 32 normal numbers, where bf16 costs 0.11%. Five times what the factors of
/// products cost in bf16, which a prompt shows: 0.23 and 0.030.
const INT8: (f32, f32) = (1.15, 0.15);
/// The same where the cache alone is rounded: a fortieth, for 11 bits in place of 8 and one place of many.
const F16_CACHE: (f32, f32) = (0.02, 0.002);

fn fast(checkpoint: &Checkpoint, device: &Device) -> Model {
    let options = LoadOptions { precision: Precision::Fast, ..LoadOptions::default() };
    Model::load(checkpoint, device, options).expect("a model")
}

fn text_checkpoint() -> Option<(Checkpoint, Value, Tensors)> {
    let folder = golden("tiny-text")?;
    let (index, tensors) = (golden_json("tiny-text.json")?, Tensors::open("tiny-text.safetensors")?);
    Some((Checkpoint::open(folder).expect("the folder"), index, tensors))
}

fn session(model: &Model) -> Session {
    let cache = CacheOptions { capacity: Some(128), chunk: 64, ..CacheOptions::default() };
    Session::new(model, &SessionOptions { cache, sequence: 0 }).expect("a session")
}

fn prompt_logits(model: &Model, input: &[u32]) -> Vec<f32> {
    let cache = CacheOptions { capacity: Some(128), chunk: 64, ..CacheOptions::default() };
    let mut cache = model.new_cache(&cache).expect("a cache");
    let segment = Segment { input: SegmentInput::Ids(input), cache: &mut cache };
    model.forward_all(&mut [segment]).expect("a forward pass").concat()
}

/// The logits of every position, computed one step after the other.
fn step_logits(model: &Model, input: &[u32]) -> Vec<f32> {
    let mut session = session(model);
    let step = |id: &u32| {
        session.append(&[*id]).expect("room");
        session.logits().expect("logits").to_vec()
    };
    input.iter().flat_map(step).collect()
}

fn assert_within(what: &str, found: &[f32], expected: &[f32], (most, mean): (f32, f32)) {
    let largest = common::max_difference(found, expected);
    let sum: f32 = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).sum();
    let average = sum / found.len() as f32;
    println!("{what}: off by at most {largest:.4}, in the mean {average:.5}");
    assert!(largest <= most && average <= mean, "{what}: {largest} and {average}, beyond {most} and {mean}");
}

#[test]
fn prompts_and_steps_stay_near_the_reference() {
    let Some((checkpoint, index, tensors)) = text_checkpoint() else { return };
    for (name, device) in devices() {
        let model = fast(&checkpoint, &device);
        for (case, value) in index["cases"].as_object().expect("cases") {
            let (input, expected) = (ids(&value["input_ids"]), tensors.values(&format!("{case}.logits")));
            assert_within(&format!("{name}, {case}"), &prompt_logits(&model, &input), &expected, BF16);
            let steps = step_logits(&model, &input);
            assert_within(&format!("{name}, {case} in steps"), &steps, &expected, F16_CACHE);
        }
    }
}

/// In a batch the tokens are chosen on the device where there is one. Each has to be as good as the best but for what
/// both logits may be off by.
#[test]
fn batches_choose_tokens_that_the_reference_rates_highest() {
    let Some((checkpoint, index, _)) = text_checkpoint() else { return };
    let mut prompts: Vec<Vec<u32>> =
        index["cases"].as_object().expect("cases").values().map(|case| ids(&case["input_ids"])).collect();
    prompts.extend_from_within(..2);
    for (name, device) in devices() {
        let (model, exact) =
            (fast(&checkpoint, &device), common::load(&golden("tiny-text").unwrap(), &device));
        let mut sessions: Vec<Session> = prompts.iter().map(|_| session(&model)).collect();
        for (session, prompt) in sessions.iter_mut().zip(&prompts) {
            session.append(prompt).expect("room");
        }
        let options = ContinueOptions {
            sampling: SamplingOptions::greedy(),
            max_new_tokens: Some(16),
            ..ContinueOptions::default()
        };
        let all = vec![options; prompts.len()];
        let mut together: Vec<&mut Session> = sessions.iter_mut().collect();
        let completions = generate_batch(&mut together, &all, &CancelHandle::new()).expect("a batch");
        for (prompt, completion) in prompts.iter().zip(&completions) {
            let chosen: Vec<u32> = completion.tokens.iter().map(|token| token.id).collect();
            assert_eq!(chosen.len(), 16);
            let text = [prompt, &chosen[..]].concat();
            let logits = prompt_logits(&exact, &text);
            let rows = logits.chunks_exact(logits.len() / text.len()).skip(prompt.len() - 1);
            for (row, id) in rows.zip(&chosen) {
                let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let less = best - row[*id as usize];
                assert!(less <= 2.0 * BF16.0, "{name}: {id} is {less} below the best");
            }
        }
    }
}

/// A GGUF of block formats, whose activations are rounded to 8 bits a block where the device has such products: flex
/// always, CUDA and Vulkan in steps.
#[test]
fn block_formats_stay_near_their_dequantized_weights() {
    let (Some((checkpoint, index, _)), Some(gguf)) = (text_checkpoint(), golden("tiny-text.gguf")) else {
        return;
    };
    let Some(tensors) = Tensors::open("tiny-text-gguf.safetensors") else { return };
    let config = checkpoint.config().text.clone();
    let checkpoint = Checkpoint::open(gguf).expect("the GGUF").with_text_config(config).expect("one shape");
    for (name, device) in devices() {
        let model = fast(&checkpoint, &device);
        for golden in tensors.names() {
            let case = golden.strip_suffix(".logits").unwrap_or(&golden);
            let (input, expected) = (ids(&index["cases"][case]["input_ids"]), tensors.values(&golden));
            assert_within(&format!("{name}, {golden}"), &prompt_logits(&model, &input), &expected, INT8);
            let steps = step_logits(&model, &input);
            assert_within(&format!("{name}, {golden} in steps"), &steps, &expected, INT8);
        }
    }
}
