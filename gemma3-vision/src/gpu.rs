//! The encoder on a GPU: the same mathematics as [`Tower`] and [`Projector`], as launches of
//! [`gemma3_core::gpu`]'s kernels. Biases, activations and residuals are added where products store their sums.
//!
//! Images go through it one after the other: one of the published size fills a GPU.

use std::collections::VecDeque;

use burn::tensor::Tensor;
use gemma3_core::CancelHandle;
use gemma3_core::config::VisionConfig;
use gemma3_core::device::read;
use gemma3_core::gpu::{Ending, Gpu, GpuError, GpuRows, Mark, Numbers, PatchShape};
use gemma3_core::matrix::Matrix;
use gemma3_core::model::LoadError;

use crate::error::VisionError;
use crate::projector::Projector;
use crate::siglip::{self, Tower};

/// An encoder and projector whose weights lie on a GPU.
#[derive(Debug)]
pub(crate) struct GpuEncoder {
    gpu: Gpu,
    patches: PatchShape,
    patch_embedding: Linear,
    /// \[patches, hidden\].
    position: GpuRows,
    layers: Vec<Layer>,
    post_layernorm: LayerNorm,
    /// The whole multiplier, \[1, hidden\].
    soft_emb_norm: GpuRows,
    soft_emb_eps: f32,
    /// \[hidden of the decoder, hidden\].
    input_projection: Matrix,
    tokens_per_side: usize,
}

#[derive(Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

#[derive(Debug)]
struct LayerNorm {
    scale: GpuRows,
    bias: GpuRows,
    eps: f32,
}

/// The bias is \[1, outputs\].
#[derive(Debug)]
struct Linear {
    weight: Matrix,
    bias: GpuRows,
}

/// Layers that are launched ahead of the one that the device is in, where someone may cancel.
const LAYERS_AHEAD: usize = 2;

impl GpuEncoder {
    /// Whether the kernels can run an encoder of this shape.
    pub(crate) fn supports(config: &VisionConfig) -> bool {
        let heads = config.num_attention_heads.max(1);
        let patch = config.num_channels * config.patch_size.pow(2);
        [config.hidden_size, config.intermediate_size, patch].iter().all(|width| width.is_multiple_of(4))
            && config.hidden_size.is_multiple_of(heads)
            && Gpu::attends(config.hidden_size / heads)
    }

    /// The GPU's side of an encoder whose matrices were loaded by `gpu`.
    pub(crate) fn new(
        gpu: Gpu,
        tower: &Tower,
        projector: &Projector,
        config: &VisionConfig,
    ) -> Result<Self, LoadError> {
        let upload = Upload { gpu: &gpu };
        let layer = |layer: &siglip::EncoderLayer| {
            Ok(Layer {
                layer_norm1: upload.layer_norm(&layer.layer_norm1)?,
                q_proj: upload.linear(&layer.self_attn.q_proj)?,
                k_proj: upload.linear(&layer.self_attn.k_proj)?,
                v_proj: upload.linear(&layer.self_attn.v_proj)?,
                out_proj: upload.linear(&layer.self_attn.out_proj)?,
                heads: layer.self_attn.heads,
                layer_norm2: upload.layer_norm(&layer.layer_norm2)?,
                fc1: upload.linear(&layer.mlp.fc1)?,
                fc2: upload.linear(&layer.mlp.fc2)?,
            })
        };
        Ok(Self {
            patches: PatchShape {
                channels: config.num_channels,
                side: config.image_size,
                patch: config.patch_size,
            },
            patch_embedding: upload.linear(&tower.embeddings.projection)?,
            position: upload.rows(tower.embeddings.position.clone())?,
            layers: tower.layers.iter().map(layer).collect::<Result<_, LoadError>>()?,
            post_layernorm: upload.layer_norm(&tower.post_layernorm)?,
            soft_emb_norm: upload.vector(projector.soft_emb_norm.scale())?,
            soft_emb_eps: projector.soft_emb_norm.eps() as f32,
            input_projection: projector.input_projection.clone(),
            tokens_per_side: projector.tokens_per_side,
            gpu,
        })
    }

    /// The pixels of an image, \[channels, side, side\], → its soft tokens, \[soft tokens, hidden of the decoder\].
    /// Looks between layers whether it is to stop.
    pub(crate) fn forward(
        &self,
        pixels: &[f32],
        cancel: Option<&CancelHandle>,
    ) -> Result<Vec<f32>, VisionError> {
        let gpu = &self.gpu;
        let mut x = self.embed(pixels)?;
        let mut marks: VecDeque<Mark> = VecDeque::new();
        for layer in &self.layers {
            if let Some(cancel) = cancel {
                // What has been launched cannot be taken back.
                if marks.len() == LAYERS_AHEAD
                    && let Some(mark) = marks.pop_front()
                {
                    mark.wait()?;
                }
                if cancel.is_cancelled() {
                    return Err(VisionError::Cancelled);
                }
            }
            x = layer.forward(gpu, &x)?;
            if cancel.is_some() {
                marks.push_back(gpu.mark());
            }
        }
        let x = self.post_layernorm.forward(gpu, &x, Numbers::Floats)?;
        let side = self.patches.side / self.patches.patch;
        let x = gpu.mean_of_squares(&x, side, side / self.tokens_per_side.max(1))?;
        let x = gpu.rms_norm(&x, &self.soft_emb_norm, self.soft_emb_eps, Numbers::Operands)?;
        let x = gpu.linear(&x, &self.input_projection, None, Numbers::Floats)?;
        Ok(gpu.download(&x)?)
    }

