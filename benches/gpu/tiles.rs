//! Products on devices without matrix hardware: each tile of the exact kernel against plain multiply-adds.
//!
//! `cargo bench --bench gpu --features vulkan -- --device vulkan --tiles --models 1b:bf16,4b:q4_0 --prompts 16,64,512,2048`

use std::time::Instant;

use gemma3::core::checkpoint::{Checkpoint, RandomTensor};
use gemma3::core::config::ModelConfig;
use gemma3::core::ops::trial::{Trial, TrialNumbers, TrialProduct, Trials};
use gemma3::core::ops::{Numbers, RegisterTile};

use crate::arguments::Arguments;
use crate::{Failure, models};

/// Prints the rates of multiply-adds, and of each product of a layer by each tile.
pub fn print(arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    let trials = Trials::open(&device).ok_or("such a device has no kernels of ours")?;
    println!("{} through {}", crate::gemm::card(&device).unwrap_or_default(), trials.runtime());
    let peak = |numbers| match trials.multiply_adds(numbers) {
        None => Ok(None),
        Some(trial) => rate(&trial).map(|rate| {
            println!("multiply-adds of {numbers:?}: {rate:.1} T/s");
            Some(rate)
        }),
    };
    peak(TrialNumbers::Int8)?;
    let peaks = [(Numbers::F32, peak(TrialNumbers::F32)?), (Numbers::F16, peak(TrialNumbers::F16)?)];
    for model in arguments.models()? {
        for (name, [outputs, inputs], gated) in model.matrices() {
            let (tensor_name, shape) = ("weight".to_owned(), vec![outputs, inputs]);
            let deviation = (inputs as f32).powf(-0.5);
            let tensor =
                RandomTensor { name: tensor_name, shape, format: model.format, mean: 0.0, deviation };
            let config = ModelConfig::from_text(models::tiny());
            let checkpoint = Checkpoint::random_with(config, model.format, [tensor], 1)?;
            for rows in arguments.prompts() {
                let product = trials.product(checkpoint.raw("weight")?, *rows)?;
                println!("\n{model}, {name}: {rows} x {inputs} x {outputs}");
                for (numbers, peak) in peaks {
                    let Some(peak) = peak else { continue };
                    for tile in tiles(&product, numbers, *rows) {
                        let rate = rate(&product.by(tile, gated))?;
                        let chosen = if tile == product.chosen(numbers) { "  <- chosen" } else { "" };
                        let RegisterTile { unit_m, unit_n, depth, splits, .. } = tile;
                        println!(
                            "{numbers:?} {:>4} x {:<4} units of {unit_m} x {unit_n}, depth {depth}, {splits} parts: \
                             {rate:6.2} TFLOP/s, {:3.0}%{chosen}",
                            tile.m(),
                            tile.n(),
                            100.0 * rate / peak,
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

/// The one that is chosen, and those that are not much larger than what there is to multiply, whole and, of few rows, in
/// parts.
fn tiles(product: &TrialProduct<'_>, numbers: Numbers, rows: usize) -> Vec<RegisterTile> {
    let chosen = product.chosen(numbers);
    let fitting = |tile: &RegisterTile| tile.m() < 2 * rows.max(16) && (rows <= 64 || tile.m() >= 64);
    let parts: &[usize] = if rows <= 64 { &[1, 4] } else { &[1] };
    let tiles = RegisterTile::ALL.into_iter().filter(fitting);
    let tiles = tiles.flat_map(|tile| {
        parts.iter().map(move |splits| RegisterTile { splits: *splits, ..tile.of(numbers) })
    });
    tiles.filter(|tile| *tile != chosen).chain([chosen]).collect()
}

/// Operations in 1e12 a second, in the best of a few rounds.
fn rate(trial: &Trial<'_>) -> Result<f64, Failure> {
    const ROUNDS: usize = 3;
    const ROUND_S: f64 = 0.03;
    let timed = |times| {
        let begun = Instant::now();
        trial.run(times).map(|()| begun.elapsed().as_secs_f64() / times as f64)
    };
    timed(1)?; // Compiles.
    let mut best = timed(1)?;
    let times = (ROUND_S / best).ceil().clamp(1.0, 200.0) as usize;
    for _ in 0..ROUNDS {
        best = timed(times)?.min(best);
    }
    Ok(trial.operations / best / 1e12)
}
