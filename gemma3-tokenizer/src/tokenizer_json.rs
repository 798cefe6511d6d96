//! Hugging Face's tokenizer.json: reads it into [`Parts`].
//!
//! `truncation` and `padding` are left out, as transformers does unless a call asks for them: a prompt
//! must not lose its end because of what a training run wrote into the file.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;

use crate::decode::DecodePlan;
use crate::error::{TokenizerError, shorten};
use crate::parts::{BpeParts, Names, Parts};
use crate::steps;
use crate::template::EncodeTemplate;

/// Reads the bytes of a tokenizer.json.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parts, TokenizerError> {
    reject_git_lfs_pointer(bytes)?;
    let file: File = serde_json::from_slice(bytes).map_err(|source| TokenizerError::Parse { source })?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(TokenizerError::Unsupported {
            part: "version",
            found: shorten(&version),
            expected: "1.0",
        });
    }
    if let Some(kind) = file.model.kind.filter(|kind| kind != "BPE") {
        return Err(TokenizerError::Unsupported {
            part: "model type",
            found: shorten(&kind),
            expected: "BPE",
        });
    }
    let Some(vocab) = file.model.vocab else {
        return Err(TokenizerError::EmptyVocabulary);
    };
    steps::check("normalizer", file.normalizer.as_ref())?;
    steps::check("pre_tokenizer", file.pre_tokenizer.as_ref())?;
    steps::check("decoder", file.decoder.as_ref())?;
    let model = BpeParts {
        vocab,
        merges: file.model.merges.into_iter().map(|merge| (merge.0, merge.1)).collect(),
        unk_token: file.model.unk_token,
        byte_fallback: file.model.byte_fallback.unwrap_or(false),
        fuse_unk: file.model.fuse_unk.unwrap_or(false),
        ignore_merges: file.model.ignore_merges.unwrap_or(false),
        dropout: file.model.dropout,
        continuing_subword_prefix: file.model.continuing_subword_prefix,
        end_of_word_suffix: file.model.end_of_word_suffix,
    };
    // Where the file contradicts itself the vocabulary decides, as in the `tokenizers` crate.
    let added_tokens = file
        .added_tokens
        .into_iter()
        .map(|added| (model.vocab.get(&added.token.content).copied().unwrap_or(added.id), added.token))
        .collect();
    let unknown = model.unk_token.as_ref().and_then(|token| model.vocab.get(token)).copied();
    let names = Names { unknown, ..Names::default() };
    Ok(Parts {
        model,
        added_tokens,
        decode_only: HashMap::new(),
        normalizer: step(file.normalizer)?,
        pre_tokenizer: step(file.pre_tokenizer)?,
        template: EncodeTemplate::from_json(file.post_processor.as_ref())?,
        decode_plan: DecodePlan::from_json(file.decoder.as_ref()),
        decoder: file.decoder.filter(|decoder| !decoder.is_null()),
        names,
        chat_template: None,
    })
}

/// What lies there after a `git clone` without Git LFS. (The file is too large for Git alone.)
fn reject_git_lfs_pointer(bytes: &[u8]) -> Result<(), TokenizerError> {
    if !bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Ok(());
    }
    let size = bytes.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"size "));
    let size = size.and_then(|digits| std::str::from_utf8(digits).ok());
    Err(TokenizerError::GitLfsPointer { bytes: size.and_then(|digits| digits.trim_end().parse().ok()) })
}

/// A normalizer or pre-tokenizer of the `tokenizers` crate.
fn step<T: DeserializeOwned>(step: Option<Value>) -> Result<Option<T>, TokenizerError> {
    let step = step.filter(|step| !step.is_null()).map(serde_json::from_value).transpose();
    step.map_err(|source| TokenizerError::Parse { source })
}

#[derive(Deserialize)]
struct File {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<FileAddedToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: FileModel,
}

#[derive(Deserialize)]
struct FileAddedToken {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct FileModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "vocabulary_of_bpe")]
    vocab: Option<Vocab>,
    #[serde(default)]
    merges: Vec<FileMerge>,
    unk_token: Option<String>,
    byte_fallback: Option<bool>,
    fuse_unk: Option<bool>,
    ignore_merges: Option<bool>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// A vocabulary of another shape (Unigram's list) is passed over: the model type names the reason.
fn vocabulary_of_bpe<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vocab>, D::Error> {
    struct OfBpe;

    impl<'de> Visitor<'de> for OfBpe {
        type Value = Option<Vocab>;

        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str("a map from token to id")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut vocab = Vocab::default();
            while let Some((token, id)) = map.next_entry::<String, u32>()? {
                vocab.insert(token, id);
            }
            Ok(Some(vocab))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
            while sequence.next_element::<IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    }

    deserializer.deserialize_any(OfBpe)
}

/// `["a", "b"]`, or `"a b"` in older files.
struct FileMerge(String, String);

impl<'de> Deserialize<'de> for FileMerge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;

        impl<'de> Visitor<'de> for Pair {
            type Value = FileMerge;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("two tokens, as a list or separated by a space")
            }

            fn visit_str<E: serde::de::Error>(self, merge: &str) -> Result<FileMerge, E> {
                match merge.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => Ok(FileMerge(left.into(), right.into())),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(&shorten(merge)), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<FileMerge, A::Error> {
                let short = |length| A::Error::invalid_length(length, &"two tokens");
                let left = parts.next_element()?.ok_or_else(|| short(0))?;
                let right = parts.next_element()?.ok_or_else(|| short(1))?;
                match parts.next_element::<IgnoredAny>()? {
                    None => Ok(FileMerge(left, right)),
                    Some(_) => Err(short(3)),
                }
            }
        }

        deserializer.deserialize_any(Pair)
    }
}
