//! What a tokenizer is made of, whichever file it came from: `tokenizer_json` and `gguf` produce
//! [`Parts`], `tokenizer` assembles them.

use std::collections::HashMap;

use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper};

use crate::decode::DecodePlan;
use crate::template::EncodeTemplate;

/// U+2581, which stands for a space inside of tokens.
pub(crate) const SPACE_MARK: char = '\u{2581}';

/// Everything needed to build a tokenizer, checked only as far as its source could.
pub(crate) struct Parts {
    pub model: BpeParts,
    /// Tokens that are cut out of the text before BPE sees it.
    pub added_tokens: Vec<(u32, AddedToken)>,
    /// Tokens that are only ever decoded, never produced by encoding.
    pub decode_only: HashMap<String, u32>,
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    pub template: EncodeTemplate,
    pub decoder: Option<serde_json::Value>,
    pub decode_plan: DecodePlan,
    pub names: Names,
    pub chat_template: Option<String>,
}

/// Vocabulary, merges and switches of a byte pair encoding, named as in tokenizer.json.
#[derive(Default)]
pub(crate) struct BpeParts {
    pub vocab: Vocab,
    /// Best first.
    pub merges: Merges,
    pub unk_token: Option<String>,
    pub byte_fallback: bool,
    pub fuse_unk: bool,
    pub ignore_merges: bool,
    pub dropout: Option<f32>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
}

/// Ids that have a role. `None` where the file does not say: then the usual name decides.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Names {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
}
