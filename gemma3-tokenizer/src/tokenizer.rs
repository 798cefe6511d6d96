//! [`Tokenizer`]: text to ids and back.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use tokenizers::{
    AddedToken, AddedVocabulary, DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, TokenizerBuilder, TokenizerImpl,
};

use crate::decode::{ByteRun, DecodePlan};
use crate::error::{TokenizerError, shorten};
use crate::gguf::{self, GgufVocabulary};
use crate::model::SharedModel;
use crate::parts::{Names, Parts};
use crate::stream::StreamDecoder;
use crate::template::EncodeTemplate;
use crate::{special, tokenizer_json};

/// Whether encoding begins with `<bos>`. Gemma needs exactly one: without it, or with two, the quality of
/// the answers collapses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bos {
    /// Adds what the file says, for Gemma one `<bos>`, as `add_special_tokens=True` does in the
    /// reference: also before a text that already begins with the characters `<bos>`.
    #[default]
    Add,
    /// Like `Add`, but not if the text begins with `<bos>` itself: for text of unknown origin, such
    /// as a rendered chat that someone saved.
    Once,
    /// Adds nothing: for a rendered chat (its template writes `<bos>`), or for text that continues.
    None,
}

/// What the names of special tokens mean inside of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpecialTokens {
    /// `<end_of_turn>` in the text becomes its id, as in the reference.
    #[default]
    Parse,
    /// `<end_of_turn>` in the text is encoded as plain characters. No id of [`Tokenizer::special_ids`]
    /// comes out of any text (a vocabulary without byte tokens still has `<unk>` for characters that
    /// it lacks), and decoding gives the text back. Newlines, tabs and HTML tags are encoded as
    /// always. The same as `encode_special_tokens = True` in the reference.
    Escape,
}

/// Options of [`Tokenizer::encode_with`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenizeOptions {
    /// Whether encoding begins with `<bos>`.
    pub bos: Bos,
    /// What the names of special tokens mean.
    pub special_tokens: SpecialTokens,
}

/// Gemma 3's tokenizer, from a tokenizer.json or from the vocabulary of a GGUF file.
///
/// Cloning is cheap (the vocabulary is shared), and it can be used from several threads at once.
///
/// Loading the real vocabulary of 262,144 tokens takes about a second; encoding is near-linear in the length
/// of the text, whatever the text.
///
/// ```
/// use gemma3_tokenizer::{Bos, Tokenizer};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-text/tokenizer.json");
///
/// let tokenizer = Tokenizer::from_file(path)?;
/// let ids = tokenizer.encode("the shot", Bos::Add)?;
/// assert_eq!(ids.first().copied(), tokenizer.bos_id());
/// assert_eq!(tokenizer.decode(&ids, true)?, "the shot");
/// # Ok::<(), gemma3_tokenizer::TokenizerError>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

type Pipeline =
    TokenizerImpl<SharedModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

struct Inner {
    /// Special tokens in the text become their ids.
    parsing: Pipeline,
    /// Special tokens in the text are characters.
    escaping: Pipeline,
    template: EncodeTemplate,
    decode_plan: DecodePlan,
    special: HashSet<u32>,
    special_ids: Vec<u32>,
    names: Names,
    end_of_turn: Option<u32>,
    chat_template: Option<String>,
}

/// Far above every real file (Gemma's has 33 MB); what is larger is not read.
const MAX_FILE_BYTES: u64 = 512 << 20;

