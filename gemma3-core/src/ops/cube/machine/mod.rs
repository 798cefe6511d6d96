//! [`Cube`]: the machine on our own kernels, in which weights stay in the format of their file.
//!
//! What makes a small model fast on a GPU is not in an operation but between them: that a branch joins the residual
//! stream in front of the next product, across the borders of blocks; that a position is the content of a buffer;
//! which buffers a recorded step may touch. All of that is in the [`Stream`] of a pass, so that a program calls
//! operations one after the other and knows nothing of it.
//!
//! | module | what it knows |
//! |---|---|
//! | `matrix` | weights on the device |
//! | `cache` | keys and values of a sequence, in buffers of its own or in a slot of a group |
//! | `buffers` | what a pass writes beside the caches |
//! | `stream` | the residual stream, and whose rows it is made of |
//! | `products`, `attend` | the launches of the operations |
//! | `image` | what only the image encoder asks for |
//! | `observe` | what happens inside of a pass, on its way to the host |
//! | `prompts` | passes over chunks: what is appended to which cache, whose logits are asked for |
//! | `step` | one token: recorded once, replayed for every token |
//! | `sampled` | steps that choose their tokens on the device |
//! | `group` | several sequences side by side in one step |
//! | `waiter` | the thread that waits for the device |
//! | `device_rows` | vectors that stay on the device until they enter a pass |
//! | `compile` | what a device has to compile |

mod attend;
#[cfg(all(test, feature = "wgpu"))]
mod browser_tests;
mod buffers;
mod cache;
mod compile;
mod device_rows;
mod group;
mod image;
mod matrix;
mod observe;
mod products;
mod prompts;
mod sampled;
mod step;
mod stream;
#[cfg(test)]
mod tests;
mod waiter;

pub use cache::Cache;
pub use matrix::{Matrix, Vector};
pub use stream::{Rows, Stream};

use std::fmt;
use std::ops::Range;
use std::sync::Mutex;

use burn::tensor::Device;
use cubecl::server::ServerError;

use super::commands::Commands;
use super::gemm::Processor;
use super::matvec::Hardware;
use crate::cache::CacheShape;
use crate::checkpoint::TensorView;
use crate::config::TextConfig;
use crate::device::DeviceFailed;
use crate::formats::Quantization;
use crate::ops::machine::{
    Choice, Entrant, Heads, Input, Logits, Machine, ModelShape, Norm, Program, Values, Wanted,
};
use crate::ops::pending::Pending;
use crate::ops::{MachineError, MatrixError, Precision};
use buffers::Buffers;
use group::{Group, Indexed};
use waiter::Waiter;

/// A stream of commands on a GPU, and what the passes on it share.
pub struct Cube {
    commands: Commands,
    device: Device,
    hardware: Hardware,
    processor: Processor,
    precision: Precision,
    /// Of passes over chunks, which follow each other on the stream and so can share them.
    buffers: Mutex<Option<Buffers>>,
    /// Locked before a sequence is, never after.
    groups: Mutex<Vec<Group>>,
    /// Held while a step is recorded.
    records: Mutex<()>,
    waiter: Waiter,
}

/// The widest head for which attention has been laid out and tested.
const MAX_HEAD_DIM: usize = 256;

impl Cube {
    /// A new stream of commands on a device; `None` if it is none of cubecl's.
    pub(crate) fn open(device: &Device, precision: Precision) -> Option<Self> {
        let commands = Commands::open(device)?;
        Some(Self {
            hardware: Hardware::of(commands.client()),
            processor: Processor::of(commands.client()).with_precision(precision),
            precision,
            device: device.clone(),
            buffers: Mutex::default(),
            groups: Mutex::default(),
            records: Mutex::default(),
            waiter: Waiter::default(),
            commands,
        })
    }

