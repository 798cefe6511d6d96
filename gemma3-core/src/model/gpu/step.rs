//! One token at a time, recorded once and replayed.
//!
//! A decode step of a small model is over a hundred launches of some microseconds each, which cost more to ask
//! for than to run. All of a step that changes from token to token, the token itself, its position, the keys
//! and values, the state of sampling, is content of buffers that stay where they are. So the first step is
//! launched and then recorded, and every later one replays the record. This module owns the record and every
//! buffer of it that is not the weights' or the cache's.
#![allow(unsafe_code, reason = "replays; `Recorded::run` says why the buffers of the record are alive")]

use std::sync::{Arc, PoisonError, Weak};

use cubecl::bytes::Bytes;
use cubecl::client::Graph;
use cubecl::server::Handle;

use super::GpuDecoder;
use super::buffers::Buffers;
use super::pass::{Scratch, Step, Tokens};
use super::sampled::{SampledSteps, SamplingBuffers};
use crate::cache::{DeviceCache, LayerBuffers};
use crate::model::ForwardError;
use crate::ops::cube::stream::recording;

/// Steps over the cache of one session.
#[derive(Debug)]
pub(crate) struct DecodeStep {
    decoder: Arc<GpuDecoder>,
    buffers: StepBuffers,
    recorded: Option<Recorded>,
    pub(super) sampled: Option<SampledSteps>,
}

/// What a step reads and writes beside the cache.
#[derive(Debug)]
pub(super) struct StepBuffers {
    /// The token of each sequence, u32.
    pub(super) tokens: Handle,
    /// Its position, u32.
    pub(super) positions: Handle,
    /// f32 \[sequences, vocab\].
    pub(super) logits: Handle,
    pass: Buffers,
    sequences: usize,
}

/// A recorded step, and what it was recorded over.
#[derive(Debug)]
struct Recorded {
    /// `None` where the device can't record, or could not: the step is then launched every time.
    graph: Option<Graph>,
    /// Weak, so that the cache knows whether a fork reads the buffers too. While it points to a living cache,
    /// that cache's buffers are those of the record.
    cache: Weak<Vec<LayerBuffers>>,
    scratch: Scratch,
    /// The sampling that follows, if any: the identity of its buffers.
    sampling: Option<Arc<SamplingBuffers>>,
}

impl DecodeStep {
    /// Steps of `sequences` sequences together.
    pub(crate) fn new(decoder: &Arc<GpuDecoder>, sequences: usize) -> Self {
        let client = decoder.stream.client();
        let empty = |len: usize| client.empty(len * size_of::<u32>());
        let buffers = StepBuffers {
            tokens: empty(sequences),
            positions: empty(sequences),
            logits: empty(sequences * decoder.sizes.vocab),
            pass: Buffers::for_steps(decoder, sequences),
            sequences,
        };
        Self { decoder: decoder.clone(), buffers, recorded: None, sampled: None }
    }

    pub(super) fn decoder(&self) -> &Arc<GpuDecoder> {
        &self.decoder
    }

    /// Computes `token` at `position`, below the cache's capacity, and returns its logits \[vocab\].
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub(crate) fn logits(
        &mut self,
        cache: &mut DeviceCache,
        token: u32,
        position: usize,
    ) -> Result<Vec<f32>, ForwardError> {
        self.sampled = None;
        self.place(&[token], &[position as u32]);
        self.run(cache, None)?;
        Ok(self.decoder.stream.download(&self.buffers.logits)?)
    }

    /// Sets the tokens and their positions.
    pub(super) fn place(&self, tokens: &[u32], positions: &[u32]) {
        let client = self.decoder.stream.client();
        client.write(&self.buffers.tokens, Bytes::from_elems(tokens.to_vec()));
        client.write(&self.buffers.positions, Bytes::from_elems(positions.to_vec()));
    }

    /// Runs the step for the tokens and positions in the buffers.
    pub(super) fn run(
        &mut self,
        cache: &mut DeviceCache,
        sampling: Option<&Arc<SamplingBuffers>>,
    ) -> Result<(), ForwardError> {
        let layers = cache.own().clone();
        if let Some(recorded) = self.recorded.as_ref().filter(|step| step.is_over(&layers, sampling)) {
            return recorded.run(&self.decoder, &self.buffers, &layers);
        }
        self.recorded = None; // Its memory first.
        let mut recorded = Recorded {
            graph: None,
            cache: Arc::downgrade(&layers),
            scratch: self.decoder.scratch(&layers),
            sampling: sampling.cloned(),
        };
        recorded.record(&self.decoder, &self.buffers, &layers)?;
        self.recorded = Some(recorded);
        Ok(())
    }
}

impl Recorded {
    fn is_over(&self, layers: &Arc<Vec<LayerBuffers>>, sampling: Option<&Arc<SamplingBuffers>>) -> bool {
        Weak::as_ptr(&self.cache) == Arc::as_ptr(layers)
            && self.sampling.as_ref().map(Arc::as_ptr) == sampling.map(Arc::as_ptr)
    }

    fn run(
        &self,
        decoder: &GpuDecoder,
        buffers: &StepBuffers,
        layers: &[LayerBuffers],
    ) -> Result<(), ForwardError> {
        match &self.graph {
            // SAFETY: every buffer of the record is alive. The weights are those of the decoder that the step
            // holds, keys and values are in `layers`, which is what was recorded, and the rest is in the step,
            // with the record. The stream of the decoder is the only one on which any of it is used, and the
            // caller holds the cache exclusively.
            Some(graph) => unsafe { graph.replay()? },
            None => self.launch(decoder, buffers, layers)?,
        }
        Ok(())
    }

    fn launch(
        &self,
        decoder: &GpuDecoder,
        buffers: &StepBuffers,
        layers: &[LayerBuffers],
    ) -> Result<(), ForwardError> {
        let rows = buffers.sequences;
        decoder.launch_embedding(&buffers.tokens, &buffers.pass, rows);
        let step = Step { positions: &buffers.positions, cache: layers, scratch: &self.scratch };
        let residual = decoder.launch_layers(&Tokens::Step(step), &buffers.pass, rows)?;
        let inputs = buffers.pass.inputs.as_ref().map(|inputs| (&inputs.normed, inputs.parts.as_ref()));
        decoder.launch_head(&residual, &buffers.logits, rows, &buffers.pass.normed, inputs);
        if let Some(sampling) = &self.sampling {
            sampling.launch(decoder.stream.client(), buffers);
        }
        Ok(())
    }

    /// Launches the step once, which also compiles its kernels, and records it for the next time.
    fn record(
        &mut self,
        decoder: &GpuDecoder,
        buffers: &StepBuffers,
        layers: &[LayerBuffers],
    ) -> Result<(), ForwardError> {
        let client = decoder.stream.client();
        // A stream records one step at a time.
        let _turn = decoder.records.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = client.graph_prepare().is_ok();
        self.launch(decoder, buffers, layers)?;
        if !prepared {
            return Ok(());
        }
        decoder.stream.wait()?;
        // Alone on the device: a launch of another thread on this stream would be recorded too.
        let record = || {
            if client.start_capture().is_err() {
                let _ = client.stop_capture(); // It is no longer prepared.
                return Ok(None);
            }
            let launched = self.launch(decoder, buffers, layers);
            let recorded = client.stop_capture();
            if recorded.is_err() {
                // What went wrong may have kept it from ending the record, and a stream that goes on recording fails
                // whoever waits for the device.
                let _ = client.stop_capture();
            }
            launched.map(|()| recorded.ok())
        };
        self.graph = recording(|| client.exclusive(record))??;
        Ok(())
    }
}
