//! The image encoder at its published size, with random weights: seconds an image, and its share of what the
//! `gemm` crate alone reaches over the encoder's products, measured in turn in the same run.
//!
//! `cargo bench --bench vision` (`-- ROUNDS` for another number than 3)

mod common;

use std::time::Instant;

use gemma3::core::Threads;
use gemma3::core::checkpoint::{Checkpoint, TensorFormat};
use gemma3::core::config::{ImageTokens, ModelConfig, TextConfig, VisionConfig};
use gemma3::vision::weights::random_tensors;
use gemma3::vision::{PreprocessorConfig, VisionLoadOptions, VisionModel, VisionWeights};
use rayon::prelude::*;

/// Width of the 4B's decoder.
const TEXT_HIDDEN_SIZE: usize = 2560;

fn main() {
    // `cargo test --benches` passes no argument, `cargo bench` passes `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(3);
    let device = common::device();
    let threads = Threads::new(&device, None).expect("threads");
    let model = load(&device, &threads);
    let config = model.config().clone();
    let side = config.image_size;
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) % 1999) as f32 / 1000.0 - 1.0;
    let pixels: Vec<f32> = (0..3 * side * side).map(value).collect();

    let products = Products::of(&config);
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let start = Instant::now();
        let soft_tokens = model.forward(pixels.clone(), 1).expect("a forward pass");
        std::hint::black_box(soft_tokens[0].to_vec().expect("soft tokens")); // Waits for the device.
        ours.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        threads.run(|| products.run());
        limit.push(start.elapsed().as_secs_f64());
        println!("round {round}: encoder {:.2} s, products alone {:.2} s", ours[round], limit[round]);
    }
    let ratios: Vec<f64> = ours.iter().zip(&limit).map(|(ours, limit)| limit / ours).collect();
    println!(
        "one image of {side} x {side} on {} threads: {:.2} s = {:.1} GFLOP/s in {:.2} TFLOP of products; gemm alone {:.1} GFLOP/s; share {:.0}%",
        threads.count(),
        common::median(&ours),
        products.flops() / common::median(&ours) / 1e9,
        products.flops() / 1e12,
        products.flops() / common::median(&limit) / 1e9,
        100.0 * common::median(&ratios)
    );
}

fn load(device: &gemma3::Device, threads: &Threads) -> VisionModel {
    let vision = VisionConfig::siglip_so400m_896();
    // A decoder of which only the width matters.
    let text = TextConfig {
        num_hidden_layers: 1,
        layer_types: TextConfig::gemma3_4b().layer_types[..1].to_vec(),
        vocab_size: 512,
        intermediate_size: 64,
        hidden_size: TEXT_HIDDEN_SIZE,
        ..TextConfig::gemma3_4b()
    };
    let tensors = random_tensors(&vision, TEXT_HIDDEN_SIZE, TensorFormat::BF16);
    let config = ModelConfig {
        vision: Some(vision),
        image_tokens: Some(ImageTokens { boi: 500, eoi: 501, image: 502, mm_tokens_per_image: 256 }),
        ..ModelConfig::from_text(text)
    };
    let checkpoint = Checkpoint::random_with(config, TensorFormat::BF16, tensors, 1).expect("random weights");
    let weights = VisionWeights::in_checkpoint(&checkpoint).expect("an encoder");
    let preprocessor = PreprocessorConfig::gemma3();
    VisionModel::load(&weights, preprocessor, device, threads, VisionLoadOptions::default())
        .expect("an encoder")
}

/// The encoder's matrix products and nothing else.
struct Products {
    /// (rows, out, in) of the products with weights.
    linear: Vec<(usize, usize, usize)>,
    layers: usize,
    heads: usize,
    patches: usize,
    head_dim: usize,
    values: Vec<f32>,
}

impl Products {
    fn of(config: &VisionConfig) -> Self {
        let patches = config.patches_per_side().pow(2);
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let layer = [
            (patches, hidden, hidden),
            (patches, hidden, hidden),
            (patches, hidden, hidden),
            (patches, hidden, hidden),
            (patches, intermediate, hidden),
            (patches, hidden, intermediate),
        ];
        let mut linear = layer.repeat(config.num_hidden_layers);
        linear.push((patches, hidden, 3 * config.patch_size.pow(2)));
        linear.push((256, TEXT_HIDDEN_SIZE, hidden));
        let largest = patches * intermediate;
        Self {
            linear,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            patches,
            head_dim: hidden / config.num_attention_heads,
            values: (0..largest).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect(),
        }
    }

    fn flops(&self) -> f64 {
        let linear: f64 = self.linear.iter().map(|(m, n, k)| 2.0 * (*m * *n * *k) as f64).sum();
        let attention = 2 * 2 * self.patches * self.patches * self.head_dim * self.heads * self.layers;
        linear + attention as f64
    }

    fn run(&self) {
        let mut out = vec![0.0_f32; self.values.len()];
        for (m, n, k) in &self.linear {
            common::gemm([*m, *n, *k], &self.values, &self.values, &mut out, gemm::Parallelism::Rayon(0));
        }
        // Attention's products in the shape that they have for a tile of 256 queries: scores, then values.
        let tile = 256.min(self.patches);
        let tiles = self.layers * self.heads * self.patches / tile;
        (0..tiles).into_par_iter().for_each_init(
            || (vec![0.0_f32; tile * self.patches], vec![0.0_f32; tile * self.head_dim]),
            |(scores, attended), _| {
                let (patches, head_dim) = (self.patches, self.head_dim);
                let one = gemm::Parallelism::None;
                common::gemm([tile, patches, head_dim], &self.values, &self.values, scores, one);
                common::gemm([tile, head_dim, patches], scores, &self.values, attended, one);
            },
        );
        std::hint::black_box(&out);
    }
}
