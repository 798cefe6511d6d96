//! What to generate, and why it ended.

use std::fmt;
use std::sync::Arc;

use crate::config::{GenerationConfig, ModelConfig};
use crate::sampling::SamplingOptions;

/// How to continue a sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContinueOptions {
    /// How a token is chosen. Without a seed, one is drawn when the generation starts.
    pub sampling: SamplingOptions,
    /// The most tokens to generate. `None`: until a stop id or until the context is full.
    pub max_new_tokens: Option<usize>,
    /// Ids that end the text. The id itself is generated, as the last one. These are all stop ids:
    /// [`ContinueOptions::for_model`] starts with the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Ids that are never chosen, because they have no token.
    pub suppressed_ids: Arc<[u32]>,
    /// `Some(n)`: report each token's log-probability and the `n` most probable tokens.
    pub logprobs: Option<usize>,
}

impl ContinueOptions {
    /// The defaults that a checkpoint asks for: its `generation_config.json` where it says something
    /// (without `do_sample`, greedy, as Hugging Face has it), and its end-of-sequence ids.
    pub fn for_model(config: &ModelConfig, defaults: &GenerationConfig) -> Self {
        let base = SamplingOptions::default();
        let sampling = SamplingOptions {
            do_sample: defaults.do_sample.unwrap_or(false),
            temperature: defaults.temperature.map_or(base.temperature, |v| v as f32),
            top_k: defaults.top_k.unwrap_or(base.top_k),
            top_p: defaults.top_p.map_or(base.top_p, |v| v as f32),
            min_p: defaults.min_p.map_or(base.min_p, |v| v as f32),
            repetition_penalty: defaults.repetition_penalty.map_or(base.repetition_penalty, |v| v as f32),
            ..base
        };
        let mut stop_token_ids = config.eos_token_ids.clone();
        stop_token_ids.extend(&defaults.eos_token_ids);
        stop_token_ids.sort_unstable();
        stop_token_ids.dedup();
        Self { sampling, max_new_tokens: defaults.max_new_tokens, stop_token_ids, ..Self::default() }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// A stop id, or a stop string.
    Stop,
    /// `max_new_tokens` were generated.
    Length,
    /// It was cancelled.
    Cancelled,
    /// The cache has no room for another token.
    ContextFull,
}

impl FinishReason {
    /// The name in machine-readable output: `stop`, `length`, `cancelled`, `context_full`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::ContextFull => "context_full",
        }
    }
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
