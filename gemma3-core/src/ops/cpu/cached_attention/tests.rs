//! Attention against its definition in f64, which sees the values that the cache holds, rounded as they are.

use std::ops::Range;

use half::{bf16, f16};
use rayon::ThreadPoolBuilder;

use super::*;

/// What the result may differ by from the definition, in units of the largest value.
///
/// The error of a score is that of a sum of up to 256 products, which are at most 2 here: about 1e-6,
/// which is also the relative error that it gives the score's exponential. The exponential adds 2^-22, and
/// sums of hundreds of weighted values about as much as a score. The factor left covers sums that go in
/// an unlucky order.
const TOLERANCE: f64 = 1e-5;

/// A small generator, so that the tests need no crate for it.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    /// From -1 to 1.
    fn value(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
    }

    fn values(&mut self, count: usize, largest: f32) -> Vec<f32> {
        (0..count).map(|_| largest * self.value()).collect()
    }
}

/// An attention to be computed.
#[derive(Debug, Clone)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    slots: usize,
    position: usize,
    rows: usize,
    window: Option<usize>,
    images: Vec<Range<usize>>,
    /// Of the queries' elements; keys' are up to 1.
    largest_query: f32,
}

impl Case {
    /// 4 query heads that share one, global, in as many slots as positions.
    fn new(position: usize, rows: usize) -> Self {
        Self {
            heads: 4,
            kv_heads: 1,
            head_dim: 16,
            slots: position + rows,
            position,
            rows,
            window: None,
            images: Vec::new(),
            largest_query: 0.5,
        }
    }

    /// A ring that holds no more than the rows see.
    fn windowed(self, window: usize) -> Self {
        let slots = (window - 1 + self.rows).min(self.position + self.rows);
        Self { window: Some(window), slots, ..self }
    }

    fn with_heads(self, heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { heads, kv_heads, head_dim, ..self }
    }

    fn with_images(self, images: &[Range<usize>]) -> Self {
        Self { images: images.to_vec(), ..self }
    }
}

/// A case with its numbers.
#[derive(Clone)]
struct Problem<E> {
    case: Case,
    queries: Vec<f32>,
    keys: Vec<E>,
    values: Vec<E>,
    /// \[rows, heads * head_dim\].
    expected: Vec<f64>,
}

impl<E: CacheElement + Default> Problem<E> {
    /// Keys and values are written token by token, as if decoded; slots that no position has keep NaN, which
    /// would show wherever they are read.
    fn new(case: &Case, seed: u64) -> Self {
        let mut random = Random(seed);
        let Case { heads, kv_heads, head_dim, slots, position, rows, .. } = *case;
        let (width, count) = (kv_heads * head_dim, position + rows);
        let queries = random.values(rows * heads * head_dim, case.largest_query);
        let keys = random.values(count * width, 1.0);
        let values = random.values(count * width, 1.0);
        let stored = |values: &[f32]| {
            let mut cache = rounded::<E>(&vec![f32::NAN; slots * width]);
            for (position, row) in values.chunks_exact(width).enumerate() {
                write_rows(row, &mut cache, kv_heads, slots, head_dim, position);
            }
            cache
        };
        let (stored_keys, stored_values) = (stored(&keys), stored(&values));
        let widened = |values: &[f32]| -> Vec<f32> {
            rounded::<E>(values).into_iter().map(CacheElement::widen).collect()
        };
        let expected = definition(case, &queries, &widened(&keys), &widened(&values));
        Self { case: case.clone(), queries, keys: stored_keys, values: stored_values, expected }
    }

    fn attend(&self, level: SimdLevel, max_few_rows: usize) -> Vec<f32> {
        let Case { heads, kv_heads, head_dim, slots, position, window, .. } = self.case;
        let visible = VisibleKeys { window, images: &self.case.images };
        let queries = Queries { values: &self.queries, heads, position, visible };
        let (keys, values) = (&self.keys, &self.values);
        let cache = KeysAndValues { keys, values, kv_heads, slots, head_dim };
        // Nothing of what was there may remain.
        let mut out = vec![7.0; self.queries.len()];
        attend_with(level, max_few_rows, queries, cache, &mut out);
        out
    }

