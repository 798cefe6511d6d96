//! Prompts with images from pixel values to logits and greedy tokens, against Hugging Face transformers, on
//! every device.

#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;
mod tiny;

use common::{assert_close, devices, ids, numbers};
use gemma3_core::CancelHandle;
use gemma3_core::Device;
use gemma3_core::cache::CacheOptions;
use gemma3_core::generate::{ContinueOptions, Session, SessionOptions, generate_batch};
use gemma3_core::model::{EmbeddedSpan, Model, Segment, SegmentInput, Vectors};
use gemma3_vision::{SoftTokens, SoftTokensError, VisionModel, place};
use serde_json::Value;
use tiny::Tiny;

/// Logits and log-probabilities in f32, from the README of the goldens. A wrong mask moves them by far more.
const TOLERANCE: f32 = 2e-4;

struct Loaded {
    model: Model,
    vision: VisionModel,
}

impl Loaded {
    fn new(tiny: &Tiny, device: &Device) -> Self {
        let model = Model::load(&tiny.checkpoint, device, common::exact()).expect("a model");
        Self { model, vision: tiny.vision(device) }
    }

    /// The images of a case, encoded and in their places.
    fn spans(&self, tiny: &Tiny, case: &Value) -> Vec<EmbeddedSpan> {
        let images = ids(&case["images"]);
        let soft_tokens: Vec<SoftTokens> = match images.is_empty() {
            true => Vec::new(),
            false => self.vision.forward(tiny.pixel_values(&images), images.len()).expect("encoded"),
        };
        place(&ids(&case["input_ids"]), tiny.placeholder(), &soft_tokens).expect("images fit their places")
    }

    fn session(&self, chunk: usize) -> Session {
        let cache = CacheOptions { capacity: Some(128), chunk, ..CacheOptions::default() };
        Session::new(&self.model, &SessionOptions { cache, sequence: 0 }).expect("a session")
    }
}

fn greedy(count: usize) -> ContinueOptions {
    ContinueOptions {
        sampling: gemma3_core::sampling::SamplingOptions::greedy(),
        max_new_tokens: Some(count),
        logprobs: Some(0),
        ..ContinueOptions::default()
    }
}

#[test]
fn logits_with_images_equal_the_reference() {
    let Some(tiny) = Tiny::open() else { return };
    for (name, device) in devices() {
        let loaded = Loaded::new(&tiny, &device);
        for (case, golden) in tiny.cases() {
            let input = ids(&golden["input_ids"]);
            let spans = loaded.spans(&tiny, golden);
            let options =
                CacheOptions { capacity: Some(input.len()), chunk: input.len(), ..CacheOptions::default() };
            let mut cache = loaded.model.new_cache(&options).expect("a cache");
            let input = SegmentInput::Placed { ids: &input, spans: &spans };
            let rows = loaded
                .model
                .forward_all(&mut [Segment { input, cache: &mut cache }])
                .expect("a forward pass");
            let expected = tiny.tensors.values(&format!("{case}.logits"));
            assert_close(&format!("{case}.logits on {name}"), &rows.concat(), &expected, TOLERANCE);
        }
    }
}

/// Chunks of 5 would split every image (of 4 tokens) somewhere; 1 is less than an image.
#[test]
fn greedy_tokens_after_images_equal_the_reference_whatever_the_chunk() {
    let Some(tiny) = Tiny::open() else { return };
    for (name, device) in devices() {
        let loaded = Loaded::new(&tiny, &device);
        for (case, golden) in tiny.cases() {
            let (input, expected) = (ids(&golden["input_ids"]), ids(&golden["output_ids"]));
            // A software GPU compiles for seconds at each new shape: there two images in one schedule that
            // splits them, or would.
            let is_cpu = name == "flex" || name == "ndarray";
            if !is_cpu && case != "two_images" {
                continue;
            }
            let chunks: &[usize] = if is_cpu { &[64, 5, 1] } else { &[5] };
            let spans = loaded.spans(&tiny, golden);
            for chunk in chunks {
                let mut session = loaded.session(*chunk);
                session.append_with(&input, &spans).expect("a prompt");
                let stream = session.generate(greedy(expected.len())).expect("a stream");
                let tokens: Vec<_> = stream.map(|token| token.expect("a token")).collect();
                let found: Vec<u32> = tokens.iter().map(|token| token.id).collect();
                assert_eq!(found, expected, "{case} in chunks of {chunk} on {name}");
                let logprobs: Vec<f32> = tokens.iter().filter_map(|token| token.logprob).collect();
                let expected: Vec<f32> = numbers(&golden["logprobs"]).iter().map(|x| *x as f32).collect();
                assert_close(&format!("{case} log-probabilities"), &logprobs, &expected, TOLERANCE);
            }
        }
    }
}

#[test]
fn a_batch_with_and_without_images_equals_the_cases_alone() {
    let Some(tiny) = Tiny::open() else { return };
    let names = tiny.index["batch"]["cases"].as_array().expect("the batch's cases");
    let cases: Vec<&Value> =
        names.iter().map(|name| &tiny.index["cases"][name.as_str().expect("a name")]).collect();
    // Batches and images meet only in the session, which is the same on every device.
    for (name, device) in devices().into_iter().filter(|(name, _)| ["flex", "ndarray"].contains(name)) {
        let loaded = Loaded::new(&tiny, &device);
        let mut sessions: Vec<Session> = cases
            .iter()
            .map(|case| {
                let mut session = loaded.session(64);
                session.append_with(&ids(&case["input_ids"]), &loaded.spans(&tiny, case)).expect("a prompt");
                session
            })
            .collect();
        let mut references: Vec<&mut Session> = sessions.iter_mut().collect();
        let options = vec![greedy(32); cases.len()];
        let completions = generate_batch(&mut references, &options, &CancelHandle::new()).expect("a batch");
        for (case, completion) in cases.iter().zip(completions) {
            let found: Vec<u32> = completion.tokens.iter().map(|token| token.id).collect();
            assert_eq!(found, ids(&case["output_ids"]), "on {name}");
        }
    }
}

#[test]
fn images_that_do_not_fit_their_places_are_errors() {
    let image = |tokens: usize| SoftTokens::new(Vectors::new(vec![0.0; tokens * 3], 3));
    let prompt = [1, 9, 9, 2, 9, 9];
    let place = |images: &[SoftTokens]| {
        place(&prompt, 9, images).map(|spans| spans.iter().map(EmbeddedSpan::range).collect::<Vec<_>>())
    };
    assert_eq!(place(&[image(2), image(2)]), Ok(vec![1..3, 4..6]));
    assert_eq!(place(&[image(4)]), Err(SoftTokensError::CountMismatch { runs: 2, images: 1 }));
    assert_eq!(place(&[]), Err(SoftTokensError::CountMismatch { runs: 2, images: 0 }));
    let mismatch = SoftTokensError::RunMismatch { image: 1, soft_tokens: 1, placeholders: 2 };
    assert_eq!(place(&[image(2), image(1)]), Err(mismatch));
    assert_eq!(gemma3_vision::place(&[1, 2], 9, &[]).expect("text alone").len(), 0);
}
