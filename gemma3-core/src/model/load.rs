//! From a checkpoint to a [`Decoder`] on a device, tensor by tensor.

use burn::tensor::{DType, Device, Tensor, TensorCreationOptions, TensorData};

use super::attention::{Attention, AttentionShape};
use super::block::Block;
use super::decoder::Decoder;
use super::embedding::Embedding;
use super::feed_forward::FeedForward;
#[cfg(feature = "cube")]
use super::gpu::GpuDecoder;
use super::norm::RmsNorm;
use super::rope::RotaryEmbedding;
use crate::checkpoint::{Checkpoint, CheckpointError, LayerTensor, TensorView, TextTensor};
use crate::config::LayerType;
use crate::formats::Quantization;
use crate::formats::blocks::BlockError;
use crate::matrix::{Matrix, MatrixError};
use crate::ops::Precision;
#[cfg(feature = "cube")]
use crate::ops::cube::stream::Stream;
use crate::threads::Threads;

/// How to load a model.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// CPU threads to compute with, on a pool that the model owns. `None`: as many as the process may
    /// use. On flex results are the same with any number, bit for bit. Has no effect on devices that are not CPUs.
    pub threads: Option<usize>,
    /// The host's own threads ([`Threads::lent`]), to be used in place of a pool of the model's.
    pub lent_threads: Option<Threads>,
    /// Whether to look for weights that are NaN or infinite, which otherwise show as NaN logits much
    /// later. `None`: in debug builds only, because it reads every weight once more.
    pub check_finite: Option<bool>,
    /// How exact the products are. [`Precision::Exact`] is what the reference is compared with.
    pub precision: Precision,
    /// Whether matrices of float formats are kept in fewer bits. Norms stay as they are. On ndarray the
    /// numbers are the quantized ones and the memory is that of f32.
    pub quantization: Quantization,
    /// Called after each tensor.
    pub progress: Option<&'a mut (dyn FnMut(LoadProgress) + Send)>,
}

impl LoadOptions<'_> {
    /// The threads to compute with on a device.
    ///
    /// # Errors
    ///
    /// Threads that the system does not give.
    pub fn threads(&self, device: &Device) -> Result<Threads, rayon::ThreadPoolBuildError> {
        match &self.lent_threads {
            Some(threads) if crate::device::is_cpu(device) => Ok(threads.clone()),
            _ => Threads::new(device, self.threads),
        }
    }
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the file's tensors that have been read.
    pub loaded_bytes: u64,
    /// Bytes of all of them.
    pub total_bytes: u64,
}

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
    #[error("{file}: tensor `{tensor}`: {problem}")]
    Matrix {
        /// The file, or what stands for it.
        file: String,
        /// Name in the file.
        tensor: String,
        /// Why.
        problem: String,
    },
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// The threads could not be started.
    #[error("the compute threads could not be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Loads the decoder onto `device`. Holds one tensor in host memory at a time.
pub(super) fn decoder(
    checkpoint: &Checkpoint,
    device: &Device,
    options: LoadOptions<'_>,
) -> Result<Decoder, LoadError> {
    let config = checkpoint.config().text.clone();
    let mut loader = Loader {
        checkpoint,
        device,
        check_finite: options.check_finite.unwrap_or(cfg!(debug_assertions)),
        precision: options.precision,
        quantization: options.quantization,
        eps: config.rms_norm_eps,
        progress: options.progress,
        loaded_bytes: 0,
        #[cfg(feature = "cube")]
        stream: Stream::open(device).filter(|_| GpuDecoder::supports(&config)),
    };
    let embedding = Embedding::new(loader.matrix(TextTensor::Embedding)?);
    let mut blocks = Vec::with_capacity(config.num_hidden_layers);
    for (index, kind) in config.layer_types.iter().enumerate() {
        blocks.push(loader.block(index, *kind, AttentionShape::new(&config))?);
    }
    let norm = loader.norm(TextTensor::FinalNorm)?;
    let head = match checkpoint.head_is_tied() {
        true => None,
        false => Some(loader.matrix(TextTensor::Head)?),
    };
    #[cfg(feature = "cube")]
    let stream = loader.stream;
    #[allow(unused_mut, reason = "only GPUs add to it")]
    let mut decoder = Decoder {
        local_rope: RotaryEmbedding::for_layer_type(&config, LayerType::SlidingAttention),
        global_rope: RotaryEmbedding::for_layer_type(&config, LayerType::FullAttention),
        device: device.clone(),
        precision: options.precision,
        config,
        embedding,
        blocks,
        norm,
        head,
        #[cfg(feature = "cube")]
        gpu: None,
    };
    #[cfg(feature = "cube")]
    if let Some(stream) = stream {
        let gpu = GpuDecoder::new(&decoder, stream).map_err(|error| LoadError::Device(error.to_string()))?;
        decoder.gpu = Some(std::sync::Arc::new(gpu));
    }
    Ok(decoder)
}

