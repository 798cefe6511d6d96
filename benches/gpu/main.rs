//! A GPU against its limits: decode and prefill of random weights of true shapes, and the image encoder.
//!
//! `cargo bench --bench gpu --features cuda -- --device cuda --models 1b:bf16,4b:q4_0 --vision --json out.json`
//!
//! First the device's limits are measured: how fast it copies, and how fast it multiplies large matrices. A decode then
//! has its share of the first, a prefill and the image encoder have theirs of the second ([`work`] says of what). With
//! further options: the host's memory while a model loads (`--load`), whether a seed repeats (`--determinism`), many
//! steps in a row (`--steady`), the time of a start (`--warm`). Alone, `--tiles` measures the products of devices without
//! matrix hardware by each of their tiles, against plain multiply-adds, `--costs` what a decode step costs beside its
//! computations, and `--profile` each kernel of a whole prompt and of an image.
//!
//! Each part runs in a process of its own ([`child`]); this one only prints and writes. Without any argument, as
//! `cargo test --benches` runs it, nothing is measured.

mod arguments;
mod child;
#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "webgpu",
    feature = "cuda",
    feature = "rocm"
))]
mod costs;
mod determinism;
mod folder;
#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "webgpu",
    feature = "cuda",
    feature = "rocm"
))]
mod gemm;
mod limits;
mod load;
mod measure;
mod memory;
mod models;
#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "webgpu",
    feature = "cuda",
    feature = "rocm"
))]
mod profile;
mod report;
mod start;
mod steady;
#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "webgpu",
    feature = "cuda",
    feature = "rocm"
))]
mod tiles;
mod vision;
mod work;

use clap::Parser;
use gemma3::core::checkpoint::TensorFormat;
use gemma3::{Device, device};
use serde::de::DeserializeOwned;

use arguments::{Arguments, Part};
use limits::Limits;
use models::RandomModel;
use report::{Figure, Report};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Whatever ends a part.
pub type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    if std::env::args_os().len() == 1 {
        println!("nothing is measured without arguments; `--help` lists them");
        return Ok(());
    }
    let arguments = Arguments::parse();
    match arguments.part {
        Some(part) => run_part(part, &arguments),
        #[cfg(any(
            feature = "wgpu",
            feature = "vulkan",
            feature = "metal",
            feature = "webgpu",
            feature = "cuda",
            feature = "rocm"
        ))]
        None if arguments.tiles => tiles::print(&arguments),
        #[cfg(any(
            feature = "wgpu",
            feature = "vulkan",
            feature = "metal",
            feature = "webgpu",
            feature = "cuda",
            feature = "rocm"
        ))]
        None if arguments.costs => costs::print(&arguments),
        #[cfg(any(
            feature = "wgpu",
            feature = "vulkan",
            feature = "metal",
            feature = "webgpu",
            feature = "cuda",
            feature = "rocm"
        ))]
        None if arguments.profile => profile::print(&arguments),
        None => run_all(&arguments),
    }
}

/// What the processes do that [`run_all`] starts. Each prints what it found as lines of JSON.
fn run_part(part: Part, arguments: &Arguments) -> Result<(), Failure> {
    keep_kernels(arguments)?;
    let subject = arguments.subject.as_str();
    match part {
        Part::Limits => limits::find(arguments),
        Part::BurnGemm => limits::find_burn_gemm(arguments),
        Part::Model => measure::run(&subject.parse()?, arguments),
        Part::Vision => vision::run(arguments),
        Part::Load => load::run(subject.as_ref(), arguments),
        Part::Draws => determinism::run(&subject.parse()?, arguments),
        Part::Steady => steady::run(&subject.parse()?, arguments),
        Part::Start => start::run(&subject.parse()?, arguments),
        #[cfg(any(
            feature = "wgpu",
            feature = "vulkan",
            feature = "metal",
            feature = "webgpu",
            feature = "cuda",
            feature = "rocm"
        ))]
        Part::Costs | Part::Empty | Part::Divisions => costs::run(part, arguments),
        #[cfg(any(
            feature = "wgpu",
            feature = "vulkan",
            feature = "metal",
            feature = "webgpu",
            feature = "cuda",
            feature = "rocm"
        ))]
        Part::Profile => profile::run(arguments),
        #[allow(unreachable_patterns, reason = "without GPUs nothing else is left")]
        _ => Err("this part is of GPUs".into()),
    }
}

/// Compiled kernels are kept on disk from here on, if that was asked for: before a device is opened.
fn keep_kernels(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(folder) = &arguments.kernel_cache {
        device::persist_kernels(folder)?;
    }
    Ok(())
}

fn open(arguments: &Arguments) -> Result<Device, Failure> {
    Ok(device::open(&arguments.device)?)
}

/// Every part that was asked for, one after the other. One that fails leaves the others to be measured.
fn run_all(arguments: &Arguments) -> Result<(), Failure> {
    let models = arguments.models()?;
    let mut report = Report::new(arguments, Limits::measure(arguments)?);
    report.save()?;
    if arguments.limits_only {
        return Ok(());
    }
    if let Some(model) = models.first().filter(|_| arguments.warm) {
        // The second finds what the first has left on disk: kernels of ours, if they are kept, and the driver's. Before
        // any other part, so that the first finds nothing.
        for _ in 0..2 {
            let result = run_figures::<start::Start>(Part::Start, model, &mut report);
            report.end_part("warm", result)?;
        }
    }
    if !models.is_empty() {
        println!("\n{}", measure::HEAD);
    }
    for model in &models {
        let result = run_figures::<measure::Measured>(Part::Model, model, &mut report);
        report.end_part(&model.to_string(), result)?;
    }
    if arguments.vision {
        let model = if arguments.tiny { "tiny" } else { "4b" };
        let result = child::run(Part::Vision, "", |found: vision::Encoded| {
            report.add(model, TensorFormat::BF16, &found)
        });
        report.end_part("image encoder", result)?;
    }
    for model in arguments.load()? {
        let result = load::measure(&model, &mut report);
        report.end_part(&format!("load {model}"), result)?;
    }
    if let Some(model) = models.first().filter(|_| arguments.determinism) {
        let result = determinism::compare(model, &mut report);
        report.end_part("determinism", result)?;
    }
    if let Some(model) = models.first().filter(|_| arguments.steady > 0) {
        let result = run_figures::<steady::Steady>(Part::Steady, model, &mut report);
        report.end_part("steady", result)?;
    }
    report.end()
}

/// A part that takes a model, whose answers are figures.
fn run_figures<F: Figure + DeserializeOwned>(
    part: Part,
    model: &RandomModel,
    report: &mut Report,
) -> Result<(), Failure> {
    child::run(part, &model.to_string(), |found: F| report.add(&model.size, model.format, &found))
}
