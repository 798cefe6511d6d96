//! Browsers take every shader of the decoder, of sampling and of the image encoder, with plane operations and without.
//! (The encoder itself is run by the test `browser_shaders` of its crate.)

use burn::tensor::Device;

use crate::CancelHandle;
use crate::cache::CacheOptions;
use crate::checkpoint::{Checkpoint, TensorFormat, TensorView};
use crate::config::{LayerType, TextConfig};
use crate::generate::{ContinueOptions, GenerateError, Session, SessionOptions, generate_batch};
use crate::model::{LoadOptions, Model};
use crate::ops::cube::matvec::PLANES;
use crate::ops::image::{Ending, ImageMachine, LayerNorm, Numbers, PatchShape};
use crate::ops::machine::{Machine, Norm};
use crate::ops::{Cube, MachineError, Precision};
use crate::sampling::SamplingOptions;

#[path = "../../../../tests/browser/mod.rs"]
mod browser;

/// Lanes of a plane, as most of the GPUs have it. What computes here may have others, or no such operations, so that
/// only what it is asked to compile counts.
const LANES: usize = 32;

#[test]
fn browsers_take_every_shader_of_the_decoder() {
    let Some(device) = browser::device() else { return };
    browser::collect();
    let result = every_operation(&device);
    let first = browser::check_all();
    result.expect("the kernels need no more than there is");

    PLANES.set(Some(LANES));
    let result = every_operation(&device);
    PLANES.set(None);
    println!("with planes of {LANES}: {result:?}");
    let all = browser::check_all();
    println!("{first} shaders as the device has planes, {} more with planes of {LANES}", all - first);
    assert!(first > 40, "{first} of {all} shaders were collected");
}

/// WebGPU promises buffers of 128 MiB, and a vocabulary of the published size is more than that in any model.
#[test]
fn a_head_lies_in_several_buffers() -> Result<(), Box<dyn std::error::Error>> {
    let Some(device) = browser::device() else { return Ok(()) };
    let config = TextConfig {
        vocab_size: 262_144,
        hidden_size: 320,
        intermediate_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: 64,
        query_pre_attn_scalar: 64.0,
        sliding_window: 16,
        max_position_embeddings: 512,
        layer_types: vec![LayerType::FullAttention],
        ..TextConfig::gemma3_1b()
    };
    let checkpoint = Checkpoint::random(config, TensorFormat::BF16, 3)?;
    let model = Model::load(&checkpoint, &device, LoadOptions::default())?;
    let logits = |ids: &[u32]| -> Result<Vec<f32>, GenerateError> {
        let mut session = session(&model, 0);
        session.append(ids)?;
        Ok(session.logits()?.to_vec())
    };
    // The same by a chunk and by steps, of ids in either part.
    let ids = [7, 131_071, 131_072, 262_143];
    let by_chunk = logits(&ids)?;
    let mut steps = session(&model, 0);
    for id in ids {
        steps.append(&[id])?;
        steps.logits()?;
    }
    let largest = by_chunk.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    assert_eq!(by_chunk.len(), 262_144);
    assert!(largest > 0.0, "nothing was computed");
    for (id, (step, chunk)) in steps.logits()?.iter().zip(&by_chunk).enumerate() {
        // The cache keeps halves, of which a chunk reads its own tokens' as a step does.
        assert!((step - chunk).abs() <= 1e-3 * largest, "{id}: {step}, not {chunk}");
    }
    generate(&mut steps, SamplingOptions::greedy())?;
    Ok(())
}

/// One of each kind, which is what the time of an ordinary test allows; all where the shaders are asked for.
fn formats() -> Vec<TensorFormat> {
    match std::env::var_os("GEMMA3_WGSL") {
        Some(_) => TensorFormat::ALL.to_vec(),
        None => vec![TensorFormat::BF16, TensorFormat::Q4_0, TensorFormat::Q4_K, TensorFormat::Q6_K],
    }
}

fn every_operation(device: &Device) -> Result<(), Box<dyn std::error::Error>> {
    image_operations(device)?;
    for format in formats() {
        let model = model(device, format);
        // A prompt, and steps.
        generate(&mut session(&model, 11), SamplingOptions::greedy())?;
        if format == TensorFormat::Q4_0 {
            everything(&model)?;
        }
    }
    Ok(())
}

