//! The model that the benches run on: the real Gemma 3 270M where it is cached (`GEMMA3_MODEL`, or what
//! the example `generate` fetched), else random weights of the 1B's true shape.
#![allow(dead_code)] // Each bench uses a part.

use std::path::PathBuf;

use gemma3::core::checkpoint::{Checkpoint, TensorFormat};
use gemma3::core::config::TextConfig;
use gemma3::core::generate::Session;
use gemma3::core::model::Model;
use gemma3::{CacheOptions, Device, LoadOptions, SessionOptions, device};

/// burn allocates a tensor for every operation. An allocator that keeps the pages of what is freed spares
/// the system from clearing them each time: on Linux with glibc a third of a CPU prefill.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The device: `GEMMA3_DEVICE`, or flex.
pub fn device() -> Device {
    let name = std::env::var("GEMMA3_DEVICE").unwrap_or_else(|_| "flex".to_owned());
    device::open(&name).unwrap_or_else(|error| panic!("{error}"))
}

/// The real model's file, if there is one.
pub fn real_model() -> Option<PathBuf> {
    let named = std::env::var_os("GEMMA3_MODEL").map(PathBuf::from);
    named.or_else(|| gemma3::hub::cached_default_model(&Default::default()))
}

/// What the benches run on, and its name.
pub fn checkpoint() -> (String, Checkpoint) {
    match real_model() {
        Some(path) => ("gemma-3-270m".to_owned(), Checkpoint::open(path).expect("the real model")),
        None => ("random 1b".to_owned(), random(TextConfig::gemma3_1b())),
    }
}

/// Random bf16 weights.
pub fn random(config: TextConfig) -> Checkpoint {
    Checkpoint::random(config, TensorFormat::BF16, 0).expect("random weights")
}

/// A checkpoint on the device, with all threads.
pub fn load(checkpoint: &Checkpoint) -> Model {
    Model::load(checkpoint, &device(), LoadOptions::default()).expect("a model")
}

/// A session with `depth` tokens in it and room for `room` more.
pub fn session(model: &Model, depth: usize, room: usize) -> Session {
    let cache = CacheOptions { capacity: Some(depth + room), ..CacheOptions::default() };
    let mut session = Session::new(model, &SessionOptions { cache, sequence: 0 }).expect("a session");
    if depth > 0 {
        session.prefill(&ids(depth)).expect("a prefill");
    }
    session
}

/// Ids that look random and are the same every time, below the smallest vocabulary.
pub fn ids(count: usize) -> Vec<u32> {
    (0..count as u64).map(|i| (i.wrapping_mul(2_654_435_761) % 262_144) as u32).collect()
}

/// `out = x Wᵀ` for `[m, n, k]`, x \[m, k\], weight \[n, k\], by the crate `gemm` alone.
pub fn gemm([m, n, k]: [usize; 3], x: &[f32], weight: &[f32], out: &mut [f32], threads: gemm::Parallelism) {
    assert!(x.len() >= m * k && weight.len() >= n * k && out.len() >= m * n);
    // SAFETY: the three row-major matrices lie within their slices (asserted above), and `out` is
    // borrowed mutably, so it overlaps neither of the others.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            x.as_ptr(),
            1,
            k as isize,
            weight.as_ptr(),
            k as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
