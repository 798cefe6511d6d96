//! The feed-forward layer: `fc2(gelu_tanh(fc1(x)))`.

use gemma3_core::ops::MachineError;
use gemma3_core::ops::image::ImageMachine;

use super::Linear;

#[derive(Debug)]
pub(crate) struct Mlp<M: ImageMachine> {
    pub(crate) fc1: Linear<M>,
    pub(crate) fc2: Linear<M>,
}

impl<M: ImageMachine> Mlp<M> {
    /// `residual + fc2(gelu(fc1(x)))`: both \[rows, hidden\] → the same shape.
    pub(crate) fn forward_onto(
        &self,
        m: &M,
        x: &M::Features,
        residual: &M::Features,
    ) -> Result<M::Features, MachineError> {
        let wide = self.fc1.forward_gelu(m, x)?; // [rows, intermediate]
        self.fc2.forward_onto(m, &wide, residual)
    }
}
