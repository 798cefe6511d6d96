//! A GPU against its limits: decode and prefill of random weights of true shapes.
//!
//! `cargo bench --bench gpu --features cuda -- --device cuda --models 1b:bf16,4b:q4_0 --json out.json`
//!
//! First the copy bandwidth of the device is measured; each decode then has its share of it: the bytes of the
//! weights and of the visible keys and values that a step reads, over the time that it takes.

mod copy;
mod measure;
mod report;

use clap::Parser;
use gemma3::core::checkpoint::{Checkpoint, TensorFormat};
use gemma3::core::config::TextConfig;
use gemma3::core::model::Model;
use gemma3::{LoadOptions, Precision, device};

use measure::{Case, measure};
use report::{Report, Row};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Gemma 3 on a GPU.
#[derive(Debug, Parser)]
struct Arguments {
    /// The device: cuda, vulkan, wgpu, ..., as built in.
    #[arg(long, default_value = "cuda")]
    device: String,

    /// Sizes and formats of random weights.
    #[arg(long, default_value = "1b:bf16,1b:q8_0,1b:q4_0,4b:bf16,4b:q4_0", value_delimiter = ',')]
    models: Vec<String>,

    /// Tokens of the prompt before a decode.
    #[arg(long, default_value_t = 128)]
    n_prompt: usize,

    /// Tokens of a decode.
    #[arg(long, default_value_t = 256)]
    n_gen: usize,

    /// Depths of further decodes.
    #[arg(long, value_delimiter = ',')]
    depths: Vec<usize>,

    /// Tokens of a prefill; 0 leaves it out.
    #[arg(long, default_value_t = 2048)]
    n_prefill: usize,

    /// Sequences that are decoded together.
    #[arg(long, value_delimiter = ',')]
    batches: Vec<usize>,

    /// Repetitions, of which the median counts.
    #[arg(short = 'r', long, default_value_t = 3)]
    repetitions: usize,

    /// f32 activations in every product.
    #[arg(long)]
    exact: bool,

    /// Where the rows go as JSON.
    #[arg(long)]
    json: Option<std::path::PathBuf>,

    /// The date, for the JSON.
    #[arg(long, default_value = "")]
    date: String,

    /// The commit, for the JSON.
    #[arg(long, default_value = "")]
    commit: String,

    /// The card's name, for the JSON.
    #[arg(long, default_value = "")]
    card: String,

    /// Measure the copy bandwidth alone and print it.
    #[arg(long, hide = true)]
    copy_only: bool,

    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let device = device::open(&arguments.device)?;
    if arguments.copy_only {
        println!("{}", copy::bandwidth(&device));
        return Ok(());
    }
    let copy_gb_s = copy::bandwidth_of_another_process(&arguments.device)?;
    println!("{} {}: copies at {copy_gb_s:.0} GB/s", arguments.card, arguments.device);
    let mut report = Report::new(copy_gb_s);
    for name in &arguments.models {
        let (size, format) = name.split_once(':').ok_or("a model is a size and a format, as in 1b:bf16")?;
        let format: TensorFormat = format.parse()?;
        let checkpoint = Checkpoint::random(config(size)?, format, 0)?;
        let precision = if arguments.exact { Precision::Exact } else { Precision::Fast };
        let begun = std::time::Instant::now();
        let model = Model::load(&checkpoint, &device, LoadOptions { precision, ..LoadOptions::default() })?;
        drop(checkpoint);
        println!("{name}: loaded in {:.1} s", begun.elapsed().as_secs_f64());
        for case in arguments.cases() {
            let rates = (0..arguments.repetitions.max(1)).map(|_| measure(&model, &case));
            match rates.collect::<Result<Vec<_>, _>>() {
                Ok(rates) => {
                    report.add(Row::new(&model, size, format, &arguments.device, &case, rates, copy_gb_s));
                }
                // A card that is too small for one case has still others to measure.
                Err(error) => println!("{name} {case:?}: {error}"),
            }
        }
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json(&arguments.date, &arguments.commit, &arguments.card))?;
    }
    Ok(())
}

impl Arguments {
    fn cases(&self) -> Vec<Case> {
        let Self { n_prompt, n_gen, .. } = *self;
        let decode = |n_depth, batch| Case { n_prompt: 0, n_gen, n_depth, batch };
        let mut cases = vec![decode(n_prompt, 1)];
        cases.extend(self.depths.iter().map(|depth| decode(*depth, 1)));
        if self.n_prefill > 0 {
            cases.push(Case { n_prompt: self.n_prefill, n_gen: 0, n_depth: 0, batch: 1 });
        }
        cases.extend(self.batches.iter().map(|batch| decode(n_prompt, *batch)));
        cases
    }
}

fn config(size: &str) -> Result<TextConfig, String> {
    match size {
        "270m" => Ok(TextConfig::gemma3_270m()),
        "1b" => Ok(TextConfig::gemma3_1b()),
        "4b" => Ok(TextConfig::gemma3_4b()),
        "12b" => Ok(TextConfig::gemma3_12b()),
        "27b" => Ok(TextConfig::gemma3_27b()),
        other => Err(format!("unknown size `{other}`: 270m, 1b, 4b, 12b or 27b")),
    }
}
