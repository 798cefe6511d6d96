//! The steps that change logits in place, each a function of its own.
//!
//! Logits are one position's, indexed by token id; all arithmetic is f32, as in Hugging Face, so
//! that ties arise and break as they do there. A logit of -infinity is a token that cannot be
//! drawn, and stays so through every step.

use std::collections::BTreeMap;

use super::{SamplingError, TokenHistory};

/// Takes every chance from the ids given: ids that have a logit but no token (rows that pad the
/// embedding), or tokens that must not be generated. Ids without a logit are already impossible
/// and are passed over.
pub fn suppress(logits: &mut [f32], ids: &[u32]) {
    for &id in ids {
        if let Some(logit) = logit_mut(logits, id) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Divides the positive and multiplies the negative logits of all tokens seen, in prompt and
/// generated text, once however often they were seen. A penalty above 1 discourages, one below 1
/// encourages. Ids without a logit are passed over.
pub fn repetition_penalty(logits: &mut [f32], penalty: f32, history: &TokenHistory) {
    for (id, _) in history.iter() {
        if let Some(logit) = logit_mut(logits, id) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// Subtracts the penalty from the logits of all tokens that were generated at least once.
pub fn presence_penalty(logits: &mut [f32], penalty: f32, history: &TokenHistory) {
    for (id, count) in history.iter() {
        if count > 0
            && let Some(logit) = logit_mut(logits, id)
        {
            *logit -= penalty;
        }
    }
}

/// Subtracts the penalty from the logits of all generated tokens, as many times as they were
/// generated.
pub fn frequency_penalty(logits: &mut [f32], penalty: f32, history: &TokenHistory) {
    for (id, count) in history.iter() {
        // An impossible token is left alone: an overflowing product would make it NaN.
        if count > 0
            && let Some(logit) = logit_mut(logits, id)
            && *logit > f32::NEG_INFINITY
        {
            *logit -= penalty * count as f32;
        }
    }
}

/// Adds to each logit its bias.
///
/// # Errors
/// [`SamplingError::TokenOutOfRange`] for a bias on an id that has no logit: unlike the history,
/// this list was written by hand, and a silent no-op would hide the mistake.
pub fn logit_bias(logits: &mut [f32], bias: &BTreeMap<u32, f32>) -> Result<(), SamplingError> {
    let vocab_size = logits.len();
    for (&id, &bias) in bias {
        match logit_mut(logits, id) {
            Some(logit) => *logit += bias,
            None => {
                return Err(SamplingError::TokenOutOfRange { what: "`logit_bias`", id, vocab_size });
            }
        }
    }
    Ok(())
}

/// Divides all logits by the temperature, which must be above 0.
pub fn temperature(logits: &mut [f32], temperature: f32) {
    if temperature != 1.0 {
        logits.iter_mut().for_each(|logit| *logit /= temperature);
    }
}

/// Keeps the `k` largest logits and those that equal the smallest of them; the others become
/// -infinity. `k` of 0 keeps all.
pub fn top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let threshold = kth_largest(logits.iter().copied(), k);
    for logit in logits {
        if *logit < threshold {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The k-th largest of the values, counting equal ones separately; -infinity if fewer than k are
/// larger than that. `k` is above 0.
///
/// One pass over the values: those above the best lower bound known so far go to a buffer of 2k,
/// and when it is full a selection halves it and raises the bound. O(n + k) however the values are
/// ordered, and with k much smaller than n almost all values only meet one comparison.
pub(super) fn kth_largest(values: impl Iterator<Item = f32>, k: usize) -> f32 {
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    let capacity = k.saturating_mul(2).max(256);
    let mut best: Vec<f32> = Vec::new();
    let mut bound = f32::NEG_INFINITY;
    for value in values {
        if value <= bound {
            continue;
        }
        best.push(value);
        if best.len() == capacity {
            let (_, kth, _) = best.select_nth_unstable_by(k - 1, descending);
            bound = *kth;
            best.truncate(k);
        }
    }
    if best.len() < k {
        return f32::NEG_INFINITY;
    }
    *best.select_nth_unstable_by(k - 1, descending).1
}

fn logit_mut(logits: &mut [f32], id: u32) -> Option<&mut f32> {
    logits.get_mut(usize::try_from(id).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: f32 = f32::NEG_INFINITY;

    #[test]
    fn suppressed_ids_become_impossible_and_ids_without_a_logit_are_passed_over() {
        let mut logits = [1.0, 2.0, 3.0];
        suppress(&mut logits, &[1, 3, u32::MAX]);
        assert_eq!(logits, [1.0, NONE, 3.0]);
    }

    #[test]
    fn the_repetition_penalty_moves_every_seen_token_once_and_away_from_plus_infinity() {
        let mut logits = [3.0, -3.0, 3.0, 0.0, NONE];
        let history = TokenHistory::from_tokens(&[0, 0, 4], &[1, 1, 3, 99]);
        repetition_penalty(&mut logits, 1.5, &history);
        assert_eq!(logits, [2.0, -4.5, 3.0, 0.0, NONE]);
    }

    #[test]
    fn presence_is_subtracted_once_and_frequency_by_count_from_generated_tokens_only() {
        let history = TokenHistory::from_tokens(&[0], &[1, 2, 2, 99]);
        let mut logits = [1.0, 1.0, 1.0, 1.0];
        presence_penalty(&mut logits, 0.5, &history);
        assert_eq!(logits, [1.0, 0.5, 0.5, 1.0]);
        let mut logits = [1.0, 1.0, 1.0, 1.0];
        frequency_penalty(&mut logits, 0.5, &history);
        assert_eq!(logits, [1.0, 0.5, 0.0, 1.0]);
    }

    #[test]
    fn an_impossible_token_stays_impossible_even_under_an_overflowing_encouragement() {
        let history = TokenHistory::from_tokens(&[], &[0, 0]);
        let mut logits = [NONE];
        frequency_penalty(&mut logits, f32::MIN, &history);
        assert_eq!(logits, [NONE]);
    }

    #[test]
    fn a_bias_is_added_and_minus_infinity_forbids() -> Result<(), SamplingError> {
        let mut logits = [1.0, 1.0, NONE];
        logit_bias(&mut logits, &BTreeMap::from([(0, -2.5), (1, NONE), (2, 9.0)]))?;
        assert_eq!(logits, [-1.5, NONE, NONE]);
        Ok(())
    }

    #[test]
    fn a_bias_on_an_id_without_a_logit_is_an_error() {
        let error = logit_bias(&mut [0.0; 3], &BTreeMap::from([(3, 1.0)])).unwrap_err();
        assert_eq!(error, SamplingError::TokenOutOfRange { what: "`logit_bias`", id: 3, vocab_size: 3 });
    }

    #[test]
    fn top_k_keeps_all_tokens_that_tie_with_the_last() {
        let mut logits = [1.0, 3.0, 2.0, 2.0, 0.0];
        top_k(&mut logits, 2);
        assert_eq!(logits, [NONE, 3.0, 2.0, 2.0, NONE]);
    }

    #[test]
    fn top_k_of_zero_or_of_the_whole_vocabulary_keeps_all() {
        for k in [0, 3, 4, usize::MAX] {
            let mut logits = [1.0, 3.0, 2.0];
            top_k(&mut logits, k);
            assert_eq!(logits, [1.0, 3.0, 2.0]);
        }
    }

    #[test]
    fn top_k_treats_the_two_zeros_as_equal() {
        let mut logits = [0.0, -0.0, -1.0];
        top_k(&mut logits, 1);
        assert_eq!(logits, [0.0, -0.0, NONE]);
    }
}
