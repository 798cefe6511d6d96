//! The places of a forward pass that can be looked at, or at which it can be stopped.

use std::ops::ControlFlow;

use burn::tensor::Tensor;

use crate::error::VisionError;

/// A place between two steps. The tensors there hold all images one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Patch plus position embeddings, \[images * patches, hidden\].
    Embeddings,
    /// The residual stream after an encoder layer, \[images * patches, hidden\].
    Layer(usize),
    /// What the encoder gives, \[images * patches, hidden\].
    PostLayernorm,
    /// After average pooling, \[images * soft tokens, hidden\].
    Pooled,
    /// After the norm of the projector, \[images * soft tokens, hidden\].
    Normed,
    /// The soft tokens, \[images * soft tokens, hidden of the decoder\].
    Output,
}

/// Called at every [`Stage`]; `Break` ends the forward pass there.
pub type Observer<'a> = &'a mut dyn FnMut(Stage, &Tensor<2>) -> ControlFlow<()>;

/// Shows a stage, and stops there if the observer says so.
pub(crate) fn show(observe: Observer<'_>, stage: Stage, x: &Tensor<2>) -> Result<(), VisionError> {
    match observe(stage, x) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(VisionError::Cancelled),
    }
}
