//! A trace at work: what a pass does for it at each place.

use std::ops::Range;

use super::block::Block;
use super::details;
use crate::config::{LayerType, TextConfig};
use crate::ops::machine::{Logits, Machine, Norm, Values, Wanted};
use crate::ops::{MachineError, Visibility};
use crate::run::{Activation, ForwardError, Row, Trace, TracedTensor};

/// A trace during a pass.
pub(super) struct Tracing<'t> {
    trace: &'t mut Trace,
    pub(super) sequences: Vec<Sequence>,
    hidden: usize,
    under_way: Vec<(Activation, Values)>,
    /// What has been seen of the layer that the pass is in, if its details are asked for.
    inside: Vec<(Inside, Values)>,
}

/// Whose rows they are.
pub(super) struct Sequence {
    pub(super) positions: Range<usize>,
    images: Vec<Range<usize>>,
    wanted: Logits,
    window: usize,
}

impl Sequence {
    /// What its tokens see on layers of a kind.
    pub(super) fn visibility(&self, kind: LayerType) -> Visibility {
        let window = matches!(kind, LayerType::SlidingAttention).then_some(self.window);
        Visibility::new(self.positions.clone(), window, self.images.clone())
    }
}

/// A place inside of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    BeforeAttention,
    Projected,
    Attended,
    BeforeFeedForward,
    Gated,
}

impl<'t> Tracing<'t> {
    /// For a pass over `rows`.
    pub(super) fn new(
        trace: &'t mut Trace,
        rows: &[Row<'_>],
        config: &TextConfig,
    ) -> Result<Self, ForwardError> {
        let (hidden, layers) = (config.hidden_size, config.num_hidden_layers);
        for (place, vector) in &trace.added {
            let expected = match place {
                Activation::Embeddings => hidden,
                Activation::Layer(layer) if *layer < layers => hidden,
                _ => 0,
            };
            if vector.len() != expected || expected == 0 {
                let (place, found) = (place.to_string(), vector.len());
                return Err(ForwardError::WrongEdit { place, expected, found });
            }
        }
        let sequences = rows.iter().filter(|_| !trace.is_none()).map(|row| {
            let start = row.cache.len();
            Sequence {
                positions: start..start + row.input.len(),
                images: row.input.images(start),
                wanted: match row.wanted {
                    Wanted::Logits(logits) => logits,
                    Wanted::Token(_) => Logits::Last,
                },
                window: config.sliding_window,
            }
        });
        let sequences = sequences.collect();
        Ok(Self { trace, sequences, hidden, under_way: Vec::new(), inside: Vec::new() })
    }

    pub(super) fn is_active(&self) -> bool {
        !self.trace.is_none()
    }

    /// Tokens of the pass.
    pub(super) fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.positions.len()).sum()
    }

    /// At the embeddings.
    pub(super) fn embeddings<M: Machine>(
        &mut self,
        m: &M,
        x: &mut M::Stream<'_>,
    ) -> Result<(), MachineError> {
        self.at(m, x, Activation::Embeddings, self.trace.embeddings)
    }

    /// After a layer.
    pub(super) fn layer<M: Machine>(
        &mut self,
        m: &M,
        x: &mut M::Stream<'_>,
        block: &Block<M>,
    ) -> Result<(), MachineError> {
        let layer = block.heads.layer;
        if !self.inside.is_empty() {
            let inside = std::mem::take(&mut self.inside);
            for (name, tensor) in details::of_layer(m, x, block, self, inside)? {
                self.trace.recorded.insert(Activation::Detail(layer, name), tensor);
            }
        }
        self.at(m, x, Activation::Layer(layer), self.trace.layers.contains(&layer))
    }

    fn at<M: Machine>(
        &mut self,
        m: &M,
        x: &mut M::Stream<'_>,
        place: Activation,
        is_recorded: bool,
    ) -> Result<(), MachineError> {
        for (_, vector) in self.trace.added.iter().filter(|(at, _)| *at == place) {
            m.add(x, vector)?;
        }
        if is_recorded {
            let values = m.look(x)?;
            self.under_way.push((place, values));
        }
        Ok(())
    }

    /// Before the head: the rows whose logits are wanted, normalized.
    pub(super) fn final_norm<M: Machine>(
        &mut self,
        m: &M,
        x: &mut M::Stream<'_>,
        norm: &Norm<M::Vector>,
    ) -> Result<(), MachineError> {
        if !self.trace.final_norm {
            return Ok(());
        }
        let all = m.look(x)?.wait()?;
        let mut wanted = Vec::new();
        let mut rows = all.chunks_exact(self.hidden);
        for sequence in &self.sequences {
            let own: Vec<_> = rows.by_ref().take(sequence.positions.len()).collect();
            let first = match sequence.wanted {
                Logits::None => own.len(),
                Logits::Last => own.len().saturating_sub(1),
                Logits::All => 0,
            };
            wanted.extend(own[first..].concat());
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let shape = vec![wanted.len() / self.hidden, self.hidden];
        let values = details::normalized(m, wanted, norm)?;
        self.trace.recorded.insert(Activation::FinalNorm, TracedTensor { shape, values });
        Ok(())
    }

    /// The stream at a place inside of a layer.
    pub(super) fn stream<M: Machine>(
        &mut self,
        m: &M,
        x: &mut M::Stream<'_>,
        layer: usize,
        place: Inside,
    ) -> Result<(), MachineError> {
        if self.trace.details.contains(&layer) {
            let values = m.look(x)?;
            self.inside.push((place, values));
        }
        Ok(())
    }

    /// Rows at a place inside of a layer.
    pub(super) fn rows<M: Machine>(
        &mut self,
        m: &M,
        x: &M::Stream<'_>,
        layer: usize,
        place: Inside,
        rows: &M::Rows,
    ) -> Result<(), MachineError> {
        if self.trace.details.contains(&layer) {
            let values = m.look_at(x, rows)?;
            self.inside.push((place, values));
        }
        Ok(())
    }

    /// Waits for what was recorded.
    pub(super) fn finish(&mut self) -> Result<(), MachineError> {
        for (place, values) in std::mem::take(&mut self.under_way) {
            let values = values.wait()?;
            let shape = vec![values.len() / self.hidden.max(1), self.hidden];
            self.trace.recorded.insert(place, TracedTensor { shape, values });
        }
        Ok(())
    }
}
