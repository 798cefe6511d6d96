//! Looking inside a forward pass, and changing what is there: activations recorded by name, vectors added to the
//! residual stream.
//!
//! Names follow Hugging Face's modules. A trace records only what was asked for, and a pass without a
//! trace copies nothing.

use std::collections::BTreeMap;
use std::fmt;

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

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embeddings => write!(f, "the embeddings"),
            Self::Layer(layer) => write!(f, "the stream after layer {layer}"),
            Self::Detail(layer, name) => write!(f, "`{name}` of layer {layer}"),
            Self::FinalNorm => write!(f, "the final norm"),
        }
    }
}

/// A recorded activation.
#[derive(Debug, Clone, PartialEq)]
pub struct TracedTensor {
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// The values, as many as the product of the shape.
    pub values: Vec<f32>,
}

/// What to record in a forward pass or to add to its stream, and what was recorded.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    pub(crate) embeddings: bool,
    pub(crate) final_norm: bool,
    pub(crate) layers: Vec<usize>,
    pub(crate) details: Vec<usize>,
    pub(crate) added: Vec<(Activation, Vec<f32>)>,
    pub(crate) recorded: BTreeMap<Activation, TracedTensor>,
}

impl Trace {
    /// Records nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether nothing is asked for.
    pub fn is_none(&self) -> bool {
        !self.embeddings
            && !self.final_norm
            && self.layers.is_empty()
            && self.details.is_empty()
            && self.added.is_empty()
    }

    /// Records the residual stream after the given layers.
    pub fn hidden(layers: impl IntoIterator<Item = usize>) -> Self {
        Self { layers: layers.into_iter().collect(), ..Self::default() }
    }

    /// Also records the embeddings and the final norm.
    #[must_use]
    pub fn with_ends(mut self) -> Self {
        self.embeddings = true;
        self.final_norm = true;
        self
    }

    /// Also records every step inside the given layers. Steps that a fused operation has no numbers of are computed
    /// aside, which is slow.
    #[must_use]
    pub fn with_details(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.details.extend(layers);
        self
    }

    /// Also adds a vector \[hidden\] to the residual stream of every token of the pass, at
    /// [`Activation::Embeddings`] or after a layer ([`Activation::Layer`]). What is recorded there includes it.
    #[must_use]
    pub fn adding(mut self, place: Activation, vector: Vec<f32>) -> Self {
        self.added.push((place, vector));
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
}
