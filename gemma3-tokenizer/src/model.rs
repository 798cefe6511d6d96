//! The BPE model behind the pipeline: the one of the `tokenizers` crate, shared by the pipelines
//! that parse special tokens and that escape them, and without the special tokens themselves.
//!
//! BPE never sees a special token when the reference encodes (they are cut out of the text before).
//! Because they are not in its vocabulary here, no merge can build one out of ordinary text either.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::bpe::{BPE, BpeBuilder, BpeTrainer, Merges};
use tokenizers::{Model, Token};

use crate::error::{TokenizerError, shorten};
use crate::parts::{BpeParts, SPACE_MARK};

/// A BPE and the tokens that are outside of it, cheap to clone.
#[derive(Clone)]
pub(crate) struct SharedModel(Arc<Vocabulary>);

struct Vocabulary {
    bpe: BPE,
    outside: HashMap<String, u32>,
    outside_texts: HashMap<u32, String>,
    /// All ids, in the BPE or outside, ascending.
    ids: Vec<u32>,
    words: Words,
}

impl SharedModel {
    /// Builds the BPE from `parts`, leaving out the tokens of `outside`.
    ///
    /// # Errors
    /// Two tokens with one id, a merge outside of the vocabulary, or what the `tokenizers` crate refuses.
    pub fn new(mut parts: BpeParts, outside: HashMap<String, u32>) -> Result<Self, TokenizerError> {
        for (token, &id) in &outside {
            if parts.unk_token.as_ref() == Some(token) {
                // The model looks the unknown token up by name; nothing can be merged into it (below).
                parts.vocab.insert(token.clone(), id);
            } else {
                parts.vocab.remove(token);
            }
        }
        let (ids, words) = std::thread::scope(|scope| {
            let words = scope.spawn(|| Words::of(&parts));
            let ids = check_ids(&parts, &outside).and_then(|ids| check_merges(&parts).map(|()| ids));
            (ids, words.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let ids = ids?;
        drop_merges_of(&outside, &mut parts.merges);

        let mut builder = BpeBuilder::new()
            .vocab_and_merges(parts.vocab, parts.merges)
            // Gemma's words are whole segments of the text: a cache would hold on to them for nothing.
            .cache_capacity(0)
            .byte_fallback(parts.byte_fallback)
            .fuse_unk(parts.fuse_unk)
            .ignore_merges(parts.ignore_merges);
        if let Some(unk_token) = parts.unk_token {
            builder = builder.unk_token(unk_token);
        }
        if let Some(dropout) = parts.dropout {
            builder = builder.dropout(dropout);
        }
        if let Some(prefix) = parts.continuing_subword_prefix {
            builder = builder.continuing_subword_prefix(prefix);
        }
        if let Some(suffix) = parts.end_of_word_suffix {
            builder = builder.end_of_word_suffix(suffix);
        }
        let bpe = builder.build().map_err(TokenizerError::build)?;
        let outside_texts = outside.iter().map(|(token, &id)| (id, token.clone())).collect();
        Ok(Self(Arc::new(Vocabulary { bpe, outside, outside_texts, ids, words })))
    }

    /// The largest id.
    pub fn max_id(&self) -> u32 {
        self.0.ids.last().copied().unwrap_or_default()
    }

    /// All ids, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.0.ids
    }

    /// Whether an id has a token.
    pub fn is_known(&self, id: u32) -> bool {
        self.0.ids.binary_search(&id).is_ok()
    }
}

/// Every id has one text. Returns the ids, ascending; there is one at least.
fn check_ids(parts: &BpeParts, outside: &HashMap<String, u32>) -> Result<Vec<u32>, TokenizerError> {
    let inside = parts.vocab.iter().filter(|(token, _)| !outside.contains_key(*token));
    let mut by_id: Vec<(u32, &str)> =
        inside.chain(outside).map(|(token, &id)| (id, token.as_str())).collect();
    by_id.sort_unstable();
    let twice = by_id.array_windows().find(|[first, second]| first.0 == second.0);
    if let Some([first, second]) = twice {
        let (first, second, id) = (shorten(first.1), shorten(second.1), first.0);
        return Err(TokenizerError::DuplicateId { id, first, second });
    }
    if by_id.is_empty() {
        return Err(TokenizerError::EmptyVocabulary);
    }
    Ok(by_id.into_iter().map(|(id, _)| id).collect())
}

/// The builder of the `tokenizers` crate panics (or worse) on merges that are longer than every token
/// or lack the prefix; it reports the other impossible ones itself.
fn check_merges(parts: &BpeParts) -> Result<(), TokenizerError> {
    let longest = parts.vocab.keys().map(String::len).max().unwrap_or(0);
    let prefix = parts.continuing_subword_prefix.as_deref().unwrap_or("");
    for (rank, (left, right)) in parts.merges.iter().enumerate() {
        let fits = right
            .strip_prefix(prefix)
            .and_then(|right| left.len().checked_add(right.len()))
            .is_some_and(|length| length <= longest);
        if !fits {
            return Err(TokenizerError::InvalidMerge { rank, left: shorten(left), right: shorten(right) });
        }
    }
    Ok(())
}

/// Drops the merges that need or make a token outside of the BPE.
fn drop_merges_of(outside: &HashMap<String, u32>, merges: &mut Merges) {
    let lengths: HashSet<usize> = outside.keys().map(String::len).collect();
    let is_outside = |token: &str| lengths.contains(&token.len()) && outside.contains_key(token);
    let mut merged = String::new();
    merges.retain(|(left, right)| {
        let makes_one = lengths.contains(&left.len().saturating_add(right.len())) && {
            merged.clear();
            merged.push_str(left);
            merged.push_str(right);
            outside.contains_key(&merged)
        };
        !makes_one && !is_outside(left) && !is_outside(right)
    });
}

/// Where a text can be cut without changing its ids: before a "▁" after another character, if no token
/// has these two characters side by side. No merge can then ever join the two sides.
///
/// Gemma's BPE gets whole segments of the text as one word. Cut into real words its queue of merges
/// stays small, which makes it several times as fast on long texts.
struct Words {
    /// Whether the model has only merges to join symbols with, and "▁" is a symbol.
    can_cut: bool,
    /// Characters that some token has right before a "▁".
    joined: HashSet<char>,
}

impl Words {
    fn of(parts: &BpeParts) -> Self {
        let mut joined = HashSet::new();
        for token in parts.vocab.keys() {
            let marks = token.match_indices(SPACE_MARK);
            joined.extend(marks.filter_map(|(mark, _)| token.get(..mark)?.chars().next_back()));
        }
        let is_plain = parts.continuing_subword_prefix.is_none()
            && parts.end_of_word_suffix.is_none()
            && parts.dropout.is_none();
        Self { can_cut: is_plain && parts.vocab.contains_key("▁"), joined }
    }

    /// The words of `sequence` with their first byte's position.
    fn split<'a>(&'a self, bpe: &'a BPE, sequence: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        let can_cut_at = move |mark: usize| {
            let before = sequence.get(..mark).and_then(|text| text.chars().next_back());
            // A character that is not a token of its own becomes bytes, or is fused with its neighbours.
            before.is_some_and(|before| {
                !self.joined.contains(&before) && bpe.token_to_id(before.encode_utf8(&mut [0; 4])).is_some()
            })
        };
        let marks = sequence.match_indices(SPACE_MARK).map(|(mark, _)| mark);
        let cuts = marks.filter(move |&mark| self.can_cut && can_cut_at(mark));
        let mut start = 0;
        cuts.chain([sequence.len()]).filter_map(move |end| {
            let word = sequence.get(start..end).map(|word| (start, word));
            start = end;
            word.filter(|(_, word)| !word.is_empty())
        })
    }
}

impl Model for SharedModel {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        let mut tokens = Vec::new();
        for (start, word) in self.0.words.split(&self.0.bpe, sequence) {
            tokens.extend(self.0.bpe.tokenize(word)?.into_iter().map(|mut token| {
                token.offsets.0 += start;
                token.offsets.1 += start;
                token
            }));
        }
        Ok(tokens)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.outside.get(token).copied().or_else(|| self.0.bpe.token_to_id(token))
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.outside_texts.get(&id).cloned().or_else(|| self.0.bpe.id_to_token(id))
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        let mut vocab = self.0.bpe.get_vocab();
        vocab.extend(self.0.outside.iter().map(|(token, &id)| (token.clone(), id)));
        vocab
    }

    fn get_vocab_size(&self) -> usize {
        self.0.ids.len()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("this tokenizer is read-only".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}
