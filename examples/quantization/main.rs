//! What each weight format costs in accuracy, and what it gains in memory and speed.
//!
//! `cargo run --release --example quantization -- --text book.txt --baseline model-BF16.gguf model-Q4_0.gguf`
//!
//! `docs/quantization.md` says how to obtain a text and what came out.

mod candidates;
#[path = "../common/mod.rs"]
mod common;
mod divergence;
mod report;
mod row;
mod text;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use candidates::{Candidate, candidates};
use clap::Parser;
use common::{Outcome, obtain};
use gemma3::core::checkpoint::Checkpoint;
use gemma3::tokenizer::Bos;
use gemma3::{Gemma3, LoadOptions, Precision, device};
use report::Report;
use row::{Row, measure_speeds, score};
use text::windows;

/// Measures what weight formats cost: perplexity over a text, and the Kullback-Leibler divergence of each
/// next-token distribution from the baseline's.
///
/// The baseline computes in f32 (exact mode). Compared with it are the same file in fast mode, the same file
/// quantized to 8 and 4 bits at load if its weights are floats, and the models given.
///
/// Memory: all of these models at once, or with --one-at-a-time the baseline and one more; and for each position
/// of --chunk about 4 MiB (64 of them: 0.3 GB). No distribution is kept.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// Plain text, UTF-8.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,

    /// Tokens of the text to score, in whole windows that are spread evenly over it.
    #[arg(long, default_value_t = 4096)]
    tokens: usize,

    /// Tokens of a window: each starts anew after <bos>, so this bounds the context.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    window: usize,

    /// What the others are compared with: a Hugging Face folder, a .gguf file, or a hub id.
    #[arg(long, value_name = "MODEL")]
    baseline: String,

    /// Further models to compare, of the same vocabulary.
    #[arg(value_name = "MODEL")]
    models: Vec<String>,

    /// Compare each format in exact mode too, which tells the weights' rounding from the activations'.
    #[arg(long)]
    exact: bool,

    /// Tokens that are computed at once while scoring; 1 measures the products of decoding, which differ on flex.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    chunk: usize,

    /// Measurements of speed, in turns, of which the median is shown; 0 leaves speed out.
    #[arg(short = 'r', long, default_value_t = 3)]
    repetitions: usize,

    /// Hold the baseline and one other model in memory, not all; the baseline is computed for each.
    #[arg(long)]
    one_at_a_time: bool,

    /// Device: flex, ndarray, wgpu, vulkan, metal, webgpu, cuda or rocm, as built in.
    #[arg(long, default_value_t = device::built_in().first().copied().unwrap_or("flex").to_owned())]
    device: String,

    /// CPU threads of flex and ndarray [default: all].
    #[arg(long, short)]
    threads: Option<usize>,

    /// JSON, one object a line, in place of the table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    common::run(run)
}

fn run(arguments: &Arguments) -> Outcome {
    let device = device::open(&arguments.device)?;
    let text = std::fs::read_to_string(&arguments.text)
        .map_err(|error| format!("cannot read the text `{}`: {error}", arguments.text.display()))?;
    let path = obtain(Some(&arguments.baseline))?;
    let baseline = Checkpoint::open(&path)?;
    let others: Vec<Checkpoint> = arguments
        .models
        .iter()
        .map(|model| Ok(Checkpoint::open(obtain(Some(model))?)?))
        .collect::<Result<_, Box<dyn Error>>>()?;
    let candidates = candidates(&baseline, &others, arguments.exact);

    let options =
        LoadOptions { threads: arguments.threads, precision: Precision::Exact, ..LoadOptions::default() };
    let gemma = Gemma3::loader(&path).device(&device).options(options).load()?;
    let ids = gemma.tokenizer().encode(&text, Bos::Add)?;
    let windows = windows(&ids, arguments.tokens, arguments.window);
    let (window, chunk) = (arguments.window, arguments.chunk);
    let mut first = Row::new(Candidate::baseline(baseline), gemma.model().clone(), window, chunk)?;
    drop(gemma); // An image encoder is of no use here.

    let scored = windows.iter().map(|window| window.next.len()).sum();
    if scored == 0 {
        return Err("nothing to score: the text is empty, or --tokens or --window is 0".into());
    }
    let report = Report::new(first.weight_bytes(), scored, arguments)?;
    let at_once = if arguments.one_at_a_time { 1 } else { candidates.len() };
    for (round, candidates) in candidates.chunks(at_once).enumerate() {
        let mut rows = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let model = candidate.load(&first.model, &device)?;
            rows.push(Row::new(candidate.clone(), model, window, chunk)?);
        }
        score(&mut first, &mut rows, &windows, chunk)?;
        measure_speeds(&mut first, &mut rows, arguments.repetitions)?;
        if round == 0 {
            report.print(&first)?;
        }
        for row in &rows {
            report.print(row)?;
        }
    }
    Ok(())
}
