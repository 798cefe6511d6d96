//! From weights to an encoder on a machine, tensor by tensor.

use gemma3_core::Device;
use gemma3_core::checkpoint::{TensorFormat, TensorView};
use gemma3_core::model::{LoadError, LoadProgress, expand_checked};
use gemma3_core::ops::image::{ImageMachine, LayerNorm, PatchShape, is_within_kernels};
use gemma3_core::ops::machine::Norm;
use gemma3_core::ops::{OnMachine, on_machine};

use crate::encoder::{Encode, Encoder};
use crate::error::VisionError;
use crate::model::VisionLoadOptions;
use crate::projector::Projector;
use crate::siglip::{Attention, EncoderLayer, Linear, Mlp, PatchEmbedding, Tower};
use crate::weights::{EncoderTensor, Parameter, VisionTensor, VisionWeights};

/// Loads encoder and projector onto the device's machine. Holds one tensor in host memory at a time.
pub(crate) fn load(
    weights: &VisionWeights<'_>,
    device: &Device,
    options: VisionLoadOptions<'_>,
) -> Result<Box<dyn Encode>, VisionError> {
    let precision = options.precision;
    let plain = options.plain || !is_within_kernels(weights.config(), device);
    on_machine(device, precision, plain, OntoMachine { weights, options })
}

struct OntoMachine<'a, 'p> {
    weights: &'a VisionWeights<'a>,
    options: VisionLoadOptions<'p>,
}

impl OnMachine for OntoMachine<'_, '_> {
    type Output = Result<Box<dyn Encode>, VisionError>;

    fn on<M: ImageMachine>(self, machine: M) -> Self::Output {
        let Self { weights, options } = self;
        let mut loader = Loader {
            weights,
            machine: &machine,
            check_finite: options.check_finite.unwrap_or(cfg!(debug_assertions)),
            progress: options.progress,
            loaded_bytes: 0,
            total_bytes: weights.total_bytes(),
        };
        let (tower, projector) = (loader.tower()?, loader.projector()?);
        Ok(Box::new(Encoder { tower, projector, machine }))
    }
}

struct Loader<'a, 'p, M> {
    weights: &'a VisionWeights<'a>,
    machine: &'a M,
    check_finite: bool,
    progress: Option<&'p mut (dyn FnMut(LoadProgress) + Send)>,
    loaded_bytes: u64,
    total_bytes: u64,
}

impl<M: ImageMachine> Loader<'_, '_, M> {
    fn tower(&mut self) -> Result<Tower<M>, VisionError> {
        let config = self.weights.config();
        let embeddings = PatchEmbedding {
            projection: self.linear(VisionTensor::PatchEmbedding)?,
            position: self.position()?,
            shape: PatchShape {
                channels: config.num_channels,
                side: config.image_size,
                patch: config.patch_size,
            },
        };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            layers.push(self.layer(index)?);
        }
        Ok(Tower { embeddings, layers, post_layernorm: self.layer_norm(VisionTensor::PostLayernorm)? })
    }

    fn projector(&mut self) -> Result<Projector<M>, VisionError> {
        Ok(Projector {
            soft_emb_norm: self.soft_emb_norm()?,
            input_projection: self.input_projection()?,
            patches_per_side: self.weights.config().patches_per_side(),
            tokens_per_side: self.weights.tokens_per_image().isqrt(),
        })
    }

    fn layer(&mut self, index: usize) -> Result<EncoderLayer<M>, LoadError> {
        let of = |tensor| move |parameter| VisionTensor::Layer(index, tensor, parameter);
        Ok(EncoderLayer {
            layer_norm1: self.layer_norm(of(EncoderTensor::LayerNorm1))?,
            self_attn: Attention {
                q_proj: self.linear(of(EncoderTensor::QProj))?,
                k_proj: self.linear(of(EncoderTensor::KProj))?,
                v_proj: self.linear(of(EncoderTensor::VProj))?,
                out_proj: self.linear(of(EncoderTensor::OutProj))?,
                heads: self.weights.config().num_attention_heads,
            },
            layer_norm2: self.layer_norm(of(EncoderTensor::LayerNorm2))?,
            mlp: Mlp { fc1: self.linear(of(EncoderTensor::Fc1))?, fc2: self.linear(of(EncoderTensor::Fc2))? },
        })
    }

    fn linear(&mut self, of: impl Fn(Parameter) -> VisionTensor) -> Result<Linear<M>, LoadError> {
        let view = self.weights.tensor(of(Parameter::Weight))?;
        if self.check_finite {
            expand_checked(&view, true)?;
        }
        let bytes = view.bytes.len() as u64;
        let weight = self.matrix(view)?;
        self.report(bytes);
        Ok(Linear { weight, bias: self.vector(of(Parameter::Bias))? })
    }

    fn matrix(&self, view: TensorView<'_>) -> Result<M::Matrix, LoadError> {
        let (file, tensor) = (view.source.to_owned(), view.file_name.to_owned());
        let matrix = self.machine.image_matrix(view);
        matrix.map_err(|error| LoadError::of_matrix(error, file, tensor))
    }

    fn layer_norm(
        &mut self,
        of: impl Fn(Parameter) -> VisionTensor,
    ) -> Result<LayerNorm<M::Vector>, LoadError> {
        Ok(LayerNorm {
            scale: self.vector(of(Parameter::Weight))?,
            bias: self.vector(of(Parameter::Bias))?,
            eps: self.weights.config().layer_norm_eps as f32,
        })
    }

    fn position(&mut self) -> Result<M::Features, VisionError> {
        let (values, _) = self.values(VisionTensor::PositionEmbedding)?;
        Ok(self.machine.features(values, self.weights.config().hidden_size)?)
    }

    /// GGUF files store `1 + w`, Hugging Face's `w`; its epsilon is the encoder's.
    fn soft_emb_norm(&mut self) -> Result<Norm<M::Vector>, LoadError> {
        let (mut scale, _) = self.values(VisionTensor::SoftEmbNorm)?;
        if !self.weights.norm_includes_one() {
            scale.iter_mut().for_each(|w| *w += 1.0);
        }
        let eps = self.weights.config().layer_norm_eps as f32;
        Ok(Norm { scale: self.machine.vector(scale)?, eps })
    }

    /// Stored in by out; a matrix is out by in.
    fn input_projection(&mut self) -> Result<M::Matrix, LoadError> {
        let (values, shape) = self.values(VisionTensor::InputProjection)?;
        let (inputs, outputs) = (shape[0], shape[1]);
        let column = |output| values.iter().skip(output).step_by(outputs);
        let bytes = (0..outputs).flat_map(column).flat_map(|value| value.to_le_bytes()).collect();
        let view = self.weights.tensor(VisionTensor::InputProjection)?;
        self.matrix(view.with_bytes(vec![outputs, inputs], TensorFormat::F32, bytes))
    }

    fn vector(&mut self, tensor: VisionTensor) -> Result<M::Vector, LoadError> {
        let (values, _) = self.values(tensor)?;
        Ok(self.machine.vector(values)?)
    }

    fn values(&mut self, tensor: VisionTensor) -> Result<(Vec<f32>, Vec<usize>), LoadError> {
        let view = self.weights.tensor(tensor)?;
        let values = expand_checked(&view, self.check_finite)?;
        self.report(view.bytes.len() as u64);
        Ok((values, view.shape))
    }

    fn report(&mut self, bytes: u64) {
        self.loaded_bytes += bytes;
        if let Some(progress) = &mut self.progress {
            progress(LoadProgress { loaded_bytes: self.loaded_bytes, total_bytes: self.total_bytes });
        }
    }
}
