//! Rotary position embedding, half-rotation ("NeoX") form.
//!
//! For `j < head_dim / 2`: the pair `(x[j], x[j + head_dim/2])` turns by the angle
//! `position * inv_freq[j]`, with `inv_freq[j] = theta^(-2j / head_dim) / factor`. Angles, cosines and
//! sines are f32 at least; in bf16 a position is exact only up to 256.

use crate::config::{LayerType, TextConfig};
use crate::ops::plain::rope::cos_sin;

/// The frequencies of one layer type.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    inv_freq: Vec<f32>,
}

impl RotaryEmbedding {
    /// The frequencies for a base `theta` and a linear scaling `factor` (1 for none).
    pub fn new(head_dim: usize, theta: f64, factor: f64) -> Self {
        let inv_freq = (0..head_dim / 2)
            .map(|j| {
                let exponent = (2 * j) as f64 / head_dim as f64;
                // Rounded before the division, as the reference does.
                (theta.powf(-exponent) as f32) / factor as f32
            })
            .collect();
        Self { inv_freq }
    }

    /// The frequencies that layers of a type use: only global layers are scaled.
    pub fn for_layer_type(config: &TextConfig, kind: LayerType) -> Self {
        match kind {
            LayerType::FullAttention => {
                Self::new(config.head_dim, config.rope_theta, config.rope_scaling_factor)
            }
            LayerType::SlidingAttention => Self::new(config.head_dim, config.rope_local_base_freq, 1.0),
        }
    }

    /// `inv_freq` \[head_dim / 2\], radians per position.
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Cosines and sines of one position, each \[head_dim / 2\].
    ///
    /// The angle is the f32 product that the reference forms; its cosine is then exact to f32.
    pub fn cos_sin(&self, position: usize) -> (Vec<f32>, Vec<f32>) {
        cos_sin(std::iter::once(position), &self.inv_freq)
    }
}
