//! The tiny checkpoints against Hugging Face transformers, on every device, in exact mode.
//!
//! Tolerances are those of the goldens' README: 2e-4 on logits, hidden states and log-probabilities (its
//! own spread is up to 3e-5; the subtlest mistake moves logits by 4e-3), and equal greedy ids, whose
//! smallest top-2 gap is above 1e-3.

mod common;

use common::{Tensors, assert_close, devices, golden, golden_json, ids, numbers};
use gemma3_core::CancelHandle;
use gemma3_core::Device;
use gemma3_core::cache::CacheOptions;
use gemma3_core::checkpoint::Checkpoint;
use gemma3_core::generate::{ContinueOptions, FinishReason, Session, SessionOptions, generate_batch};
use gemma3_core::model::{Activation, EmbeddedSpan, Logits, Model, Segment, SegmentInput, Trace, Vectors};
use gemma3_core::sampling::SamplingOptions;
use serde_json::{Map, Value};

const TOLERANCE: f32 = 2e-4;

/// The checkpoints of a set: each folder, with its JSON and its tensors beside it.
fn for_each_checkpoint(test: impl Fn(&Model, &Value, &Tensors, &Device)) {
    let mut found = false;
    for name in ["tiny-text", "tiny-multimodal"] {
        let (Some(folder), Some(index), Some(tensors)) = (
            golden(name),
            golden_json(&format!("{name}.json")),
            Tensors::open(&format!("{name}.safetensors")),
        ) else {
            continue;
        };
        found = true;
        for (device_name, device) in devices() {
            println!("{name} on {device_name}");
            test(&common::load(&folder, &device), &index, &tensors, &device);
        }
    }
    if !found {
        println!("skipped: no tiny checkpoint in this set");
    }
}

/// The text cases: those without images, and those whose soft tokens the goldens hold.
fn cases(index: &Value) -> &Map<String, Value> {
    index["cases"].as_object().expect("cases")
}

fn has_images(case: &Value) -> bool {
    case["images"].as_array().is_some_and(|images| !images.is_empty())
}

/// Capacity and chunk that take any case in one piece.
fn whole(model: &Model) -> CacheOptions {
    let longest = model.text_config().max_position_embeddings.min(2048);
    CacheOptions { capacity: Some(longest), chunk: longest, ..CacheOptions::default() }
}

fn session(model: &Model, cache: CacheOptions) -> Session {
    Session::new(model, &SessionOptions { cache, sequence: 0 }).expect("a session")
}

fn greedy(max_new_tokens: usize, stop_token_ids: Vec<u32>) -> ContinueOptions {
    ContinueOptions {
        sampling: SamplingOptions::greedy(),
        max_new_tokens: Some(max_new_tokens),
        stop_token_ids,
        logprobs: Some(0),
        ..ContinueOptions::default()
    }
}

#[test]
fn logits_and_log_probabilities_of_a_text_equal_the_reference() {
    for_each_checkpoint(|model, index, tensors, _| {
        for (name, case) in cases(index).iter().filter(|(_, case)| !has_images(case)) {
            let input = ids(&case["input_ids"]);
            let mut cache = model.new_cache(&whole(model)).expect("a cache");
            let input_segment = SegmentInput::Ids(&input);
            let rows = model
                .forward_all(&mut [Segment { input: input_segment, cache: &mut cache }])
                .expect("a forward pass");
            assert_close(
                &format!("{name}.logits"),
                &rows.concat(),
                &tensors.values(&format!("{name}.logits")),
                TOLERANCE,
            );

            let scored = session(model, whole(model)).prefill_scored(&input, 0).expect("a scored text");
            let logprobs: Vec<f32> = scored.iter().map(|token| token.logprob).collect();
            assert_close(
                &format!("{name}.logprobs"),
                &logprobs,
                &tensors.values(&format!("{name}.logprobs")),
                TOLERANCE,
            );
        }
    });
}

#[test]
fn every_step_inside_the_layers_equals_the_reference() {
    for_each_checkpoint(|model, index, tensors, _| {
        let layers = model.text_config().num_hidden_layers;
        for (name, case) in cases(index) {
            if tensors.get(&format!("{name}.layer_0")).is_none() {
                continue;
            }
            let input = ids(&case["input_ids"]);
            let mut trace = Trace::hidden(0..layers).with_ends().with_details(0..layers);
            let mut cache = model.new_cache(&whole(model)).expect("a cache");
            let spans = spans_of(model, index, name, &input, tensors);
            let input = SegmentInput::Placed { ids: &input, spans: &spans };
            model
                .forward(&mut [Segment { input, cache: &mut cache }], Logits::All, &mut trace)
                .expect("a forward pass");
            let mut compared = 0;
            for (place, traced) in trace.recorded() {
                let golden = format!("{name}.{}", golden_name(place));
                let Some((shape, expected)) = tensors.get(&golden) else {
                    continue;
                };
                assert_eq!(traced.shape, shape, "{golden}");
                assert_close(&golden, &traced.values, &expected, TOLERANCE);
                compared += 1;
            }
            assert!(compared >= layers + 2, "{name}: only {compared} activations compared");
        }
    });
}