    /// Takes queries from row `start` on, and keys and values, from a problem with a slot for every position.
    fn copy_entries(&mut self, from: &Self, start: usize) {
        let Case { heads, kv_heads, head_dim, slots, position, rows, window, .. } = self.case;
        let width = heads * head_dim;
        self.queries.copy_from_slice(&from.queries[start * width..][..rows * width]);
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        for kv_head in 0..kv_heads {
            for p in first..position + rows {
                let (to, of) = (
                    (kv_head * slots + p % slots) * head_dim,
                    kv_head * from.case.slots + p % from.case.slots,
                );
                let of = of * head_dim;
                self.keys[to..to + head_dim].copy_from_slice(&from.keys[of..of + head_dim]);
                self.values[to..to + head_dim].copy_from_slice(&from.values[of..of + head_dim]);
            }
        }
    }

    fn check(&self) {
        // Both ways, whatever the number of rows.
        for (level, max_few_rows) in
            SimdLevel::available().into_iter().flat_map(|l| [(l, 0), (l, usize::MAX)])
        {
            let out = self.attend(level, max_few_rows);
            for (n, (found, expected)) in out.iter().zip(&self.expected).enumerate() {
                assert!(
                    (f64::from(*found) - expected).abs() <= TOLERANCE,
                    "{found} for {expected} at {n} of {:?}, {level:?}, few rows up to {max_few_rows}",
                    self.case
                );
            }
        }
    }
}

fn rounded<E: CacheElement + Default>(values: &[f32]) -> Vec<E> {
    let mut out = vec![E::default(); values.len()];
    E::round(values, &mut out);
    out
}

/// `softmax(q kᵀ + mask) v`, one query and one key at a time. `keys` and `values`
/// \[positions, kv_heads * head_dim\].
fn definition(case: &Case, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
    let Case { heads, kv_heads, head_dim, position, .. } = *case;
    let width = kv_heads * head_dim;
    let mut out = Vec::with_capacity(queries.len());
    for (n, query) in queries.chunks_exact(head_dim).enumerate() {
        let (query_position, head) = (position + n / heads, n % heads);
        let of_head = |all: &[f32], key: usize| {
            let first = key * width + head / (heads / kv_heads) * head_dim;
            all[first..][..head_dim].iter().map(|x| f64::from(*x)).collect::<Vec<_>>()
        };
        let visible = |key: &usize| {
            let together = |image: &Range<usize>| image.contains(&query_position) && image.contains(key);
            (*key <= query_position || case.images.iter().any(together))
                && case.window.is_none_or(|window| key + window > query_position)
        };
        let seen: Vec<usize> = (0..keys.len() / width).filter(visible).collect();
        let score = |key: &usize| -> f64 {
            of_head(keys, *key).iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum()
        };
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        let mut sums = vec![0.0; head_dim];
        for (key, score) in seen.iter().zip(&scores) {
            let weight = (score - max).exp() / sum;
            for (sum, value) in sums.iter_mut().zip(of_head(values, *key)) {
                *sum += weight * value;
            }
        }
        out.extend(sums);
    }
    out
}

/// With caches of every element.
fn check(case: &Case) {
    Problem::<f32>::new(case, 1).check();
    Problem::<bf16>::new(case, 2).check();
    Problem::<f16>::new(case, 3).check();
}

#[test]
fn any_number_of_rows_agrees_with_the_definition() {
    for rows in (1..=9).chain([17, 65, 130]) {
        check(&Case::new(0, rows));
        check(&Case::new(70, rows));
    }
}

#[test]
fn heads_share_keys_in_any_ratio() {
    for (heads, kv_heads) in [(4, 1), (4, 2), (3, 3), (5, 1)] {
        for rows in [1, 3, 33] {
            check(&Case::new(50, rows).with_heads(heads, kv_heads, 16));
        }
    }
}

