//! What a decode step costs beside its computations, and what each of its products takes, for benches.
//!
//! A replay of wgpu's runtime is encoded anew by the host, launch by launch, with a barrier in front of each. So three times
//! are told apart: the host's alone ([`ReplayCosts::encoded_us`]), the device's by its own clock
//! ([`ReplayCosts::stamped_us`]), and that of replays that follow each other ([`ReplayCosts::took_us`]), which is the longer
//! of the two where neither waits for the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::tensor::Device;
use cubecl::client::{Client, Graph};
use cubecl::future::block_on;
use cubecl::logging::{LaunchObservation, LaunchObserver, ProfileDuration, TimingRequest};
use cubecl::prelude::*;
use cubecl::server::{Handle, ServerError};

use super::commands::{Commands, waiting};
use super::machine::Cache;
use super::matvec::{Hardware, Input, Tiling, gated, matvec};
use super::packed::{Layout, PackedMatrix};
use crate::cache::KvCache;
use crate::device::DeviceFailed;
use crate::formats::TensorFormat;
use crate::ops::Precision;

/// The costs of one replay, in millionths of a second.
#[derive(Debug, Clone, Copy)]
pub struct ReplayCosts {
    /// The host's time for a device that has nothing to do, up to the last submission.
    pub encoded_us: f64,
    /// From one replay to the next, of many.
    pub took_us: f64,
    /// The device's own time of many, divided by them; `None` where it has no clock.
    pub stamped_us: Option<f64>,
}

/// Rounds of which the median counts.
const ROUNDS: usize = 15;
/// The runtime of wgpu waits for the device after 512 launches.
const LAUNCHES: usize = 448;
/// Replays that follow each other.
const REPLAYS: usize = 60;

