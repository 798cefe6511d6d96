//! What an application can get wrong about vectors and caches is an error, on every device, and nothing is appended.

mod common;

use burn::tensor::{DType, Tensor};
use common::{devices, golden, load};
use gemma3_core::cache::{CacheError, CacheOptions, KvCache};
use gemma3_core::model::{
    Activation, EmbeddedSpan, ForwardError, Logits, Model, Segment, SegmentInput, Trace, Vectors,
};

fn on_every_device(test: impl Fn(&str, &Model)) {
    let Some(folder) = golden("tiny-text") else { return };
    for (name, device) in devices() {
        println!("on {name}");
        test(name, &load(&folder, &device));
    }
}

fn options() -> CacheOptions {
    CacheOptions { capacity: Some(64), chunk: 16, ..CacheOptions::default() }
}

fn error_of(model: &Model, input: SegmentInput<'_>, cache: &mut KvCache) -> ForwardError {
    let error = model.forward_last(&mut [Segment { input, cache }]).expect_err("it is wrong");
    assert_eq!(cache.len(), 0, "nothing is appended");
    error
}

#[test]
fn vectors_of_another_dtype_or_device_are_converted() {
    let all = devices();
    on_every_device(|_, model| {
        let width = model.text_config().hidden_size;
        let logits = |vectors| {
            let spans = [EmbeddedSpan { start: 1, vectors }];
            let input = SegmentInput::Placed { ids: &[2, 0, 0, 0], spans: &spans };
            let cache = &mut model.new_cache(&options()).expect("a cache");
            model.forward_last(&mut [Segment { input, cache }]).expect("logits")
        };
        let expected = logits(Vectors::new(vec![1.0; 3 * width], width));
        for (name, device) in &all {
            // No float but f32 is one of all devices.
            let other = if *name == "ndarray" { DType::F64 } else { DType::F16 };
            let vectors = Tensor::<2>::ones([3, width], device).cast(other);
            assert_eq!(logits(Vectors::of_tensor(vectors).expect("numbers")), expected, "from {name}");
        }
    });
}

#[test]
fn vectors_of_another_width_are_refused() {
    on_every_device(|_, model| {
        let expected = model.text_config().hidden_size;
        let spans = [EmbeddedSpan { start: 1, vectors: Vectors::new(vec![1.0; 10], 5) }];
        let input = SegmentInput::Placed { ids: &[2, 0, 0], spans: &spans };
        let error = error_of(model, input, &mut model.new_cache(&options()).expect("a cache"));
        assert_eq!(error, ForwardError::WrongWidth { expected, found: 5 });
    });
}

#[test]
fn a_span_that_starts_beyond_all_numbers_is_refused() {
    on_every_device(|_, model| {
        let width = model.text_config().hidden_size;
        let spans = [EmbeddedSpan { start: usize::MAX, vectors: Vectors::new(vec![1.0; 3 * width], width) }];
        let input = SegmentInput::Placed { ids: &[2, 5], spans: &spans };
        let error = error_of(model, input, &mut model.new_cache(&options()).expect("a cache"));
        assert!(matches!(error, ForwardError::SpanOutOfOrder { .. }), "{error}");
    });
}

#[test]
fn vectors_that_a_trace_adds_where_there_is_no_place_for_them_are_refused() {
    on_every_device(|_, model| {
        let (width, layers) = (model.text_config().hidden_size, model.text_config().num_hidden_layers);
        for (place, numbers) in [
            (Activation::Layer(0), width + 1),
            (Activation::Layer(layers), width),
            (Activation::FinalNorm, width),
        ] {
            let mut trace = Trace::none().adding(place, vec![0.0; numbers]);
            let cache = &mut model.new_cache(&options()).expect("a cache");
            let mut segments = [Segment { input: SegmentInput::Ids(&[2]), cache }];
            let error = model.forward(&mut segments, Logits::Last, &mut trace).expect_err("no such place");
            assert!(matches!(error, ForwardError::WrongEdit { .. }), "{error}");
        }
    });
}

#[test]
fn a_cache_of_another_device_is_refused() {
    let Some(folder) = golden("tiny-text") else { return };
    let all = devices();
    on_every_device(|_, model| {
        for (_, device) in all.iter().filter(|(_, device)| device != model.device()) {
            let mut cache = load(&folder, device).new_cache(&options()).expect("a cache");
            let error = error_of(model, SegmentInput::Ids(&[2]), &mut cache);
            assert!(matches!(error, ForwardError::Cache(CacheError::OtherHeads { .. })), "{error}");
        }
    });
}
