//! The tokens that are still in the running, with their weights, and the steps that choose among
//! them by probability.

use std::cmp::Ordering;

use super::SamplingError;
use super::scan::{PROCESSED, largest};

/// One token in the running.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
    /// exp(logit - largest logit): in (0, 1], or 0 by underflow. The probability is this over the
    /// sum of all.
    weight: f64,
}

impl Candidate {
    fn is_most_probable(&self) -> bool {
        self.weight >= 1.0
    }
}

/// The tokens that can be drawn, in ascending order of their ids.
///
/// Weights and sums are f64. Hugging Face computes them in f32, so a token whose cumulative
/// probability lies within about 1e-7 of `top_p` may fall on the other side there.
#[derive(Clone, Debug)]
pub struct Candidates {
    tokens: Vec<Candidate>,
}

impl Candidates {
    /// All tokens whose logit is not -infinity.
    ///
    /// # Errors
    /// [`SamplingError::NoLogits`], [`SamplingError::NanLogit`], [`SamplingError::InfiniteLogit`],
    /// or [`SamplingError::NothingLeft`] if all are -infinity.
    pub fn from_logits(logits: &[f32]) -> Result<Self, SamplingError> {
        let (_, max) = largest(logits, PROCESSED)?;
        let tokens = (0u32..)
            .zip(logits)
            .filter(|&(_, &logit)| logit > f32::NEG_INFINITY)
            .map(|(id, &logit)| Candidate { id, logit, weight: (f64::from(logit) - f64::from(max)).exp() })
            .collect();
        Ok(Self { tokens })
    }

    /// Number of tokens left.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether no token is left; never the case, since every step keeps the most probable one.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Keeps the most probable tokens up to and including the one with which their probabilities
    /// reach `p`, which is in (0, 1].
    ///
    /// This is Hugging Face's rule read from the other end: sort ascending, drop while the
    /// cumulative probability is at most 1 - p, always keep the last. Of equal logits the lower
    /// ids are dropped first, as its stable ascending sort does.
    pub fn retain_top_p(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        let p = f64::from(p);
        let total = self.total();
        // Tokens of weight at most (1 - p) * total / n weigh (1 - p) * total at most together, so
        // all of them are in the tail that is dropped. That leaves few of a real vocabulary.
        let tail = (1.0 - p) * total / self.tokens.len() as f64;
        self.tokens.retain(|token| token.weight > tail || token.is_most_probable());
        let kept = nucleus_len(&mut self.tokens, p * total);
        self.tokens.truncate(kept);
        self.tokens.sort_unstable_by_key(|token| token.id);
    }

    /// Keeps the tokens whose probability is at least `p` times that of the most probable; `p` is
    /// in [0, 1].
    pub fn retain_min_p(&mut self, p: f32) {
        // The most probable token has weight 1, so the weights are the ratios.
        self.tokens.retain(|token| token.weight >= f64::from(p) || token.is_most_probable());
    }

    /// The tokens left, ascending, with their probabilities, which add up to 1.
    pub fn probabilities(&self) -> impl Iterator<Item = (u32, f64)> + '_ {
        let total = self.total();
        self.tokens.iter().map(move |token| (token.id, token.weight / total))
    }

    /// The token at `u` in [0, 1) of the cumulative distribution over ascending ids.
    ///
    /// The order is by id and not by probability, because it does not change when rounding swaps
    /// two almost equally probable tokens.
    pub fn draw(&self, u: f64) -> Option<u32> {
        let target = u * self.total();
        let mut cumulative = 0.0;
        let mut last = None;
        for token in self.tokens.iter().filter(|token| token.weight > 0.0) {
            cumulative += token.weight;
            last = Some(token.id);
            if cumulative > target {
                break;
            }
        }
        last
    }

    fn total(&self) -> f64 {
        self.tokens.iter().map(|token| token.weight).sum()
    }
}

