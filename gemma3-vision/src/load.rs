//! From weights to an encoder on a device, tensor by tensor.

use burn::tensor::{DType, Device, Tensor, TensorCreationOptions, TensorData};
#[cfg(feature = "cube")]
use gemma3_core::checkpoint::TensorFormat;
use gemma3_core::checkpoint::TensorView;
use gemma3_core::formats::Quantization;
#[cfg(feature = "cube")]
use gemma3_core::gpu::Gpu;
use gemma3_core::matrix::Matrix;
use gemma3_core::model::{LoadError, LoadProgress, RmsNorm, expand_checked, load_matrix};
use gemma3_core::ops::Precision;

#[cfg(feature = "cube")]
use crate::gpu::GpuEncoder;
use crate::model::VisionLoadOptions;
use crate::projector::Projector;
use crate::siglip::{Attention, EncoderLayer, LayerNorm, Linear, Mlp, PatchEmbedding, Tower};
use crate::weights::{EncoderTensor, Parameter, VisionTensor, VisionWeights};

/// An encoder on a device.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) tower: Tower,
    pub(crate) projector: Projector,
    /// The same as launches of kernels, where they can run it.
    #[cfg(feature = "cube")]
    pub(crate) gpu: Option<GpuEncoder>,
}

/// Loads encoder and projector onto `device`. Holds one tensor in host memory at a time.
pub(crate) fn load(
    weights: &VisionWeights<'_>,
    device: &Device,
    options: VisionLoadOptions<'_>,
) -> Result<Loaded, LoadError> {
    let mut loader = Loader {
        weights,
        device,
        check_finite: options.check_finite.unwrap_or(cfg!(debug_assertions)),
        precision: options.precision,
        progress: options.progress,
        loaded_bytes: 0,
        total_bytes: weights.total_bytes(),
        #[cfg(feature = "cube")]
        gpu: Gpu::open(device, options.precision).filter(|_| GpuEncoder::supports(weights.config())),
        #[cfg(feature = "cube")]
        exact: Gpu::open(device, Precision::Exact).filter(|_| GpuEncoder::supports(weights.config())),
    };
    let config = weights.config();
    let embeddings = PatchEmbedding {
        projection: loader.linear(VisionTensor::PatchEmbedding)?,
        position: loader.position()?,
        patch_size: config.patch_size,
    };
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    for index in 0..config.num_hidden_layers {
        layers.push(loader.layer(index)?);
    }
    let post_layernorm = loader.layer_norm(VisionTensor::PostLayernorm)?;
    let projector = Projector {
        soft_emb_norm: loader.soft_emb_norm()?,
        input_projection: loader.input_projection()?,
        patches_per_side: config.patches_per_side(),
        tokens_per_side: weights.tokens_per_image().isqrt(),
    };
    let tower = Tower { embeddings, layers, post_layernorm };
    Ok(Loaded {
        #[cfg(feature = "cube")]
        gpu: loader.gpu.map(|gpu| GpuEncoder::new(gpu, &tower, &projector, config)).transpose()?,
        tower,
        projector,
    })
}

struct Loader<'a, 'p> {
    weights: &'a VisionWeights<'a>,
    device: &'a Device,
    check_finite: bool,
    precision: Precision,
    progress: Option<&'p mut (dyn FnMut(LoadProgress) + Send)>,
    loaded_bytes: u64,
    total_bytes: u64,
    /// Where the matrices go, if kernels run the encoder.
    #[cfg(feature = "cube")]
    gpu: Option<Gpu>,
    /// What attends in the definition then.
    #[cfg(feature = "cube")]
    exact: Option<Gpu>,
}

