//! Log-probabilities of the model's raw logits.
//!
//! They are taken before any sampling option: as in OpenAI's API and vLLM they say what the model
//! thinks, not what the sampler made of it. Sums are f64, so that a vocabulary of 262,144 tokens
//! costs no accuracy.

use std::cmp::Ordering;

use super::SamplingError;
use super::processors::kth_largest;
use super::scan::{RAW, largest};

/// A token and its log-probability (natural logarithm).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// ln of its probability: at most 0, -infinity for a token that is impossible.
    pub logprob: f32,
}

/// The log-softmax of one position's logits, evaluated where it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct LogProbs<'a> {
    logits: &'a [f32],
    /// ln of the sum of exp(logit).
    log_sum_exp: f64,
}

impl<'a> LogProbs<'a> {
    /// Computes the normalizer of raw logits, one per token: one pass of exponentials.
    ///
    /// # Errors
    /// [`SamplingError::NoLogits`], [`SamplingError::NanLogit`], [`SamplingError::InfiniteLogit`],
    /// or [`SamplingError::NothingLeft`] if all are -infinity.
    pub fn new(logits: &'a [f32]) -> Result<Self, SamplingError> {
        let (_, max) = largest(logits, RAW)?;
        let max = f64::from(max);
        let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
        Ok(Self { logits, log_sum_exp: max + sum.ln() })
    }

    /// ln of the sum of the exponentials of all logits.
    pub fn log_sum_exp(&self) -> f64 {
        self.log_sum_exp
    }

    /// The log-probability of one token.
    ///
    /// # Errors
    /// [`SamplingError::TokenOutOfRange`].
    pub fn of(&self, id: u32) -> Result<f32, SamplingError> {
        usize::try_from(id)
            .ok()
            .and_then(|index| self.logits.get(index))
            .map(|&logit| self.normalize(logit))
            .ok_or(SamplingError::TokenOutOfRange {
                what: "a log-probability",
                id,
                vocab_size: self.logits.len(),
            })
    }

    /// The `n` most probable tokens, the most probable first, the lower id first among equals.
    /// Fewer if the vocabulary is smaller.
    pub fn top(&self, n: usize) -> Vec<TokenLogprob> {
        top_logits(self.logits, n)
            .into_iter()
            .map(|(id, logit)| TokenLogprob { id, logprob: self.normalize(logit) })
            .collect()
    }

    fn normalize(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.log_sum_exp) as f32
    }
}

/// The log-probability of one token under the raw logits. See [`LogProbs`], which shares the cost
/// between several questions about the same logits.
///
/// # Errors
/// Those of [`LogProbs::new`] and [`LogProbs::of`].
pub fn logprob(logits: &[f32], id: u32) -> Result<f32, SamplingError> {
    LogProbs::new(logits)?.of(id)
}

/// The `n` most probable tokens under the raw logits, the most probable first.
///
/// # Errors
/// Those of [`LogProbs::new`].
pub fn top_logprobs(logits: &[f32], n: usize) -> Result<Vec<TokenLogprob>, SamplingError> {
    Ok(LogProbs::new(logits)?.top(n))
}

/// The `n` largest logits with their ids, the largest first, the lower id first among equals.
/// Fewer if there are fewer logits; NaN is never among them.
///
/// One pass to find the threshold and one to collect what reaches it: O(V + n log n).
pub fn top_logits(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    // partial_cmp and not total_cmp: -0.0 equals 0.0, as for the greedy choice.
    let largest_first = |a: &(u32, f32), b: &(u32, f32)| -> Ordering {
        b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
    };
    if n == 0 {
        return Vec::new();
    }
    let threshold = kth_largest(logits.iter().copied().filter(|logit| !logit.is_nan()), n);
    let mut top: Vec<(u32, f32)> =
        (0u32..).zip(logits.iter().copied()).filter(|&(_, logit)| logit >= threshold).collect();
    // More than n only if several equal the threshold.
    if n < top.len() {
        top.select_nth_unstable_by(n - 1, largest_first);
        top.truncate(n);
    }
    top.sort_unstable_by(largest_first);
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: f32 = f32::NEG_INFINITY;

    #[test]
    fn log_probabilities_are_the_log_softmax() -> Result<(), SamplingError> {
        // softmax of ln(w) is w over the sum of w.
        let logits = [1.0f32, 2.0, 5.0].map(f32::ln);
        for (id, weight) in [(0, 1.0f64), (1, 2.0), (2, 5.0)] {
            let expected = (weight / 8.0).ln();
            // 2e-7: the logits are rounded to f32, and so is the result.
            assert!((f64::from(logprob(&logits, id)?) - expected).abs() < 2e-7);
        }
        Ok(())
    }

    #[test]
    fn large_logits_do_not_overflow_and_impossible_tokens_are_minus_infinity() -> Result<(), SamplingError> {
        let logits = [3e38, NONE, -3e38];
        assert_eq!(logprob(&logits, 0)?, 0.0);
        assert_eq!(logprob(&logits, 1)?, NONE);
        assert_eq!(logprob(&logits, 2)?, NONE); // -6e38 does not fit in f32.
        Ok(())
    }

    #[test]
    fn a_large_vocabulary_costs_no_accuracy() -> Result<(), SamplingError> {
        let logits = vec![0.1f32; 262_144];
        let expected = -(262_144f64.ln());
        // 1e-6: one rounding of a number near 12.5 to f32 (half a unit is 4.8e-7).
        assert!((f64::from(logprob(&logits, 262_143)?) - expected).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn the_top_tokens_come_largest_first_and_lower_ids_first_on_ties() -> Result<(), SamplingError> {
        let logits = [1.0, 3.0, 3.0, NONE, 2.0];
        let ids = |n| -> Result<Vec<u32>, SamplingError> {
            Ok(top_logprobs(&logits, n)?.iter().map(|t| t.id).collect())
        };
        assert!(ids(0)?.is_empty());
        assert_eq!(ids(1)?, [1]);
        assert_eq!(ids(3)?, [1, 2, 4]);
        assert_eq!(ids(9)?, [1, 2, 4, 0, 3]);
        assert_eq!(top_logits(&logits, 2), [(1, 3.0), (2, 3.0)]);
        assert_eq!(top_logits(&[f32::NAN, 1.0], 2), [(1, 1.0)]);
        for token in top_logprobs(&logits, 5)? {
            assert_eq!(token.logprob, logprob(&logits, token.id)?);
        }
        Ok(())
    }

    #[test]
    fn nonsense_in_the_logits_is_an_error_that_names_the_token() {
        assert_eq!(logprob(&[], 0), Err(SamplingError::NoLogits));
        assert_eq!(logprob(&[0.0, f32::NAN], 0), Err(SamplingError::NanLogit { id: 1 }));
        assert!(matches!(logprob(&[0.0, f32::INFINITY], 0), Err(SamplingError::InfiniteLogit { id: 1, .. })));
        assert_eq!(logprob(&[NONE, NONE], 0), Err(SamplingError::NothingLeft { vocab_size: 2 }));
        assert!(matches!(
            logprob(&[0.0], 1),
            Err(SamplingError::TokenOutOfRange { id: 1, vocab_size: 1, .. })
        ));
    }
}
