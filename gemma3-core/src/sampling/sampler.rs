//! The whole chain from logits to a token.

use std::sync::Arc;

use super::scan::{PROCESSED, RAW, check, largest};
use super::{Candidates, RandomKey, SamplingError, SamplingOptions, TokenHistory, processors, uniform};

/// Chooses the next token from the logits of one position. Holds options and no state, so one
/// sampler serves any number of sequences and threads.
///
/// ```
/// use gemma3_core::sampling::{RandomKey, Sampler, SamplingOptions, TokenHistory};
///
/// let options = SamplingOptions { top_k: 2, ..SamplingOptions::default() };
/// let sampler = Sampler::new(options)?;
/// let mut logits = [0.5, 2.0, -1.0, 1.5];
/// let key = RandomKey { seed: 7, sequence: 0, position: 12 };
/// let id = sampler.sample(&mut logits, &TokenHistory::new(), key)?;
/// assert!(id == 1 || id == 3);
/// # Ok::<(), gemma3_core::sampling::SamplingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    suppressed: Arc<[u32]>,
}

impl Sampler {
    /// A sampler with the options given, and no suppressed ids.
    ///
    /// # Errors
    /// Those of [`SamplingOptions::validate`].
    pub fn new(options: SamplingOptions) -> Result<Self, SamplingError> {
        options.validate()?;
        Ok(Self { options, suppressed: Arc::from([]) })
    }

    /// Never chooses one of these ids, drawing or greedy: ids that have a row in the embedding but
    /// no token in the tokenizer. Replaces the ids of an earlier call. The list is shared between
    /// clones.
    pub fn with_suppressed(mut self, ids: impl Into<Arc<[u32]>>) -> Self {
        self.suppressed = ids.into();
        self
    }

    /// The options.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// The ids that are never chosen.
    pub fn suppressed(&self) -> &[u32] {
        &self.suppressed
    }

    /// Chooses a token. `logits` has one entry per token of the vocabulary and serves as working
    /// space: take [`logprob`](super::logprob)s before.
    ///
    /// Greedy, this is the largest logit after suppression, penalties and bias, and the lowest id
    /// on ties; `key` is not used.
    ///
    /// # Errors
    /// [`SamplingError::NoLogits`], [`SamplingError::NanLogit`], [`SamplingError::InfiniteLogit`],
    /// [`SamplingError::TokenOutOfRange`] for a `logit_bias` beyond the vocabulary, and
    /// [`SamplingError::NothingLeft`] if nothing may be chosen.
    pub fn sample(
        &self,
        logits: &mut [f32],
        history: &TokenHistory,
        key: RandomKey,
    ) -> Result<u32, SamplingError> {
        self.penalize(logits, history)?;
        if self.options.is_greedy() {
            return Ok(largest(logits, PROCESSED)?.0);
        }
        let vocab_size = logits.len();
        self.candidates(logits)?.draw(uniform(key)).ok_or(SamplingError::NothingLeft { vocab_size })
    }

    /// The distribution that [`sample`](Self::sample) draws from: the ids that can be chosen,
    /// ascending, with their probabilities. Greedy, it is one id with probability 1. `logits`
    /// serves as working space.
    ///
    /// # Errors
    /// Those of [`sample`](Self::sample).
    pub fn distribution(
        &self,
        logits: &mut [f32],
        history: &TokenHistory,
    ) -> Result<Vec<(u32, f32)>, SamplingError> {
        self.penalize(logits, history)?;
        if self.options.is_greedy() {
            return Ok(vec![(largest(logits, PROCESSED)?.0, 1.0)]);
        }
        let candidates = self.candidates(logits)?;
        Ok(candidates.probabilities().map(|(id, probability)| (id, probability as f32)).collect())
    }