#[test]
fn heads_of_any_width() {
    for head_dim in [2, 8, 12, 16, 24, 64, 128, 256] {
        for rows in [1, 9, 40] {
            check(&Case::new(300, rows).with_heads(4, 2, head_dim));
        }
    }
}

#[test]
fn a_window_hides_what_came_before_it() {
    let window = 40;
    for count in [window - 1, window, window + 1, 2 * window + 3] {
        for rows in [1, 2, 7, 30, count] {
            check(&Case::new(count - rows.min(count), rows.min(count)).windowed(window));
        }
    }
    check(&Case::new(30, 5).windowed(1));
}

#[test]
fn a_ring_may_wrap_anywhere() {
    for position in 60..100 {
        Problem::<bf16>::new(&Case::new(position, 1).windowed(35), 1).check();
        Problem::<f32>::new(&Case::new(position, 11).windowed(20), 2).check();
    }
    // More slots than the rows need.
    check(&Case { slots: 50, ..Case::new(95, 12).windowed(20) });
}

#[test]
fn soft_tokens_see_their_whole_image() {
    check(&Case::new(20, 30).with_images(std::slice::from_ref(&(25..41))));
    check(&Case::new(20, 6).with_images(std::slice::from_ref(&(21..25))));
    // All rows are of the image.
    check(&Case::new(20, 16).with_images(std::slice::from_ref(&(20..36))));
    // An image of the past is like text.
    check(&Case::new(20, 3).with_images(std::slice::from_ref(&(4..12))));
}

#[test]
fn adjacent_images_see_only_themselves() {
    check(&Case::new(5, 40).with_images(&[7..20, 20..33]));
    check(&Case::new(5, 40).windowed(10).with_images(&[7..20, 20..33]));
}

#[test]
fn a_window_cuts_the_past_inside_a_longer_image() {
    check(&Case::new(30, 70).windowed(16).with_images(std::slice::from_ref(&(40..90))));
    check(&Case::new(0, 8).windowed(3).with_images(std::slice::from_ref(&(1..8))));
}

#[test]
fn long_sequences_are_done_in_parts_and_blocks() {
    check(&Case::new(1500, 2).with_heads(4, 1, 64));
    check(&Case::new(700, 150).with_heads(2, 1, 64));
    check(&Case::new(1500, 20).windowed(600).with_heads(2, 2, 64));
}

