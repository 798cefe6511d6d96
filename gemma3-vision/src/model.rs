//! [`VisionModel`]: encoder and projector, shared by everyone who looks at images with it.

use std::ops::ControlFlow;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorCreationOptions, TensorData};
use gemma3_core::CancelHandle;
use gemma3_core::Threads;
use gemma3_core::checkpoint::CheckpointError;
use gemma3_core::config::VisionConfig;
use gemma3_core::model::{LoadError, LoadProgress};
use gemma3_core::ops::Precision;

use crate::error::VisionError;
#[cfg(feature = "cube")]
use crate::gpu::GpuEncoder;
use crate::load::Loaded;
use crate::preprocess::{Preprocessor, PreprocessorConfig};
use crate::projector::Projector;
use crate::siglip::Tower;
use crate::stages::Observer;
use crate::weights::VisionWeights;

/// How to load an image encoder.
#[derive(Default)]
pub struct VisionLoadOptions<'a> {
    /// Whether to look for weights that are NaN or infinite. `None`: in debug builds only.
    pub check_finite: Option<bool>,
    /// How exact the products are.
    pub precision: Precision,
    /// Called after each tensor.
    pub progress: Option<&'a mut (dyn FnMut(LoadProgress) + Send)>,
}

/// A loaded image encoder with its projector. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct VisionModel {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    tower: Tower,
    projector: Projector,
    #[cfg(feature = "cube")]
    gpu: Option<GpuEncoder>,
    config: VisionConfig,
    preprocessor: Preprocessor,
    tokens_per_image: usize,
    text_hidden_size: usize,
    device: Device,
    threads: Threads,
}

/// Bytes of attention scores and of products' packed operands, whatever the number of images: an upper
/// bound of what [`gemma3_core::ops::attention`] holds beside its inputs, on every device.
const SCORE_BYTES: u64 = 256 << 20;

impl VisionModel {
    /// Loads encoder and projector onto a device. CPU devices compute on `threads` (those of the decoder,
    /// usually).
    ///
    /// # Errors
    ///
    /// Tensors that are missing, malformed or of the wrong shape, sizes that do not fit together, or a
    /// preprocessor of another model.
    pub fn load(
        weights: &VisionWeights<'_>,
        preprocessor: PreprocessorConfig,
        device: &Device,
        threads: &Threads,
        options: VisionLoadOptions<'_>,
    ) -> Result<Self, VisionError> {
        let config = weights.config().clone();
        let file = || weights.source().to_owned();
        config
            .validate()
            .map_err(|source| LoadError::from(CheckpointError::Config { file: file(), source }))?;
        if config.num_channels != 3 {
            return Err(VisionError::WrongChannels { file: file(), found: config.num_channels });
        }
        if preprocessor.image_size != config.image_size {
            let (expected, preprocessed) = (config.image_size, preprocessor.image_size);
            return Err(VisionError::WrongImageSize { file: file(), expected, preprocessed });
        }
        let loaded = threads.run(|| crate::load::load(weights, device, options))?;
        let Loaded { tower, projector, .. } = loaded;
        Ok(Self {
            shared: Arc::new(Shared {
                tower,
                projector,
                #[cfg(feature = "cube")]
                gpu: loaded.gpu,
                config,
                preprocessor: Preprocessor::new(preprocessor)?,
                tokens_per_image: weights.tokens_per_image(),
                text_hidden_size: weights.text_hidden_size(),
                device: device.clone(),
                threads: threads.clone(),
            }),
        })
    }

    /// Whether `other` is a clone of this model: the same weights in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Sizes of the encoder.
    pub fn config(&self) -> &VisionConfig {
        &self.shared.config
    }