    /// Whether the kernels can run a model of this shape.
    pub(crate) fn supports(config: &TextConfig) -> bool {
        let widths = [config.hidden_size, config.intermediate_size];
        let heads = config.num_attention_heads.max(1);
        config.head_dim.is_multiple_of(8)
            && config.head_dim <= MAX_HEAD_DIM
            && widths.iter().all(|width| width.is_multiple_of(4))
            && heads.is_multiple_of(config.num_key_value_heads.max(1))
    }

    /// For tests that look inside.
    #[cfg(test)]
    pub(crate) fn commands(&self) -> &Commands {
        &self.commands
    }
}

impl fmt::Debug for Cube {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cube").field("device", &self.name()).finish_non_exhaustive()
    }
}

impl From<ServerError> for MachineError {
    fn from(error: ServerError) -> Self {
        DeviceFailed::from(error).into()
    }
}

/// Whether a sequence takes one step: one token that is looked up, of which a token or logits are wanted.
fn is_step(entrant: &Entrant<'_, Cube>) -> bool {
    let is_one =
        matches!(entrant.input, Input::Ids([_]) | Input::Placed { ids: [_], spans: [] } | Input::Chosen);
    is_one && matches!(entrant.wanted, Wanted::Token(_) | Wanted::Logits(Logits::Last))
}

impl Machine for Cube {
    type Matrix = Matrix;
    type Vector = Vector;
    type Rows = Rows;
    type Cache = Cache;
    type Stream<'a> = Stream<'a>;

    fn name(&self) -> String {
        format!("{:?}", self.device)
    }

