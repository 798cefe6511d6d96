//! [`VisionModel`]: encoder and projector, shared by everyone who looks at images with it.

use std::sync::Arc;

use gemma3_core::checkpoint::CheckpointError;
use gemma3_core::config::VisionConfig;
use gemma3_core::model::{LoadError, LoadProgress};
use gemma3_core::ops::Precision;
use gemma3_core::{CancelHandle, Device, Threads};

use crate::encoder::Encode;
use crate::error::VisionError;
use crate::preprocess::{Preprocessor, PreprocessorConfig};
use crate::soft_tokens::SoftTokens;
use crate::stages::Observer;
use crate::weights::VisionWeights;

/// How to load an image encoder.
#[derive(Default)]
pub struct VisionLoadOptions<'a> {
    /// Whether to look for weights that are NaN or infinite. `None`: in debug builds only.
    pub check_finite: Option<bool>,
    /// How exact the products are.
    pub precision: Precision,
    /// Whether the definition computes, in burn's own operations, in place of what is fast on the device: for
    /// experiments, and as what the rest is compared with. Weights are then expanded to f32.
    pub plain: bool,
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
    encoder: Box<dyn Encode>,
    config: VisionConfig,
    preprocessor: Preprocessor,
    tokens_per_image: usize,
    text_hidden_size: usize,
    device: Device,
    threads: Threads,
}

/// Bytes of attention scores and of products' packed operands, whatever the number of images: an upper
/// bound of what [`full_attention`](gemma3_core::ops::image::ImageMachine::full_attention) holds beside its inputs, on every device.
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
        let encoder = threads.run(|| crate::load::load(weights, device, options))?;
        Ok(Self {
            shared: Arc::new(Shared {
                encoder,
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

    /// `pixel_values` \[images, 3, side, side\], as [`Preprocessor::pixel_values`] gives them for one image → the soft
    /// tokens of each image, \[soft tokens, hidden of the decoder\] each. They stay on the device; this returns before
    /// they are computed where the device works by itself.
    ///
    /// # Errors
    ///
    /// Another number of pixel values than the images have, and a device that fails.
    pub fn forward(&self, pixel_values: Vec<f32>, images: usize) -> Result<Vec<SoftTokens>, VisionError> {
        self.pass(pixel_values, images, None, None)
    }

    /// [`forward`](Self::forward) with a look at every stage (shape and values, row-major), and the choice to stop
    /// there. Images go through one after the other, and each stage is waited for.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward), and [`VisionError::Cancelled`] if the observer said to stop.
    pub fn forward_observed(
        &self,
        pixel_values: Vec<f32>,
        images: usize,
        observe: Observer<'_>,
    ) -> Result<Vec<SoftTokens>, VisionError> {
        self.pass(pixel_values, images, Some(observe), None)
    }

    /// One pass on this model's threads. Stops between two layers.
    pub(crate) fn pass(
        &self,
        pixel_values: Vec<f32>,
        images: usize,
        observer: Option<Observer<'_>>,
        cancel: Option<&CancelHandle>,
    ) -> Result<Vec<SoftTokens>, VisionError> {
        let side = self.config().image_size;
        let expected = [images.max(1), self.config().num_channels, side, side];
        if Some(pixel_values.len())
            != expected.iter().try_fold(1, |product: usize, size| product.checked_mul(*size))
        {
            return Err(VisionError::WrongPixels { expected, found: pixel_values.len() });
        }
        let encoder = &self.shared.encoder;
        let vectors =
            self.threads().run(|| encoder.forward(pixel_values, images.max(1), observer, cancel))?;
        Ok(vectors.into_iter().map(SoftTokens::new).collect())
    }
}