    /// The vectors of patches, \[patches, hidden\].
    fn embed(&self, pixels: &[f32]) -> Result<GpuRows, GpuError> {
        let pixels = self.gpu.upload(pixels, pixels.len())?;
        let patches = self.gpu.patches(&pixels, self.patches)?;
        self.patch_embedding.forward_adding(&self.gpu, &patches, &self.position)
    }
}

impl Layer {
    /// \[patches, hidden\] → the same shape.
    fn forward(&self, gpu: &Gpu, x: &GpuRows) -> Result<GpuRows, GpuError> {
        let [patches, hidden] = x.shape();
        let head_dim = hidden / self.heads;
        let numbers = gpu.attention_numbers(patches, self.heads, head_dim);
        let normed = self.layer_norm1.forward(gpu, x, Numbers::Operands)?;
        let q = self.q_proj.forward(gpu, &normed, numbers)?;
        let k = self.k_proj.forward(gpu, &normed, numbers)?;
        let v = self.v_proj.forward(gpu, &normed, numbers)?;
        let attended = gpu.attention([&q, &k, &v], self.heads, (head_dim as f32).powf(-0.5))?;
        let x = self.out_proj.forward_adding(gpu, &attended, x)?;
        let normed = self.layer_norm2.forward(gpu, &x, Numbers::Operands)?;
        let wide = self.fc1.forward_gelu(gpu, &normed)?; // [patches, intermediate]
        self.fc2.forward_adding(gpu, &wide, &x)
    }
}

impl LayerNorm {
    fn forward(&self, gpu: &Gpu, x: &GpuRows, numbers: Numbers) -> Result<GpuRows, GpuError> {
        gpu.layer_norm(x, &self.scale, &self.bias, self.eps, numbers)
    }
}

impl Linear {
    fn forward(&self, gpu: &Gpu, x: &GpuRows, numbers: Numbers) -> Result<GpuRows, GpuError> {
        let ending = Ending { bias: &self.bias, gelu: false, added: None };
        gpu.linear(x, &self.weight, Some(ending), numbers)
    }

    /// For the next product.
    fn forward_gelu(&self, gpu: &Gpu, x: &GpuRows) -> Result<GpuRows, GpuError> {
        let ending = Ending { bias: &self.bias, gelu: true, added: None };
        gpu.linear(x, &self.weight, Some(ending), Numbers::Operands)
    }

    /// Onto the residual stream.
    fn forward_adding(&self, gpu: &Gpu, x: &GpuRows, residual: &GpuRows) -> Result<GpuRows, GpuError> {
        let ending = Ending { bias: &self.bias, gelu: false, added: Some(residual) };
        gpu.linear(x, &self.weight, Some(ending), Numbers::Floats)
    }
}

/// Copies parameters to the device. A host's backend may be wrapped, so that only data can be taken over.
struct Upload<'a> {
    gpu: &'a Gpu,
}

impl Upload<'_> {
    fn linear(&self, linear: &siglip::Linear) -> Result<Linear, LoadError> {
        Ok(Linear { weight: linear.weight.clone(), bias: self.vector(&linear.bias)? })
    }

    fn layer_norm(&self, norm: &siglip::LayerNorm) -> Result<LayerNorm, LoadError> {
        Ok(LayerNorm {
            scale: self.vector(&norm.weight)?,
            bias: self.vector(&norm.bias)?,
            eps: norm.eps as f32,
        })
    }

    fn vector(&self, vector: &Tensor<1>) -> Result<GpuRows, LoadError> {
        self.rows(vector.clone().unsqueeze())
    }

    fn rows(&self, rows: Tensor<2>) -> Result<GpuRows, LoadError> {
        let width = rows.dims()[1];
        let values = read(rows).map_err(|failed| LoadError::Device(failed.reason))?;
        self.gpu.upload(&values, width).map_err(|error| LoadError::Device(error.to_string()))
    }
}

impl From<GpuError> for VisionError {
    fn from(error: GpuError) -> Self {
        match error {
            GpuError::Device(reason) => Self::Device { reason },
            // The shapes were checked when the model was loaded.
            wrong => Self::Bug { what: wrong.to_string() },
        }
    }
}