    fn matrix(
        &self,
        stacked: Vec<TensorView<'_>>,
        quantization: Quantization,
    ) -> Result<Matrix, MatrixError> {
        Matrix::load(&self.commands, stacked, quantization)
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> u64 {
        matrix.bytes()
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vector, DeviceFailed> {
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        Ok(Vector { handle: self.commands.upload(&values), len: values.len(), largest })
    }

    fn vector_values(&self, vector: &Vector) -> Result<Vec<f32>, DeviceFailed> {
        Ok(self.commands.download(&vector.handle)?)
    }

    fn cache(&self, shape: &CacheShape) -> Cache {
        Cache::new(&self.commands, shape)
    }

    fn chooses(&self, choices: &[&Choice<'_>], vocab: usize) -> bool {
        sampled::plan(self.commands.client(), choices.len(), vocab, choices).is_some()
    }

    fn lengths_to_compile(&self, most: usize, shape: &ModelShape<'_, Self>) -> Vec<usize> {
        self.lengths(most, shape)
    }

    fn capacity_in_batch(&self, _own: usize, longest: usize) -> usize {
        longest.next_multiple_of(group::CAPACITY)
    }

    fn compile_copies(&self) {
        self.warm_copies();
    }

    fn run<P: Program<Self>>(
        &self,
        entrants: &mut [Entrant<'_, Self>],
        program: &mut P,
    ) -> Result<Pending, MachineError> {
        let queue = self.waiter.queue()?;
        // Those that everybody has left; who holds the lock now will see to it next time.
        if let Ok(mut groups) = self.groups.try_lock() {
            groups.retain(Group::is_alive);
        }
        let (sequences, is_observed) = (entrants.len(), program.is_observed());
        let (mut chunks, mut choosing, mut scoring) = (Vec::new(), Vec::new(), Vec::new());
        for (index, entrant) in entrants.iter_mut().enumerate() {
            let kind = match entrant.wanted {
                _ if is_observed || !is_step(entrant) => &mut chunks,
                Wanted::Token(_) => &mut choosing,
                Wanted::Logits(_) => &mut scoring,
            };
            kind.push((index, entrant));
        }
        let mut answers = Vec::new();
        let outcome = self.run_each(&mut chunks, choosing, scoring, program, &mut answers);
        // Also what was enqueued before something failed has to be read to its end.
        let pending = queue.outcomes(sequences, answers);
        outcome.map(|()| pending)
    }

    fn goes_on_with(&self, entrants: &mut [Entrant<'_, Self>], shape: &ModelShape<'_, Self>) -> bool {
        let steps = entrants.iter_mut().enumerate().filter(|(_, entrant)| is_step(entrant));
        self.may_go_on(&steps.collect::<Vec<_>>(), shape)
    }

    fn embed(&self, x: &mut Stream<'_>, table: &Matrix, scale: f32) -> Result<(), MachineError> {
        self.launch_embedding(x, table, scale)
    }

    fn project(&self, x: &mut Stream<'_>, norm: &Norm<Vector>, qkv: &Matrix) -> Result<Rows, MachineError> {
        self.launch_project(x, norm, qkv)
    }

    fn attend(&self, x: &mut Stream<'_>, qkv: Rows, heads: &Heads<Vector>) -> Result<Rows, MachineError> {
        self.launch_attention(x, qkv, heads)
    }

    fn gate(&self, x: &mut Stream<'_>, norm: &Norm<Vector>, gate_up: &Matrix) -> Result<Rows, MachineError> {
        self.launch_gate(x, norm, gate_up)
    }

    fn join(
        &self,
        x: &mut Stream<'_>,
        rows: Rows,
        matrix: &Matrix,
        norm: &Norm<Vector>,
    ) -> Result<(), MachineError> {
        self.launch_join(x, rows, matrix, norm)
    }

    fn logits(&self, x: &mut Stream<'_>, norm: &Norm<Vector>, head: &Matrix) -> Result<(), MachineError> {
        self.launch_logits(x, norm, head)
    }

    fn look(&self, x: &mut Stream<'_>) -> Result<Values, MachineError> {
        self.read_stream(x)
    }

    fn add(&self, x: &mut Stream<'_>, vector: &[f32]) -> Result<(), MachineError> {
        self.launch_add(x, vector)
    }

    fn look_at(&self, x: &Stream<'_>, rows: &Rows) -> Result<Values, MachineError> {
        self.read_place(x, rows)
    }

    fn multiply(&self, rows: &[f32], matrix: &Matrix) -> Result<Vec<f32>, MachineError> {
        self.multiply_exactly(rows, matrix)
    }

    fn keys(
        &self,
        x: &Stream<'_>,
        sequence: usize,
        layer: usize,
        positions: Range<usize>,
    ) -> Result<Vec<f32>, MachineError> {
        self.read_keys(x, sequence, layer, positions)
    }
}

impl Cube {
    /// Enqueues what the sequences of a pass ask for: steps of those that choose, steps of those whose logits are wanted,
    /// and a pass over the chunks of all others.
    fn run_each<'e, 'a, P: Program<Self>>(
        &self,
        chunks: &mut Vec<Indexed<'e, 'a>>,
        mut choosing: Vec<Indexed<'e, 'a>>,
        mut scoring: Vec<Indexed<'e, 'a>>,
        program: &mut P,
        answers: &mut Vec<waiter::Answer>,
    ) -> Result<(), MachineError> {
        let is_alone = match &choosing[..] {
            [] => true,
            // What it goes on with may lie where it has stepped with others.
            [(_, one)] => !(matches!(one.input, Input::Chosen) && one.cache.member().has_home()),
            _ => false,
        };
        let together = if is_alone { None } else { self.step_together(&mut choosing, chunks, program)? };
        match together {
            Some(answer) => answers.push(answer),
            // One alone, or several that can't lie side by side.
            None => {
                for entrant in &mut choosing {
                    answers.push(self.step_alone(entrant, program)?);
                }
            }
        }
        match &mut scoring[..] {
            [] => {}
            [one] => answers.push(self.step_alone(one, program)?),
            several => match self.step_together(several, &mut Vec::new(), program)? {
                Some(answer) => answers.push(answer),
                None => chunks.extend(scoring),
            },
        }
        self.compute_chunks(chunks, program, answers)
    }
}