/// Scores of ±1e4, whose exponentials are far beyond f32, and 200 apart, so that the newest key has all the
/// weight.
#[test]
fn large_scores_do_not_overflow() {
    for rows in [1, 20] {
        let mut problem = Problem::<f32>::new(&Case::new(100, rows), 1);
        let Case { heads, head_dim, .. } = problem.case;
        problem.queries.fill(10.0 / head_dim as f32);
        for (position, key) in problem.keys.chunks_exact_mut(head_dim).enumerate() {
            key.fill(20.0 * (position as f32 - 50.0));
        }
        for (level, max_few_rows) in
            SimdLevel::available().into_iter().flat_map(|l| [(l, 0), (l, usize::MAX)])
        {
            let out = problem.attend(level, max_few_rows);
            for (n, head) in out.chunks_exact(head_dim).enumerate() {
                let newest = &problem.values[(100 + n / heads) * head_dim..][..head_dim];
                // The others weigh e^-87 at most.
                let agree = head.iter().zip(newest).all(|(found, value)| (found - value).abs() < 1e-30);
                assert!(agree, "{head:?} for {newest:?}, head {n}, {level:?}");
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_bit_for_bit() {
    let shapes = [(4, 1, 64), (8, 4, 32), (3, 3, 24), (5, 1, 12)];
    for (n, (heads, kv_heads, head_dim)) in shapes.into_iter().enumerate() {
        for rows in [1, 5, 16, 17, 140] {
            for case in [Case::new(1000, rows), Case::new(1000, rows).windowed(300)] {
                let case = case.with_heads(heads, kv_heads, head_dim);
                let problem = Problem::<bf16>::new(&case, n as u64);
                let attend = |threads| {
                    let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                    pool.install(|| problem.attend(SimdLevel::detect(), MAX_FEW_ROWS))
                };
                let expected = bits(&attend(1));
                for threads in [2, 3, 5, 16] {
                    assert!(bits(&attend(threads)) == expected, "{threads} threads: {case:?}");
                }
            }
        }
    }
}

/// The rows of a pass, in passes of other lengths, with a ring that ends elsewhere.
#[test]
fn many_rows_are_the_same_in_any_division_and_ring() {
    for window in [None, Some(90)] {
        let case = |position, rows| {
            let case = Case::new(position, rows).with_heads(6, 2, 32);
            window.map_or(case.clone(), |window| case.windowed(window))
        };
        let whole = Problem::<f16>::new(&case(300, 120), 4);
        let expected = bits(&whole.attend(SimdLevel::detect(), 0));
        let width = 6 * 32;
        for (start, rows) in [(0, 120), (0, 17), (3, 40), (60, 60), (103, 17)] {
            for more_slots in [0, 1, 37] {
                let mut part = case(300 + start, rows);
                part.slots += more_slots;
                // The same numbers, of which the rows see those up to the last of them.
                let mut problem = Problem::<f16>::new(&part, 4);
                problem.copy_entries(&whole, start);
                let found = bits(&problem.attend(SimdLevel::detect(), 0));
                assert!(found == expected[start * width..][..rows * width], "{start} {rows} {more_slots}");
            }
        }
    }
}

#[test]
fn a_step_is_the_same_in_any_ring() {
    for position in [100, 127, 128, 129, 300, 1000] {
        let case = Case::new(position, 1).with_heads(4, 1, 32);
        let whole = Problem::<f32>::new(&case, 4);
        for window in [40, 128, 129] {
            let seen =
                Problem::<f32> { case: Case { window: Some(window), ..case.clone() }, ..whole.clone() };
            let expected = bits(&seen.attend(SimdLevel::detect(), MAX_FEW_ROWS));
            for more_slots in [0, 1, 19, 64] {
                let mut ring = case.clone().windowed(window);
                ring.slots += more_slots;
                let mut problem = Problem::<f32>::new(&ring, 4);
                problem.copy_entries(&whole, 0);
                let found = bits(&problem.attend(SimdLevel::detect(), MAX_FEW_ROWS));
                assert!(found == expected, "{position} {window} {more_slots}");
            }
        }
    }
}

#[test]
fn random_cases_agree_with_the_definition() {
    let mut random = Random(9);
    for seed in 0..150 {
        let rows = 1 + random.below(40);
        let position = random.below(200);
        let kv_heads = 1 + random.below(3);
        let heads = kv_heads * (1 + random.below(4));
        let mut case = Case::new(position, rows).with_heads(heads, kv_heads, 8 * (1 + random.below(4)));
        if random.below(3) > 0 {
            case = case.windowed(1 + random.below(100));
        }
        case.slots += random.below(30);
        if random.below(2) > 0 {
            let start = position + random.below(rows);
            let end = start + 1 + random.below(position + rows - start);
            case.images.push(start..end);
        }
        match seed % 3 {
            0 => Problem::<f32>::new(&case, seed).check(),
            1 => Problem::<bf16>::new(&case, seed).check(),
            _ => Problem::<f16>::new(&case, seed).check(),
        }
    }
}

#[test]
fn no_rows_are_nothing_to_do() {
    let problem = Problem::<f32>::new(&Case::new(5, 0), 1);
    assert!(problem.attend(SimdLevel::detect(), MAX_FEW_ROWS).is_empty());
}

#[test]
#[should_panic(expected = "keys that the ring still holds")]
fn a_ring_that_has_lost_what_a_row_sees_is_refused() {
    let mut case = Case::new(20, 2).windowed(10);
    case.slots -= 1;
    Problem::<f32>::new(&case, 1).attend(SimdLevel::detect(), MAX_FEW_ROWS);
}
