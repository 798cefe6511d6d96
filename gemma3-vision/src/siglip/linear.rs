//! A product with a bias: `x Wᵀ + b`, and what follows it.

use gemma3_core::ops::MachineError;
use gemma3_core::ops::image::{Ending, ImageMachine, Numbers};

/// Weight \[out, in\] and bias \[out\].
#[derive(Debug)]
pub(crate) struct Linear<M: ImageMachine> {
    pub(crate) weight: M::Matrix,
    pub(crate) bias: M::Vector,
}

impl<M: ImageMachine> Linear<M> {
    /// `residual + (x Wᵀ + b)`: \[rows, in\] → \[rows, out\]. A residual of fewer rows repeats.
    pub(crate) fn forward_onto(
        &self,
        m: &M,
        x: &M::Features,
        residual: &M::Features,
    ) -> Result<M::Features, MachineError> {
        let ending = Ending { bias: &self.bias, gelu: false, added: Some(residual) };
        m.linear(x, &self.weight, Some(ending), Numbers::Floats)
    }

    /// `gelu_tanh(x Wᵀ + b)` for the next product: \[rows, in\] → \[rows, out\].
    pub(crate) fn forward_gelu(&self, m: &M, x: &M::Features) -> Result<M::Features, MachineError> {
        let ending = Ending { bias: &self.bias, gelu: true, added: None };
        m.linear(x, &self.weight, Some(ending), Numbers::Operands)
    }
}
