//! The tokens with a meaning that a GGUF file names: where a text begins and where it ends.

use super::GgufMetadata;
use crate::checkpoint::{Warning, WarningKind};
use crate::config::{ConfigError, DEFAULT_EOS};

/// Keys of ids that end a text, below `tokenizer.ggml.`: one id each, but for the list that Ollama writes.
const ENDS: [&str; 4] = ["eos_token_id", "eos_token_ids", "eot_token_id", "eom_token_id"];

/// Texts of tokens that end a text, in every Gemma vocabulary.
const END_TEXTS: [&str; 2] = ["<eos>", "<end_of_turn>"];

/// Reads ids of the metadata. What is no token of the model is a warning and passed over: the weights
/// don't depend on it.
pub(super) struct SpecialTokens<'a> {
    label: &'a str,
    metadata: &'a GgufMetadata,
    /// How many tokens there are that the model can give: of the vocabulary, if the file has one.
    count: usize,
    pub(super) warnings: Vec<Warning>,
}

impl<'a> SpecialTokens<'a> {
    /// `label` names the file in warnings; `vocab_size` are the rows of the embedding.
    pub(super) fn new(
        label: &'a str,
        metadata: &'a GgufMetadata,
        vocab_size: usize,
    ) -> Result<Self, ConfigError> {
        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let count = tokens.map_or(vocab_size, |tokens| tokens.len().min(vocab_size));
        Ok(Self { label, metadata, count, warnings: Vec::new() })
    }

    /// The id under one key.
    pub(super) fn one(&mut self, name: &str) -> Option<u32> {
        self.all(name).first().copied()
    }

    /// All ids that end a text: those that the file names, `<eos>` and `<end_of_turn>`. Files of tuned
    /// models name only one of the two, some have no chat template, and a base model gives no
    /// `<end_of_turn>`; llama.cpp ends at it in every file, too.
    pub(super) fn ends(&mut self) -> Result<Vec<u32>, ConfigError> {
        let mut ids: Vec<u32> = ENDS.into_iter().flat_map(|name| self.all(name)).collect();
        // Both are among the first few hundred in every Gemma vocabulary.
        const SPECIAL_TOKENS: usize = 512;
        if let Some(tokens) = self.metadata.strings("tokenizer.ggml.tokens")? {
            let tokens = (0..).zip(tokens.take(SPECIAL_TOKENS));
            ids.extend(tokens.filter(|(_, token)| END_TEXTS.contains(token)).map(|(id, _)| id));
        }
        if ids.is_empty() {
            ids.push(DEFAULT_EOS);
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// The ids under a key: a number or a list of numbers, of any width and sign.
    fn all(&mut self, name: &str) -> Vec<u32> {
        let key = format!("tokenizer.ggml.{name}");
        let numbers = match self.metadata.integers(&key) {
            Ok(numbers) => numbers,
            Err(error) => {
                self.warn(format!("{error}"));
                return Vec::new();
            }
        };
        let is_token = |number: i64| usize::try_from(number).is_ok_and(|id| id < self.count);
        let id = |number: i64| u32::try_from(number).ok().filter(|_| is_token(number));
        let ids = numbers.iter().filter_map(|number| id(*number)).collect();
        if let Some(other) = numbers.iter().find(|number| id(**number).is_none()) {
            let count = self.count;
            self.warn(format!("`{key}` names the id {other}, of a model with {count} tokens"));
        }
        ids
    }

    fn warn(&mut self, problem: String) {
        let effect = "it is passed over";
        self.warnings.push(Warning::new(WarningKind::SpecialToken, self.label, problem, effect));
    }
}
