//! What an application can get wrong about vectors and caches is an error, on every device, and nothing is appended.

mod common;

use burn::tensor::{DType, Tensor};
use common::{devices, golden, load};
use gemma3_core::cache::{CacheError, CacheOptions, KvCache};
use gemma3_core::config::TextConfig;
use gemma3_core::model::{EmbeddedSpan, ForwardError, Model, Segment, SegmentInput};

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
fn vectors_of_another_dtype_are_refused() {
    on_every_device(|name, model| {
        let width = model.decoder().config().hidden_size;
        // No float but f32 is one of all devices.
        let other = if name == "ndarray" { DType::F64 } else { DType::F16 };
        let vectors = Tensor::<2>::ones([3, width], model.device()).cast(other);
        let input = SegmentInput::Embeddings { vectors: vectors.clone(), images: vec![] };
        let error = error_of(model, input, &mut model.new_cache(&options()).expect("a cache"));
        assert_eq!(error, ForwardError::WrongDtype { found: other });
        let span = EmbeddedSpan { start: 1, vectors };
        let error = model.decoder().embed_with(&[2, 0, 0, 0], &[span]).expect_err("another dtype");
        assert_eq!(error, ForwardError::WrongDtype { found: other });
    });
}

#[test]
fn vectors_on_another_device_are_refused() {
    let all = devices();
    on_every_device(|_, model| {
        for (_, device) in all.iter().filter(|(_, device)| device != model.device()) {
            let vectors = Tensor::<2>::ones([3, model.decoder().config().hidden_size], device);
            let input = SegmentInput::Embeddings { vectors, images: vec![] };
            let error = error_of(model, input, &mut model.new_cache(&options()).expect("a cache"));
            assert!(matches!(error, ForwardError::OtherDevice { .. }), "{error}");
        }
    });
}

#[test]
fn a_span_that_starts_beyond_all_numbers_is_refused() {
    on_every_device(|_, model| {
        let vectors = Tensor::<2>::ones([3, model.decoder().config().hidden_size], model.device());
        let span = EmbeddedSpan { start: usize::MAX, vectors };
        let error = model.decoder().embed_with(&[2, 5], &[span]).expect_err("beyond");
        assert!(matches!(error, ForwardError::SpanOutOfOrder { .. }), "{error}");
    });
}

#[test]
fn caches_of_other_models_are_refused() {
    on_every_device(|_, model| {
        let config = model.decoder().config();
        let heads = TextConfig { head_dim: config.head_dim * 2, ..config.clone() };
        let window = TextConfig { sliding_window: config.sliding_window / 2, ..config.clone() };
        let of = |config| KvCache::new(config, &options(), model.device()).expect("a cache");
        let error = error_of(model, SegmentInput::Ids(&[2]), &mut of(&heads));
        assert!(matches!(error, ForwardError::Cache(CacheError::OtherHeads { .. })), "{error}");
        let error = error_of(model, SegmentInput::Ids(&[2]), &mut of(&window));
        assert!(matches!(error, ForwardError::Cache(CacheError::OtherWindow { .. })), "{error}");
    });
}