/// Reorders the tokens so that the nucleus comes first, and returns its length: the fewest tokens
/// in order of descending probability (the higher id first among equals) whose weights reach
/// `mass`, at least one.
///
/// Bisection: selecting the upper half of the open range and adding it up tells which half holds
/// the boundary. n + n/2 + n/4 + ... = O(n).
fn nucleus_len(tokens: &mut [Candidate], mass: f64) -> usize {
    let most_probable_first =
        |a: &Candidate, b: &Candidate| -> Ordering { b.logit.total_cmp(&a.logit).then(b.id.cmp(&a.id)) };
    // tokens[..low] belong to the nucleus and weigh `reached`; tokens[high..] do not.
    let (mut low, mut high, mut reached) = (0, tokens.len(), 0.0);
    while high - low > 1 {
        let middle = (high - low) / 2;
        let open = &mut tokens[low..high];
        open.select_nth_unstable_by(middle - 1, most_probable_first);
        let upper: f64 = open[..middle].iter().map(|token| token.weight).sum();
        if reached + upper >= mass {
            high = low + middle;
        } else {
            reached += upper;
            low += middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(candidates: &Candidates) -> Vec<u32> {
        candidates.probabilities().map(|(id, _)| id).collect()
    }

    /// Logits whose probabilities are 0.1, 0.4, 0.2, 0.3.
    fn four() -> Candidates {
        Candidates::from_logits(&[0.1f32, 0.4, 0.2, 0.3].map(f32::ln)).unwrap()
    }

    #[test]
    fn probabilities_are_the_softmax_in_order_of_ids() {
        let expected = [(0, 0.1), (1, 0.4), (2, 0.2), (3, 0.3)];
        for ((id, probability), (expected_id, expected)) in four().probabilities().zip(expected) {
            assert_eq!(id, expected_id);
            // 1e-6: the logits above are rounded to f32.
            assert!((probability - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn impossible_tokens_are_no_candidates() {
        let candidates = Candidates::from_logits(&[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 2.0]).unwrap();
        assert_eq!(ids(&candidates), [1, 3]);
        assert_eq!(candidates.len(), 2);
        assert!(!candidates.is_empty());
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_the_threshold() {
        for (p, expected) in [
            (0.05, vec![1]),
            (0.39, vec![1]),
            (0.41, vec![1, 3]),
            (0.71, vec![1, 2, 3]),
            (0.91, vec![0, 1, 2, 3]),
            (1.0, vec![0, 1, 2, 3]),
        ] {
            let mut candidates = four();
            candidates.retain_top_p(p);
            assert_eq!(ids(&candidates), expected, "top_p {p}");
        }
    }

    #[test]
    fn top_p_drops_the_lower_ids_of_equal_tokens_first() {
        let mut candidates = Candidates::from_logits(&[1.0; 4]).unwrap();
        candidates.retain_top_p(0.5);
        assert_eq!(ids(&candidates), [2, 3]);
    }

    #[test]
    fn the_smallest_top_p_keeps_one_token_even_of_a_flat_distribution() {
        let mut candidates = Candidates::from_logits(&[1.0; 5]).unwrap();
        candidates.retain_top_p(f32::from_bits(1));
        assert_eq!(ids(&candidates), [4]);
    }

    #[test]
    fn min_p_measures_against_the_most_probable_token() {
        let mut candidates = four();
        candidates.retain_min_p(0.45);
        assert_eq!(ids(&candidates), [1, 2, 3]);
        candidates.retain_min_p(1.0);
        assert_eq!(ids(&candidates), [1]);
    }

    #[test]
    fn a_draw_inverts_the_cumulative_distribution_over_ascending_ids() {
        let candidates = four();
        for (u, expected) in [
            (0.0, 0),
            (0.099, 0),
            (0.101, 1),
            (0.499, 1),
            (0.501, 2),
            (0.699, 2),
            (0.701, 3),
            (1.0 - f64::EPSILON, 3),
        ] {
            assert_eq!(candidates.draw(u), Some(expected), "u {u}");
        }
    }

    #[test]
    fn a_token_of_vanishing_probability_is_never_drawn() {
        let candidates = Candidates::from_logits(&[-1e30, 5.0, -1e30]).unwrap();
        assert_eq!(candidates.draw(0.0), Some(1));
        assert_eq!(candidates.draw(1.0 - f64::EPSILON), Some(1));
    }
}
