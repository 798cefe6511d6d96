//! From a checkpoint to a decoder on a machine, tensor by tensor.

use std::sync::Arc;

use burn::tensor::Device;

use super::block::Block;
use super::decoder::Decoder;
use super::options::{LoadOptions, LoadProgress};
use super::rope::RotaryEmbedding;
use crate::checkpoint::{Checkpoint, CheckpointError, LayerTensor, TensorView, TextTensor};
use crate::config::{LayerType, TextConfig};
use crate::device::DeviceFailed;
use crate::formats::Quantization;
use crate::formats::blocks::BlockError;
use crate::ops::machine::{Heads, Machine, Norm};
use crate::ops::{MatrixError, OnMachine, on_machine};
use crate::run::Runner;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The checkpoint lacks a tensor or cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor's bytes are not what its format asks for.
    #[error("{file}: tensor `{tensor}`: {source}; the file is damaged, download it again")]
    Blocks {
        /// The file, or what stands for it.
        file: String,
        /// Name in the file.
        tensor: String,
        /// What is wrong with the bytes.
        source: BlockError,
    },
    /// A weight is NaN or infinite.
    #[error(
        "{file}: tensor `{tensor}`: expected finite weights, found {value} at index {index}; the file is damaged or was converted with an overflow, take another one"
    )]
    NotFinite {
        /// The file, or what stands for it.
        file: String,
        /// Name in the file.
        tensor: String,
        /// The value.
        value: f32,
        /// Row-major index of the first such value.
        index: usize,
    },
    /// A matrix cannot be kept in its format.
    #[error("{file}: tensor `{tensor}`: {source}")]
    Matrix {
        /// The file, or what stands for it.
        file: String,
        /// Name in the file.
        tensor: String,
        /// Why.
        source: MatrixError,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceFailed),
    /// The threads could not be started.
    #[error("the compute threads could not be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

impl LoadError {
    /// What is wrong with the matrix that a tensor was to become.
    pub fn of_matrix(error: MatrixError, file: String, tensor: String) -> Self {
        match error {
            MatrixError::Blocks(source) => Self::Blocks { file, tensor, source },
            MatrixError::Device(failed) => Self::Device(failed),
            source => Self::Matrix { file, tensor, source },
        }
    }
}

/// Loads the decoder onto the device's machine. Holds the tensors of one input in host memory at a time.
pub(super) fn decoder(
    checkpoint: &Checkpoint,
    device: &Device,
    options: LoadOptions<'_>,
) -> Result<Arc<dyn Runner>, LoadError> {
    let precision = options.precision;
    let plain = options.plain || is_beyond_kernels(&checkpoint.config().text, device);
    on_machine(device, precision, plain, OntoMachine { checkpoint, device, options })
}

/// Whether heads or widths are such as our kernels for GPUs don't take.
#[cfg(feature = "cube")]
fn is_beyond_kernels(config: &TextConfig, device: &Device) -> bool {
    crate::device::is_gpu(device) && !crate::ops::Cube::supports(config)
}

#[cfg(not(feature = "cube"))]
fn is_beyond_kernels(_: &TextConfig, _: &Device) -> bool {
    false
}

struct OntoMachine<'a, 'p> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    options: LoadOptions<'p>,
}

impl OnMachine for OntoMachine<'_, '_> {
    type Output = Result<Arc<dyn Runner>, LoadError>;

    fn on<M: Machine>(self, machine: M) -> Self::Output {
        let Self { checkpoint, device, options } = self;
        let config = checkpoint.config().text.clone();
        let mut loader = Loader {
            checkpoint,
            machine: &machine,
            check_finite: options.check_finite.unwrap_or(cfg!(debug_assertions)),
            quantization: options.quantization,
            eps: config.rms_norm_eps as f32,
            progress: options.progress,
            loaded_bytes: 0,
        };
        let embed_tokens = loader.matrix(&[TextTensor::Embedding])?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for (index, kind) in config.layer_types.iter().enumerate() {
            blocks.push(loader.block(index, *kind, &config)?);
        }
        let norm = loader.norm(TextTensor::FinalNorm)?;
        let lm_head = match checkpoint.head_is_tied() {
            true => None,
            false => Some(loader.matrix(&[TextTensor::Head])?),
        };
        Ok(Arc::new(Decoder {
            embed_tokens,
            embedding_scale: (config.hidden_size as f32).sqrt(),
            blocks,
            norm,
            lm_head,
            device: device.clone(),
            precision: options.precision,
            config,
            machine,
        }))
    }
}

