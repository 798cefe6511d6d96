//! Models in use for a thousand turns: resident memory, threads and file handles stay what they are.
//!
//! `cargo bench --bench soak -- [--turns N] [--json FILE]`. The real Gemma 3 270M is taken from `GEMMA3_MODEL` or the
//! cache, or else fetched as the examples do; images go to the tiny model of the test fixtures.

#[path = "../common/mod.rs"]
mod common;
mod curve;
mod habits;
mod process;
mod soak;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use gemma3::hub;
use serde_json::json;
use soak::{Outcome, Soak};

/// The command line.
#[derive(Parser)]
struct Arguments {
    /// Turns on each of the two models.
    #[arg(long, default_value_t = 1000)]
    turns: usize,
    /// Turns between two loads.
    #[arg(long, default_value_t = 50)]
    load_every: usize,
    /// Tokens of each context.
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// Where to write the curve.
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo says to benches.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS; // `cargo test` runs benches too.
    }
    let arguments = Arguments::parse();
    let model = common::real_model().unwrap_or_else(fetch);
    let seeing_model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-multimodal");
    let soak = Soak {
        model: &model,
        seeing_model: &seeing_model,
        device: &common::device(),
        turns: arguments.turns,
        load_every: arguments.load_every.max(1),
        context: arguments.context,
    };
    let start = Instant::now();
    let Some(outcome) = soak.run().unwrap_or_else(|error| panic!("{error}")) else {
        println!("skipped: this system has no /proc/self");
        return ExitCode::SUCCESS;
    };
    report(&outcome, start.elapsed().as_secs_f64(), arguments.json.as_deref())
}

fn fetch() -> PathBuf {
    let obtained =
        hub::default_model(&Default::default(), &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    println!("{}", obtained.note);
    obtained.path
}

fn report(outcome: &Outcome, seconds: f64, path: Option<&Path>) -> ExitCode {
    outcome.curve.print();
    let Outcome { before, after, .. } = outcome;
    println!("without a model, before: {before:?}");
    println!("without a model, after:  {after:?}");
    println!("{seconds:.0} s");
    if let Some(path) = path {
        let json = json!({
            "seconds": seconds.round(),
            "run": outcome.curve.json(),
            "before": { "rss_bytes": before.rss_bytes, "threads": before.threads, "handles": before.handles },
            "after": { "rss_bytes": after.rss_bytes, "threads": after.threads, "handles": after.handles },
        });
        std::fs::write(path, format!("{json:#}\n")).expect("the file of --json can be written");
    }
    let faults = outcome.faults();
    faults.iter().for_each(|fault| println!("not flat: {fault}"));
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
