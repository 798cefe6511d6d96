//! The vocabulary inside a GGUF file: pieces with SentencePiece scores, made into the same tokenizer as
//! Gemma's tokenizer.json.

use std::collections::{HashMap, HashSet};

use serde_json::json;
use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;

use crate::decode::DecodePlan;
use crate::error::{TokenizerError, shorten};
use crate::merges::{Merge, merges_from_scores};
use crate::parts::{BpeParts, Names, Parts, SPACE_MARK};
use crate::special;
use crate::template::EncodeTemplate;

/// The tokenizer metadata of a GGUF file, as plain data.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`; Gemma 3 files say "llama" (SentencePiece).
    pub model: String,
    /// `tokenizer.ggml.tokens`: the text of each id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`: one a token, higher is merged first.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`: one a token; 1 normal, 2 unknown, 3 control, 4 user-defined,
    /// 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub padding: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`: whether a text begins with BOS. True for Gemma.
    pub add_bos: bool,
    /// `tokenizer.chat_template`, present in instruction-tuned models only.
    pub chat_template: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    fn new(id: u32, found: i32) -> Result<Self, TokenizerError> {
        Ok(match found {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return Err(TokenizerError::InvalidTokenType { id, found }),
        })
    }

    /// SentencePiece gives these a score of 0, above every normal piece; converters overwrite it.
    fn ranks_first(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
    }
}

/// Reads the metadata of a GGUF file.
pub(crate) fn parse(file: GgufVocabulary) -> Result<Parts, TokenizerError> {
    check(&file)?;
    let types = (0u32..)
        .zip(&file.token_types)
        .map(|(id, &found)| TokenType::new(id, found))
        .collect::<Result<Vec<_>, _>>()?;
    let mut names = Names { bos: file.bos, eos: file.eos, unknown: file.unknown, padding: file.padding };

    let scores: Vec<f32> = types
        .iter()
        .zip(&file.scores)
        .map(|(token_type, &score)| if token_type.ranks_first() { 0.0 } else { score })
        .collect();

    let mut added_tokens = Vec::new();
    let mut decode_only = HashMap::new();
    // What takes part in merges, by id; empty for the others.
    let mut pieces: Vec<String> = Vec::with_capacity(file.tokens.len());
    for ((id, token), &token_type) in (0u32..).zip(&file.tokens).zip(&types) {
        let mut piece = token.replace(' ', "▁");
        match added_token(id, token, token_type, &names) {
            // It is matched in the text as it stands, so BPE cannot hold it under another spelling.
            Some(added) if added.content != piece => {
                added_tokens.push((id, added));
                piece.clear();
            }
            Some(added) => added_tokens.push((id, added)),
            None if token_type == TokenType::Unused || piece.is_empty() => {
                // The first of equal unused or empty tokens keeps its text; they are never produced.
                decode_only.entry(std::mem::take(&mut piece)).or_insert(id);
            }
            None => {}
        }
        pieces.push(piece);
    }

    let vocab = vocabulary(&pieces)?;
    let unk_token = match unknown_id(&file, &types) {
        Some(id) => {
            names.unknown = Some(id);
            file.tokens.get(id as usize).cloned()
        }
        None if has_all_bytes(&file, &types) => None,
        None => return Err(TokenizerError::NoFallback),
    };
    let piece_texts: Vec<&str> = pieces.iter().map(String::as_str).collect();
    let text_of = |id: u32| piece_texts.get(id as usize).map_or_else(String::new, |piece| (*piece).into());
    let merges = merges_from_scores(&piece_texts, &scores);
    check_merges(&piece_texts, &merges)?;
    let merges = merges.into_iter().map(|(left, right)| (text_of(left), text_of(right))).collect();

    let decoder = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
        { "type": "ByteFallback" },
        { "type": "Fuse" },
    ]});
    let normalizer = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
    Ok(Parts {
        model: BpeParts {
            vocab,
            merges,
            unk_token,
            byte_fallback: true,
            fuse_unk: true,
            ..BpeParts::default()
        },
        added_tokens,
        decode_only,
        normalizer: serde_json::from_value(normalizer).map_err(|source| TokenizerError::Parse { source })?,
        pre_tokenizer: None,
        template: match names.bos {
            Some(bos) if file.add_bos => EncodeTemplate::with_bos(bos),
            _ => EncodeTemplate::default(),
        },
        decode_plan: DecodePlan::from_json(Some(&decoder)),
        decoder: Some(decoder),
        names,
        chat_template: file.chat_template,
    })
}

