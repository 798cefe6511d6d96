//! What a result on flex depends on: not on the number of threads, nor on the chunk of a prompt once that is not tiny,
//! nor on up to seven other sequences of a batch in fast mode. All of it bit for bit.

mod common;

use std::sync::Arc;

use common::{devices, golden, max_difference};
use gemma3_core::cache::{CacheDtype, CacheOptions};
use gemma3_core::checkpoint::{Checkpoint, TensorFormat};
use gemma3_core::config::{LayerType, TextConfig};
use gemma3_core::generate::{Session, SessionOptions};
use gemma3_core::model::{LoadOptions, Model, Segment, SegmentInput};
use gemma3_core::ops::Precision;
use gemma3_core::{Device, Threads};

/// Beside one thread.
const THREADS: [usize; 4] = [2, 3, 5, 8];
const PRECISIONS: [Precision; 2] = [Precision::Exact, Precision::Fast];

/// The least chunk that promises the same as any larger one: twice the rows from which on they are computed alike.
const LEAST_CHUNK: usize = 34;

fn flex() -> Option<Device> {
    devices().into_iter().find(|(name, _)| *name == "flex").map(|(_, device)| device)
}

/// Sizes of blocks of 256, one key head.
fn even() -> TextConfig {
    TextConfig {
        vocab_size: 520,
        hidden_size: 256,
        intermediate_size: 512,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 1,
        head_dim: 32,
        query_pre_attn_scalar: 32.0,
        sliding_window: 40,
        max_position_embeddings: 2048,
        layer_types: vec![LayerType::SlidingAttention, LayerType::FullAttention, LayerType::SlidingAttention],
        ..TextConfig::gemma3_270m()
    }
}

/// Sizes that nothing divides: rows of 9 blocks of 32, 13 outputs beyond whole panels, heads in groups of three.
fn odd() -> TextConfig {
    TextConfig {
        vocab_size: 333,
        hidden_size: 288,
        intermediate_size: 352,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 24,
        sliding_window: 33,
        ..even()
    }
}

/// Heads whose width vectors of eight don't divide, rows that blocks don't.
fn narrow() -> TextConfig {
    TextConfig {
        hidden_size: 90,
        intermediate_size: 130,
        num_attention_heads: 3,
        num_key_value_heads: 3,
        head_dim: 20,
        ..odd()
    }
}

/// Attention that is worth several threads from a thousand positions on, in windows and without.
fn wide_heads() -> TextConfig {
    TextConfig {
        hidden_size: 128,
        intermediate_size: 256,
        num_attention_heads: 8,
        num_key_value_heads: 2,
        head_dim: 64,
        sliding_window: 1050,
        ..even()
    }
}

fn checkpoint(config: TextConfig, format: TensorFormat) -> Checkpoint {
    Checkpoint::random(config, format, 7).expect("random weights")
}

fn model(checkpoint: &Checkpoint, device: &Device, precision: Precision, threads: usize) -> Model {
    let options = LoadOptions { precision, threads: Some(threads), ..LoadOptions::default() };
    Model::load(checkpoint, device, options).expect("a model")
}

fn ids(model: &Model, count: usize, seed: usize) -> Vec<u32> {
    let vocab_size = model.text_config().vocab_size;
    (0..count).map(|n| ((n * n * 31 + n * 7 + seed * 101 + 5) % vocab_size) as u32).collect()
}

fn cache(chunk: usize, dtype: Option<CacheDtype>) -> CacheOptions {
    CacheOptions { capacity: Some(1300), chunk, dtype }
}

