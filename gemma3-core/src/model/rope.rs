//! Rotary position embedding, half-rotation ("NeoX") form.
//!
//! For `j < head_dim / 2`: the pair `(x[j], x[j + head_dim/2])` turns by the angle
//! `position * inv_freq[j]`, with `inv_freq[j] = theta^(-2j / head_dim) / factor`. Angles, cosines and
//! sines are f32 at least; in bf16 a position is exact only up to 256.

use burn::tensor::{Device, Tensor, TensorData};

use super::norm::RmsNorm;
use crate::config::{LayerType, TextConfig};
use crate::ops;

/// The frequencies of one layer type.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    inv_freq: Vec<f32>,
}

/// Cosines and sines for the tokens of one forward pass, each \[tokens, 1, head_dim / 2\].
#[derive(Debug, Clone)]
pub(super) struct Rotation {
    cos: Tensor<3>,
    sin: Tensor<3>,
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
        self.inv_freq
            .iter()
            .map(|inv_freq| {
                let (sin, cos) = f64::from(position as f32 * inv_freq).sin_cos();
                (cos as f32, sin as f32)
            })
            .unzip()
    }

    /// The rotations of the tokens at `positions`.
    pub(super) fn at(&self, positions: impl Iterator<Item = usize>, device: &Device) -> Rotation {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let mut tokens = 0;
        for position in positions {
            let (c, s) = self.cos_sin(position);
            cos.extend(c);
            sin.extend(s);
            tokens += 1;
        }
        let shape = [tokens, 1, self.inv_freq.len()];
        Rotation {
            cos: Tensor::from_data(TensorData::new(cos, shape), device),
            sin: Tensor::from_data(TensorData::new(sin, shape), device),
        }
    }
}

impl Rotation {
    /// Normalizes, turns and scales the heads of `x` \[tokens, heads * head_dim\].
    pub(super) fn apply(&self, x: Tensor<2>, norm: &RmsNorm, factor: f32) -> Tensor<2> {
        ops::norm_rope(x, norm.parts(), &self.cos, &self.sin, factor)
    }
}