/// What can be said without looking at the texts.
fn check(file: &GgufVocabulary) -> Result<(), TokenizerError> {
    if file.model != "llama" {
        return Err(TokenizerError::Unsupported {
            part: "tokenizer.ggml.model",
            found: shorten(&file.model),
            expected: "llama (SentencePiece), as in every Gemma 3 file",
        });
    }
    let (tokens, scores, token_types) = (file.tokens.len(), file.scores.len(), file.token_types.len());
    if tokens != scores || tokens != token_types {
        return Err(TokenizerError::LengthMismatch { tokens, scores, token_types });
    }
    if tokens == 0 {
        return Err(TokenizerError::EmptyVocabulary);
    }
    if let Some((id, &score)) = (0u32..).zip(&file.scores).find(|(_, score)| !score.is_finite()) {
        return Err(TokenizerError::InvalidScore { id, score });
    }
    let named = [
        ("tokenizer.ggml.bos_token_id", file.bos),
        ("tokenizer.ggml.eos_token_id", file.eos),
        ("tokenizer.ggml.unknown_token_id", file.unknown),
        ("tokenizer.ggml.padding_token_id", file.padding),
    ];
    for (key, id) in named {
        if let Some(id) = id.filter(|&id| id as usize >= tokens) {
            return Err(TokenizerError::IdOutOfRange { key, id, vocab_size: tokens });
        }
    }
    Ok(())
}

/// The most bytes that the texts of all merges may have, for each byte of the tokens. Gemma's have 2.
pub(crate) const MERGED_PER_TOKEN_BYTE: usize = 64;

/// The texts of merges grow with the square of a token's length where all its beginnings and ends are tokens, and the
/// `tokenizers` crate takes them as texts.
fn check_merges(pieces: &[&str], merges: &[Merge]) -> Result<(), TokenizerError> {
    let length = |id: u32| pieces.get(id as usize).map_or(0, |piece| piece.len());
    let found: usize = merges.iter().map(|&(left, right)| length(left) + length(right)).sum();
    let tokens: usize = pieces.iter().map(|piece| piece.len()).sum();
    let limit = tokens.saturating_mul(MERGED_PER_TOKEN_BYTE);
    if found > limit { Err(TokenizerError::TooManyMerges { found, limit }) } else { Ok(()) }
}

/// How the token is cut out of the text before BPE, if it is.
fn added_token(id: u32, token: &str, token_type: TokenType, names: &Names) -> Option<AddedToken> {
    let named = [names.bos, names.eos, names.unknown, names.padding].contains(&Some(id));
    let known = named || special::ALL.contains(&token);
    let is_added = match token_type {
        TokenType::Unknown | TokenType::Control | TokenType::UserDefined => true,
        TokenType::Normal => known,
        TokenType::Unused | TokenType::Byte => false,
    };
    if !is_added || token.is_empty() {
        return None;
    }
    let is_special = known
        || token_type == TokenType::Unknown
        || (token_type == TokenType::Control && !is_placeholder(token));
    // Runs of spaces are BPE's in tokenizer.json, where the added token matches U+2581 itself.
    let content = match token.chars().all(|character| character == ' ') {
        true => SPACE_MARK.to_string().repeat(token.len()),
        false => token.to_owned(),
    };
    Some(AddedToken::from(content, is_special).normalized(false))
}

/// Control tokens in GGUF that tokenizer.json does not count as special.
fn is_placeholder(token: &str) -> bool {
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    token == "<mask>"
        || token.strip_prefix("<unused").and_then(|rest| rest.strip_suffix('>')).is_some_and(is_number)
}

fn vocabulary(pieces: &[String]) -> Result<Vocab, TokenizerError> {
    let mut vocab = Vocab::default();
    for (id, piece) in (0u32..).zip(pieces).filter(|(_, piece)| !piece.is_empty()) {
        if let Some(first) = vocab.insert(piece.clone(), id) {
            return Err(TokenizerError::DuplicateToken { token: shorten(piece), first, second: id });
        }
    }
    Ok(vocab)
}

/// The token for characters that are not in the vocabulary: the one that is named, or typed so.
fn unknown_id(file: &GgufVocabulary, types: &[TokenType]) -> Option<u32> {
    let has_text = |id: &u32| file.tokens.get(*id as usize).is_some_and(|token| !token.is_empty());
    let typed = || (0u32..).zip(types).find(|(_, found)| **found == TokenType::Unknown).map(|(id, _)| id);
    file.unknown.or_else(typed).filter(has_text)
}

/// With every byte in the vocabulary no unknown token is needed.
fn has_all_bytes(file: &GgufVocabulary, types: &[TokenType]) -> bool {
    let bytes = file.tokens.iter().zip(types).filter(|(_, found)| **found == TokenType::Byte);
    let texts: HashSet<&str> = bytes.map(|(token, _)| token.as_str()).collect();
    (0..=u8::MAX).all(|byte| texts.contains(format!("<0x{byte:02X}>").as_str()))
}
