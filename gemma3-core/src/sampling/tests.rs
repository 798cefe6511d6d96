//! Properties: each step against a definition that is plainly right and slow, on logits with many
//! ties and impossible tokens, and the frequencies of what is drawn.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const NONE: f32 = f32::NEG_INFINITY;

/// Logits of a small grid, so that ties are frequent, and some impossible ones; at least one is
/// finite.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let grid = (-20i32..20).prop_map(|i| i as f32 * 0.25);
    let logit = prop_oneof![6 => grid, 3 => -10f32..10.0, 1 => Just(NONE)];
    vec(logit, 1..700).prop_map(|mut logits| {
        if logits.iter().all(|&logit| logit == NONE) {
            logits[0] = 0.0;
        }
        logits
    })
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(NONE, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

fn ids(candidates: &Candidates) -> Vec<u32> {
    candidates.probabilities().map(|(id, _)| id).collect()
}

proptest! {
    #[test]
    fn top_k_equals_sorting_and_comparing_with_the_kth(logits in logits(), k in 1usize..800) {
        let mut sorted = logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let threshold = sorted[k.min(sorted.len()) - 1];
        let naive: Vec<f32> = logits
            .iter()
            .map(|&logit| if logit < threshold { NONE } else { logit })
            .collect();
        let mut ours = logits;
        processors::top_k(&mut ours, k);
        prop_assert_eq!(ours, naive);
    }

    /// Tokens within 1e-12 of the threshold may fall on either side: sums of f64 in another order.
    #[test]
    fn top_p_equals_the_ascending_definition(logits in logits(), p in 0.001f32..1.0) {
        let probabilities = softmax(&logits);
        let mut candidates = Candidates::from_logits(&logits).unwrap();
        candidates.retain_top_p(p);
        let kept = ids(&candidates);

        let mut ascending: Vec<usize> = (0..logits.len()).collect();
        ascending.sort_by(|&a, &b| logits[a].total_cmp(&logits[b])); // Stable: lower ids first.
        let mut cumulative = 0.0;
        let mut kept_so_far = false;
        for (rank, &id) in ascending.iter().enumerate() {
            cumulative += probabilities[id];
            let is_kept = kept.contains(&(id as u32));
            if rank + 1 == ascending.len() || cumulative > 1.0 - f64::from(p) + 1e-12 {
                prop_assert!(is_kept, "token {} at {} was dropped", id, cumulative);
            } else if cumulative < 1.0 - f64::from(p) - 1e-12 {
                prop_assert!(!is_kept, "token {} at {} was kept", id, cumulative);
            }
            prop_assert!(is_kept || !kept_so_far, "the kept tokens are the last ones");
            kept_so_far |= is_kept;
        }
        prop_assert!(kept.is_sorted(), "ids stay ascending");
    }

    #[test]
    fn min_p_equals_comparing_probabilities(logits in logits(), p in 0f32..1.0) {
        let probabilities = softmax(&logits);
        let max = probabilities.iter().copied().fold(0.0, f64::max);
        let mut candidates = Candidates::from_logits(&logits).unwrap();
        candidates.retain_min_p(p);
        let kept = ids(&candidates);
        for (id, (&logit, &probability)) in logits.iter().zip(&probabilities).enumerate() {
            let ratio = probability / max;
            // 1e-12: the ratio is rounded differently here.
            if (ratio - f64::from(p)).abs() > 1e-12 {
                let expected = logit > NONE && ratio > f64::from(p);
                prop_assert_eq!(kept.contains(&(id as u32)), expected, "token {}", id);
            }
        }
    }

    #[test]
    fn penalties_and_bias_equal_their_formulas(
        logits in logits(),
        prompt in vec(0u32..800, 0..40),
        generated in vec(0u32..800, 0..40),
        penalties in (0.5f32..2.0, -2f32..2.0, -2f32..2.0),
        bias in proptest::collection::btree_map(0u32..800, -5f32..5.0, 0..10),
    ) {
        let (repetition, presence, frequency) = penalties;
        let bias: BTreeMap<u32, f32> =
            bias.into_iter().filter(|&(id, _)| (id as usize) < logits.len()).collect();
        let options = SamplingOptions {
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            logit_bias: bias.clone(),
            ..SamplingOptions::default()
        };
        let history = TokenHistory::from_tokens(&prompt, &generated);
        let naive: Vec<f32> = (0u32..)
            .zip(&logits)
            .map(|(id, &logit)| {
                let count = generated.iter().filter(|&&g| g == id).count() as f32;
                let seen = count > 0.0 || prompt.contains(&id);
                let mut logit = logit;
                if seen {
                    logit = if logit < 0.0 { logit * repetition } else { logit / repetition };
                }
                if count > 0.0 {
                    logit -= presence;
                    logit -= frequency * count;
                }
                logit + bias.get(&id).copied().unwrap_or(0.0)
            })
            .collect();
        let expected = softmax(&naive);
        let sampler = Sampler::new(options).unwrap();
        let ours = sampler.distribution(&mut logits.clone(), &history).unwrap();
        let possible = naive.iter().filter(|&&logit| logit > NONE).count();
        prop_assert_eq!(ours.len(), possible);
        for (id, probability) in ours {
            // 1e-6: the distribution is f32.
            prop_assert!((f64::from(probability) - expected[id as usize]).abs() < 1e-6);
        }
    }

    #[test]
    fn the_top_logprobs_equal_a_full_sort(logits in logits(), n in 0usize..800) {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a])); // Stable: lower ids first.
        order.truncate(n);
        let probabilities = softmax(&logits);
        let top = top_logprobs(&logits, n).unwrap();
        prop_assert_eq!(top.len(), order.len());
        for (token, id) in top.into_iter().zip(order) {
            prop_assert_eq!(token.id as usize, id);
            let expected = probabilities[id].ln() as f32;
            // 1e-5: one f32 rounding of numbers up to 30.
            let equal = token.logprob == expected || (token.logprob - expected).abs() < 1e-5;
            prop_assert!(equal, "{} and {}", token.logprob, expected);
        }
    }

    #[test]
    fn whatever_is_drawn_is_in_the_distribution(
        logits in logits(),
        seed: u64,
        position: u64,
        top_k in 0usize..20,
        top_p in 0.01f32..=1.0,
        min_p in 0f32..=1.0,
        temperature in 0.01f32..5.0,
    ) {
        let options = SamplingOptions { temperature, top_k, top_p, min_p, ..Default::default() };
        let sampler = Sampler::new(options).unwrap();
        let history = TokenHistory::new();
        let key = RandomKey { seed, sequence: 0, position };
        let id = sampler.sample(&mut logits.clone(), &history, key).unwrap();
        let distribution = sampler.distribution(&mut logits.clone(), &history).unwrap();
        prop_assert!(distribution.iter().any(|&(kept, p)| kept == id && p > 0.0));
        let total: f64 = distribution.iter().map(|&(_, p)| f64::from(p)).sum();
        // 1e-4: up to 700 probabilities, each rounded to f32.
        prop_assert!((total - 1.0).abs() < 1e-4);
    }

    #[test]
    fn no_bits_in_the_logits_cause_a_panic(
        bits in vec(any::<u32>(), 0..300),
        top_k in 0usize..400,
        top_p in 0.0001f32..=1.0,
        temperature in 0f32..2.0,
        repetition_penalty in prop_oneof![Just(f32::MIN_POSITIVE), Just(f32::MAX), 0.1f32..3.0],
        frequency_penalty in any::<f32>().prop_filter("finite", |v| v.is_finite()),
        seen in vec(any::<u32>(), 0..10),
    ) {
        let mut logits: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let options = SamplingOptions {
            top_k, top_p, temperature, repetition_penalty, frequency_penalty, ..Default::default()
        };
        let history = TokenHistory::from_tokens(&[0, 1, 2, 3, 4, 5], &seen);
        let sampler = Sampler::new(options).unwrap();
        let vocab_size = logits.len();
        if let Ok(id) = sampler.sample(&mut logits, &history, RandomKey::default()) {
            prop_assert!((id as usize) < vocab_size);
        }
        let _ = top_logits(&logits, 5);
    }
}

