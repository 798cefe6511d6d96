//! The image encoder's sizes (SigLIP); read here, used by the vision crate.

use super::ConfigError;

/// Sizes of the SigLIP encoder, with the names of Hugging Face's `vision_config`.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width of the encoder.
    pub hidden_size: usize,
    /// Width of its feed-forward layer.
    pub intermediate_size: usize,
    /// Number of encoder layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads; divides the width.
    pub num_attention_heads: usize,
    /// Colour channels of the input.
    pub num_channels: usize,
    /// Side of the square input, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels; divides the image.
    pub patch_size: usize,
    /// Epsilon of every layer norm, and of the projector's RMS norm.
    pub layer_norm_eps: f64,
}

/// Far above every published encoder; keeps products of two sizes within 64 bits.
const MAX_SIZE: usize = 1 << 20;
/// As for the decoder: a damaged count of layers must not decide an allocation.
const MAX_LAYERS: usize = super::text::MAX_LAYERS;

impl VisionConfig {
    /// The encoder of the 4B, 12B and 27B.
    pub fn siglip_so400m_896() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 896,
            patch_size: 14,
            layer_norm_eps: 1e-6,
        }
    }

    /// Patches along one side of the image.
    pub fn patches_per_side(&self) -> usize {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }

    /// Checks that the sizes are positive, plausible, and divide as they must.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] naming the first field that doesn't fit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_SIZE),
            ("num_channels", self.num_channels, MAX_SIZE),
            ("image_size", self.image_size, MAX_SIZE),
            ("patch_size", self.patch_size, MAX_SIZE),
        ];
        for (field, value, max) in sizes {
            if value == 0 || value > max {
                return Err(ConfigError::invalid(
                    format!("vision_config.{field}"),
                    format!("a number from 1 to {max}"),
                    value,
                ));
            }
        }
        let divisions = [
            ("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads),
            ("image_size", self.image_size, "patch_size", self.patch_size),
        ];
        for (field, value, divisor_field, divisor) in divisions {
            if !value.is_multiple_of(divisor) {
                return Err(ConfigError::invalid(
                    format!("vision_config.{field}"),
                    format!("a multiple of {divisor_field} ({divisor})"),
                    value,
                ));
            }
        }
        let eps = self.layer_norm_eps as f32;
        if !(eps.is_finite() && eps > 0.0) {
            return Err(ConfigError::invalid(
                "vision_config.layer_norm_eps",
                "a positive number within the range of f32",
                self.layer_norm_eps,
            ));
        }
        Ok(())
    }
}