fn session(model: &Model, cache: CacheOptions) -> Session {
    Session::new(model, &SessionOptions { cache, sequence: 0 }).expect("a session")
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Logits after a prompt of some length and after each of some steps.
fn prompt_and_steps(model: &Model, cache: CacheOptions, prompt: usize, steps: usize) -> Vec<Vec<u32>> {
    let ids = ids(model, prompt + steps, 1);
    let mut session = session(model, cache);
    session.append(&ids[..prompt]).expect("room");
    let mut all = vec![bits(session.logits().expect("logits"))];
    for id in &ids[prompt..] {
        session.append(&[*id]).expect("room");
        all.push(bits(session.logits().expect("logits")));
    }
    all
}

/// Steps of several sequences together, whose prompts have different lengths.
fn batch(model: &Model, sequences: usize) -> Vec<Vec<u32>> {
    let prompts: Vec<Vec<u32>> = (0..sequences).map(|n| ids(model, 1 + 19 * n % 77, n)).collect();
    let mut caches: Vec<_> =
        prompts.iter().map(|_| model.new_cache(&cache(100, None)).expect("a cache")).collect();
    let mut all = Vec::new();
    for (prompt, cache) in prompts.iter().zip(&mut caches) {
        model.forward_last(&mut [Segment { input: SegmentInput::Ids(prompt), cache }]).expect("a prompt");
    }
    for step in 0..2 {
        let next: Vec<[u32; 1]> = (0..sequences).map(|n| [(n + 3 * step) as u32]).collect();
        let segments = next.iter().zip(&mut caches);
        let mut segments: Vec<_> =
            segments.map(|(id, cache)| Segment { input: SegmentInput::Ids(id), cache }).collect();
        all.extend(model.forward_last(&mut segments).expect("a step").iter().map(|logits| bits(logits)));
    }
    all
}

/// Everything that a session does: chunks, steps within and beyond the window and across a border of the blocks
/// that attention sums, short turns, and batches of few and many.
fn everything(model: &Model) -> Vec<Vec<u32>> {
    let mut all = prompt_and_steps(model, cache(64, None), 121, 12);
    all.extend(prompt_and_steps(model, cache(16, None), 30, 3));
    let ids = ids(model, 75, 2);
    let mut cache = model.new_cache(&cache(75, None)).expect("a cache");
    let segment = Segment { input: SegmentInput::Ids(&ids), cache: &mut cache };
    all.extend(model.forward_all(&mut [segment]).expect("logits").iter().map(|logits| bits(logits)));
    all.extend([3, 10].into_iter().flat_map(|sequences| batch(model, sequences)));
    all
}

fn assert_threads_do_not_matter(config: &TextConfig, format: TensorFormat, device: &Device) {
    let checkpoint = checkpoint(config.clone(), format);
    for precision in PRECISIONS {
        let expected = everything(&model(&checkpoint, device, precision, 1));
        for threads in THREADS {
            let found = everything(&model(&checkpoint, device, precision, threads));
            assert!(found == expected, "{threads} threads, {format}, {precision:?}: other logits");
        }
    }
}

#[test]
fn threads_do_not_matter_in_any_format() {
    let Some(device) = flex() else { return };
    for format in TensorFormat::ALL {
        assert_threads_do_not_matter(&even(), format, &device);
    }
}

#[test]
fn threads_do_not_matter_in_odd_sizes() {
    let Some(device) = flex() else { return };
    for format in [TensorFormat::F32, TensorFormat::BF16, TensorFormat::Q4_0, TensorFormat::Q8_0] {
        assert_threads_do_not_matter(&odd(), format, &device);
        assert_threads_do_not_matter(&narrow(), format, &device);
    }
}

#[test]
fn threads_do_not_matter_in_long_contexts_and_any_cache() {
    let Some(device) = flex() else { return };
    let checkpoint = checkpoint(wide_heads(), TensorFormat::Q5_0);
    for dtype in [CacheDtype::F32, CacheDtype::F16, CacheDtype::BF16] {
        let run = |threads| {
            let model = model(&checkpoint, &device, Precision::Fast, threads);
            prompt_and_steps(&model, cache(300, Some(dtype)), 1140, 20)
        };
        let expected = run(1);
        assert!(THREADS.into_iter().all(|threads| run(threads) == expected), "{dtype:?}");
    }
}

#[test]
fn threads_that_the_host_lends_do_not_matter() {
    let Some(device) = flex() else { return };
    let checkpoint = checkpoint(even(), TensorFormat::Q4_K);
    for precision in PRECISIONS {
        let expected = everything(&model(&checkpoint, &device, precision, 1));
        for threads in [2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let lent_threads = Some(Threads::lent(Arc::new(pool)));
            let options = LoadOptions { precision, lent_threads, ..LoadOptions::default() };
            let model = Model::load(&checkpoint, &device, options).expect("a model");
            assert!(everything(&model) == expected, "{threads} threads, {precision:?}");
        }
    }
}

#[test]
fn the_chunk_does_not_matter_either_unless_it_is_tiny() {
    let Some(device) = flex() else { return };
    for (config, formats) in [(even(), &TensorFormat::ALL[..]), (odd(), &[TensorFormat::Q5_1])] {
        for (format, precision) in formats.iter().flat_map(|f| PRECISIONS.map(|precision| (*f, precision))) {
            let model = model(&checkpoint(config.clone(), format), &device, precision, 2);
            // Lengths that leave one token, a few, and many for the last chunk.
            for prompt in [LEAST_CHUNK + 1, 129, 200, 260] {
                let expected = prompt_and_steps(&model, cache(600, None), prompt, 5);
                for chunk in [LEAST_CHUNK, 64, 65, 128, prompt - 1] {
                    let found = prompt_and_steps(&model, cache(chunk, None), prompt, 5);
                    assert!(found == expected, "{prompt} tokens, {chunk} at once, {format}, {precision:?}");
                }
            }
        }
    }
}

/// More rows than are multiplied at once.
#[test]
fn a_chunk_of_many_tokens_is_like_smaller_ones() {
    let Some(device) = flex() else { return };
    let model = model(&checkpoint(even(), TensorFormat::Q8_0), &device, Precision::Fast, 2);
    let expected = prompt_and_steps(&model, cache(1030, None), 1027, 1);
    assert!(prompt_and_steps(&model, cache(200, None), 1027, 1) == expected);
}

/// What scoring computes in pieces of its own is what a whole prompt gives.
#[test]
fn scores_do_not_depend_on_the_chunk() {
    let Some(device) = flex() else { return };
    for precision in PRECISIONS {
        let model = model(&checkpoint(even(), TensorFormat::Q4_K), &device, precision, 2);
        let ids = ids(&model, 131, 3);
        let score = |chunk| {
            let mut session = session(&model, cache(chunk, None));
            let scored = session.prefill_scored(&ids, 0).expect("scores");
            scored.into_iter().map(|token| token.logprob.to_bits()).collect::<Vec<_>>()
        };
        let expected = score(512);
        assert!([LEAST_CHUNK, 50, 63].into_iter().all(|chunk| score(chunk) == expected), "{precision:?}");
    }
}

/// Chunks of a few tokens have other roundings. In fast mode they may be as large as fast mode itself (`fast_mode.rs`):
/// up to 8 tokens at once have 8 bits where a prompt has 14, a few more only attend otherwise, which moves some
/// activation by a step here and there.
#[test]
fn tiny_chunks_differ_by_what_the_mode_rounds() {
    let (Some(device), Some(folder), Some(gguf)) = (flex(), golden("tiny-text"), golden("tiny-text.gguf"))
    else {
        return;
    };
    let config = Checkpoint::open(folder).expect("the folder").config().text.clone();
    let checkpoint = Checkpoint::open(gguf).expect("the GGUF").with_text_config(config).expect("one shape");
    for precision in PRECISIONS {
        let model = model(&checkpoint, &device, precision, 2);
        let ids = ids(&model, 90, 4);
        let logits = |chunk: usize| {
            let mut cache =
                model.new_cache(&CacheOptions { capacity: Some(90), ..cache(90, None) }).expect("a cache");
            let mut rows = Vec::new();
            for ids in ids.chunks(chunk) {
                let segment = Segment { input: SegmentInput::Ids(ids), cache: &mut cache };
                rows.extend(model.forward_all(&mut [segment]).expect("logits"));
            }
            rows.concat()
        };
        let whole = logits(90);
        for chunk in [1, 5, 9, 16] {
            let (most, mean) = match precision {
                Precision::Exact => (2e-4, 2e-5),
                Precision::Fast if chunk <= 8 => (1.15, 0.15),
                Precision::Fast => (0.41, 0.055),
            };
            let found = logits(chunk);
            let largest = max_difference(&found, &whole);
            let sum: f32 = found.iter().zip(&whole).map(|(a, b)| (a - b).abs()).sum();
            let average = sum / found.len() as f32;
            println!("{precision:?}, {chunk} at once: at most {largest:.2e}, in the mean {average:.2e}");
            assert!(largest <= most && average <= mean, "{precision:?}, {chunk}: {largest} and {average}");
        }
    }
}

#[test]
fn up_to_eight_sequences_are_computed_in_fast_mode_as_each_alone() {
    let Some(device) = flex() else { return };
    for format in TensorFormat::ALL {
        let model = model(&checkpoint(even(), format), &device, Precision::Fast, 2);
        let eight = batch(&model, 8);
        for sequences in [1, 2, 3, 7] {
            let found = batch(&model, sequences);
            for (step, (found, eight)) in found.chunks(sequences).zip(eight.chunks(8)).enumerate() {
                assert!(found == &eight[..sequences], "{sequences} sequences, step {step}, {format}");
            }
        }
    }
}