    /// The steps that run in greedy decoding too.
    fn penalize(&self, logits: &mut [f32], history: &TokenHistory) -> Result<(), SamplingError> {
        let options = &self.options;
        // Before a processor could hide what only a broken model gives.
        check(logits, RAW)?;
        processors::suppress(logits, &self.suppressed);
        if options.repetition_penalty != 1.0 {
            processors::repetition_penalty(logits, options.repetition_penalty, history);
        }
        if options.presence_penalty != 0.0 {
            processors::presence_penalty(logits, options.presence_penalty, history);
        }
        if options.frequency_penalty != 0.0 {
            processors::frequency_penalty(logits, options.frequency_penalty, history);
        }
        processors::logit_bias(logits, &options.logit_bias)
    }

    /// The steps that run only when drawing.
    fn candidates(&self, logits: &mut [f32]) -> Result<Candidates, SamplingError> {
        let options = &self.options;
        processors::temperature(logits, options.temperature);
        processors::top_k(logits, options.top_k);
        let mut candidates = Candidates::from_logits(logits)?;
        candidates.retain_top_p(options.top_p);
        candidates.retain_min_p(options.min_p);
        Ok(candidates)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const NONE: f32 = f32::NEG_INFINITY;

    fn key(position: u64) -> RandomKey {
        RandomKey { seed: 1, sequence: 0, position }
    }

    fn choose(options: SamplingOptions, logits: &[f32]) -> Result<u32, SamplingError> {
        Sampler::new(options)?.sample(&mut logits.to_vec(), &TokenHistory::new(), key(0))
    }

    #[test]
    fn greedy_takes_the_largest_logit_and_the_lowest_id_on_ties() {
        let logits = [1.0, 4.0, 4.0, -1.0];
        assert_eq!(choose(SamplingOptions::greedy(), &logits), Ok(1));
        let cold = SamplingOptions { temperature: 0.0, ..SamplingOptions::default() };
        assert_eq!(choose(cold, &logits), Ok(1));
    }

    #[test]
    fn suppressed_ids_are_chosen_neither_greedily_nor_by_chance() -> Result<(), SamplingError> {
        let logits = [9.0, 8.0, 7.0];
        for options in [SamplingOptions::greedy(), SamplingOptions::default()] {
            let sampler = Sampler::new(options)?.with_suppressed([0, 2, 77]);
            for position in 0..200 {
                let history = TokenHistory::new();
                let id = sampler.sample(&mut logits.clone(), &history, key(position))?;
                assert_eq!(id, 1);
            }
        }
        Ok(())
    }

    #[test]
    fn a_positive_bias_does_not_bring_a_suppressed_id_back() -> Result<(), SamplingError> {
        let options =
            SamplingOptions { logit_bias: BTreeMap::from([(0, 100.0)]), ..SamplingOptions::greedy() };
        let sampler = Sampler::new(options)?.with_suppressed([0]);
        let id = sampler.sample(&mut [9.0, 8.0], &TokenHistory::new(), key(0))?;
        assert_eq!(id, 1);
        Ok(())
    }

    #[test]
    fn penalties_and_bias_act_on_the_greedy_choice_and_temperature_does_not() -> Result<(), SamplingError> {
        let history = TokenHistory::from_tokens(&[0], &[1]);
        let choice = |options: SamplingOptions| {
            let options = SamplingOptions { temperature: 1e-4, top_k: 1, do_sample: false, ..options };
            Sampler::new(options)?.sample(&mut [4.0, 3.9, 3.8], &history, key(0))
        };
        let neutral = SamplingOptions::default();
        assert_eq!(choice(neutral.clone())?, 0);
        let repetition = SamplingOptions { repetition_penalty: 1.2, ..neutral.clone() };
        assert_eq!(choice(repetition)?, 2);
        let presence = SamplingOptions { presence_penalty: 1.0, ..neutral.clone() };
        assert_eq!(choice(presence)?, 0); // Token 0 stands in the prompt only.
        let bias = SamplingOptions { logit_bias: BTreeMap::from([(0, NONE)]), ..neutral };
        assert_eq!(choice(bias)?, 1);
        Ok(())
    }

    #[test]
    fn the_bias_comes_after_the_penalties() -> Result<(), SamplingError> {
        let options = SamplingOptions {
            repetition_penalty: 2.0,
            logit_bias: BTreeMap::from([(0, -3.0)]),
            ..SamplingOptions::default()
        };
        let mut logits = [4.0, 0.0];
        // 4 / 2 - 3 = -1; the other order would give (4 - 3) / 2 = 0.5.
        let history = TokenHistory::from_tokens(&[0], &[]);
        let distribution = Sampler::new(options)?.distribution(&mut logits, &history)?;
        let expected = (-1f64).exp() / (1.0 + (-1f64).exp());
        assert!((f64::from(distribution[0].1) - expected).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn equal_keys_choose_equally_and_positions_differ() -> Result<(), SamplingError> {
        let sampler = Sampler::new(SamplingOptions::default())?;
        let logits = vec![0.0; 1000];
        let history = TokenHistory::new();
        let draw = |position| sampler.sample(&mut logits.clone(), &history, key(position));
        let first: Vec<u32> = (0..50).map(draw).collect::<Result<_, _>>()?;
        let backwards: Vec<u32> = (0..50).rev().map(draw).collect::<Result<_, _>>()?;
        assert!(first.iter().eq(backwards.iter().rev()));
        assert!(first.windows(2).any(|pair| pair[0] != pair[1]));
        Ok(())
    }

    #[test]
    fn the_greedy_distribution_is_one_certain_token() -> Result<(), SamplingError> {
        let sampler = Sampler::new(SamplingOptions::greedy())?;
        let distribution = sampler.distribution(&mut [0.0, 1.0], &TokenHistory::new())?;
        assert_eq!(distribution, [(1, 1.0)]);
        Ok(())
    }

    #[test]
    fn nan_is_an_error_that_names_the_token_even_if_it_is_suppressed() -> Result<(), SamplingError> {
        for options in [SamplingOptions::greedy(), SamplingOptions::default()] {
            let sampler = Sampler::new(options)?.with_suppressed([2]);
            let mut logits = [0.0, 1.0, f32::NAN];
            let result = sampler.sample(&mut logits, &TokenHistory::new(), key(0));
            assert_eq!(result, Err(SamplingError::NanLogit { id: 2 }));
        }
        Ok(())
    }

    #[test]
    fn infinite_logits_are_errors_that_say_where_they_arose() {
        let raw = choose(SamplingOptions::default(), &[0.0, f32::INFINITY]).unwrap_err();
        assert!(raw.to_string().contains("as the model gave it"), "{raw}");
        let cold = SamplingOptions { temperature: 2e-5, ..SamplingOptions::default() };
        let overflow = choose(cold, &[0.0, 1e37]).unwrap_err();
        assert!(overflow.to_string().contains("after the sampling options"), "{overflow}");
    }

    #[test]
    fn no_logits_and_nothing_left_are_errors() -> Result<(), SamplingError> {
        let greedy = SamplingOptions::greedy;
        assert_eq!(choose(greedy(), &[]), Err(SamplingError::NoLogits));
        for options in [greedy(), SamplingOptions::default()] {
            let nothing = Err(SamplingError::NothingLeft { vocab_size: 2 });
            assert_eq!(choose(options.clone(), &[NONE, NONE]), nothing);
            let sampler = Sampler::new(options)?.with_suppressed([0, 1]);
            let result = sampler.sample(&mut [1.0, 2.0], &TokenHistory::new(), key(0));
            assert_eq!(result, nothing);
        }
        Ok(())
    }

    #[test]
    fn invalid_options_make_no_sampler() {
        let options = SamplingOptions { temperature: f32::NAN, ..SamplingOptions::default() };
        assert!(matches!(
            Sampler::new(options),
            Err(SamplingError::InvalidOption { field: "temperature", .. })
        ));
    }
}