/// The elements of a tensor in f32, row-major; with `check_finite` an error if one is NaN or infinite.
///
/// # Errors
///
/// [`LoadError::Blocks`] or [`LoadError::NotFinite`].
pub fn expand_checked(view: &TensorView<'_>, check_finite: bool) -> Result<Vec<f32>, LoadError> {
    let (file, tensor) = (|| view.source.to_owned(), || view.file_name.to_owned());
    let values =
        view.expand().map_err(|source| LoadError::Blocks { file: file(), tensor: tensor(), source })?;
    if check_finite && let Some((index, value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        return Err(LoadError::NotFinite { file: file(), tensor: tensor(), value: *value, index });
    }
    Ok(values)
}

struct Loader<'a, 'p, M> {
    checkpoint: &'a Checkpoint,
    machine: &'a M,
    check_finite: bool,
    quantization: Quantization,
    eps: f32,
    progress: Option<&'p mut (dyn FnMut(LoadProgress) + Send)>,
    loaded_bytes: u64,
}

impl<M: Machine> Loader<'_, '_, M> {
    fn block(&mut self, index: usize, kind: LayerType, config: &TextConfig) -> Result<Block<M>, LoadError> {
        let layer = |tensor| TextTensor::Layer(index, tensor);
        let qkv = [LayerTensor::QProj, LayerTensor::KProj, LayerTensor::VProj].map(layer);
        Ok(Block {
            qkv_proj: self.matrix(&qkv)?,
            gate_up_proj: self.matrix(&[LayerTensor::GateProj, LayerTensor::UpProj].map(layer))?,
            input_layernorm: self.norm(layer(LayerTensor::InputLayernorm))?,
            o_proj: self.matrix(&[layer(LayerTensor::OProj)])?,
            heads: self.heads(index, kind, config)?,
            post_attention_layernorm: self.norm(layer(LayerTensor::PostAttentionLayernorm))?,
            pre_feedforward_layernorm: self.norm(layer(LayerTensor::PreFeedforwardLayernorm))?,
            down_proj: self.matrix(&[layer(LayerTensor::DownProj)])?,
            post_feedforward_layernorm: self.norm(layer(LayerTensor::PostFeedforwardLayernorm))?,
        })
    }

    fn heads(
        &mut self,
        index: usize,
        kind: LayerType,
        config: &TextConfig,
    ) -> Result<Heads<M::Vector>, LoadError> {
        let rope = RotaryEmbedding::for_layer_type(config, kind);
        Ok(Heads {
            layer: index,
            kind,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            query_factor: config.query_pre_attn_scalar.powf(-0.5) as f32,
            window: matches!(kind, LayerType::SlidingAttention).then_some(config.sliding_window),
            q_norm: self.norm(TextTensor::Layer(index, LayerTensor::QNorm))?,
            k_norm: self.norm(TextTensor::Layer(index, LayerTensor::KNorm))?,
            inv_freq: self.machine.vector(rope.inv_freq().to_vec())?,
        })
    }

    /// Matrices \[out, in\] that are multiplied with the same input.
    fn matrix(&mut self, names: &[TextTensor]) -> Result<M::Matrix, LoadError> {
        let mut views = Vec::with_capacity(names.len());
        for name in names {
            let view = self.checkpoint.tensor(*name)?;
            if self.check_finite {
                expand_checked(&view, true)?;
            }
            views.push(view);
        }
        let Some(first) = views.first() else {
            return Err(LoadError::Matrix {
                file: String::new(),
                tensor: String::new(),
                source: MatrixError::NotAMatrix { found: Vec::new() },
            });
        };
        let (file, tensor) = (first.source.to_owned(), first.file_name.to_owned());
        let sizes: Vec<u64> = views.iter().map(|view| view.bytes.len() as u64).collect();
        let matrix = self.machine.matrix(views, self.quantization_of(names[0]));
        let matrix = matrix.map_err(|error| LoadError::of_matrix(error, file, tensor))?;
        for bytes in sizes {
            self.report(bytes);
        }
        Ok(matrix)
    }

    fn quantization_of(&self, name: TextTensor) -> Quantization {
        match name {
            TextTensor::Embedding | TextTensor::Head => self.quantization.of_embedding(),
            _ => self.quantization,
        }
    }

    /// A norm with its multiplier `1 + w`; GGUF files store that sum, Hugging Face's store `w`.
    fn norm(&mut self, name: TextTensor) -> Result<Norm<M::Vector>, LoadError> {
        let view = self.checkpoint.tensor(name)?;
        let mut scale = expand_checked(&view, self.check_finite)?;
        self.report(view.bytes.len() as u64);
        if !self.checkpoint.norms_include_one() {
            scale.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(Norm { scale: self.machine.vector(scale)?, eps: self.eps })
    }

    fn report(&mut self, bytes: u64) {
        self.loaded_bytes += bytes;
        if let Some(progress) = &mut self.progress {
            let total_bytes = self.checkpoint.total_weight_bytes();
            progress(LoadProgress { loaded_bytes: self.loaded_bytes, total_bytes });
        }
    }
}