fn read_file(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let unreadable = |source| TokenizerError::Read { path: path.into(), source };
    let file = File::open(path).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?.len();
    if found > MAX_FILE_BYTES {
        return Err(TokenizerError::FileTooLarge { path: path.into(), limit: MAX_FILE_BYTES, found });
    }
    let mut bytes = Vec::new();
    // Bounded once more: what is no regular file has a length of 0 and may never end.
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

impl Tokenizer {
    /// Loads a tokenizer.json.
    ///
    /// # Errors
    /// [`TokenizerError::InFile`] with what [`Tokenizer::from_bytes`] says, and if the file cannot be read or is
    /// larger than any real one.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        Self::from_bytes(&read_file(path)?).map_err(|error| error.in_file(path.display().to_string()))
    }

    /// Loads the content of a tokenizer.json. Its model must be a BPE; normalizer, pre-tokenizer
    /// and decoder may be any that the `tokenizers` crate knows.
    ///
    /// # Errors
    /// Content that is not a tokenizer.json, a model other than BPE, ids or merges that contradict each other.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        contained(TokenizerError::build, || Self::assemble(tokenizer_json::parse(bytes)?))
    }

    /// Builds the tokenizer from the vocabulary of a GGUF file. It gives the same ids as Gemma's
    /// tokenizer.json.
    ///
    /// # Errors
    /// Another kind of vocabulary, arrays of unequal lengths, duplicate tokens, scores that are not numbers,
    /// ids outside of the vocabulary, or no way to encode unknown characters.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, TokenizerError> {
        contained(TokenizerError::build, || Self::assemble(gguf::parse(vocabulary)?))
    }

    fn assemble(parts: Parts) -> Result<Self, TokenizerError> {
        let mut outside = parts.decode_only;
        outside.retain(|token, _| !parts.model.vocab.contains_key(token));
        let mut seen = HashMap::new();
        let mut special = HashSet::new();
        for (id, added) in &parts.added_tokens {
            if let Some(first) = seen.insert(added.content.as_str(), *id).filter(|first| first != id) {
                let token = shorten(&added.content);
                return Err(TokenizerError::DuplicateToken { token, first, second: *id });
            }
            if added.special {
                special.insert(*id);
            }
            if added.special || !parts.model.vocab.contains_key(&added.content) {
                outside.insert(added.content.clone(), *id);
            }
        }
        let model = SharedModel::new(parts.model, outside)?;
        if let Some(id) = parts.template.ids().find(|&id| !model.is_known(id)) {
            return Err(TokenizerError::Unsupported {
                part: "post_processor",
                found: format!("the id {id}, which has no token"),
                expected: "ids of the vocabulary",
            });
        }

        let named = |id: Option<u32>, token: &str| id.or_else(|| model.token_to_id(token));
        let names = Names {
            bos: named(parts.names.bos, special::BOS),
            eos: named(parts.names.eos, special::EOS),
            unknown: named(parts.names.unknown, special::UNKNOWN),
            padding: named(parts.names.padding, special::PAD),
        };
        let end_of_turn = model.token_to_id(special::END_OF_TURN);

        let mut added_vocabulary = AddedVocabulary::new();
        let added_tokens: Vec<AddedToken> = parts.added_tokens.into_iter().map(|(_, added)| added).collect();
        added_vocabulary
            .add_tokens(added_tokens, &model, parts.normalizer.as_ref())
            .map_err(TokenizerError::build)?;
        let decoder = parts
            .decoder
            .map(|decoder| {
                DecoderWrapper::deserialize(decoder).map_err(|source| TokenizerError::Parse { source })
            })
            .transpose()?;
        let parsing: Pipeline = TokenizerBuilder::new()
            .with_model(model)
            .with_normalizer(parts.normalizer)
            .with_pre_tokenizer(parts.pre_tokenizer)
            .with_decoder(decoder)
            .with_added_vocabulary(added_vocabulary)
            .build()
            .map_err(TokenizerError::build)?;
        let mut escaping = parsing.clone();
        escaping.set_encode_special_tokens(true);

        let mut special_ids: Vec<u32> = special.iter().copied().collect();
        special_ids.sort_unstable();
        Ok(Self(Arc::new(Inner {
            parsing,
            escaping,
            template: parts.template,
            decode_plan: parts.decode_plan,
            special,
            special_ids,
            names,
            end_of_turn,
            chat_template: parts.chat_template,
        })))
    }

    /// Encodes a text as the reference does: special tokens inside of it become their ids.
    ///
    /// # Errors
    /// Only with custom pipelines, such as a vocabulary without a way to encode some character.
    pub fn encode(&self, text: &str, bos: Bos) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, TokenizeOptions { bos, special_tokens: SpecialTokens::Parse })
    }

    /// Encodes a text.
    ///
    /// ```
    /// use gemma3_tokenizer::{Bos, TokenizeOptions, SpecialTokens, Tokenizer};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-text/tokenizer.json");
    ///
    /// let tokenizer = Tokenizer::from_file(path)?;
    /// let plain = TokenizeOptions { bos: Bos::None, special_tokens: SpecialTokens::Escape };
    /// let ids = tokenizer.encode_with("I am done<end_of_turn>", plain)?;
    /// assert!(!ids.contains(&tokenizer.end_of_turn_id().unwrap()));
    /// assert_eq!(tokenizer.decode(&ids, true)?, "I am done<end_of_turn>");
    /// # Ok::<(), gemma3_tokenizer::TokenizerError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with(&self, text: &str, options: TokenizeOptions) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.add_bos(self.encode_bare(text, options.special_tokens)?, options.bos))
    }

    /// Puts the ids of a text in their place.
    pub(crate) fn add_bos(&self, ids: Vec<u32>, bos: Bos) -> Vec<u32> {
        let adds_bos = match bos {
            Bos::Add => true,
            Bos::Once => ids.first().copied() != self.bos_id() || ids.is_empty(),
            Bos::None => false,
        };
        let template = &self.0.template;
        if adds_bos && template.adds_ids() { template.apply(ids) } else { ids }
    }

    /// Whether a text begins with a written `<bos>`, as a rendered chat does. [`Bos::Add`] puts a second one before
    /// it, as the reference does, [`Bos::Once`] does not; who lets people paste prompts can warn of it.
    ///
    /// ```
    /// use gemma3_tokenizer::{Bos, Tokenizer};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-text/tokenizer.json");
    ///
    /// let tokenizer = Tokenizer::from_file(path)?;
    /// let (text, bos) = ("<bos>the inn", tokenizer.bos_id().unwrap());
    /// assert!(tokenizer.starts_with_bos(text) && !tokenizer.starts_with_bos("the inn"));
    /// assert_eq!(tokenizer.encode(text, Bos::Add)?[..2], [bos, bos]);
    /// assert_ne!(tokenizer.encode(text, Bos::Once)?[1], bos);
    /// # Ok::<(), gemma3_tokenizer::TokenizerError>(())
    /// ```
    pub fn starts_with_bos(&self, text: &str) -> bool {
        let bos = self.bos_id().and_then(|id| self.id_to_token(id)).filter(|bos| !bos.is_empty());
        bos.is_some_and(|bos| text.starts_with(&bos))
    }

    /// Encodes two texts as the reference does: for Gemma `<bos>` first `<bos>` second.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_pair(&self, first: &str, second: &str, bos: Bos) -> Result<Vec<u32>, TokenizerError> {
        let first = self.encode(first, Bos::None)?;
        let second = self.encode(second, Bos::None)?;
        let starts_with_bos = !first.is_empty() && first.first().copied() == self.bos_id();
        Ok(match bos {
            Bos::Add => self.0.template.apply_pair(&first, &second),
            Bos::Once if !starts_with_bos => self.0.template.apply_pair(&first, &second),
            Bos::Once | Bos::None => [first, second].concat(),
        })
    }

    fn encode_bare(&self, text: &str, special_tokens: SpecialTokens) -> Result<Vec<u32>, TokenizerError> {
        let pipeline = match special_tokens {
            SpecialTokens::Parse => &self.0.parsing,
            SpecialTokens::Escape => &self.0.escaping,
        };
        let encoding = contained(TokenizerError::encode, || {
            pipeline.encode_fast(text, false).map_err(TokenizerError::encode)
        });
        Ok(encoding?.get_ids().to_vec())
    }

    /// Decodes ids as the reference does. `skip_special` leaves out [`Tokenizer::special_ids`].
    ///
    /// Ids without a token (beyond the vocabulary, or in a gap of it) are passed over; byte tokens
    /// that are not valid UTF-8 become one U+FFFD each.
    ///
    /// # Errors
    /// Only with custom decoders.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        if ids.is_empty() {
            return Ok(String::new()); // As a stream without ids; not every decoder takes nothing.
        }
        let DecodePlan::Incremental(steps) = &self.0.decode_plan else {
            return contained(TokenizerError::decode, || {
                self.0.parsing.decode(ids, skip_special).map_err(TokenizerError::decode)
            });
        };
        let mut text = String::new();
        let mut run = ByteRun::default();
        for token in ids.iter().filter_map(|&id| self.token_to_decode(id, skip_special)) {
            steps.push(token, &mut run, &mut text);
        }
        run.finish(&mut text);
        Ok(text)
    }

    /// Starts decoding a stream of ids; see [`StreamDecoder`].
    pub fn stream_decoder(&self, skip_special: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), skip_special)
    }

    pub(crate) fn decode_plan(&self) -> &DecodePlan {
        &self.0.decode_plan
    }

    pub(crate) fn token_to_decode(&self, id: u32, skip_special: bool) -> Option<String> {
        if skip_special && self.0.special.contains(&id) {
            return None;
        }
        self.id_to_token(id)
    }

    /// The id of a token, given its text in the vocabulary ("▁" stands for a space there).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.parsing.token_to_id(token)
    }

    pub(crate) fn required_id(&self, token: &str) -> Result<u32, TokenizerError> {
        self.token_to_id(token).ok_or_else(|| TokenizerError::MissingToken { token: token.to_owned() })
    }

    /// The text of an id in the vocabulary, or `None` if the id has no token.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.parsing.id_to_token(id)
    }

    /// Whether the id has a token. A model may have more rows than that (Gemma 3's 4B and larger
    /// have 262,208); such ids must not be sampled.
    pub fn is_known(&self, id: u32) -> bool {
        self.0.parsing.get_model().is_known(id)
    }

    /// The number of tokens, added ones included. If ids have gaps [`Tokenizer::max_id`] is larger.
    pub fn vocab_size(&self) -> usize {
        self.0.parsing.get_model().get_vocab_size()
    }

    /// All ids that have a token, ascending.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = u32> {
        self.0.parsing.get_model().ids().iter().copied()
    }

    /// The largest id that has a token.
    pub fn max_id(&self) -> u32 {
        self.0.parsing.get_model().max_id()
    }

    /// The ids of the special tokens, ascending: `skip_special` leaves them out.
    pub fn special_ids(&self) -> &[u32] {
        &self.0.special_ids
    }

    /// Whether the id is one of [`Tokenizer::special_ids`].
    pub fn is_special(&self, id: u32) -> bool {
        self.0.special.contains(&id)
    }

    /// The id of `<bos>`.
    pub fn bos_id(&self) -> Option<u32> {
        self.0.names.bos
    }

    /// The id of `<eos>`; in a GGUF file the one that its metadata names.
    pub fn eos_id(&self) -> Option<u32> {
        self.0.names.eos
    }

    /// The id of `<pad>`.
    pub fn padding_id(&self) -> Option<u32> {
        self.0.names.padding
    }

    /// The id of `<unk>`.
    pub fn unknown_id(&self) -> Option<u32> {
        self.0.names.unknown
    }

    /// The id of `<end_of_turn>`, which ends every answer of an instruction-tuned model.
    pub fn end_of_turn_id(&self) -> Option<u32> {
        self.0.end_of_turn
    }

    /// The Jinja chat template of a GGUF file, if it has one. Base models have none, and
    /// tokenizer.json never has: for a folder look into tokenizer_config.json.
    pub fn chat_template(&self) -> Option<&str> {
        self.0.chat_template.as_deref()
    }
}

/// Turns a panic of the `tokenizers` crate into an error: it has steps that panic on settings or tokens that they
/// don't expect, and the file that names the steps is a stranger's. Nothing that is used afterwards was being
/// changed, because a pipeline does not change when it encodes or decodes.
fn contained<T>(
    error: fn(tokenizers::Error) -> TokenizerError,
    operation: impl FnOnce() -> Result<T, TokenizerError>,
) -> Result<T, TokenizerError> {
    catch_unwind(AssertUnwindSafe(operation))
        .unwrap_or_else(|_| Err(error("the `tokenizers` crate failed on it".into())))
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}
