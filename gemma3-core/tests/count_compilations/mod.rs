//! What GPUs compile, counted: cubecl writes a line for each kernel into a log, whatever the backend.
//!
//! A thread of cubecl's own writes it, some time after. So a kernel that nobody has compiled before is launched
//! before the log is read: once that one is in it, everything before is too.
#![allow(dead_code)] // Each test file uses a part.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use burn::backend::DispatchDevice;
use cubecl::config::compilation::CompilationLogLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl::prelude::*;
use gemma3_core::Device;
use gemma3_core::checkpoint::{Checkpoint, TensorFormat};
use gemma3_core::config::{LayerType, TextConfig};
use gemma3_core::model::{LoadOptions, Model};

/// The log of this process.
pub struct Compilations {
    log: PathBuf,
}

/// Kernels launched by [`Compilations::so_far`].
static MARKS: AtomicU32 = AtomicU32::new(0);

impl Compilations {
    /// Has cubecl log to a file, which it does for the whole process: before any GPU is opened, and once.
    pub fn log_to(log: &Path) -> Self {
        let mut config = CubeClRuntimeConfig::default();
        config.compilation.logger.level = CompilationLogLevel::Basic;
        config.compilation.logger.file = Some(log.to_owned());
        assert!(CubeClRuntimeConfig::try_set(config), "no GPU was used before");
        Self { log: log.to_owned() }
    }

    /// The log to which cubecl was told to write in another way.
    pub fn logged_to(log: &Path) -> Self {
        Self { log: log.to_owned() }
    }

    /// A line for each kernel that was compiled so far for a GPU, and those of others.
    pub fn so_far(&self, gpu: &Device) -> Vec<String> {
        let marks = MARKS.fetch_add(1, Ordering::Relaxed) + 1;
        // Not one that an earlier process has left on disk either.
        launch_mark(gpu, std::process::id().wrapping_mul(256) + marks);
        let start = Instant::now();
        loop {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let (found, kernels): (Vec<_>, Vec<_>) = log
                .lines()
                .filter(|line| line.contains("[Compiling kernel]"))
                .map(str::to_owned)
                .partition(|line| line.contains("mark_kernel"));
            if found.len() >= marks as usize {
                return kernels;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "the mark is not in the log:\n{log}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn launch_mark(gpu: &Device, mark: u32) {
    #[allow(irrefutable_let_patterns, reason = "where only GPUs are built in, nothing else is left")]
    let DispatchDevice::Cube(gpu) = gpu.as_dispatch() else { panic!("not a GPU") };
    let client = gpu.client();
    let out = client.empty(size_of::<u32>());
    // SAFETY: the kernel writes the one word that there is.
    unsafe {
        let out = BufferArg::from_raw_parts(out.clone(), 1);
        mark_kernel::launch_unchecked(&client, CubeCount::Static(1, 1, 1), CubeDim::new_1d(1), out, mark);
    }
    let found = client.read_one(out).expect("the device works");
    assert_eq!(u32::from_bytes(&found), [mark]);
}

#[cube(launch_unchecked)]
fn mark_kernel(out: &mut [u32], #[comptime] mark: u32) {
    out[0] = mark.runtime();
}

/// A model with a windowed and a global layer, on a device.
pub fn tiny_model(device: &Device) -> Model {
    let config = TextConfig {
        vocab_size: 320,
        hidden_size: 128,
        intermediate_size: 256,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 32,
        query_pre_attn_scalar: 32.0,
        sliding_window: 16,
        max_position_embeddings: 512,
        layer_types: vec![LayerType::SlidingAttention, LayerType::FullAttention],
        ..TextConfig::gemma3_1b()
    };
    let checkpoint = Checkpoint::random(config, TensorFormat::BF16, 3).expect("random weights");
    Model::load(&checkpoint, device, LoadOptions::default()).expect("it loads")
}
