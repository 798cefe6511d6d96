//! Self-attention of all patches over all patches of their image.

use gemma3_core::ops::MachineError;
use gemma3_core::ops::image::ImageMachine;

use super::Linear;

#[derive(Debug)]
pub(crate) struct Attention<M: ImageMachine> {
    pub(crate) q_proj: Linear<M>,
    pub(crate) k_proj: Linear<M>,
    pub(crate) v_proj: Linear<M>,
    pub(crate) out_proj: Linear<M>,
    pub(crate) heads: usize,
}

impl<M: ImageMachine> Attention<M> {
    /// `residual + attention(x)`: both \[images * patches, hidden\] → the same shape.
    ///
    /// The scores of an image of 4,096 patches would be 16 x 4,096 x 4,096; they are never held at once
    /// ([`ImageMachine::full_attention`]).
    pub(crate) fn forward_onto(
        &self,
        m: &M,
        x: &M::Features,
        residual: &M::Features,
        images: usize,
    ) -> Result<M::Features, MachineError> {
        let linears = [&self.q_proj, &self.k_proj, &self.v_proj].map(|linear| (&linear.weight, &linear.bias));
        let qkv = m.queries_keys_values(x, linears, images, self.heads)?;
        let head_dim = m.features_shape(&qkv[0])[1] / self.heads;
        let scale = (head_dim as f32).powf(-0.5);
        let attended = m.full_attention(qkv, images, self.heads, scale)?;
        self.out_proj.forward_onto(m, &attended, residual)
    }
}
