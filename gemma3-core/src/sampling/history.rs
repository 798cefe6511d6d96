//! Which tokens a sequence has seen, for the penalties.

use std::collections::HashMap;

/// The distinct tokens of one sequence: prompt and generated text, and how often each was
/// generated.
///
/// The repetition penalty looks at both, as in Hugging Face (BOS and the tokens of images
/// included; padding must not be put in). The presence and frequency penalties look at the
/// generated tokens only, as in OpenAI's API and vLLM, so a long prompt does not push its own
/// vocabulary out of the answer.
///
/// Memory and the cost of a step grow with the number of distinct tokens, not with the length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenHistory {
    /// Token -> how often it was generated; 0 for tokens that stand in the prompt only.
    generated: HashMap<u32, u32>,
}

impl TokenHistory {
    /// A history without tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// The history of a sequence of which the prompt and the generated part are known.
    pub fn from_tokens(prompt: &[u32], generated: &[u32]) -> Self {
        let mut history = Self::new();
        history.push_prompt(prompt);
        for &id in generated {
            history.push_generated(id);
        }
        history
    }

    /// Adds tokens that the caller gave.
    pub fn push_prompt(&mut self, ids: &[u32]) {
        for &id in ids {
            self.generated.entry(id).or_insert(0);
        }
    }

    /// Adds a token that the model generated.
    pub fn push_generated(&mut self, id: u32) {
        let count = self.generated.entry(id).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// Turns everything generated so far into prompt: what was the answer of one turn of a chat is
    /// part of the question of the next.
    pub fn begin_turn(&mut self) {
        self.generated.values_mut().for_each(|count| *count = 0);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.generated.clear();
    }

    /// Whether the token stands in the prompt or was generated.
    pub fn contains(&self, id: u32) -> bool {
        self.generated.contains_key(&id)
    }

    /// How often the token was generated (since the last [`begin_turn`](Self::begin_turn)).
    pub fn generated_count(&self, id: u32) -> u32 {
        self.generated.get(&id).copied().unwrap_or(0)
    }

    /// Number of distinct tokens.
    pub fn distinct_len(&self) -> usize {
        self.generated.len()
    }

    /// Every distinct token with the number of times it was generated, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.generated.iter().map(|(&id, &count)| (id, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_tokens_are_seen_but_not_counted_as_generated() {
        let history = TokenHistory::from_tokens(&[2, 7, 7], &[7, 9, 9]);
        assert_eq!(history.distinct_len(), 3);
        assert!(history.contains(2));
        assert!(!history.contains(3));
        assert_eq!(history.generated_count(2), 0);
        assert_eq!(history.generated_count(7), 1);
        assert_eq!(history.generated_count(9), 2);
        assert_eq!(history.generated_count(3), 0);
    }

    #[test]
    fn a_new_turn_makes_the_answer_part_of_the_prompt() {
        let mut history = TokenHistory::from_tokens(&[2], &[5, 5]);
        history.begin_turn();
        assert!(history.contains(5));
        assert_eq!(history.generated_count(5), 0);
        assert_eq!(history, TokenHistory::from_tokens(&[2, 5], &[]));
    }
}
