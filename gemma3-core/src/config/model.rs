//! The whole model: decoder, image encoder, and the token ids that have a meaning.

use super::{ConfigError, TextConfig, VisionConfig};

/// Token ids and count of an image in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageTokens {
    /// `<start_of_image>`.
    pub boi: u32,
    /// `<end_of_image>`.
    pub eoi: u32,
    /// `<image_soft_token>`, the placeholder whose embedding is replaced.
    pub image: u32,
    /// Soft tokens an image; a square number.
    pub mm_tokens_per_image: usize,
}

/// A Gemma 3 model's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The decoder.
    pub text: TextConfig,
    /// The image encoder; absent in the 270M, the 1B and every GGUF language model.
    pub vision: Option<VisionConfig>,
    /// Image token ids; present exactly where [`ModelConfig::vision`] is.
    pub image_tokens: Option<ImageTokens>,
    /// The id that starts every text.
    pub bos_token_id: u32,
    /// The id that fills up shorter rows of a batch.
    pub pad_token_id: u32,
    /// The ids that end a text, without duplicates. `generation_config.json` may add others.
    pub eos_token_ids: Vec<u32>,
}

/// `<bos>` in every Gemma tokenizer.
pub(crate) const DEFAULT_BOS: u32 = 2;
/// `<pad>` in every Gemma tokenizer.
pub(crate) const DEFAULT_PAD: u32 = 0;
/// `<eos>` in every Gemma tokenizer.
pub(crate) const DEFAULT_EOS: u32 = 1;

impl ModelConfig {
    /// Reads the text of a `config.json`: flat (`gemma3_text`) or with `text_config` and
    /// `vision_config` (`gemma3`), with the field names of transformers 4.50 up to 5, absent
    /// fields taking transformers' defaults.
    ///
    /// Ids of special tokens that are no ids (`pad_token_id: -1`) are passed over, and fields that Gemma 3
    /// doesn't use are ignored whatever they hold; a [`Checkpoint`](crate::checkpoint::Checkpoint) has
    /// warnings of them. `tie_word_embeddings` is what the file says; a checkpoint's tensors may decide
    /// otherwise.
    ///
    /// # Errors
    /// [`ConfigError`], naming the field by its path: not JSON, a field of the wrong type or range,
    /// another architecture, a size or constant that is null, or a variant that this crate doesn't
    /// compute (softcaps, biases, bidirectional attention, other rope types or activations, quantized
    /// formats).
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        Ok(super::ConfigFile::read(json)?.model)
    }

    /// A text-only model of the given sizes with Gemma's token ids.
    pub fn from_text(text: TextConfig) -> Self {
        Self {
            text,
            vision: None,
            image_tokens: None,
            bos_token_id: DEFAULT_BOS,
            pad_token_id: DEFAULT_PAD,
            eos_token_ids: vec![DEFAULT_EOS],
        }
    }

    /// Checks the decoder, the encoder, and that images pool into a square of soft tokens.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] naming the first field that doesn't fit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.text.validate()?;
        let (Some(vision), Some(images)) = (&self.vision, &self.image_tokens) else {
            return Ok(());
        };
        vision.validate()?;
        let side = images.mm_tokens_per_image.isqrt();
        let square = side.checked_mul(side).is_some_and(|s| s == images.mm_tokens_per_image);
        if side == 0 || !square || !vision.patches_per_side().is_multiple_of(side) {
            return Err(ConfigError::invalid(
                "mm_tokens_per_image",
                format!(
                    "the square of a divisor of the {} patches of an image's side",
                    vision.patches_per_side()
                ),
                images.mm_tokens_per_image,
            ));
        }
        Ok(())
    }
}
