//! How to continue a text.

use gemma3_core::sampling::SamplingOptions;

/// How to continue a text. The field names are the ecosystem's.
///
/// [`Gemma3::generate_options`](crate::Gemma3::generate_options) gives the defaults that the model's
/// `generation_config.json` asks for; `GenerateOptions::default()` draws from the model's own
/// distribution without a limit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateOptions {
    /// How a token is chosen: `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, the penalties,
    /// `logit_bias`, `seed`.
    pub sampling: SamplingOptions,
    /// The most tokens to generate. `None`: until the model stops or the context is full.
    pub max_new_tokens: Option<usize>,
    /// Strings that end the text. They are not part of it.
    ///
    /// They are looked for in the text with its special tokens, as by transformers, so `<end_of_turn>` or
    /// `"\n<end_of_turn>"` stop as well; only what was generated is searched, not the prompt.
    pub stop: Vec<String>,
    /// Ids that end the text, in addition to the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Go on after the model's own end-of-sequence ids (for measurements).
    pub ignore_eos: bool,
    /// `Some(n)`: report each token's log-probability, and the `n` most probable tokens in its place.
    pub logprobs: Option<usize>,
}

impl GenerateOptions {
    /// The most probable token each time, without penalties.
    pub fn greedy() -> Self {
        Self { sampling: SamplingOptions::greedy(), ..Self::default() }
    }
}