    /// What happens to an image before the encoder sees it.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.shared.preprocessor
    }

    /// Soft tokens an image (or crop): 256 in the released models.
    pub fn tokens_per_image(&self) -> usize {
        self.shared.tokens_per_image
    }

    /// Width of the soft tokens: the decoder's `hidden_size`.
    pub fn text_hidden_size(&self) -> usize {
        self.shared.text_hidden_size
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// The CPU threads that compute.
    pub(crate) fn threads(&self) -> &Threads {
        &self.shared.threads
    }

    /// Upper bound of the memory that a forward pass over `images` images needs beside the weights:
    /// `images x 4 x patches x (8 hidden + 4 intermediate) + 256 MiB`. The scores of the attention are
    /// computed in tiles and do not grow with the square of the patches.
    pub fn working_bytes(&self, images: usize) -> u64 {
        let config = self.config();
        let patches = (config.patches_per_side() as u64).pow(2);
        let width = 8 * config.hidden_size as u64 + 4 * config.intermediate_size as u64;
        (images as u64).saturating_mul(4 * patches * width).saturating_add(SCORE_BYTES)
    }

    /// The most images whose forward pass stays within `working_bytes`; at least one.
    pub(crate) fn images_within(&self, working_bytes: u64) -> usize {
        let each = self.working_bytes(1) - SCORE_BYTES;
        let count = working_bytes.saturating_sub(SCORE_BYTES) / each.max(1);
        usize::try_from(count).unwrap_or(usize::MAX).max(1)
    }

    /// `pixel_values` \[images, 3, side, side\], f32, as [`Preprocessor::pixel_values`] gives them for one
    /// image → \[images, soft tokens, hidden of the decoder\].
    ///
    /// # Errors
    ///
    /// Pixel values of another shape, dtype or device, and a device that fails.
    pub fn forward(&self, pixel_values: Tensor<4>) -> Result<Tensor<3>, VisionError> {
        #[cfg(feature = "cube")]
        if self.shared.gpu.is_some() {
            let images = self.check(&pixel_values)?;
            return self.forward_values(gemma3_core::device::read(pixel_values)?, images, None);
        }
        self.forward_observed(pixel_values, &mut |_, _| ControlFlow::Continue(()))
    }

    /// [`forward`](Self::forward) of the values of `images` images. Stops between two layers.
    pub(crate) fn forward_values(
        &self,
        values: Vec<f32>,
        images: usize,
        cancel: Option<&CancelHandle>,
    ) -> Result<Tensor<3>, VisionError> {
        let Shared { config, device, .. } = &*self.shared;
        #[cfg(feature = "cube")]
        if let Some(gpu) = &self.shared.gpu {
            let mut vectors = Vec::new();
            for pixels in values.chunks_exact(values.len() / images.max(1)) {
                vectors.extend(gpu.forward(pixels, cancel)?);
            }
            let shape = [images, self.tokens_per_image(), self.text_hidden_size()];
            return Ok(Tensor::from_data(TensorData::new(vectors, shape), device));
        }
        let options = TensorCreationOptions::new(device.clone()).with_dtype(DType::F32);
        let shape = [images, config.num_channels, config.image_size, config.image_size];
        let pixel_values = Tensor::from_data(TensorData::new(values, shape), options);
        let mut observe = |_, _: &Tensor<2>| match cancel.is_some_and(CancelHandle::is_cancelled) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        self.forward_observed(pixel_values, &mut observe)
    }

    /// [`forward`](Self::forward) with a look at every stage, and the choice to stop there. On GPUs, whose kernels
    /// leave nothing to look at between them, this is slow: each operation by itself, products in f32 and through the
    /// host.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward), and [`VisionError::Cancelled`] if the observer said to stop.
    pub fn forward_observed(
        &self,
        pixel_values: Tensor<4>,
        observe: &mut (dyn FnMut(crate::Stage, &Tensor<2>) -> ControlFlow<()> + Send),
    ) -> Result<Tensor<3>, VisionError> {
        self.check(&pixel_values)?;
        self.threads().run(|| self.run(pixel_values, &mut |stage, x| observe(stage, x)))
    }

    /// The number of images.
    fn check(&self, pixel_values: &Tensor<4>) -> Result<usize, VisionError> {
        let (config, found) = (self.config(), pixel_values.dims());
        let expected = [found[0].max(1), config.num_channels, config.image_size, config.image_size];
        if found != expected {
            return Err(VisionError::WrongPixels { expected, found });
        }
        if pixel_values.dtype() != DType::F32 {
            return Err(VisionError::WrongDtype { found: pixel_values.dtype() });
        }
        if pixel_values.device() != *self.device() {
            let (expected, found) = (format!("{:?}", self.device()), format!("{:?}", pixel_values.device()));
            return Err(VisionError::OtherDevice { expected, found });
        }
        Ok(found[0])
    }

    fn run(&self, pixel_values: Tensor<4>, observe: Observer<'_>) -> Result<Tensor<3>, VisionError> {
        let Shared { tower, projector, tokens_per_image, text_hidden_size, .. } = &*self.shared;
        let images = pixel_values.dims()[0];
        let features = tower.forward(pixel_values, observe)?;
        let soft_tokens = projector.forward(features, observe)?;
        Ok(soft_tokens.reshape([images, *tokens_per_image, *text_hidden_size]))
    }
}
