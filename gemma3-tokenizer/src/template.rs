//! Which ids surround an encoded text (`<bos>` A, or `<bos>` A `<bos>` B): the `post_processor` of
//! tokenizer.json, reduced to what concerns ids.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{TokenizerError, shorten};

/// The pieces of a single text and of a pair of texts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EncodeTemplate {
    single: Vec<Piece>,
    pair: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    First,
    Second,
    Ids(Vec<u32>),
}

impl Default for EncodeTemplate {
    fn default() -> Self {
        Self { single: vec![Piece::First], pair: vec![Piece::First, Piece::Second] }
    }
}

impl EncodeTemplate {
    /// One BOS before every text, as Gemma has it.
    pub fn with_bos(bos: u32) -> Self {
        let bos = || Piece::Ids(vec![bos]);
        Self { single: vec![bos(), Piece::First], pair: vec![bos(), Piece::First, bos(), Piece::Second] }
    }

    /// Reads the `post_processor` of a tokenizer.json.
    pub fn from_json(post_processor: Option<&Value>) -> Result<Self, TokenizerError> {
        let Some(value) = post_processor.filter(|value| !value.is_null()) else {
            return Ok(Self::default());
        };
        match value.get("type").and_then(Value::as_str) {
            Some("TemplateProcessing") => File::deserialize(value)
                .map_err(|source| TokenizerError::Parse { source })
                .and_then(Self::from_file),
            // Moves offsets only.
            Some("ByteLevel") => Ok(Self::default()),
            other => Err(TokenizerError::Unsupported {
                part: "post_processor",
                found: shorten(other.unwrap_or("without a type")),
                expected: "TemplateProcessing, ByteLevel or null",
            }),
        }
    }

    fn from_file(file: File) -> Result<Self, TokenizerError> {
        file.check_sizes()?;
        let resolve = |pieces: Vec<FilePiece>, is_pair: bool| {
            pieces
                .into_iter()
                .map(|piece| match piece {
                    FilePiece::Sequence { id: Sequence::A } => Ok(Piece::First),
                    FilePiece::Sequence { id: Sequence::B } if is_pair => Ok(Piece::Second),
                    FilePiece::Sequence { id: Sequence::B } => Err(TokenizerError::Unsupported {
                        part: "template",
                        found: "B in `single`".into(),
                        expected: "only A there",
                    }),
                    FilePiece::SpecialToken { id } => match file.special_tokens.get(&id) {
                        Some(token) => Ok(Piece::Ids(token.ids.clone())),
                        None => Err(TokenizerError::MissingToken { token: shorten(&id) }),
                    },
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { single: resolve(file.single, false)?, pair: resolve(file.pair, true)? })
    }

    /// Puts the ids of one text in their place.
    pub fn apply(&self, text: Vec<u32>) -> Vec<u32> {
        Self::fill(&self.single, &text, &[])
    }

    /// Puts the ids of two texts in their places.
    pub fn apply_pair(&self, first: &[u32], second: &[u32]) -> Vec<u32> {
        Self::fill(&self.pair, first, second)
    }

    fn fill(pieces: &[Piece], first: &[u32], second: &[u32]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(first.len() + second.len() + pieces.len());
        for piece in pieces {
            ids.extend_from_slice(match piece {
                Piece::First => first,
                Piece::Second => second,
                Piece::Ids(special) => special,
            });
        }
        ids
    }

    /// The ids that it adds.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.single
            .iter()
            .chain(&self.pair)
            .flat_map(|piece| match piece {
                Piece::Ids(ids) => ids.as_slice(),
                Piece::First | Piece::Second => &[],
            })
            .copied()
    }

    /// Whether some id is added to a single text.
    pub fn adds_ids(&self) -> bool {
        self.single != Self::default().single
    }
}

#[derive(Deserialize)]
struct File {
    single: Vec<FilePiece>,
    pair: Vec<FilePiece>,
    special_tokens: HashMap<String, FileToken>,
}

/// A template may repeat a text, and each piece its ids: far above every real one.
const MOST_PIECES: usize = 64;
const MOST_IDS: usize = 64;

impl File {
    fn check_sizes(&self) -> Result<(), TokenizerError> {
        let refuse =
            |found: String, expected| Err(TokenizerError::Unsupported { part: "template", found, expected });
        let pieces = self.single.len().max(self.pair.len());
        if pieces > MOST_PIECES {
            return refuse(format!("{pieces} pieces"), "at most 64 pieces");
        }
        match self.special_tokens.values().map(|token| token.ids.len()).max() {
            Some(ids) if ids > MOST_IDS => refuse(format!("{ids} ids of one token"), "at most 64 ids"),
            _ => Ok(()),
        }
    }
}

#[derive(Deserialize)]
enum FilePiece {
    Sequence { id: Sequence },
    SpecialToken { id: String },
}

#[derive(Deserialize)]
enum Sequence {
    A,
    B,
}

#[derive(Deserialize)]
struct FileToken {
    ids: Vec<u32>,
}
