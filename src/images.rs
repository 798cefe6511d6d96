//! Images in prompts: encoding them, and putting their soft tokens where a prompt has placeholders.

use gemma3_core::model::EmbeddedSpan;
use gemma3_tokenizer::{ImageTokens, Images};
use gemma3_vision::{EncodeOptions, EncodedImage, Image, ImageCache, SoftTokens, VisionModel, place};

use crate::question::QuestionImage;
use crate::{Error, Gemma3};

/// The part of a model that sees.
#[derive(Debug)]
pub(crate) struct Vision {
    pub(crate) model: VisionModel,
    pub(crate) tokens: ImageTokens,
}

/// A prompt as the decoder takes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    /// The soft tokens of images, over their placeholders in `ids`.
    pub(crate) spans: Vec<EmbeddedSpan>,
}

impl Prompt {
    /// How many of `ids`, from the first, this prompt begins with, and what of it follows those. An image is never
    /// divided.
    pub(crate) fn after(self, ids: &[u32]) -> (usize, Self) {
        let common = self.ids.iter().zip(ids).take_while(|(new, old)| new == old).count();
        let divided = self.spans.iter().map(EmbeddedSpan::range).find(|span| span.contains(&common));
        let common = divided.map_or(common, |span| span.start);
        let spans = self.spans.iter().filter(|span| span.range().start >= common);
        let spans = spans.map(|span| span.at(span.range().start - common)).collect();
        (common, Self { ids: self.ids.get(common..).unwrap_or_default().to_vec(), spans })
    }
}

impl Gemma3 {
    /// Encodes an image ahead of the questions about it. The result can be kept and shown in any number of
    /// turns and sessions of this model.
    ///
    /// # Errors
    ///
    /// [`Error::ImagesUnsupported`] for a text-only model, and those of
    /// [`VisionModel::encode`](gemma3_vision::VisionModel::encode).
    pub fn encode_image(&self, image: &Image, options: &EncodeOptions) -> Result<EncodedImage, Error> {
        Ok(self.vision_or_error()?.model.encode_one(image, options)?)
    }

    /// Encodes several images, as many together as the bound of memory in `options` allows.
    ///
    /// # Errors
    ///
    /// Those of [`encode_image`](Self::encode_image).
    pub fn encode_images(
        &self,
        images: &[Image],
        options: &EncodeOptions,
    ) -> Result<Vec<EncodedImage>, Error> {
        Ok(self.vision_or_error()?.model.encode(images, options)?)
    }

    /// A cache that remembers encoded images by their pixels, up to `max_bytes` of soft tokens.
    ///
    /// # Errors
    ///
    /// [`Error::ImagesUnsupported`] for a text-only model.
    pub fn image_cache(&self, max_bytes: u64) -> Result<ImageCache, Error> {
        Ok(ImageCache::new(&self.vision_or_error()?.model, max_bytes))
    }

    fn vision_or_error(&self) -> Result<&Vision, Error> {
        self.vision_part().ok_or(Error::ImagesUnsupported)
    }

    /// Encodes what is not encoded yet.
    pub(crate) fn encode_question_images(
        &self,
        images: Vec<QuestionImage>,
        options: &EncodeOptions,
        cache: Option<&ImageCache>,
    ) -> Result<Vec<EncodedImage>, Error> {
        let pixels = |image: &QuestionImage| match image {
            QuestionImage::Pixels(image) => Some(image.clone()),
            QuestionImage::Encoded(_) => None,
        };
        let new: Vec<Image> = images.iter().filter_map(pixels).collect();
        let mut encoded = match (new.is_empty(), cache) {
            (true, _) => Vec::new(),
            (false, None) => self.encode_images(&new, options)?,
            (false, Some(cache)) => cache.encode(&new, options)?,
        }
        .into_iter();
        let encode = |image| match image {
            QuestionImage::Pixels(_) => encoded.next(),
            QuestionImage::Encoded(image) => Some(image),
        };
        Ok(images.into_iter().filter_map(encode).collect())
    }

    /// A prompt with images, of which `encode` makes the ids.
    pub(crate) fn prompt<E>(
        &self,
        images: &[EncodedImage],
        encode: impl FnOnce(Option<Images<'_>>) -> Result<Vec<u32>, E>,
    ) -> Result<Prompt, Error>
    where
        Error: From<E>,
    {
        let Some(vision) = self.vision_part() else {
            return match images {
                [] => Ok(Prompt { ids: encode(None)?, spans: Vec::new() }),
                _ => Err(Error::ImagesUnsupported),
            };
        };
        let crops: Vec<usize> = images.iter().map(|image| image.crops().len()).collect();
        let ids = encode(Some(Images { tokens: vision.tokens, crops: &crops }))?;
        let views: Vec<SoftTokens> = images.iter().flat_map(EncodedImage::views).cloned().collect();
        let spans = place(&ids, vision.tokens.soft_token, &views)?;
        Ok(Prompt { ids, spans })
    }
}