/// A matrix \[out, in\] of the checkpoint on a device, in the format of its file, or quantized, where the device
/// multiplies that (a tensor of more axes is a matrix over its first); with `check_finite` an error if a weight is NaN or
/// infinite.
///
/// # Errors
///
/// [`LoadError::Blocks`], [`LoadError::NotFinite`] or [`LoadError::Matrix`].
pub fn load_matrix(
    view: TensorView<'_>,
    device: &Device,
    precision: Precision,
    quantization: Quantization,
    check_finite: bool,
) -> Result<Matrix, LoadError> {
    if check_finite {
        expand_checked(&view, true)?;
    }
    let (file, tensor) = (view.source.to_owned(), view.file_name.to_owned());
    Matrix::load(view, device, precision, quantization).map_err(|error| match error {
        MatrixError::Blocks(source) => LoadError::Blocks { file, tensor, source },
        other => LoadError::Matrix { file, tensor, problem: other.to_string() },
    })
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

struct Loader<'a, 'p> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    check_finite: bool,
    precision: Precision,
    quantization: Quantization,
    eps: f64,
    progress: Option<&'p mut (dyn FnMut(LoadProgress) + Send)>,
    loaded_bytes: u64,
    /// Where the weights go, if our kernels run the model.
    #[cfg(feature = "cube")]
    stream: Option<Stream>,
}

impl Loader<'_, '_> {
    fn block(&mut self, index: usize, kind: LayerType, shape: AttentionShape) -> Result<Block, LoadError> {
        let layer = |tensor| TextTensor::Layer(index, tensor);
        let projections = [LayerTensor::QProj, LayerTensor::KProj, LayerTensor::VProj].map(layer);
        let [q_proj, k_proj, v_proj] = self.matrices(projections)?;
        let [gate_proj, up_proj] = self.matrices([LayerTensor::GateProj, LayerTensor::UpProj].map(layer))?;
        Ok(Block {
            kind,
            input_layernorm: self.norm(layer(LayerTensor::InputLayernorm))?,
            attention: Attention {
                q_proj,
                k_proj,
                v_proj,
                o_proj: self.matrix(layer(LayerTensor::OProj))?,
                q_norm: self.norm(layer(LayerTensor::QNorm))?,
                k_norm: self.norm(layer(LayerTensor::KNorm))?,
                shape,
            },
            post_attention_layernorm: self.norm(layer(LayerTensor::PostAttentionLayernorm))?,
            pre_feedforward_layernorm: self.norm(layer(LayerTensor::PreFeedforwardLayernorm))?,
            feed_forward: FeedForward {
                gate_proj,
                up_proj,
                down_proj: self.matrix(layer(LayerTensor::DownProj))?,
            },
            post_feedforward_layernorm: self.norm(layer(LayerTensor::PostFeedforwardLayernorm))?,
        })
    }

    fn matrix(&mut self, name: TextTensor) -> Result<Matrix, LoadError> {
        let [matrix] = self.matrices([name])?;
        Ok(matrix)
    }

    /// Matrices that are multiplied with the same input.
    fn matrices<const N: usize>(&mut self, names: [TextTensor; N]) -> Result<[Matrix; N], LoadError> {
        #[cfg(feature = "cube")]
        if let Some(stream) = self.stream.clone() {
            return self.matrices_on_gpu(&names, &stream);
        }
        let mut matrices = Vec::with_capacity(N);
        for name in names {
            let view = self.checkpoint.tensor(name)?;
            let bytes = view.bytes.len() as u64;
            let quantization = self.quantization_of(name);
            matrices.push(load_matrix(view, self.device, self.precision, quantization, self.check_finite)?);
            self.report(bytes);
        }
        Ok(matrices.try_into().expect("one for each name"))
    }

    #[cfg(feature = "cube")]
    fn matrices_on_gpu<const N: usize>(
        &mut self,
        names: &[TextTensor; N],
        stream: &Stream,
    ) -> Result<[Matrix; N], LoadError> {
        let mut views = Vec::with_capacity(N);
        let mut bytes = 0;
        for name in names {
            let view = self.checkpoint.tensor(*name)?;
            if self.check_finite {
                expand_checked(&view, true)?;
            }
            bytes += view.bytes.len() as u64;
            views.push(view);
        }
        let (file, tensor) = (views[0].source.to_owned(), views[0].file_name.to_owned());
        let matrices = Matrix::load_on_gpu(views, self.device, stream, self.quantization_of(names[0]));
        let matrices =
            matrices.map_err(|error| LoadError::Matrix { file, tensor, problem: error.to_string() })?;
        self.report(bytes);
        Ok(matrices.try_into().expect("one for each name"))
    }

    fn quantization_of(&self, name: TextTensor) -> Quantization {
        match name {
            TextTensor::Embedding | TextTensor::Head => self.quantization.of_embedding(),
            _ => self.quantization,
        }
    }

    /// A norm with its multiplier `1 + w`; GGUF files store that sum, Hugging Face's store `w`.
    fn norm(&mut self, name: TextTensor) -> Result<RmsNorm, LoadError> {
        let view = self.checkpoint.tensor(name)?;
        let mut scale = self.values(&view)?;
        if !self.checkpoint.norms_include_one() {
            scale.iter_mut().for_each(|w| *w += 1.0);
        }
        let width = scale.len();
        let options = TensorCreationOptions::new(self.device.clone()).with_dtype(DType::F32);
        let scale = Tensor::from_data(TensorData::new(scale, [width]), options);
        Ok(RmsNorm::new(scale, self.eps))
    }

    fn values(&mut self, view: &TensorView<'_>) -> Result<Vec<f32>, LoadError> {
        let values = expand_checked(view, self.check_finite)?;
        self.report(view.bytes.len() as u64);
        Ok(values)
    }

    fn report(&mut self, bytes: u64) {
        self.loaded_bytes += bytes;
        if let Some(progress) = &mut self.progress {
            let total_bytes = self.checkpoint.total_weight_bytes();
            progress(LoadProgress { loaded_bytes: self.loaded_bytes, total_bytes });
        }
    }
}
