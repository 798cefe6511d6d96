//! Prompts with images, with the ids of Hugging Face's `Gemma3Processor`.
//!
//! The processor replaces each `<start_of_image>` by a longer text and encodes the whole: see [`Images`]. It knows
//! nothing of pixels; which crops an image has is decided by those who prepare its pixels.

use crate::error::TokenizerError;
use crate::prompt::PromptEncoder;
use crate::special;
use crate::tokenizer::{SpecialTokens, TokenizeOptions, Tokenizer};

/// The ids that stand for one view: an image, or a crop of one.
///
/// They belong to the model's configuration (`boi_token_index`, `image_token_index`, `eoi_token_index`,
/// `mm_tokens_per_image`): vocabularies of text-only models and of GGUF files may lack some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageTokens {
    /// The id before the soft tokens, `<start_of_image>`: 255999 in released models.
    pub start_of_image: u32,
    /// The id whose embedding is replaced by an image vector, `<image_soft_token>`: 262144 in released models.
    pub soft_token: u32,
    /// The id after the soft tokens, `<end_of_image>`: 256000 in released models.
    pub end_of_image: u32,
    /// How many soft tokens a view has: 256 in released models.
    pub count: usize,
}

impl ImageTokens {
    /// Looks the ids up in a vocabulary. `count` is the number of soft tokens a view.
    ///
    /// ```
    /// use gemma3_tokenizer::{ImageTokens, Tokenizer};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-multimodal/tokenizer.json");
    ///
    /// let tokens = ImageTokens::of(&Tokenizer::from_file(path)?, 4)?;
    /// let miniature = ImageTokens { start_of_image: 388, soft_token: 390, end_of_image: 389, count: 4 };
    /// assert_eq!(tokens, miniature);
    /// # Ok::<(), gemma3_tokenizer::TokenizerError>(())
    /// ```
    ///
    /// # Errors
    /// A vocabulary that lacks one of the three tokens; the ids of the model's configuration hold nevertheless.
    pub fn of(tokenizer: &Tokenizer, count: usize) -> Result<Self, TokenizerError> {
        Ok(Self {
            start_of_image: tokenizer.required_id(special::START_OF_IMAGE)?,
            soft_token: tokenizer.required_id(special::IMAGE_SOFT_TOKEN)?,
            end_of_image: tokenizer.required_id(special::END_OF_IMAGE)?,
            count,
        })
    }
}

/// The images of a prompt, as far as ids are concerned.
///
/// Each placeholder is replaced by VIEW = `"\n\n"` `<start_of_image>` soft tokens `<end_of_image>` `"\n\n"`, or if
/// the image has crops by "Here is the original image VIEW and here are some crops to help you see better VIEW
/// VIEW …". The newlines merge with the text around them: two images side by side have one token of four
/// newlines between them.
///
/// The model expects the views in the order of the prompt: the first image, its crops, the second image, ….
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Images<'a> {
    /// The ids of a view.
    pub tokens: ImageTokens,
    /// The number of pan-and-scan crops of each image, in the order of the placeholders; 0 without
    /// pan-and-scan.
    pub crops: &'a [usize],
}

impl Images<'_> {
    /// How many ids the views have, if that is a number at all.
    pub(crate) fn view_ids(self) -> Option<usize> {
        let ids_per_view = self.tokens.count.checked_add(2)?;
        let views = self.crops.iter().try_fold(0_usize, |sum, crops| sum.checked_add(crops.checked_add(1)?));
        views?.checked_mul(ids_per_view)
    }
}

impl Tokenizer {
    /// Encodes a text whose `<start_of_image>` are placeholders of images, as the reference's processor does; what
    /// takes their place is described at [`Images`]. It is also the way to encode what a custom chat template
    /// has rendered.
    ///
    /// With [`SpecialTokens::Escape`] the text is characters and has no placeholders. For chats with escaped texts
    /// and images use [`ChatTemplate::encode_with_images`](crate::ChatTemplate::encode_with_images). An
    /// `<image_soft_token>` in a parsed text becomes its id, as in the reference, although no view belongs to it.
    ///
    /// ```
    /// use gemma3_tokenizer::{TokenizeOptions, ImageTokens, Images, Tokenizer};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-multimodal/tokenizer.json");
    ///
    /// let tokenizer = Tokenizer::from_file(path)?;
    /// let images = Images { tokens: ImageTokens::of(&tokenizer, 4)?, crops: &[0] };
    /// let ids = tokenizer.encode_with_images("<start_of_image>on", TokenizeOptions::default(), images)?;
    /// assert_eq!(ids, [2, 7, 388, 390, 390, 390, 390, 389, 7, 283]);
    /// # Ok::<(), gemma3_tokenizer::TokenizerError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and if there is not one image for each placeholder, or the ids of the images do not
    /// fit into memory.
    pub fn encode_with_images(
        &self,
        text: &str,
        options: TokenizeOptions,
        images: Images<'_>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let placeholders = match options.special_tokens {
            SpecialTokens::Parse => text.matches(special::START_OF_IMAGE).count(),
            SpecialTokens::Escape => 0,
        };
        let mut prompt = PromptEncoder::with_images(self, options.special_tokens, images, placeholders)?;
        if placeholders == 0 {
            prompt.text(text);
        } else {
            for (index, between) in text.split(special::START_OF_IMAGE).enumerate() {
                if index > 0 {
                    prompt.image()?;
                }
                prompt.text(between);
            }
        }
        Ok(self.add_bos(prompt.finish()?, options.bos))
    }
}