fn golden_name(place: &Activation) -> String {
    match place {
        Activation::Embeddings => "embeddings".to_owned(),
        Activation::Layer(index) => format!("layer_{index}"),
        Activation::Detail(index, step) => format!("detail_{index}.{step}"),
        Activation::FinalNorm => "final_norm".to_owned(),
    }
}

/// The golden's soft tokens in their places; none for a prompt without images.
fn spans_of(model: &Model, index: &Value, name: &str, input: &[u32], tensors: &Tensors) -> Vec<EmbeddedSpan> {
    let Some((_, soft_tokens)) = tensors.get(&format!("{name}.projector.output")) else {
        return Vec::new();
    };
    let image_id = index["ids"]["image"].as_u64().expect("the image id") as u32;
    let hidden = model.text_config().hidden_size;
    let mut images: Vec<std::ops::Range<usize>> = Vec::new();
    for (row, _) in input.iter().enumerate().filter(|(_, id)| **id == image_id) {
        match images.last_mut() {
            Some(image) if image.end == row => image.end += 1,
            _ => images.push(row..row + 1),
        }
    }
    let all = Vectors::new(soft_tokens, hidden);
    let mut used = 0;
    let spans = images.into_iter().map(|image| {
        let vectors = all.rows(used..used + image.len());
        used += image.len();
        EmbeddedSpan { start: image.start, vectors }
    });
    let spans: Vec<_> = spans.collect();
    assert_eq!(spans.iter().map(EmbeddedSpan::len).sum::<usize>(), all.len(), "{name}: one for each place");
    spans
}

#[test]
fn greedy_continuations_equal_the_reference() {
    for_each_checkpoint(|model, index, _, _| {
        let mut greedy_cases: Vec<&Value> = index["greedy"].as_array().into_iter().flatten().collect();
        greedy_cases.extend(
            cases(index).values().filter(|case| !has_images(case) && case.get("output_ids").is_some()),
        );
        for case in greedy_cases {
            let (input, expected) = (ids(&case["input_ids"]), ids(&case["output_ids"]));
            // The whole prompt at once, and in chunks that do not divide it.
            for chunk in [whole(model).chunk, 5] {
                let mut session = session(model, CacheOptions { chunk, ..whole(model) });
                session.append(&input).expect("a prompt");
                let mut stream = session.generate(greedy(expected.len(), vec![])).expect("a stream");
                let tokens: Vec<_> = stream.by_ref().map(|token| token.expect("a token")).collect();
                assert_eq!(stream.finish_reason(), Some(FinishReason::Length));
                assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), expected);
                let logprobs: Vec<f32> = tokens.iter().filter_map(|token| token.logprob).collect();
                let reference: Vec<f32> = numbers(&case["logprobs"]).into_iter().map(|x| x as f32).collect();
                assert_close("log-probabilities", &logprobs, &reference, TOLERANCE);
            }
            if let Some(stop_id) = case["stop_id"].as_u64() {
                let mut session = session(model, whole(model));
                session.append(&input).expect("a prompt");
                let mut stream =
                    session.generate(greedy(expected.len(), vec![stop_id as u32])).expect("a stream");
                let tokens: Vec<u32> = stream.by_ref().map(|token| token.expect("a token").id).collect();
                assert_eq!(tokens, ids(&case["output_ids_with_stop"]));
                assert_eq!(stream.finish_reason(), Some(FinishReason::Stop));
            }
        }
    });
}

