//! Measures prefill and decode, in the manner of llama-bench.
//!
//! `cargo run --release --example bench -- --random 270m --format bf16 --threads 2 -p 512 -n 128`

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use common::{Outcome, Speed, out, parse_cache_dtype, peak_rss_bytes};
use gemma3::core::checkpoint::{Checkpoint, TensorFormat};
use gemma3::core::config::TextConfig;
use gemma3::core::model::Model;
use gemma3::hub::{self, FetchOptions};
use gemma3::{CacheDtype, CacheOptions, LoadOptions, Precision, device};
use serde_json::json;

/// Measures how fast Gemma 3 reads and writes.
#[derive(Debug, Parser)]
struct Arguments {
    /// A Hugging Face folder, a .gguf file, or a hub id.
    #[arg(long, required_unless_present = "random", conflicts_with = "random")]
    model: Option<String>,

    /// Random weights of a true shape: 270m, 1b, 4b, 12b or 27b.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    random: Option<TextConfig>,

    /// Format of the random weights: f32, f16, bf16, q8_0, q4_0, ...
    #[arg(long, default_value = "bf16", value_parser = parse_format)]
    format: TensorFormat,

    /// Device: flex, ndarray, wgpu, vulkan, metal, webgpu, cuda or rocm, as built in.
    #[arg(long, default_value_t = device::built_in().first().copied().unwrap_or("flex").to_owned())]
    device: String,

    /// Where a GPU's compiled kernels are kept for the next start; needs the cargo feature persistence.
    #[arg(long, value_name = "DIR")]
    kernel_cache: Option<PathBuf>,

    /// CPU threads of flex and ndarray [default: all].
    #[arg(long, short)]
    threads: Option<usize>,

    /// Tokens of the prefill; 0 leaves it out.
    #[arg(short = 'p', long = "n-prompt", default_value_t = 512)]
    n_prompt: usize,

    /// Tokens of the decode; 0 leaves it out.
    #[arg(short = 'n', long = "n-gen", default_value_t = 128)]
    n_gen: usize,

    /// Tokens that are there before what is measured.
    #[arg(short = 'd', long = "n-depth", default_value_t = 0)]
    n_depth: usize,

    /// Repetitions.
    #[arg(short = 'r', long, default_value_t = 3)]
    repetitions: usize,

    /// Tokens that a prefill computes at once.
    #[arg(long, default_value_t = CacheOptions::default().chunk)]
    chunk: usize,

    /// f32 activations in every product, as the reference has; slower with quantized weights on the CPU.
    #[arg(long)]
    exact: bool,

    /// In which numbers keys and values are kept: f32, bf16 or f16 [default: f16 on flex and GPUs, f32
    /// with --exact and elsewhere].
    #[arg(long, value_name = "DTYPE", value_parser = parse_cache_dtype)]
    cache_dtype: Option<CacheDtype>,

    /// Measure at once, without a run to warm up.
    #[arg(long)]
    no_warmup: bool,

    /// JSON, one object a line, in place of the table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    common::run(run)
}

fn run(arguments: &Arguments) -> Outcome {
    if let Some(folder) = &arguments.kernel_cache {
        device::persist_kernels(folder)?;
    }
    let device = device::open(&arguments.device)?;
    let checkpoint = checkpoint(arguments)?;
    let precision = if arguments.exact { Precision::Exact } else { Precision::Fast };
    let options = LoadOptions { threads: arguments.threads, precision, ..LoadOptions::default() };
    let model = Model::load(&checkpoint, &device, options)?;
    let name = match &arguments.model {
        Some(model) => model.clone(),
        None => format!("random {}", size_name(&checkpoint.config().text)),
    };
    let format = checkpoint.format_name().to_owned();
    drop(checkpoint); // Its pages need not stay in memory while the model runs.

    if !arguments.json {
        out!("{name}, {format}, {} ({} threads)", arguments.device, model.threads().count())?;
    }
    let runs = [("pp", arguments.n_prompt, 0), ("tg", 0, arguments.n_gen)];
    for (kind, n_prompt, n_gen) in runs.into_iter().filter(|(_, p, n)| p + n > 0) {
        let dtype = arguments.cache_dtype;
        let cache = CacheOptions { chunk: arguments.chunk, dtype, ..CacheOptions::default() };
        let speed = Speed { n_depth: arguments.n_depth, n_prompt, n_gen, cache };
        if !arguments.no_warmup {
            speed.measure(&model)?;
        }
        let rates: Vec<f64> =
            (0..arguments.repetitions.max(1)).map(|_| speed.measure(&model)).collect::<Result<_, _>>()?;
        let (avg_ts, stddev_ts) = mean_and_deviation(&rates);
        if arguments.json {
            let line = json!({
                "model": name,
                "format": format,
                "device": arguments.device,
                "threads": model.threads().count(),
                "n_prompt": n_prompt,
                "n_gen": n_gen,
                "n_depth": arguments.n_depth,
                "avg_ts": avg_ts,
                "stddev_ts": stddev_ts,
                "peak_rss_bytes": peak_rss_bytes(),
            });
            out!("{line}")?;
        } else {
            let depth = match arguments.n_depth {
                0 => String::new(),
                depth => format!(" @ d{depth}"),
            };
            out!(
                "{:>16}  {avg_ts:>9.2} ± {stddev_ts:.2} tok/s",
                format!("{kind}{}{depth}", n_prompt + n_gen)
            )?;
        }
    }
    if !arguments.json {
        out!("{:>16}  {:.0} MB", "peak memory", peak_rss_bytes() as f64 / 1e6)?;
    }
    Ok(())
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 })
}

fn checkpoint(arguments: &Arguments) -> Result<Checkpoint, Box<dyn std::error::Error>> {
    if let Some(config) = &arguments.random {
        return Ok(Checkpoint::random(config.clone(), arguments.format, 0)?);
    }
    let model = arguments.model.as_deref().unwrap_or_default();
    if Path::new(model).exists() {
        return Ok(Checkpoint::open(model)?);
    }
    let path = hub::fetch(model, &FetchOptions::default(), &mut |_| {})?;
    Ok(Checkpoint::open(path)?)
}

const SIZES: [&str; 5] = ["270m", "1b", "4b", "12b", "27b"];

fn config_of(size: &str) -> Option<TextConfig> {
    match size {
        "270m" => Some(TextConfig::gemma3_270m()),
        "1b" => Some(TextConfig::gemma3_1b()),
        "4b" => Some(TextConfig::gemma3_4b()),
        "12b" => Some(TextConfig::gemma3_12b()),
        "27b" => Some(TextConfig::gemma3_27b()),
        _ => None,
    }
}

fn parse_size(size: &str) -> Result<TextConfig, String> {
    config_of(size).ok_or_else(|| format!("`{size}` is not one of {}", SIZES.join(", ")))
}

fn size_name(config: &TextConfig) -> &'static str {
    SIZES.into_iter().find(|size| config_of(size).as_ref() == Some(config)).unwrap_or("model")
}

fn parse_format(name: &str) -> Result<TensorFormat, String> {
    name.parse().map_err(|error| format!("{error}"))
}