impl Loader<'_, '_> {
    fn layer(&mut self, index: usize) -> Result<EncoderLayer, LoadError> {
        let of = |tensor| move |parameter| VisionTensor::Layer(index, tensor, parameter);
        Ok(EncoderLayer {
            layer_norm1: self.layer_norm(of(EncoderTensor::LayerNorm1))?,
            self_attn: Attention {
                q_proj: self.linear(of(EncoderTensor::QProj))?,
                k_proj: self.linear(of(EncoderTensor::KProj))?,
                v_proj: self.linear(of(EncoderTensor::VProj))?,
                out_proj: self.linear(of(EncoderTensor::OutProj))?,
                heads: self.weights.config().num_attention_heads,
                #[cfg(feature = "cube")]
                exact: self.exact.clone(),
            },
            layer_norm2: self.layer_norm(of(EncoderTensor::LayerNorm2))?,
            mlp: Mlp { fc1: self.linear(of(EncoderTensor::Fc1))?, fc2: self.linear(of(EncoderTensor::Fc2))? },
        })
    }

    fn linear(&mut self, of: impl Fn(Parameter) -> VisionTensor) -> Result<Linear, LoadError> {
        let view = self.weights.tensor(of(Parameter::Weight))?;
        let bytes = view.bytes.len() as u64;
        let weight = self.matrix(view)?;
        self.report(bytes);
        Ok(Linear { weight, bias: self.vector(of(Parameter::Bias))? })
    }

    fn matrix(&self, view: TensorView<'_>) -> Result<Matrix, LoadError> {
        #[cfg(feature = "cube")]
        if let Some(gpu) = &self.gpu {
            if self.check_finite {
                expand_checked(&view, true)?;
            }
            let (file, tensor) = (view.source.to_owned(), view.file_name.to_owned());
            let matrix = gpu.matrix(view, self.device);
            return matrix.map_err(|error| LoadError::Matrix { file, tensor, problem: error.to_string() });
        }
        load_matrix(view, self.device, self.precision, Quantization::None, self.check_finite)
    }

    fn layer_norm(&mut self, of: impl Fn(Parameter) -> VisionTensor) -> Result<LayerNorm, LoadError> {
        Ok(LayerNorm {
            weight: self.vector(of(Parameter::Weight))?,
            bias: self.vector(of(Parameter::Bias))?,
            eps: self.weights.config().layer_norm_eps,
        })
    }

    fn position(&mut self) -> Result<Tensor<2>, LoadError> {
        let (values, shape) = self.values(VisionTensor::PositionEmbedding)?;
        Ok(self.tensor(values, [shape[0], shape[1]]))
    }

    /// GGUF files store `1 + w`, Hugging Face's `w`; its epsilon is the encoder's.
    fn soft_emb_norm(&mut self) -> Result<RmsNorm, LoadError> {
        let (mut scale, shape) = self.values(VisionTensor::SoftEmbNorm)?;
        if !self.weights.norm_includes_one() {
            scale.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(RmsNorm::new(self.tensor(scale, [shape[0]]), self.weights.config().layer_norm_eps))
    }

    /// Stored in by out; a [`Matrix`] is out by in.
    fn input_projection(&mut self) -> Result<Matrix, LoadError> {
        let (values, shape) = self.values(VisionTensor::InputProjection)?;
        let (inputs, outputs) = (shape[0], shape[1]);
        let mut transposed = Vec::with_capacity(values.len());
        for output in 0..outputs {
            transposed.extend(values.iter().skip(output).step_by(outputs));
        }
        #[cfg(feature = "cube")]
        if self.gpu.is_some() {
            let view = self.weights.tensor(VisionTensor::InputProjection)?;
            let bytes = transposed.iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
            return self.matrix(view.with_bytes(vec![outputs, inputs], TensorFormat::F32, bytes));
        }
        Ok(Matrix::from_values(transposed, [outputs, inputs], self.device))
    }

    fn vector(&mut self, tensor: VisionTensor) -> Result<Tensor<1>, LoadError> {
        let (values, shape) = self.values(tensor)?;
        Ok(self.tensor(values, [shape[0]]))
    }

    fn tensor<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        let options = TensorCreationOptions::new(self.device.clone()).with_dtype(DType::F32);
        Tensor::from_data(TensorData::new(values, shape), options)
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