#[test]
fn a_batch_of_unequal_prompts_equals_the_reference() {
    for_each_checkpoint(|model, index, tensors, _| {
        let Some(prompts) = index["batch"]["prompts"].as_array() else {
            return;
        };
        let expected: Vec<Vec<u32>> =
            index["batch"]["output_ids"].as_array().expect("outputs").iter().map(ids).collect();
        let mut sessions: Vec<Session> = prompts
            .iter()
            .map(|prompt| {
                let mut session = session(model, whole(model));
                session.append(&ids(prompt)).expect("a prompt");
                session
            })
            .collect();
        let options: Vec<_> = expected.iter().map(|ids| greedy(ids.len(), vec![])).collect();
        let mut references: Vec<&mut Session> = sessions.iter_mut().collect();
        let completions = generate_batch(&mut references, &options, &CancelHandle::new()).expect("a batch");
        for (completion, expected) in completions.iter().zip(&expected) {
            assert_eq!(&completion.tokens.iter().map(|token| token.id).collect::<Vec<_>>(), expected);
        }

        // The logits of the prompts, all in one pass.
        let prompts: Vec<Vec<u32>> = prompts.iter().map(ids).collect();
        let mut caches: Vec<_> =
            prompts.iter().map(|_| model.new_cache(&whole(model)).expect("a cache")).collect();
        let mut segments: Vec<_> = prompts
            .iter()
            .zip(&mut caches)
            .map(|(prompt, cache)| Segment { input: SegmentInput::Ids(prompt), cache })
            .collect();
        let mut rows = model.forward_all(&mut segments).expect("a forward pass").into_iter();
        for (i, prompt) in prompts.iter().enumerate() {
            let logits: Vec<f32> = rows.by_ref().take(prompt.len()).flatten().collect();
            assert_close(
                &format!("batch.logits_{i}"),
                &logits,
                &tensors.values(&format!("batch.logits_{i}")),
                TOLERANCE,
            );
        }
    });
}

#[test]
fn the_prompts_of_the_texts_continue_as_in_the_reference() {
    for_each_checkpoint(|model, index, _, _| {
        for case in index["text"].as_array().into_iter().flatten() {
            let (input, expected) = (ids(&case["input_ids"]), ids(&case["output_ids"]));
            let mut session = session(model, whole(model));
            session.append(&input).expect("a prompt");
            let stream = session.generate(greedy(expected.len(), vec![])).expect("a stream");
            let found: Vec<u32> = stream.map(|token| token.expect("a token").id).collect();
            assert_eq!(found, expected, "{}", case["text"]);
        }
    });
}

/// The tiny GGUF on a device. GGUF metadata has no key for `query_pre_attn_scalar` (nor for the layer
/// pattern), which in the tiny model is not what its sizes would imply, so the folder's config is used.
fn load_tiny_gguf(device: &Device) -> Option<Model> {
    let (gguf, folder) = (golden("tiny-text.gguf")?, golden("tiny-text")?);
    let config = Checkpoint::open(folder).expect("the folder").config().text.clone();
    let checkpoint = Checkpoint::open(gguf).expect("the GGUF").with_text_config(config).expect("one shape");
    Some(Model::load(&checkpoint, device, common::exact()).expect("the GGUF"))
}

#[test]
fn a_gguf_gives_the_logits_of_its_dequantized_weights() {
    let (Some(tensors), Some(index)) =
        (Tensors::open("tiny-text-gguf.safetensors"), golden_json("tiny-text.json"))
    else {
        return;
    };
    for (device_name, device) in devices() {
        println!("tiny-text.gguf on {device_name}");
        let Some(model) = load_tiny_gguf(&device) else { return };
        for name in tensors.names() {
            let case = name.strip_suffix(".logits").unwrap_or(&name);
            let logits = logits(&model, &ids(&index["cases"][case]["input_ids"]));
            assert_close(&name, &logits, &tensors.values(&name), TOLERANCE);
        }
    }
}

/// Quantization to 4 and 5 bits moves the logits of a model as small as this a good deal; unrelated logits
/// would differ by 1.4 times their size.
#[test]
fn a_gguf_and_its_safetensors_agree_within_the_error_of_the_formats() {
    let (Some(folder), Some(index)) = (golden("tiny-text"), golden_json("tiny-text.json")) else { return };
    let (_, device) = devices().swap_remove(0);
    let Some(quantized_model) = load_tiny_gguf(&device) else { return };
    let full_model = common::load(&folder, &device);
    let (mut quantized, mut full) = (Vec::new(), Vec::new());
    for case in cases(&index).values() {
        let input = ids(&case["input_ids"]);
        quantized.extend(logits(&quantized_model, &input));
        full.extend(logits(&full_model, &input));
    }
    let difference: f32 = quantized.iter().zip(&full).map(|(a, b)| (a - b).abs()).sum();
    let size: f32 = full.iter().map(|x| x.abs()).sum();
    println!("the difference is {} of the size", difference / size);
    assert!(difference > 0.0 && difference < 0.5 * size);
}

fn logits(model: &Model, input: &[u32]) -> Vec<f32> {
    let mut cache = model.new_cache(&whole(model)).expect("a cache");
    let segment = Segment { input: SegmentInput::Ids(input), cache: &mut cache };
    model.forward_all(&mut [segment]).expect("a forward pass").concat()
}
