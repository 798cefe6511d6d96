//! The decoder: embeddings through all layers to logits, for one or several sequences at once.

use burn::tensor::Device;

use super::block::Block;
use super::tracing::Tracing;
use crate::cache::{CacheDtype, CacheError, CacheOptions, KvCache};
use crate::config::TextConfig;
use crate::ops::machine::{BlockShape, Choice, Entrant, Input, Machine, ModelShape, Norm, Program, Wanted};
use crate::ops::{MachineError, Precision};
use crate::run::{ForwardError, Receipt, Row, Runner, Trace, check_row};

/// Gemma 3's text decoder on a machine.
#[derive(Debug)]
pub(super) struct Decoder<M: Machine> {
    pub(super) machine: M,
    pub(super) config: TextConfig,
    /// \[vocab, hidden\].
    pub(super) embed_tokens: M::Matrix,
    /// √hidden, unrounded f32: the reference rounds it to the weights' dtype, which is f32 here.
    pub(super) embedding_scale: f32,
    pub(super) blocks: Vec<Block<M>>,
    pub(super) norm: Norm<M::Vector>,
    /// The output matrix \[vocab, hidden\] where it is not the embedding table.
    pub(super) lm_head: Option<M::Matrix>,
    pub(super) device: Device,
    pub(super) precision: Precision,
}

/// The decoder as it runs in a pass.
struct Forward<'a, 't, M: Machine> {
    decoder: &'a Decoder<M>,
    trace: Tracing<'t>,
}

impl<M: Machine> Program<M> for Forward<'_, '_, M> {
    fn shape(&self) -> ModelShape<'_, M> {
        self.decoder.shape()
    }

    fn run(&mut self, m: &M, x: &mut M::Stream<'_>) -> Result<(), MachineError> {
        let Decoder { embed_tokens, embedding_scale, blocks, norm, .. } = self.decoder;
        m.embed(x, embed_tokens, *embedding_scale)?;
        self.trace.embeddings(m, x)?;
        for block in blocks {
            block.forward(m, x, &mut self.trace)?;
        }
        self.trace.final_norm(m, x, norm)?;
        m.logits(x, norm, self.decoder.head())
    }

    fn is_observed(&self) -> bool {
        self.trace.is_active()
    }
}

impl<M: Machine> Decoder<M> {
    /// The output matrix, \[vocab, hidden\].
    fn head(&self) -> &M::Matrix {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    fn shape(&self) -> ModelShape<'_, M> {
        let blocks = self.blocks.iter().map(|block| BlockShape {
            qkv: &block.qkv_proj,
            heads: &block.heads,
            output: &block.o_proj,
            gate_up: &block.gate_up_proj,
            down: &block.down_proj,
        });
        ModelShape { embedding: &self.embed_tokens, blocks: blocks.collect(), head: self.head() }
    }
}

impl<M: Machine> Runner for Decoder<M> {
    #[cfg(test)]
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn config(&self) -> &TextConfig {
        &self.config
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn weight_bytes(&self) -> u64 {
        let blocks = self.blocks.iter();
        let blocks = blocks.flat_map(|b| [&b.qkv_proj, &b.o_proj, &b.gate_up_proj, &b.down_proj]);
        let ends = std::iter::once(&self.embed_tokens).chain(&self.lm_head);
        blocks.chain(ends).map(|matrix| self.machine.matrix_bytes(matrix)).sum()
    }

    fn cache_dtype(&self) -> CacheDtype {
        match self.precision {
            Precision::Fast if CacheDtype::F16.is_supported(&self.device) => CacheDtype::F16,
            _ => CacheDtype::F32,
        }
    }

    fn new_cache(&self, options: &CacheOptions) -> Result<KvCache, CacheError> {
        KvCache::new(&self.config, options, &self.device, |shape| Box::new(self.machine.cache(shape)))
    }

    fn capacity_in_batch(&self, own: usize, longest: usize) -> usize {
        self.machine.capacity_in_batch(own, longest)
    }

    fn alike_tokens(&self) -> usize {
        self.machine.alike_tokens()
    }

    fn chooses(&self, choices: &[&Choice<'_>]) -> bool {
        self.machine.chooses(choices, self.config.vocab_size)
    }

    fn lengths_to_compile(&self, most: usize) -> Vec<usize> {
        self.machine.lengths_to_compile(most, &self.shape())
    }

    fn compile_copies(&self) {
        self.machine.compile_copies();
    }

    fn goes_on_with(&self, rows: &mut [Row<'_>]) -> bool {
        let entrants = rows.iter_mut().map(|row| {
            let position = row.position();
            Some(Entrant { input: row.input, position, cache: row.cache.memory()?, wanted: row.wanted })
        });
        let entrants: Option<Vec<_>> = entrants.collect();
        entrants.is_some_and(|mut entrants| self.machine.goes_on_with(&mut entrants, &self.shape()))
    }

    fn send(&self, rows: &mut [Row<'_>], trace: &mut Trace) -> Result<Receipt, ForwardError> {
        if rows.is_empty() {
            return Err(ForwardError::EmptyInput);
        }
        for row in rows.iter() {
            check_row(row, &self.config, &self.device)?;
        }
        let trace = Tracing::new(trace, rows, &self.config)?;
        let mut entrants = Vec::with_capacity(rows.len());
        for row in rows.iter_mut() {
            let position = row.position();
            if !matches!(row.input, Input::Chosen) {
                row.cache.forget_ahead();
            }
            let other = ForwardError::Bug { what: "a cache of this device is another machine's" };
            let cache = row.cache.memory::<M::Cache>().ok_or(other)?;
            entrants.push(Entrant { input: row.input, position, cache, wanted: row.wanted });
        }
        let mut forward = Forward { decoder: self, trace };
        let pending = self.machine.run(&mut entrants, &mut forward)?;
        forward.trace.finish()?;
        drop(entrants);
        for row in rows.iter_mut() {
            match row.wanted {
                Wanted::Logits(_) => row.cache.advance(row.input.len()),
                Wanted::Token(_) => row.cache.run_ahead(),
            }
        }
        Ok(Receipt::new(pending))
    }
}
