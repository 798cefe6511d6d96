//! Attention over several passes, of two sequences together.

use super::*;
use crate::config::LayerType;
use crate::ops::machine::Heads;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const WIDTHS: [usize; 3] = [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM];

/// Norms and frequencies.
struct Numbers {
    q_scale: Vec<f32>,
    k_scale: Vec<f32>,
    inv_freq: Vec<f32>,
    eps: f32,
}

fn heads<M: Machine>(machine: &M, numbers: &Numbers, window: Option<usize>) -> Heads<M::Vector> {
    Heads {
        layer: 0,
        kind: if window.is_some() { LayerType::SlidingAttention } else { LayerType::FullAttention },
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        query_factor: 0.25,
        window,
        q_norm: norm(machine, &numbers.q_scale, numbers.eps),
        k_norm: norm(machine, &numbers.k_scale, numbers.eps),
        inv_freq: machine.vector(numbers.inv_freq.clone()).expect("a vector"),
    }
}

/// What a pass attends to, and the newest keys of both sequences afterwards.
fn attended<M: Tested>(
    machine: &M,
    heads: &Heads<M::Vector>,
    next: &[Next; 2],
    qkv: &[f32],
    caches: &mut [M::Cache],
) -> [Vec<f32>; 2] {
    let mut keys = Vec::new();
    let found = pass(machine, 1, next, caches, |m, x| {
        let rows = m.attend(x, m.rows_of(qkv, &WIDTHS), heads)?;
        for (n, next) in next.iter().enumerate() {
            let end = next.position + next.x.len();
            keys.extend(m.keys(x, n, 0, end.saturating_sub(9)..end)?);
        }
        m.look_at(x, &rows)?.wait()
    });
    [found.expect("a pass").0, keys]
}

/// Chunks as a prefill writes them, on rings that come around. `check` is given what differs of the result and of
/// the keys.
fn compare(
    numbers: &Numbers,
    dtype: CacheDtype,
    qkv: impl Fn(&mut Random, usize) -> Vec<f32>,
    check: impl Fn(f32, f32),
) {
    let (cpu, plain) = (cpu(), plain());
    for (slots, window) in [(64, None), (23, Some(7))] {
        let mut random = Random(4);
        let mut ours: Vec<_> = (0..2).map(|_| cache(&cpu, dtype, slots)).collect();
        let mut theirs: Vec<_> = (0..2).map(|_| cache(&plain, dtype, slots)).collect();
        let mut positions = [0, 0];
        for counts in [[16, 1], [1, 12], [1, 1], [13, 2], [1, 1], [9, 16], [2, 1], [1, 3]] {
            let next = [0, 1].map(|n| {
                let count = counts[n];
                let (image, position) = (count / 3..count / 2, positions[n]);
                positions[n] += count;
                Next { x: vec![0.0; count], image, position, logits: Logits::None }
            });
            let qkv = qkv(&mut random, counts[0] + counts[1]);
            let [out, keys] = attended(&cpu, &heads(&cpu, numbers, window), &next, &qkv, &mut ours);
            let [plain_out, plain_keys] =
                attended(&plain, &heads(&plain, numbers, window), &next, &qkv, &mut theirs);
            check(max_difference(&out, &plain_out), max_difference(&keys, &plain_keys));
        }
    }
}

/// Queries and keys whose norm and rotation are exact, so that caches of every dtype hold the same.
#[test]
fn attention_over_the_same_cache_equals_its_definition() {
    let mut random = Random(5);
    let numbers = Numbers {
        q_scale: random.values(HEAD_DIM, 4.0),
        k_scale: random.values(HEAD_DIM, 2.0),
        inv_freq: vec![0.0; HEAD_DIM / 2],
        eps: 0.0,
    };
    for dtype in [CacheDtype::F32, CacheDtype::BF16, CacheDtype::F16] {
        // The root mean square of ones and minus ones is 1.
        let qkv = |random: &mut Random, rows: usize| {
            let signs = (0..rows * (WIDTHS[0] + WIDTHS[1])).map(|_| random.next().signum());
            let mut all: Vec<f32> = signs.collect();
            all.extend(random.values(rows * WIDTHS[2], 2.0));
            all
        };
        compare(&numbers, dtype, qkv, |difference, keys| {
            assert_eq!(keys, 0.0, "{dtype:?}");
            // Scores below 32 are off by some ulp of that, which is the relative error of their exponentials;
            // the result is a mean of values below 2.
            assert!(difference <= 32.0 * 2.0 * 8.0 * f32::EPSILON, "{dtype:?}: {difference:e}");
        });
    }
}

#[test]
fn heads_are_normalized_and_turned_as_by_the_definition() {
    let mut random = Random(6);
    let numbers = Numbers {
        q_scale: random.values(HEAD_DIM, 2.0),
        k_scale: random.values(HEAD_DIM, 2.0),
        inv_freq: (0..HEAD_DIM / 2).map(|j| 10_000_f32.powf(-(j as f32) / 8.0)).collect(),
        eps: 1e-6,
    };
    let qkv = |random: &mut Random, rows: usize| {
        let mut all = random.values(rows * (WIDTHS[0] + WIDTHS[1]), 3.0);
        all.extend(random.values(rows * WIDTHS[2], 2.0));
        all
    };
    compare(&numbers, CacheDtype::F32, qkv, |difference, keys| {
        // A normalized head is below sqrt(head_dim) times the scale.
        let bound = 2.0 * (HEAD_DIM as f32).sqrt() * 8.0 * f32::EPSILON;
        assert!(keys <= bound, "{keys:e} > {bound:e}");
        // Scores are products of heads of length 8, a quarter of that: below 16, off by some ulp of that in both
        // factors and the sum. The result is a mean of values below 2.
        let bound = 16.0 * 2.0 * 3.0 * 8.0 * f32::EPSILON;
        assert!(difference <= bound, "{difference:e} > {bound:e}");
    });
}

#[test]
fn a_forked_cache_keeps_what_it_had() {
    fn keys<M: Tested>(machine: &M) -> Vec<Vec<f32>> {
        let numbers = Numbers {
            q_scale: vec![1.0; HEAD_DIM],
            k_scale: vec![1.0; HEAD_DIM],
            inv_freq: vec![0.0; HEAD_DIM / 2],
            eps: 0.0,
        };
        let heads = heads(machine, &numbers, None);
        let write = |caches: &mut [M::Cache], sign: f32, position: usize, read: Range<usize>| {
            let next = Next { position, ..Next::new(vec![0.0]) };
            let mut keys = Vec::new();
            let done = pass(machine, 1, &[next], caches, |m, x| {
                m.attend(x, m.rows_of(&[sign; WIDTHS[0] + 2 * WIDTHS[1]], &WIDTHS), &heads)?;
                keys = m.keys(x, 0, 0, read.clone())?;
                Ok(Vec::new())
            });
            done.expect("a pass");
            keys
        };
        let mut first = vec![cache(machine, CacheDtype::F16, 8)];
        write(&mut first, 1.0, 0, 0..1);
        let mut second = first.clone();
        let forked = write(&mut second, -1.0, 1, 0..2);
        vec![forked, write(&mut first, 1.0, 1, 0..2)]
    }
    let [plus, minus] = [[1.0; HEAD_DIM], [-1.0; HEAD_DIM]];
    let expected = [[plus, minus, plus, minus], [plus; 4]].map(|keys| keys.as_flattened().to_vec());
    assert_eq!(keys(&cpu()), expected);
    assert_eq!(keys(&plain()), expected);
}
