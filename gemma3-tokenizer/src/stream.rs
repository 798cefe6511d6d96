//! [`StreamDecoder`]: text out of ids that arrive one by one.

use crate::decode::{ByteRun, DecodePlan};
use crate::error::TokenizerError;
use crate::tokenizer::Tokenizer;

/// Decodes a stream of ids, without ever giving out half a character.
///
/// The pieces given out, concatenated with what [`StreamDecoder::finish`] returns, equal
/// [`Tokenizer::decode`] of all ids. Each push takes constant time, amortized.
///
/// A run of byte tokens (how Gemma spells rare characters) is held back until it is known what becomes
/// of it: until another token follows, or a byte shows it to be invalid, after which every byte of the run
/// is one U+FFFD. (The reference decides over the whole run; giving out its first character early
/// could contradict it.) A custom decoder that is not Gemma's is held back until the end.
///
/// ```
/// use gemma3_tokenizer::{Bos, Tokenizer};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-text/tokenizer.json");
///
/// let tokenizer = Tokenizer::from_file(path)?;
/// let mut stream = tokenizer.stream_decoder(true);
/// let mut text = String::new();
/// for id in tokenizer.encode("the 🦀 stood", Bos::None)? {
///     if let Some(piece) = stream.push(id) {
///         text.push_str(&piece);
///     }
/// }
/// text.push_str(&stream.finish()?);
/// assert_eq!(text, "the 🦀 stood");
/// # Ok::<(), gemma3_tokenizer::TokenizerError>(())
/// ```
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    run: ByteRun,
    /// All ids so far, if the decoder needs the whole list.
    whole: Vec<u32>,
}

impl StreamDecoder {
    pub(crate) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, run: ByteRun::default(), whole: Vec::new() }
    }

    /// Takes the next id. Returns the text that is now complete, or `None` if there is none.
    ///
    /// Ids without a token and skipped special tokens give nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let DecodePlan::Incremental(steps) = self.tokenizer.decode_plan() else {
            self.whole.push(id);
            return None;
        };
        let token = self.tokenizer.token_to_decode(id, self.skip_special)?;
        let mut text = String::new();
        steps.push(token, &mut self.run, &mut text);
        Some(text).filter(|text| !text.is_empty())
    }

    /// Ends the stream and returns what was held back. The decoder can then be used for another one.
    ///
    /// # Errors
    /// Only with custom decoders.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        if !self.whole.is_empty() {
            return self.tokenizer.decode(&std::mem::take(&mut self.whole), self.skip_special);
        }
        let mut text = String::new();
        self.run.finish(&mut text);
        Ok(text)
    }
}