/// A model with a windowed and a global layer.
fn model(device: &Device, format: TensorFormat) -> Model {
    let config = TextConfig {
        vocab_size: 320,
        hidden_size: 256,
        intermediate_size: 512,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        query_pre_attn_scalar: 64.0,
        sliding_window: 16,
        max_position_embeddings: 512,
        layer_types: vec![LayerType::SlidingAttention, LayerType::FullAttention],
        ..TextConfig::gemma3_1b()
    };
    let checkpoint = Checkpoint::random(config, format, 3).expect("random weights");
    Model::load(&checkpoint, device, LoadOptions::default()).expect("it loads")
}

fn session(model: &Model, prompt: usize) -> Session {
    let cache = CacheOptions { capacity: Some(64), chunk: 16, ..CacheOptions::default() };
    let mut session = Session::new(model, &SessionOptions { cache, sequence: 0 }).expect("a session");
    let ids: Vec<u32> = (0..prompt as u32).map(|i| 3 + i * 37 % 300).collect();
    session.append(&ids).expect("room");
    session
}

fn options(sampling: SamplingOptions) -> ContinueOptions {
    ContinueOptions { sampling, max_new_tokens: Some(2), ..ContinueOptions::default() }
}

fn generate(session: &mut Session, sampling: SamplingOptions) -> Result<(), GenerateError> {
    session.generate(options(sampling))?.try_for_each(|token| token.map(|_| ()))
}

/// Every way of choosing, of copying caches, and of stepping together.
fn everything(model: &Model) -> Result<(), GenerateError> {
    let drawn = SamplingOptions {
        do_sample: true,
        temperature: 0.8,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.05,
        seed: Some(1),
        ..SamplingOptions::greedy()
    };
    let penalized = SamplingOptions { repetition_penalty: 1.2, frequency_penalty: 0.1, ..drawn.clone() };
    let greedy = SamplingOptions { do_sample: false, ..penalized.clone() };
    for sampling in [drawn, penalized, greedy] {
        generate(&mut session(model, 5), sampling)?;
    }
    let mut parent = session(model, 20);
    parent.logits()?;
    let mut child = parent.clone();
    child.append(&[5])?;
    child.logits()?;
    let mut sessions = [9, 12, 3].map(|prompt| session(model, prompt));
    let mut sessions: Vec<_> = sessions.iter_mut().collect();
    let greedy = vec![options(SamplingOptions::greedy()); sessions.len()];
    generate_batch(&mut sessions, &greedy, &CancelHandle::new()).map(|_| ())
}

/// What the image encoder is made of, in both precisions.
fn image_operations(device: &Device) -> Result<(), MachineError> {
    let format = TensorFormat::BF16;
    const WIDTH: usize = 64;
    const ROWS: usize = 16;
    let values = |count: usize| (0..count).map(|i| i as f32 / count as f32 - 0.5).collect::<Vec<f32>>();
    for precision in [Precision::Exact, Precision::Fast] {
        let m = Cube::open(device, precision).expect("a GPU");
        let row = || m.vector(values(WIDTH));
        let (scale, bias) = (row()?, row()?);
        let x = m.features(values(ROWS * WIDTH), WIDTH)?;
        let bytes = vec![0; format.tensor_bytes(&[WIDTH, WIDTH]).expect("whole blocks")].into();
        let shape = vec![WIDTH, WIDTH];
        let view = TensorView { file_name: "w", source: "zeros", shape, format, bytes, place: None };
        let weight = m.image_matrix(view).expect("a matrix");
        let norm = LayerNorm { scale: row()?, bias: row()?, eps: 1e-6 };
        let normed = m.layer_norm(&x, &norm, Numbers::Operands)?;
        m.layer_norm(&x, &norm, Numbers::Floats)?;
        m.rms_norm(&x, &Norm { scale, eps: 1e-6 })?;
        for (gelu, added) in [(false, None), (true, None), (false, Some(&x))] {
            m.linear(&normed, &weight, Some(Ending { bias: &bias, gelu, added }), Numbers::Floats)?;
        }
        m.linear(&normed, &weight, None, Numbers::Floats)?;
        let qkv = m.queries_keys_values(&normed, [(&weight, &bias); 3], 1, 2)?;
        m.full_attention(qkv, 1, 2, 0.2)?;
        m.patches(values(3 * 28 * 28), 1, PatchShape { channels: 3, side: 28, patch: 14 })?;
        m.look_at_features(&m.mean_of_squares(&x, 1, 4, 2)?)?.wait()?;
    }
    Ok(())
}
