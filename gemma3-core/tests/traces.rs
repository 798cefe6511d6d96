//! Traces read the residual stream and add to it, on every device, in the kernels that a pass takes anyway.

mod common;

use common::{assert_close, devices, golden, load, max_difference};
use gemma3_core::cache::{CacheOptions, KvCache};
use gemma3_core::model::{Activation, LoadOptions, Logits, Model, Segment, SegmentInput, Trace};
use gemma3_core::ops::Precision;

/// Sums in another order, as everywhere.
const TOLERANCE: f32 = 2e-4;

fn on_every_device(test: impl Fn(&str, &Model)) {
    let Some(folder) = golden("tiny-text") else { return };
    for (name, device) in devices() {
        println!("on {name}");
        test(name, &load(&folder, &device));
    }
}

fn cache(model: &Model) -> KvCache {
    let options = CacheOptions { capacity: Some(64), chunk: 32, ..CacheOptions::default() };
    model.new_cache(&options).expect("a cache")
}

const IDS: [u32; 7] = [2, 17, 250, 3, 99, 41, 8];

fn run(model: &Model, ids: &[u32], cache: &mut KvCache, trace: &mut Trace) -> Vec<f32> {
    let mut segments = [Segment { input: SegmentInput::Ids(ids), cache }];
    model.forward(&mut segments, Logits::Last, trace).expect("a forward pass").concat()
}

/// A direction that is not small beside the stream.
fn direction(model: &Model) -> Vec<f32> {
    (0..model.text_config().hidden_size).map(|i| if i % 3 == 0 { 2.0 } else { -0.5 }).collect()
}

#[test]
fn a_trace_changes_nothing() {
    on_every_device(|name, model| {
        let layers = model.text_config().num_hidden_layers;
        let expected = run(model, &IDS, &mut cache(model), &mut Trace::none());
        for mut trace in [Trace::hidden(0..layers).with_ends(), Trace::hidden([0]).with_details(0..layers)] {
            let found = run(model, &IDS, &mut cache(model), &mut trace);
            assert_close(name, &found, &expected, TOLERANCE);
        }
    });
}

#[test]
fn what_is_added_is_in_the_stream_and_in_what_comes_of_it() {
    on_every_device(|name, model| {
        let layers = model.text_config().num_hidden_layers;
        let added = direction(model);
        let hidden = added.len();
        for layer in [0, layers - 1] {
            let mut plain = Trace::hidden(0..layers);
            let without = run(model, &IDS, &mut cache(model), &mut plain);
            let mut steered = Trace::hidden(0..layers).adding(Activation::Layer(layer), added.clone());
            let with = run(model, &IDS, &mut cache(model), &mut steered);
            let at =
                |trace: &Trace, layer| trace.get(&Activation::Layer(layer)).expect("recorded").values.clone();
            let expected: Vec<f32> = at(&plain, layer)
                .chunks_exact(hidden)
                .flat_map(|row| row.iter().zip(&added).map(|(x, a)| x + a))
                .collect();
            assert_close(&format!("{name}, layer {layer}"), &at(&steered, layer), &expected, TOLERANCE);
            if layer > 0 {
                assert_close(name, &at(&steered, 0), &at(&plain, 0), TOLERANCE);
            }
            assert!(max_difference(&with, &without) > 0.1, "{name}: the logits follow");
        }
        // At the embeddings, in two parts.
        let half: Vec<f32> = added.iter().map(|x| x / 2.0).collect();
        let mut once = Trace::none().with_ends().adding(Activation::Embeddings, added);
        let mut twice = Trace::none()
            .with_ends()
            .adding(Activation::Embeddings, half.clone())
            .adding(Activation::Embeddings, half);
        let first = run(model, &IDS, &mut cache(model), &mut once);
        assert_close(name, &run(model, &IDS, &mut cache(model), &mut twice), &first, TOLERANCE);
    });
}

#[test]
fn single_tokens_are_steered_like_prompts() {
    on_every_device(|name, model| {
        let place = Activation::Layer(0);
        let steer = || Trace::hidden([1]).adding(place.clone(), direction(model));
        let (mut whole, mut stepped) = (cache(model), cache(model));
        let mut trace = steer();
        let expected = run(model, &IDS, &mut whole, &mut trace);
        let mut last = Vec::new();
        let mut rows = Vec::new();
        for id in IDS {
            let mut trace = steer();
            last = run(model, &[id], &mut stepped, &mut trace);
            rows.extend(trace.get(&Activation::Layer(1)).expect("recorded").values.clone());
        }
        assert_close(name, &last, &expected, TOLERANCE);
        assert_close(name, &rows, &trace.get(&Activation::Layer(1)).expect("recorded").values, TOLERANCE);
    });
}

#[test]
fn the_definition_runs_on_any_device_and_agrees() {
    let Some(folder) = golden("tiny-text") else { return };
    let checkpoint = gemma3_core::checkpoint::Checkpoint::open(&folder).expect("the tiny checkpoint");
    for (name, device) in devices() {
        if ["cuda", "rocm"].contains(&name) {
            println!("skipped: on {name} burn may tune an f32 product of the definition to TF32");
            continue;
        }
        let of = |plain| {
            let options = LoadOptions { precision: Precision::Exact, plain, ..LoadOptions::default() };
            let model = Model::load(&checkpoint, &device, options).expect("it loads");
            let mut trace = Trace::hidden(0..model.text_config().num_hidden_layers);
            let logits = run(&model, &IDS, &mut cache(&model), &mut trace);
            let streams = trace.recorded().flat_map(|(_, tensor)| tensor.values.clone()).collect::<Vec<_>>();
            (logits, streams)
        };
        let ((logits, streams), (expected, expected_streams)) = (of(false), of(true));
        assert_close(&format!("{name}: logits"), &logits, &expected, TOLERANCE);
        assert_close(&format!("{name}: streams"), &streams, &expected_streams, TOLERANCE);
    }
}
