//! What a decode step costs beside its computations: the host's encoding, the device's time between launches, the number of
//! submissions, the wait for tokens; and whether its products are divided as suits the device.
//!
//! `cargo bench --bench gpu --features cuda,vulkan -- --device vulkan --costs --models 1b:q4_0,1b:bf16`

use std::collections::BTreeMap;
use std::time::Instant;

use gemma3::CacheOptions;
use gemma3::core::config::TextConfig;
use gemma3::core::model::{Model, Segment, SegmentInput};
use gemma3::core::ops::costs::{self, Buffers, EmptyLaunches, FewRows, Launched, ReplayCosts};
use serde::{Deserialize, Serialize};

use crate::arguments::{Arguments, Part};
use crate::models::RandomModel;
use crate::{Failure, child, measure};

/// Steps of a timed decode, and those before it.
const STEPS: usize = 256;
const WARM: usize = 16;

/// A line of the output, of a process of its own.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line(pub String);

/// Launches that wgpu's runtime submits together at most, as they are tried.
const TASKS: [usize; 4] = [32, 64, 128, 1024];
/// By which an application tells it.
const TASKS_VARIABLE: &str = "CUBECL_WGPU_MAX_TASKS";

/// Prints everything.
pub fn print(arguments: &Arguments) -> Result<(), Failure> {
    let models = arguments.models()?;
    let line = |Line(text)| println!("{text}");
    child::run(Part::Empty, "", line)?;
    for model in &models {
        let is_cuda = arguments.device.starts_with("cuda");
        for tasks in if is_cuda { &TASKS[..1] } else { &TASKS[..] } {
            if !is_cuda {
                println!("\n{model}, {tasks} launches in a submission:");
            }
            child::run_with(Part::Costs, &model.to_string(), &[(TASKS_VARIABLE, tasks.to_string())], line)?;
        }
    }
    for model in &models {
        child::run(Part::Divisions, &model.to_string(), line)?;
    }
    Ok(())
}

/// What the processes do that [`print`] starts.
pub fn run(part: Part, arguments: &Arguments) -> Result<(), Failure> {
    match part {
        Part::Empty => empty(arguments),
        Part::Costs => step(&arguments.subject.parse()?, arguments),
        _ => divisions(&arguments.subject.parse()?, arguments),
    }
}

/// Answers with a line.
pub fn say(text: String) -> Result<(), Failure> {
    child::answer(&Line(text))
}

fn text(costs: &ReplayCosts, launches: usize) -> String {
    let each = |us: f64| format!("{us:8.1} ({:5.2} a launch)", us / launches.max(1) as f64);
    let stamped = costs.stamped_us.map_or_else(|| "unknown".to_owned(), each);
    format!("host {}, device {stamped}, one after the other {}", each(costs.encoded_us), each(costs.took_us))
}

/// Replays of launches that compute nothing.
fn empty(arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    say(format!("{}: us of a replay of launches that compute nothing", arguments.device))?;
    let launches = 160;
    let cases = [
        ("the same buffer", 1, Buffers::One, false),
        ("the same buffer, 264 cubes", 264, Buffers::One, false),
        ("the same buffer, two kernels in turns", 1, Buffers::One, true),
        ("the same eight buffers", 1, Buffers::Eight, false),
        ("the same eight buffers, two kernels in turns", 1, Buffers::Eight, true),
        ("a part of a page each", 1, Buffers::OwnParts, false),
        ("a buffer each, so no barriers", 1, Buffers::Own, false),
    ];
    for (name, cubes, buffers, alternates) in cases {
        let empty = EmptyLaunches { launches, cubes, buffers, alternates };
        match costs::of_empty(&device, empty)? {
            Some(costs) => say(format!("  {name:<45} {}", text(&costs, launches)))?,
            None => return say("  this device records nothing".to_owned()),
        }
    }
    Ok(())
}

