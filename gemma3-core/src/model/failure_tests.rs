//! A device that fails is an error, wherever it shows: cubecl lets every buffer carry the failure of the launch that was
//! to write it, on to what is computed from it, until somebody reads.
#![allow(unsafe_code, reason = "a launch, of which it is said why nothing happens")]

use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::cache::{CacheOptions, KvCache};
use crate::checkpoint::{Checkpoint, TensorFormat};
use crate::config::{LayerType, TextConfig};
use crate::generate::{ContinueOptions, GenerateError, Session, SessionOptions};
use crate::model::decoder::Decoder;
use crate::model::{ForwardError, LoadOptions, Logits, Model, Segment, SegmentInput, Trace};
use crate::ops::Cube;
use crate::ops::cube::commands::Commands;
use crate::sampling::SamplingOptions;

/// A model on the device that kernels are tested on; `None` where there is none.
fn model() -> Option<Model> {
    let name = if cfg!(feature = "cuda") { "cuda" } else { "wgpu" };
    let device = crate::ops::cube::testing::client().and_then(|_| crate::device::open(name).ok())?;
    let config = TextConfig {
        vocab_size: 320,
        hidden_size: 64,
        intermediate_size: 128,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        query_pre_attn_scalar: 16.0,
        sliding_window: 16,
        max_position_embeddings: 512,
        layer_types: vec![LayerType::SlidingAttention, LayerType::FullAttention],
        ..TextConfig::gemma3_1b()
    };
    let checkpoint = Checkpoint::random(config, TensorFormat::BF16, 3).expect("random weights");
    Some(Model::load(&checkpoint, &device, LoadOptions::default()).expect("it loads"))
}

fn decoder(model: &Model) -> &Decoder<Cube> {
    model.runner().as_any().downcast_ref().expect("kernels run it")
}

fn commands(model: &Model) -> &Commands {
    decoder(model).machine.commands()
}

/// One that every pass multiplies with.
fn a_matrix(model: &Model) -> &Handle {
    &decoder(model).blocks[1].o_proj.stacks()[0].quants
}

#[cube(launch_unchecked)]
fn writing_kernel(out: &mut [u32]) {
    out[0] = 0u32;
}

/// Has a launch fail that was to write a buffer: its cubes are larger than any device's.
fn fail_writing(commands: &Commands, buffer: &Handle) {
    let words = buffer.size_in_used() as usize / size_of::<u32>();
    // SAFETY: the device refuses the launch, so that nothing is written.
    unsafe {
        let out = BufferArg::from_raw_parts(buffer.clone(), words);
        let count = CubeCount::Static(1, 1, 1);
        writing_kernel::launch_unchecked(commands.client(), count, CubeDim::new_1d(1 << 20), out);
    }
}

fn cache_options() -> CacheOptions {
    CacheOptions { capacity: Some(32), chunk: 16, ..CacheOptions::default() }
}

fn forward(model: &Model, cache: &mut KvCache, mut trace: Trace) -> Result<(), ForwardError> {
    let mut segments = [Segment { input: SegmentInput::Ids(&[2, 5, 7]), cache }];
    model.forward(&mut segments, Logits::Last, &mut trace).map(|_| ())
}

fn is_device<T: std::fmt::Debug>(result: Result<T, ForwardError>) -> bool {
    matches!(result, Err(ForwardError::Device(_)))
}

/// The passes that trace nothing, the ends, and every step of a layer.
fn traces() -> [Trace; 3] {
    [Trace::none(), Trace::hidden([0]).with_ends(), Trace::none().with_details([1])]
}

#[test]
fn passes_over_weights_that_failed_are_errors() {
    let Some(model) = model() else { return };
    let mut cache = model.new_cache(&cache_options()).expect("a cache");
    for trace in traces() {
        forward(&model, &mut cache, trace).expect("the device works");
    }
    fail_writing(commands(&model), a_matrix(&model));
    for trace in traces() {
        let mut cache = model.new_cache(&cache_options()).expect("a cache");
        assert!(is_device(forward(&model, &mut cache, trace)));
        assert_eq!(cache.len(), 0, "nothing was appended");
    }
}

#[test]
fn a_generation_ends_with_the_error() {
    // Tokens chosen on the device, and on the host.
    for logprobs in [None, Some(1)] {
        let Some(model) = model() else { return };
        let options = SessionOptions { cache: cache_options(), sequence: 0 };
        let mut session = Session::new(&model, &options).expect("a session");
        session.append(&[2, 5, 7]).expect("room");
        fail_writing(commands(&model), a_matrix(&model));
        let sampling = SamplingOptions::greedy();
        let options = ContinueOptions { sampling, logprobs, ..ContinueOptions::default() };
        let mut tokens = session.generate(options).expect("a stream");
        let error = tokens.next().expect("something").expect_err("the device failed");
        assert!(matches!(error, GenerateError::Forward(ForwardError::Device(_))), "{error}");
        assert_eq!(tokens.next(), None);
        assert_eq!(session.computed(), 0, "what is in the cache is of no use");
    }
}

#[test]
fn a_cache_of_which_a_layer_is_beyond_a_buffer_is_refused() {
    use crate::ops::cube::limits::{DeviceLimits, FORCED};
    let Some(model) = model() else { return };
    let options = CacheOptions { capacity: Some(256), chunk: 16, dtype: Some(crate::cache::CacheDtype::F32) };
    let limits = |buffer_bytes| DeviceLimits { buffer_bytes, alignment: 256, submission_flops: None };
    // 256 positions of 2 heads of 16 numbers.
    FORCED.set(Some(limits(256 * 128 - 1)));
    let refused = model.new_cache(&options);
    FORCED.set(Some(limits(256 * 128)));
    let made = model.new_cache(&options);
    FORCED.set(None);
    let error = crate::cache::CacheError::BeyondBuffer { needed_bytes: 256 * 128, most_bytes: 256 * 128 - 1 };
    assert_eq!(refused.err(), Some(error));
    assert!(made.is_ok());
}