/// Costs of a recorded graph.
///
/// # Safety
///
/// Every buffer of the graph is alive and used by nobody else.
unsafe fn replay_costs(client: &Client, graph: &Graph, launches: usize) -> Result<ReplayCosts, ServerError> {
    let sync = || waiting(|| block_on(client.sync()));
    let replay = |times: usize| -> Result<(), ServerError> {
        for _ in 0..times {
            // SAFETY: as the caller says.
            unsafe { graph.replay()? };
        }
        Ok(())
    };
    replay(1)?;
    sync()?;
    let few = (LAUNCHES / launches.max(1)).max(1);
    let (mut encoded, mut took) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        replay(few)?;
        client.flush()?;
        encoded.push(begun.elapsed().as_secs_f64() / few as f64);
        sync()?;
    }
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        replay(REPLAYS)?;
        sync()?;
        took.push(begun.elapsed().as_secs_f64() / REPLAYS as f64);
    }
    let stamped = match client.profile(|| replay(REPLAYS), "replays") {
        Ok((replayed, duration)) => {
            replayed?;
            waiting(|| block_on(duration.resolve())).map(|ticks| ticks.duration().as_secs_f64())
        }
        Err(_) => None,
    };
    Ok(ReplayCosts {
        encoded_us: 1e6 * median(&mut encoded),
        took_us: 1e6 * median(&mut took),
        stamped_us: stamped.map(|seconds| 1e6 * seconds / REPLAYS as f64),
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Costs of the decode step that was recorded over a cache; `launches` are those of a step. `None` where none was
/// recorded. What the step writes to the cache, it writes again.
///
/// # Errors
///
/// When the device fails.
pub fn of_step(cache: &mut KvCache, launches: usize) -> Result<Option<ReplayCosts>, DeviceFailed> {
    let Some((graph, commands)) = cache.memory::<Cache>().and_then(|cache| cache.recorded()) else {
        return Ok(None);
    };
    // SAFETY: the cache is held alone, and has what was recorded.
    Ok(Some(unsafe { replay_costs(commands.client(), graph, launches)? }))
}

/// Launches of a kernel, each by itself, with a clock at both ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Launched {
    /// As cubecl calls it.
    pub kernel: &'static str,
    /// Launches.
    pub count: usize,
    /// Millionths of a second of all of them.
    pub took_us: f64,
}

#[derive(Default)]
struct Observer(Mutex<Vec<(&'static str, ProfileDuration)>>);

impl LaunchObserver for Observer {
    fn launched(&self, _: &'static str) {}

    fn timing(&self) -> TimingRequest {
        TimingRequest::Deferred
    }

    fn profiled(&self, kernel: &'static str, profile: ProfileDuration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((kernel, profile));
    }
}

/// What each kernel takes that `run` launches, whoever else launches meanwhile included. Kernels that it records are not
/// timed.
pub fn of_launches<T>(run: impl FnOnce() -> T) -> (T, Vec<Launched>) {
    let (result, launches) = in_order(run);
    let mut kernels = BTreeMap::<&'static str, Launched>::new();
    for Launched { kernel, count, took_us } in launches {
        let all = kernels.entry(kernel).or_insert(Launched { kernel, count: 0, took_us: 0.0 });
        all.count += count;
        all.took_us += took_us;
    }
    (result, kernels.into_values().collect())
}

/// The same of each launch by itself, in their order.
pub fn in_order<T>(run: impl FnOnce() -> T) -> (T, Vec<Launched>) {
    let observer = Arc::new(Observer::default());
    let watching = LaunchObservation::new(observer.clone());
    let result = run();
    drop(watching);
    let profiles = std::mem::take(&mut *observer.0.lock().unwrap_or_else(PoisonError::into_inner));
    let launched = profiles.into_iter().filter_map(|(kernel, profile)| {
        let ticks = waiting(|| block_on(profile.resolve()))?;
        Some(Launched { kernel, count: 1, took_us: 1e6 * ticks.duration().as_secs_f64() })
    });
    (result, launched.collect())
}

/// What an empty launch of a replay binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmptyLaunches {
    /// Launches of a replay.
    pub launches: usize,
    /// Cubes of each, of 256 units.
    pub cubes: usize,
    /// Buffers of each; one of them is written.
    pub buffers: Buffers,
    /// Whether two kernels take turns, so that the pipeline changes.
    pub alternates: bool,
}

/// Which buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffers {
    /// One, the same for all: each launch waits for the one before.
    One,
    /// One of its own each, of the same page of memory.
    OwnParts,
    /// One of its own each, allocated by itself: no launch waits for another.
    Own,
    /// Eight, the same for all.
    Eight,
}

/// Costs of replays in which nothing is computed.
///
/// # Errors
///
/// When the device fails.
pub fn of_empty(device: &Device, empty: EmptyLaunches) -> Result<Option<ReplayCosts>, DeviceFailed> {
    let Some(commands) = Commands::open(device) else { return Ok(None) };
    let client = commands.client();
    let word = || client.empty(1024);
    let sets: Vec<Vec<Handle>> = match empty.buffers {
        Buffers::One => vec![vec![word()]],
        Buffers::Eight => vec![(0..8).map(|_| word()).collect()],
        Buffers::OwnParts => (0..empty.launches).map(|_| vec![word()]).collect(),
        Buffers::Own => {
            (0..empty.launches).map(|_| vec![client.memory_dedicated_allocation((), |()| word())]).collect()
        }
    };
    let launch = |index: usize| {
        let set = &sets[index % sets.len()];
        // SAFETY: the kernels read and write the first word of each buffer.
        let buffer = |at: usize| unsafe { BufferArg::from_raw_parts(set[at].clone(), 1) };
        let (count, dim) = (CubeCount::Static(empty.cubes as u32, 1, 1), CubeDim::new_1d(256));
        let odd = empty.alternates && index % 2 == 1;
        // SAFETY: as above.
        unsafe {
            match set.len() {
                1 => empty_kernel::launch_unchecked(client, count, dim, buffer(0), odd),
                _ => empty_kernel_of_eight::launch_unchecked(
                    client,
                    count,
                    dim,
                    buffer(0),
                    buffer(1),
                    buffer(2),
                    buffer(3),
                    buffer(4),
                    buffer(5),
                    buffer(6),
                    buffer(7),
                    odd,
                ),
            }
        }
    };
    let Some(graph) = recorded(&commands, || (0..empty.launches).for_each(launch))? else { return Ok(None) };
    // SAFETY: the buffers are in `sets`.
    Ok(Some(unsafe { replay_costs(client, &graph, empty.launches)? }))
}

/// Records launches, after they were launched once; `None` where the device can't record.
fn recorded(commands: &Commands, launch: impl Fn() + Send + Sync) -> Result<Option<Graph>, ServerError> {
    let client = commands.client();
    if client.graph_prepare().is_err() {
        return Ok(None);
    }
    launch();
    commands.wait()?;
    super::commands::recording(|| {
        client.exclusive(|| {
            client.start_capture()?;
            launch();
            client.stop_capture().map(Some)
        })
    })?
}

#[cube(launch_unchecked)]
fn empty_kernel(out: &mut [u32], #[comptime] odd: bool) {
    if ABSOLUTE_POS == 0 {
        out[0] += comptime!(if odd { 2u32 } else { 1u32 });
    }
}

#[cube(launch_unchecked)]
fn empty_kernel_of_eight(
    a: &[u32],
    b: &[u32],
    c: &[u32],
    d: &[u32],
    e: &[u32],
    f: &[u32],
    g: &[u32],
    out: &mut [u32],
    #[comptime] odd: bool,
) {
    if ABSOLUTE_POS == 0 {
        let sum = a[0] + b[0] + c[0] + d[0] + e[0] + f[0] + g[0];
        out[0] += sum + comptime!(if odd { 2u32 } else { 1u32 });
    }
}

/// A product of few rows, whose division is tried.
#[derive(Debug, Clone, Copy)]
pub struct FewRows {
    /// Format of the weights.
    pub format: TensorFormat,
    /// Outputs, and inputs.
    pub shape: [usize; 2],
    /// Rows of the input.
    pub batch: usize,
    /// Whether the branch joins the stream and norms come first.
    pub normed: bool,
    /// Whether the matrix is a gate over an up projection.
    pub gated: bool,
}

/// A division of a product of few rows, and what it takes.
#[derive(Debug, Clone)]
pub struct Division {
    /// In words.
    pub tiling: String,
    /// Millionths of a second.
    pub took_us: f64,
    /// Whether it is the one that the library takes.
    pub is_chosen: bool,
}

/// Bytes of matrices that are read one after the other, so that none is still in a cache.
const READ_BYTES: usize = 256 << 20;

/// Times the divisions of a product, each over as many matrices as no cache holds, the fastest first. Empty where nothing
/// can be recorded.
///
/// # Errors
///
/// When the device fails, and shapes that no matrix has.
pub fn of_divisions(
    device: &Device,
    product: FewRows,
    precision: Precision,
) -> Result<Vec<Division>, Box<dyn std::error::Error>> {
    let Some(commands) = Commands::open(device) else { return Ok(Vec::new()) };
    let (client, [outputs, inputs]) = (commands.client(), product.shape);
    let layout = Layout::new(product.format, outputs, inputs)?;
    let count = READ_BYTES.div_ceil(layout.bytes().max(1)).clamp(2, 64);
    let word = |i: usize| (i as u32).wrapping_mul(2_654_435_761) & 0x3fff_3fff; // Small numbers, whatever they are.
    let bytes = product.format.tensor_bytes(&[outputs, inputs])?;
    let words: Vec<u32> = (0..bytes.div_ceil(4)).map(word).collect();
    let bytes = &u32::as_bytes(&words)[..bytes];
    let matrices = (0..count).map(|_| PackedMatrix::upload(client, product.format, inputs, &[bytes]));
    let matrices: Vec<PackedMatrix> = matrices.collect::<Result<_, _>>()?;
    let floats = |count: usize| commands.upload(&vec![0.01; count]);
    let rows = product.batch * inputs;
    let [x, branch, stream] = [floats(rows), floats(rows), floats(rows)];
    let [branch_scale, scale] = [floats(inputs), floats(inputs)];
    let out = floats(product.batch * outputs);
    let input = match product.normed {
        true => Input::Residual {
            x: &x,
            branch: &branch,
            branch_scale: &branch_scale,
            scale: &scale,
            stream: &stream,
            eps: 1e-6,
        },
        false => Input::Plain { x: &x },
    };
    let hardware = Hardware::of(client);
    let divided = if product.gated { 2 } else { 1 };
    let chosen = Tiling::choose(&hardware, &layout, product.batch, divided, product.normed, precision);
    let mut divisions = Vec::new();
    let tried = chosen.others(&hardware, &layout, product.batch, divided);
    for tiling in std::iter::once(chosen).chain(tried.into_iter().filter(|other| *other != chosen)) {
        let launch = || {
            for matrix in &matrices {
                let multiply = if product.gated { gated } else { matvec };
                multiply(client, input, matrix, &out, product.batch, tiling);
            }
        };
        let Some(graph) = recorded(&commands, launch)? else { return Ok(Vec::new()) };
        let took = || -> Result<f64, ServerError> {
            let begun = Instant::now();
            for _ in 0..4 {
                // SAFETY: every buffer of the record is above.
                unsafe { graph.replay()? };
            }
            commands.wait()?;
            Ok(begun.elapsed().as_secs_f64() / (4 * count) as f64)
        };
        took()?;
        let mut times = [took()?, took()?, took()?];
        let Tiling { vector_words, groups, rows, passes, unroll, staged, .. } = tiling;
        divisions.push(Division {
            tiling: format!(
                "{:>3} units, {rows} rows, {vector_words} words, unroll {unroll}, {passes} passes{}",
                groups.units(),
                if staged { ", staged" } else { "" }
            ),
            took_us: 1e6 * median(&mut times),
            is_chosen: tiling == chosen,
        });
    }
    divisions.sort_by(|a, b| a.took_us.total_cmp(&b.took_us));
    Ok(divisions)
}
