//! Decode and prefill against what the machine can do, in one run: decode over the time that reading the
//! weights once takes, prefill over the `gemm` crate's own time for the same products.
//!
//! `cargo bench --bench limits`. Each figure is the median of rounds that alternate between ours and the
//! limit, because the machine's own speed moves from minute to minute.

mod common;

use std::time::Instant;

use gemma3::core::config::TextConfig;
use gemma3::core::model::Model;
use rayon::prelude::*;

const ROUNDS: usize = 7;
const PROMPT: usize = 512;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return; // `cargo test` runs benches too.
    }
    let (name, checkpoint) = common::checkpoint();
    let model = common::load(&checkpoint);
    let format = checkpoint.format_name().to_owned();
    drop(checkpoint);
    let megabytes = model.weight_bytes() as f64 / 1e6;
    println!("{name}, {format}, {megabytes:.0} MB of matrices, {} threads", model.threads().count());
    decode(&model);
    prefill(&model);
}

/// A decode step against reading as many bytes as it must.
fn decode(model: &Model) {
    let bytes = model.weight_bytes();
    let buffer = vec![1.0_f32; (512 << 20) / size_of::<f32>()];
    let buffer_bytes = size_of_val(&buffer[..]) as f64;
    let mut session = common::session(model, 128, 4 * (ROUNDS + 1));
    let (mut steps, mut bandwidths) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let start = Instant::now();
        for _ in 0..4 {
            session.prefill(&[7]).expect("room");
        }
        let step = start.elapsed().as_secs_f64() / 4.0;
        let start = Instant::now();
        std::hint::black_box(read(&buffer));
        let bandwidth = buffer_bytes / start.elapsed().as_secs_f64();
        if round > 0 {
            steps.push(step);
            bandwidths.push(bandwidth);
        }
    }
    let ratios: Vec<f64> = steps.iter().zip(&bandwidths).map(|(s, b)| bytes as f64 / b / s).collect();
    println!(
        "decode at 128: {:.2} tok/s = {:.2} GB/s; the machine reads {:.2} GB/s; share of the limit {:.0}%",
        1.0 / common::median(&steps),
        bytes as f64 / common::median(&steps) / 1e9,
        common::median(&bandwidths) / 1e9,
        100.0 * common::median(&ratios)
    );
}

/// Sums a buffer, all threads together, with enough accumulators not to be bound by additions.
fn read(buffer: &[f32]) -> f32 {
    buffer
        .par_chunks(1 << 16)
        .map(|chunk| {
            let mut sums = [0.0_f32; 64];
            for values in chunk.chunks_exact(64) {
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += value;
                }
            }
            sums.iter().sum::<f32>()
        })
        .sum()
}

/// A prefill against the same matrix products by `gemm` alone.
fn prefill(model: &Model) {
    let shapes = products(model.text_config());
    let flops: f64 = shapes.iter().map(|(n, k)| 2.0 * (PROMPT * n * k) as f64).sum();
    let largest = |f: fn(&(usize, usize)) -> usize| shapes.iter().map(f).max().unwrap_or(0);
    let x = vec![0.5_f32; PROMPT * largest(|(_, k)| *k)];
    let weight = vec![0.25_f32; largest(|(n, k)| n * k)];
    let mut out = vec![0.0_f32; PROMPT * largest(|(n, _)| *n)];
    let ids = common::ids(PROMPT);
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let mut session = common::session(model, 0, PROMPT);
        let start = Instant::now();
        session.prefill(&ids).expect("room");
        let prefill = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for (n, k) in &shapes {
            common::gemm([PROMPT, *n, *k], &x, &weight, &mut out, gemm::Parallelism::Rayon(0));
        }
        let products = start.elapsed().as_secs_f64();
        if round > 0 {
            ours.push(prefill);
            limit.push(products);
        }
    }
    std::hint::black_box(&out);
    let ratios: Vec<f64> = ours.iter().zip(&limit).map(|(ours, limit)| limit / ours).collect();
    println!(
        "prefill of {PROMPT}: {:.1} tok/s = {:.1} GFLOP/s in products; gemm alone {:.1} GFLOP/s; share {:.0}%",
        PROMPT as f64 / common::median(&ours),
        flops / common::median(&ours) / 1e9,
        flops / common::median(&limit) / 1e9,
        100.0 * common::median(&ratios)
    );
}

/// The products of one prefill as (out, in); the head, done for one token, is left out.
fn products(config: &TextConfig) -> Vec<(usize, usize)> {
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.query_width(), config.key_value_width());
    let layer = [
        (queries, hidden),
        (keys, hidden),
        (keys, hidden),
        (hidden, queries),
        (intermediate, hidden),
        (intermediate, hidden),
        (hidden, intermediate),
    ];
    layer.repeat(config.num_hidden_layers)
}