/// The step of a model.
fn step(random: &RandomModel, arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    let model = random.load(&device, arguments)?;
    let depth = arguments.depth();
    let options = CacheOptions { capacity: Some(depth + 512), ..CacheOptions::default() };
    let prompt = measure::ids(&model, depth, 0);
    let first_step = || -> Result<_, Failure> {
        let mut cache = model.new_cache(&options)?;
        let mut append = |ids: &[u32]| {
            model.forward_last(&mut [Segment { input: SegmentInput::Ids(ids), cache: &mut cache }])
        };
        append(&prompt)?;
        let (stepped, kernels) = costs::of_launches(|| append(&[7]));
        stepped?;
        Ok((cache, kernels))
    };
    first_step()?; // Compiles.
    let (mut cache, kernels) = first_step()?;
    let launches: usize = kernels.iter().map(|kernel| kernel.count).sum();
    let sum: f64 = kernels.iter().map(|kernel| kernel.took_us).sum();
    say(format!("{random}: a step is {launches} launches, which take {sum:.1} us by themselves:"))?;
    say_kernels(&kernels)?;
    match costs::of_step(&mut cache, launches)? {
        Some(costs) => say(format!("  a replay: {}", text(&costs, launches)))?,
        None => say("  this device records nothing".to_owned())?,
    }
    say(format!("  a token with its wait, of {} steps: {:.1} us", STEPS, decode_us(&model, depth)?))
}

/// Says what each kernel has taken.
pub fn say_kernels(kernels: &[Launched]) -> Result<(), Failure> {
    let mut short = BTreeMap::<String, (usize, f64)>::new();
    for kernel in kernels {
        let (count, took) = short.entry(short_name(kernel.kernel)).or_default();
        *count += kernel.count;
        *took += kernel.took_us;
    }
    for (kernel, (count, took)) in short {
        say(format!("  {count:>4} {kernel:<28} {took:9.1} us, {:7.2} each", took / count as f64))?;
    }
    Ok(())
}

/// Millionths of a second of a token that is chosen on the device, as an application gets it.
fn decode_us(model: &Model, depth: usize) -> Result<f64, Failure> {
    let mut session = measure::session(model, depth + WARM + STEPS, 512, 0)?;
    session.append(&measure::ids(model, depth, 0))?;
    let mut stream = session.generate(measure::options(WARM + STEPS))?;
    for token in stream.by_ref().take(WARM) {
        token?;
    }
    let begun = Instant::now();
    for token in stream {
        token?;
    }
    Ok(1e6 * begun.elapsed().as_secs_f64() / STEPS as f64)
}

/// The name of a kernel without its path and its parameters.
pub fn short_name(kernel: &str) -> String {
    let path = kernel.split('<').next().unwrap_or(kernel);
    let mut parts: Vec<&str> = path.rsplit("::").take(2).collect();
    parts.reverse();
    parts.join("::")
}

/// The products of a step by each of their divisions.
fn divisions(random: &RandomModel, arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    let products = matrices(random.config());
    for (batch, (name, shape, normed, gated)) in
        [1, 8].into_iter().flat_map(|rows| products.map(|of| (rows, of)))
    {
        let product = FewRows { format: random.format, shape, batch, normed, gated };
        let divisions = costs::of_divisions(&device, product, arguments.precision())?;
        let Some(best) = divisions.first() else { return say("this device records nothing".to_owned()) };
        let bytes = shape.iter().product::<usize>() as f64 * bytes_per_weight(random)?;
        let rate = |us: f64| bytes / us / 1e3;
        say(format!("\n{random}, {name}, {} x {}, {batch} rows:", shape[0], shape[1]))?;
        for (rank, division) in divisions.iter().enumerate() {
            if rank < 4 || division.is_chosen {
                let chosen = if division.is_chosen { "  <- chosen" } else { "" };
                let took = division.took_us;
                let times = took / best.took_us;
                say(format!(
                    "  {rank:>3}. {:<55} {took:8.2} us, {:6.0} GB/s, {times:.2} of the best{chosen}",
                    division.tiling,
                    rate(took)
                ))?;
            }
        }
    }
    Ok(())
}

fn bytes_per_weight(random: &RandomModel) -> Result<f64, Failure> {
    Ok(random.format.tensor_bytes(&[4096])? as f64 / 4096.0)
}

/// Name, outputs and inputs of a layer's matrices and the head, whether norms come first, and whether it is gated.
fn matrices(config: &TextConfig) -> [(&'static str, [usize; 2], bool, bool); 5] {
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.query_width(), config.key_value_width());
    [
        ("queries, keys, values", [queries + 2 * keys, hidden], true, false),
        ("output", [hidden, queries], false, false),
        ("gate and up", [2 * intermediate, hidden], true, true),
        ("down", [hidden, intermediate], false, false),
        ("head", [config.vocab_size, hidden], true, false),
    ]
}