/// Pearson's statistic of 100,000 draws along each part of the key against the distribution that
/// the sampler states. With 8 tokens left it has 7 degrees of freedom; 24.3 is its 99.9% quantile.
/// The keys are fixed, so the test passes or fails for ever.
#[test]
fn draws_have_the_stated_frequencies_along_every_part_of_the_key() {
    const DRAWS: u64 = 100_000;
    let logits: Vec<f32> = (0..40).map(|i| ((i * 17) % 40) as f32 * 0.125).collect();
    let options = SamplingOptions { temperature: 0.8, top_k: 10, top_p: 0.9, ..SamplingOptions::default() };
    let sampler = Sampler::new(options).unwrap();
    let history = TokenHistory::new();
    let distribution = sampler.distribution(&mut logits.clone(), &history).unwrap();
    assert_eq!(distribution.len(), 8);

    let along: [(_, fn(u64) -> _); 3] = [
        ("seed", |i| RandomKey { seed: i, sequence: 5, position: 9 }),
        ("sequence", |i| RandomKey { seed: 5, sequence: i, position: 9 }),
        ("position", |i| RandomKey { seed: 5, sequence: 9, position: i }),
    ];
    for (name, key) in along {
        let mut counts = BTreeMap::new();
        for i in 0..DRAWS {
            let id = sampler.sample(&mut logits.clone(), &history, key(i)).unwrap();
            *counts.entry(id).or_insert(0u32) += 1;
        }
        let drawn: Vec<u32> = counts.keys().copied().collect();
        let stated: Vec<u32> = distribution.iter().map(|&(id, _)| id).collect();
        assert_eq!(drawn, stated, "{name}");
        let statistic: f64 = distribution
            .iter()
            .map(|&(id, probability)| {
                let expected = f64::from(probability) * DRAWS as f64;
                (f64::from(counts[&id]) - expected).powi(2) / expected
            })
            .sum();
        assert!(statistic < 24.3, "along {name}: {statistic}");
    }
}
