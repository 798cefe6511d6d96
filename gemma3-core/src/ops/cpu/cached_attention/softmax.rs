//! The softmax of a row of scores that comes in blocks.
//!
//! After each block a row holds the largest score `m` so far, the sum of `exp(score - m)`, and the sum of
//! values weighted by these. A larger score multiplies both sums by `exp(old m - new m)`.

use std::ops::Range;

use crate::ops::cpu::exp::exp;

/// The largest score of a row so far, and the sum of its exponentials.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub(super) max: f32,
    pub(super) sum: f32,
}

impl Running {
    /// Of no scores.
    pub(super) const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Makes weights of a block of scores: `exp(score - max)` where `visible`, zero elsewhere. Returns what
    /// earlier weighted sums must be multiplied by.
    #[inline(always)]
    pub(super) fn add(&mut self, scores: &mut [f32], visible: Range<usize>) -> f32 {
        scores[..visible.start].fill(0.0);
        scores[visible.end..].fill(0.0);
        let scores = &mut scores[visible];
        if scores.is_empty() {
            return 1.0;
        }
        let max = self.max.max(largest(scores));
        let factor = exp(self.max - max);
        self.max = max;
        self.sum = self.sum * factor + exponentials(scores, max);
        factor
    }
}

#[inline(always)]
fn largest(scores: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (eights, rest) = scores.as_chunks::<8>();
    let mut maxima = [f32::NEG_INFINITY; 8];
    for eight in eights {
        for lane in 0..8 {
            maxima[lane] = larger(maxima[lane], eight[lane]);
        }
    }
    rest.iter().fold(reduce(maxima, larger), |max, score| larger(max, *score))
}

/// `scores = exp(scores - max)`; returns their sum.
#[inline(always)]
fn exponentials(scores: &mut [f32], max: f32) -> f32 {
    let (eights, rest) = scores.as_chunks_mut::<8>();
    let mut sums = [0.0; 8];
    for eight in eights {
        for lane in 0..8 {
            eight[lane] = exp(eight[lane] - max);
            sums[lane] += eight[lane];
        }
    }
    let mut sum = 0.0;
    for score in rest {
        *score = exp(*score - max);
        sum += *score;
    }
    reduce(sums, |a, b| a + b) + sum
}

/// Of the lanes, by halves: in a row, each would wait for the one before.
#[inline(always)]
fn reduce(mut lanes: [f32; 8], join: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_sum_to_the_whole() {
        let scores: Vec<f32> = (0..50).map(|n| ((n * 37) % 23) as f32 - 11.0).collect();
        let mut running = Running::EMPTY;
        let mut weighted = 0.0;
        for (block, first) in scores.chunks(17).zip((0..).step_by(17)) {
            let mut block = block.to_vec();
            // The first score and the last aren't visible.
            let visible = usize::from(first == 0)..block.len().min(49 - first);
            weighted *= running.add(&mut block, visible);
            weighted += block.iter().enumerate().map(|(n, w)| w * (first + n) as f32).sum::<f32>();
        }
        let visible = || scores.iter().enumerate().skip(1).take(48).map(|(n, s)| (n, f64::from(*s).exp()));
        let sum: f64 = visible().map(|(_, e)| e).sum();
        let expected = visible().map(|(n, e)| n as f64 * e / sum).sum::<f64>();
        // Sums of 48 terms, each with a relative rounding of 2^-23 or less.
        assert!((f64::from(weighted / running.sum) - expected).abs() < 1e-5 * expected);
    }

    #[test]
    fn nothing_visible_changes_nothing() {
        let mut running = Running { max: 3.0, sum: 2.0 };
        let mut scores = [9.0; 11];
        assert_eq!(running.add(&mut scores, 5..5), 1.0);
        assert_eq!((running.max, running.sum, scores), (3.0, 2.0, [0.0; 11]));
    }

    #[test]
    fn a_nan_stays_a_nan() {
        let mut running = Running::EMPTY;
        running.add(&mut [1.0, f32::NAN], 0..2);
        assert!(running.sum.is_nan());
    }
}
