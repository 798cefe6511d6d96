//! One token at a time, recorded once and replayed.
//!
//! A decode step of a small model is over a hundred launches of some microseconds each, which cost more to ask
//! for than to run. All of a step that changes from token to token, the token itself, its position, the keys
//! and values, the state of sampling, is content of buffers that stay where they are. So the first step is
//! launched and then recorded, and every later one replays the record. This module owns the record and every
//! buffer of it that is not the cache's.
#![allow(unsafe_code, reason = "replays; `Recorded::run` says why the buffers of the record are alive")]

use std::sync::{Arc, PoisonError, Weak};

use cubecl::bytes::Bytes;
use cubecl::client::Graph;
use cubecl::server::Handle;

use super::Cube;
use super::buffers::Buffers;
use super::cache::{LayerBuffers, Layers};
use super::sampled::{Sampled, SamplingBuffers};
use super::stream::{StepTokens, Stream, Tokens};
use crate::ops::MachineError;
use crate::ops::cube::commands::recording;
use crate::ops::cube::packed::PackedMatrix;
use crate::ops::machine::{ModelShape, Program};

/// Steps of a program over the same caches.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) buffers: StepBuffers,
    /// The matrices of the program, by which it is known.
    program: Vec<Arc<PackedMatrix>>,
    recorded: Option<Recorded>,
    /// Choices of tokens under way.
    pub(super) sampled: Option<Sampled>,
}

/// What a step reads and writes beside caches and weights.
#[derive(Debug)]
pub(super) struct StepBuffers {
    /// The token of each sequence, u32.
    pub(super) tokens: Handle,
    /// Its position, u32.
    pub(super) positions: Handle,
    /// f32 \[sequences, vocab\].
    pub(super) logits: Handle,
    /// Where those of a part of the head are made, if it lies in several.
    pub(super) part: Option<Handle>,
    pass: Buffers,
    pub(super) sequences: usize,
    pub(super) vocab: usize,
}

/// A recorded step, and what it was recorded over.
#[derive(Debug)]
struct Recorded {
    /// `None` where the device can't record, or could not: the step is then launched every time.
    graph: Option<Graph>,
    /// Weak, so that a cache knows whether a clone reads the buffers too. While it points to a living cache,
    /// that cache's buffers are those of the record.
    cache: Weak<Vec<LayerBuffers>>,
    /// Where the parts of attention are gathered.
    partial: Handle,
    /// Where those who make them count themselves, if the last of them combines them.
    counters: Option<Handle>,
    /// The sampling that follows, if any: the identity of its buffers.
    sampling: Option<Arc<SamplingBuffers>>,
    /// The weights of the record.
    weights: Vec<Handle>,
}

impl Step {
    /// Steps of `sequences` sequences together.
    pub(super) fn new(cube: &Cube, shape: &ModelShape<'_, Cube>, sequences: usize) -> Self {
        let client = cube.commands.client();
        let empty = |len: usize| client.empty(len * size_of::<u32>());
        let vocab = shape.head.outputs();
        let buffers = StepBuffers {
            tokens: empty(sequences),
            positions: empty(sequences),
            logits: empty(sequences * vocab),
            part: Cube::part_of_head(client, shape.head, sequences),
            pass: Buffers::for_steps(cube, shape, sequences),
            sequences,
            vocab,
        };
        Self { buffers, program: matrices(shape).cloned().collect(), recorded: None, sampled: None }
    }

    /// Whether these are steps of the program of such a shape.
    pub(super) fn is_of(&self, shape: &ModelShape<'_, Cube>) -> bool {
        self.program.iter().map(Arc::as_ptr).eq(matrices(shape).map(Arc::as_ptr))
    }

    /// The record, if there is one.
    pub(super) fn graph(&self) -> Option<&Graph> {
        self.recorded.as_ref()?.graph.as_ref()
    }

    /// Sets the tokens and their positions.
    pub(super) fn place(&self, cube: &Cube, tokens: Vec<u32>, positions: Vec<u32>) {
        let client = cube.commands.client();
        client.write(&self.buffers.tokens, Bytes::from_elems(tokens));
        client.write(&self.buffers.positions, Bytes::from_elems(positions));
    }

    /// Runs the step for the tokens and positions in the buffers, and the choice of the next, if one is under way.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub(super) fn run<P: Program<Cube>>(
        &mut self,
        cube: &Cube,
        program: &mut P,
        layers: &Layers,
    ) -> Result<(), MachineError> {
        let sampling = self.sampled.as_ref().map(|sampled| &sampled.buffers);
        if let Some(recorded) = self.recorded.as_ref().filter(|step| step.is_over(layers, sampling)) {
            return recorded.run(cube, program, &self.buffers, layers);
        }
        let sampling = sampling.cloned();
        self.recorded = None; // Its memory first.
        let partial = cube.partial_bytes(&program.shape(), layers);
        let mut recorded = Recorded {
            graph: None,
            cache: Arc::downgrade(layers),
            partial: cube.commands.client().empty(partial),
            counters: cube.counters(layers),
            sampling,
            weights: Vec::new(),
        };
        recorded.record(cube, program, &self.buffers, layers)?;
        self.recorded = Some(recorded);
        Ok(())
    }
}

