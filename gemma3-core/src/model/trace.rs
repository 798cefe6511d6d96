//! Looking inside a forward pass: activations recorded by name.
//!
//! Names follow Hugging Face's modules. A trace records only what was asked for, and a pass without a
//! trace copies nothing.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::ForwardError;
use crate::device::{self, DeviceFailed};

/// A place in the decoder whose activations can be recorded. T = tokens of the pass.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activation {
    /// The scaled embeddings that enter the first layer, \[T, hidden\].
    Embeddings,
    /// The residual stream after a layer, \[T, hidden\].
    Layer(usize),
    /// A step inside a layer, by name:
    ///
    /// | name | shape |
    /// |---|---|
    /// | `input_layernorm`, `o_proj`, `post_attention_layernorm`, `pre_feedforward_layernorm`, `mlp`, `post_feedforward_layernorm` | \[T, hidden\] |
    /// | `q_proj` / `k_proj`, `v_proj` | \[T, heads * head_dim\] / \[T, kv_heads * head_dim\] |
    /// | `q_norm`, `q_rope` / `k_norm`, `k_rope` | \[heads, T, head_dim\] / \[kv_heads, T, head_dim\] |
    /// | `probs` (of the last sequence; all scores at once, so for short texts) | \[heads, T, keys\] |
    /// | `attention` | \[T, heads * head_dim\] |
    Detail(usize, &'static str),
    /// The normalized output of the last layer, \[T, hidden\].
    FinalNorm,
}

/// A recorded activation: its shape and its values on the device, flattened.
#[derive(Debug, Clone)]
pub struct TracedTensor {
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// The values, \[product of shape\], f32.
    pub values: Tensor<1>,
}

impl TracedTensor {
    /// Reads the values back to the host.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn to_vec(&self) -> Result<Vec<f32>, ForwardError> {
        Ok(device::read(self.values.clone())?)
    }
}

/// What to record in a forward pass, and what was recorded.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    embeddings: bool,
    final_norm: bool,
    layers: Vec<usize>,
    details: Vec<usize>,
    recorded: BTreeMap<Activation, TracedTensor>,
}

impl Trace {
    /// Records nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether nothing is asked for.
    pub fn is_none(&self) -> bool {
        !self.embeddings && !self.final_norm && self.layers.is_empty() && self.details.is_empty()
    }

    /// Records the residual stream after the given layers.
    pub fn hidden(layers: impl IntoIterator<Item = usize>) -> Self {
        Self { layers: layers.into_iter().collect(), ..Self::default() }
    }

    /// Also records the embeddings and the final norm.
    pub fn with_ends(mut self) -> Self {
        self.embeddings = true;
        self.final_norm = true;
        self
    }

    /// Also records every step inside the given layers.
    pub fn with_details(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.details.extend(layers);
        self
    }

    /// What was recorded at a place, if it was asked for and the pass came by.
    pub fn get(&self, place: &Activation) -> Option<&TracedTensor> {
        self.recorded.get(place)
    }

    /// Everything that was recorded.
    pub fn recorded(&self) -> impl Iterator<Item = (&Activation, &TracedTensor)> {
        self.recorded.iter()
    }

    pub(super) fn record_embeddings(&mut self, x: &Tensor<2>) {
        if self.embeddings {
            self.insert(Activation::Embeddings, x);
        }
    }

    pub(super) fn record_final_norm(&mut self, x: impl FnOnce() -> Tensor<2>) {
        if self.final_norm {
            self.insert(Activation::FinalNorm, &x());
        }
    }

    pub(super) fn layer(&mut self, index: usize) -> LayerTrace<'_> {
        let details = self.details.contains(&index);
        LayerTrace { trace: self, index, details }
    }

    fn insert<const D: usize>(&mut self, place: Activation, tensor: &Tensor<D>) {
        let shape = tensor.dims().to_vec();
        let values = tensor.clone().reshape([shape.iter().product::<usize>()]);
        self.recorded.insert(place, TracedTensor { shape, values });
    }
}

/// The trace as one layer sees it.
pub(super) struct LayerTrace<'a> {
    trace: &'a mut Trace,
    index: usize,
    details: bool,
}

impl LayerTrace<'_> {
    pub(super) fn record(&mut self, name: &'static str, tensor: &Tensor<2>) {
        if self.details {
            self.trace.insert(Activation::Detail(self.index, name), tensor);
        }
    }

    /// Records what a fused operation has no tensor of, computed for the trace alone.
    pub(super) fn record_with(
        &mut self,
        name: &'static str,
        tensor: impl FnOnce() -> Result<Tensor<2>, DeviceFailed>,
    ) -> Result<(), DeviceFailed> {
        if self.details {
            self.trace.insert(Activation::Detail(self.index, name), &tensor()?);
        }
        Ok(())
    }

    /// Records \[tokens, heads * head_dim\] as \[heads, tokens, head_dim\].
    pub(super) fn record_heads(
        &mut self,
        name: &'static str,
        heads: usize,
        tensor: impl FnOnce() -> Tensor<2>,
    ) {
        if self.details {
            let tensor = tensor();
            let [tokens, width] = tensor.dims();
            let by_head = tensor.reshape([tokens, heads, width / heads]).swap_dims(0, 1);
            self.trace.insert(Activation::Detail(self.index, name), &by_head);
        }
    }

    pub(super) fn record_probabilities(
        &mut self,
        probabilities: impl FnOnce() -> Result<Tensor<3>, DeviceFailed>,
    ) -> Result<(), DeviceFailed> {
        if self.details {
            self.trace.insert(Activation::Detail(self.index, "probs"), &probabilities()?);
        }
        Ok(())
    }

    pub(super) fn record_layer_output(&mut self, x: &Tensor<2>) {
        if self.trace.layers.contains(&self.index) {
            self.trace.insert(Activation::Layer(self.index), x);
        }
    }
}
