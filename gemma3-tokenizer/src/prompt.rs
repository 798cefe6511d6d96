//! [`PromptEncoder`]: a prompt from texts, special tokens and images, written one after the other.

use std::iter::repeat_n;

use crate::error::TokenizerError;
use crate::images::{ImageTokens, Images};
use crate::special;
use crate::tokenizer::{Bos, SpecialTokens, TokenizeOptions, Tokenizer};

/// Collects the ids of a prompt. Between two special tokens everything, whoever wrote it, is encoded as one
/// text, because it merges: a role's name and its newline, the newlines around an image and the user's own.
pub(crate) struct PromptEncoder<'a> {
    tokenizer: &'a Tokenizer,
    options: TokenizeOptions,
    images: Option<Images<'a>>,
    ids: Vec<u32>,
    /// What follows `ids`, not yet encoded.
    text: String,
}

impl<'a> PromptEncoder<'a> {
    /// A prompt whose images are bare `<start_of_image>`.
    pub fn new(tokenizer: &'a Tokenizer, special_tokens: SpecialTokens) -> Self {
        let options = TokenizeOptions { bos: Bos::None, special_tokens };
        Self { tokenizer, options, images: None, ids: Vec::new(), text: String::new() }
    }

    /// A prompt with `placeholders` images.
    ///
    /// # Errors
    /// Another number of images is given, or memory is too small for their ids.
    pub fn with_images(
        tokenizer: &'a Tokenizer,
        special_tokens: SpecialTokens,
        images: Images<'a>,
        placeholders: usize,
    ) -> Result<Self, TokenizerError> {
        let given = images.crops.len();
        if placeholders != given {
            return Err(TokenizerError::ImageCount { placeholders, images: given });
        }
        let mut this = Self { images: Some(images), ..Self::new(tokenizer, special_tokens) };
        let is_reserved = images.view_ids().is_some_and(|count| this.ids.try_reserve(count).is_ok());
        if !is_reserved {
            return Err(TokenizerError::ImagesTooLarge { images: given, count: images.tokens.count });
        }
        Ok(this)
    }

    /// Adds a text.
    pub fn text(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Adds a special token.
    pub fn special(&mut self, token: &str) -> Result<(), TokenizerError> {
        let id = self.tokenizer.required_id(token)?;
        self.encode_text()?;
        self.ids.push(id);
        Ok(())
    }

    /// Adds the next image.
    pub fn image(&mut self) -> Result<(), TokenizerError> {
        let next = self.images.as_mut().and_then(|images| {
            let (crops, rest) = images.crops.split_first()?;
            images.crops = rest;
            Some((images.tokens, *crops))
        });
        match next {
            Some((tokens, 0)) => self.view(tokens),
            Some((tokens, crops)) => {
                self.text("Here is the original image ");
                self.view(tokens)?;
                self.text(" and here are some crops to help you see better");
                for _ in 0..crops {
                    self.text(" ");
                    self.view(tokens)?;
                }
                Ok(())
            }
            None => self.special(special::START_OF_IMAGE),
        }
    }

    fn view(&mut self, tokens: ImageTokens) -> Result<(), TokenizerError> {
        self.text("\n\n");
        self.encode_text()?;
        self.ids.push(tokens.start_of_image);
        self.ids.extend(repeat_n(tokens.soft_token, tokens.count));
        self.ids.push(tokens.end_of_image);
        self.text("\n\n");
        Ok(())
    }

    /// The ids of all.
    pub fn finish(mut self) -> Result<Vec<u32>, TokenizerError> {
        self.encode_text()?;
        Ok(self.ids)
    }

    fn encode_text(&mut self) -> Result<(), TokenizerError> {
        if !self.text.is_empty() {
            self.ids.extend(self.tokenizer.encode_with(&self.text, self.options)?);
            self.text.clear();
        }
        Ok(())
    }
}