impl Step {
    /// Where the last step over these layers that chose tokens as the next one does gathered the parts of its attention,
    /// and what it chose with.
    pub(super) fn of_last(&self, layers: &Layers) -> Option<(&Handle, &SamplingBuffers)> {
        let sampling = &self.sampled.as_ref()?.buffers;
        let recorded = self.recorded.as_ref().filter(|step| step.is_over(layers, Some(sampling)))?;
        Some((&recorded.partial, &**sampling))
    }
}

impl Recorded {
    fn is_over(&self, layers: &Layers, sampling: Option<&Arc<SamplingBuffers>>) -> bool {
        Weak::as_ptr(&self.cache) == Arc::as_ptr(layers)
            && self.sampling.as_ref().map(Arc::as_ptr) == sampling.map(Arc::as_ptr)
    }

    fn run<P: Program<Cube>>(
        &self,
        cube: &Cube,
        program: &mut P,
        buffers: &StepBuffers,
        layers: &[LayerBuffers],
    ) -> Result<(), MachineError> {
        match &self.graph {
            // SAFETY: every buffer of the record is alive. Keys and values are in `layers`, which is what was
            // recorded; the weights, the buffers of the step and those of sampling are with the record. If all of
            // it is dropped before the device has come here, its memory is given to what comes later on the same
            // stream. That stream is the only one on which any of it is used, and the caller holds the caches
            // exclusively.
            Some(graph) => unsafe { graph.replay()? },
            None => self.launch(cube, program, buffers, layers, None).map(|_| ())?,
        }
        Ok(())
    }

    /// Launches the step; gives the weights that it read, added to `held`, if they are to be known.
    fn launch<P: Program<Cube>>(
        &self,
        cube: &Cube,
        program: &mut P,
        buffers: &StepBuffers,
        layers: &[LayerBuffers],
        held: Option<Vec<Handle>>,
    ) -> Result<Option<Vec<Handle>>, MachineError> {
        let StepBuffers { positions, logits, .. } = buffers;
        let part = buffers.part.as_ref();
        let (partial, counters) = (&self.partial, self.counters.as_ref());
        let tokens = Tokens::Step(StepTokens { positions, layers, partial, counters, logits, part });
        let mut stream = Stream::new(&buffers.pass, buffers.sequences, &buffers.tokens, tokens);
        stream.held = held;
        program.run(cube, &mut stream)?;
        if stream.logits.is_empty() {
            return Err(MachineError::Bug { what: "a program ended without logits" });
        }
        if let Some(sampling) = &self.sampling {
            sampling.launch(cube.commands.client(), buffers);
        }
        Ok(stream.held)
    }

    /// Launches the step once, which also compiles its kernels, and records it for the next time.
    fn record<P: Program<Cube>>(
        &mut self,
        cube: &Cube,
        program: &mut P,
        buffers: &StepBuffers,
        layers: &[LayerBuffers],
    ) -> Result<(), MachineError> {
        let client = cube.commands.client();
        // A stream records one step at a time.
        let _turn = cube.records.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = client.graph_prepare().is_ok();
        let held = self.launch(cube, program, buffers, layers, Some(Vec::new()))?;
        if !prepared {
            return Ok(());
        }
        self.weights = held.unwrap_or_default();
        cube.commands.wait()?;
        // Alone on the device: a launch of another thread on this stream would be recorded too.
        let record = || {
            if client.start_capture().is_err() {
                let _ = client.stop_capture(); // It is no longer prepared.
                return Ok(None);
            }
            let launched = self.launch(cube, program, buffers, layers, None);
            let recorded = client.stop_capture();
            if recorded.is_err() {
                // What went wrong may have kept it from ending the record, and a stream that goes on recording fails
                // whoever waits for the device.
                let _ = client.stop_capture();
            }
            launched.map(|_| recorded.ok())
        };
        self.graph = recording(|| client.exclusive(record))??;
        Ok(())
    }
}

/// The matrices of a program in their order.
fn matrices<'a>(shape: &ModelShape<'a, Cube>) -> impl Iterator<Item = &'a Arc<PackedMatrix>> {
    let blocks: Vec<_> = shape
        .blocks
        .iter()
        .flat_map(|block| [block.qkv, block.output, block.gate_up, block.down])
        .chain([shape.embedding, shape.head])
        .collect();
    blocks.into_iter().flat_map(|matrix| matrix.stacks())
}
