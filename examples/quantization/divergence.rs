//! How far one next-token distribution is from another, and what that comes to over a text.

use gemma3::core::sampling::{LogProbs, SamplingError, top_logits};

/// The next-token distribution of one position. Sums are f64.
#[derive(Debug, Clone, Copy)]
pub struct Distribution<'a> {
    /// \[vocab\]
    logits: &'a [f32],
    /// ln of the sum of their exponentials.
    log_sum_exp: f64,
    /// The most probable token.
    top: Option<u32>,
}

impl<'a> Distribution<'a> {
    /// # Errors
    ///
    /// Logits that are no distribution, such as NaN.
    pub fn new(logits: &'a [f32]) -> Result<Self, SamplingError> {
        let log_sum_exp = LogProbs::new(logits)?.log_sum_exp();
        let top = top_logits(logits, 1).first().map(|(id, _)| *id);
        Ok(Self { logits, log_sum_exp, top })
    }

    /// `-ln p(id)` in nats; infinite for an id that the vocabulary lacks.
    fn surprise(&self, id: u32) -> f64 {
        let logit = self.logits.get(id as usize).map_or(f64::NEG_INFINITY, |logit| f64::from(*logit));
        self.log_sum_exp - logit
    }

    /// Kullback-Leibler divergence `sum_i p_i ln(p_i / q_i)` of `q` from this distribution `p`, in nats.
    fn divergence_of(&self, q: &Distribution<'_>) -> f64 {
        let term = |(p, q_logit): (&f32, &f32)| {
            let ln_p = f64::from(*p) - self.log_sum_exp;
            let p = ln_p.exp();
            // 0 ln 0 is 0.
            if p == 0.0 { 0.0 } else { p * (ln_p - (f64::from(*q_logit) - q.log_sum_exp)) }
        };
        let sum: f64 = self.logits.iter().zip(q.logits).map(term).sum();
        // It is never negative; its rounding is, by 1e-16.
        sum.max(0.0)
    }

    /// What this distribution makes of the token that follows, and how far it is from the baseline's.
    pub fn compare_with(&self, baseline: &Distribution<'_>, next: u32) -> Comparison {
        Comparison {
            surprise: self.surprise(next),
            divergence: baseline.divergence_of(self),
            same_top: self.top == baseline.top,
        }
    }
}

/// One position's distribution beside the baseline's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// `-ln q(next token)`, in nats.
    pub surprise: f64,
    /// Divergence from the baseline, in nats.
    pub divergence: f64,
    /// Whether both rate the same token highest.
    pub same_top: bool,
}

/// A text's positions together.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Summary {
    pub perplexity: f64,
    pub mean_kl: f64,
    /// The 99th percentile of the divergences: a hundredth of the positions lie above.
    pub kl_99: f64,
    /// Share of positions with the same most probable token.
    pub same_top: f64,
}

impl Summary {
    /// `None` without a position.
    pub fn of(comparisons: &[Comparison]) -> Option<Self> {
        // The nearest rank.
        let rank_99 = (99 * comparisons.len()).div_ceil(100).checked_sub(1)?;
        let count = comparisons.len() as f64;
        let mut divergences: Vec<f64> = comparisons.iter().map(|c| c.divergence).collect();
        divergences.sort_by(f64::total_cmp);
        Some(Self {
            perplexity: (comparisons.iter().map(|c| c.surprise).sum::<f64>() / count).exp(),
            mean_kl: divergences.iter().sum::<f64>() / count,
            kl_99: *divergences.get(rank_99)?,
            same_top: comparisons.iter().filter(|c| c.same_top).count() as f64 / count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(baseline: &[f32], logits: &[f32], next: u32) -> Comparison {
        let baseline = Distribution::new(baseline).expect("finite");
        Distribution::new(logits).expect("finite").compare_with(&baseline, next)
    }

    #[test]
    fn a_distribution_does_not_diverge_from_itself() {
        let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.7).sin() * 20.0).collect();
        let same = compare(&logits, &logits, 3);
        assert_eq!((same.divergence, same.same_top), (0.0, true));
    }

    #[test]
    fn the_divergence_of_two_coins_is_the_formula_s() {
        // Logits ln(3), 0 are 3/4 and 1/4; 0, 0 are halves. f32 logits are off by 1e-7.
        let coins = compare(&[3.0_f32.ln(), 0.0], &[0.0, 0.0], 1);
        let expected = 0.75 * (0.75_f64 / 0.5).ln() + 0.25 * (0.25_f64 / 0.5).ln();
        assert!((coins.divergence - expected).abs() < 1e-7, "{}", coins.divergence);
        assert!((coins.surprise - 2.0_f64.ln()).abs() < 1e-12, "{}", coins.surprise);
    }

    #[test]
    fn logits_that_differ_by_a_constant_are_the_same_distribution() {
        let logits: Vec<f32> = (0..1000).map(|i| (i * 37 % 101) as f32 / 8.0).collect();
        let shifted: Vec<f32> = logits.iter().map(|l| l + 16.0).collect(); // Exact in f32.
        // What is left are the roundings of two f64 normalizers, 1e-15 of about 20.
        assert!(compare(&logits, &shifted, 0).divergence < 1e-13);
    }

    #[test]
    fn impossible_tokens_of_the_baseline_count_nothing() {
        let divergence = compare(&[0.0, f32::NEG_INFINITY], &[0.0, 0.0], 0).divergence;
        assert!((divergence - 2.0_f64.ln()).abs() < 1e-12, "{divergence}");
    }

    #[test]
    fn a_summary_takes_the_99th_percentile_by_nearest_rank() {
        let position = |i: i32| Comparison { surprise: 2.0, divergence: f64::from(i), same_top: i % 4 == 0 };
        let summary = Summary::of(&(1..=200).rev().map(position).collect::<Vec<_>>()).expect("positions");
        assert_eq!((summary.kl_99, summary.mean_kl, summary.same_top), (198.0, 100.5, 0.25));
        assert!((summary.perplexity - 2.0_f64.exp()).abs() < 1e-12);
        assert_eq!(Summary::of(&[]), None);
    }
}
