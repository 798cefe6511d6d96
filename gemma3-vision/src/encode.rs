//! From images to soft tokens: preprocessing, crops, and passes through the encoder within a bound of
//! memory.

use gemma3_core::CancelHandle;

use crate::error::VisionError;
use crate::model::VisionModel;
use crate::preprocess::{Crop, Image, PanAndScan, View};
use crate::soft_tokens::SoftTokens;

/// How to encode images.
#[derive(Debug, Clone)]
pub struct EncodeOptions {
    /// Whether wide and tall images are shown a second time in crops, each with soft tokens of its own.
    /// `None` (the default, also of the reference): no crops.
    pub pan_and_scan: Option<PanAndScan>,
    /// Images and crops go through the encoder together as far as their forward pass stays within this
    /// many bytes beside the weights ([`VisionModel::working_bytes`]), at least one at a time. Default:
    /// 2 GiB, which is 4 images of 896 x 896.
    pub working_bytes: u64,
    /// Stops the encoding between two layers.
    pub cancel: Option<CancelHandle>,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { pan_and_scan: None, working_bytes: 2 << 30, cancel: None }
    }
}

/// An image as the decoder takes it. It can be kept, and shown in any number of turns and sessions of the
/// same model. Cloning shares the vectors.
#[derive(Debug, Clone)]
pub struct EncodedImage {
    width: u32,
    height: u32,
    crops: Vec<Crop>,
    views: Vec<SoftTokens>,
}

impl EncodedImage {
    /// Width of the original, in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height of the original, in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The crops that pan-and-scan made, in the original's pixels.
    pub fn crops(&self) -> &[Crop] {
        &self.crops
    }

    /// Soft tokens of the whole image and then of each crop.
    pub fn views(&self) -> &[SoftTokens] {
        &self.views
    }

    /// Soft tokens of all views together.
    pub fn soft_token_count(&self) -> usize {
        self.views.iter().map(SoftTokens::len).sum()
    }

    /// Bytes of the vectors.
    pub fn bytes(&self) -> u64 {
        let bytes = |view: &SoftTokens| (view.len() * view.width() * size_of::<f32>()) as u64;
        self.views.iter().map(bytes).sum()
    }
}

impl VisionModel {
    /// Encodes one image.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_one(&self, image: &Image, options: &EncodeOptions) -> Result<EncodedImage, VisionError> {
        let mut encoded = self.encode(std::slice::from_ref(image), options)?;
        encoded.pop().ok_or_else(|| VisionError::Bug { what: "an image was not encoded".to_owned() })
    }

    /// Encodes images, several at a time.
    ///
    /// # Errors
    ///
    /// Settings of pan-and-scan that make no sense, or [`VisionError::Cancelled`].
    pub fn encode(
        &self,
        images: &[Image],
        options: &EncodeOptions,
    ) -> Result<Vec<EncodedImage>, VisionError> {
        let mut views_of = Vec::with_capacity(images.len());
        for image in images {
            views_of.push(self.preprocessor().views(image, options.pan_and_scan.as_ref()));
        }
        let at_once = self.images_within(options.working_bytes);
        let all: Vec<&View> = views_of.iter().flatten().collect();
        let mut soft_tokens = Vec::with_capacity(all.len());
        for views in all.chunks(at_once) {
            soft_tokens.extend(self.encode_views(views, options.cancel.as_ref())?);
        }
        let mut soft_tokens = soft_tokens.into_iter();
        let encoded = images.iter().zip(&views_of).map(|(image, views)| EncodedImage {
            width: image.width(),
            height: image.height(),
            crops: views.iter().filter_map(|view| view.crop).collect(),
            views: soft_tokens.by_ref().take(views.len()).collect(),
        });
        Ok(encoded.collect())
    }

    /// One forward pass.
    fn encode_views(
        &self,
        views: &[&View],
        cancel: Option<&CancelHandle>,
    ) -> Result<Vec<SoftTokens>, VisionError> {
        let preprocess =
            || views.iter().flat_map(|view| self.preprocessor().pixel_values(&view.image)).collect();
        let pixel_values: Vec<f32> = self.threads().run(preprocess);
        self.pass(pixel_values, views.len(), None, cancel)
    }
}
