//! A small model by chunks, by steps alone and by steps together, with tokens chosen on the device and on the host. What
//! operations compute is tested with the kernels, and with the model.

mod limits;
mod tiny;

use super::*;
use crate::cache::{CacheDtype, Ring};
use crate::ops::cube::testing::{Random, client};
use crate::ops::machine::Outcome;
use crate::ops::vectors::{EmbeddedSpan, Vectors};
use crate::sampling::{SamplingOptions, TokenHistory};
use tiny::Tiny;

const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 128;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const VOCAB: usize = 320;
const WINDOW: usize = 8;
const CHUNK: usize = 16;
/// What chunked, batched and cached runs differ by at most where activations, sums and cache are f32.
const TOLERANCE: f32 = 2e-4;

fn cube(precision: Precision) -> Option<Cube> {
    let name = if cfg!(feature = "cuda") { "cuda" } else { "wgpu" };
    let device = client().and_then(|_| crate::device::open(name).ok())?;
    Cube::open(&device, precision)
}

fn cache(cube: &Cube, capacity: usize) -> Cache {
    let ring = capacity.min(WINDOW + CHUNK);
    cube.cache(&CacheShape {
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        rings: vec![Ring::new(ring), Ring::new(capacity)],
        dtype: CacheDtype::F32,
    })
}

fn ids(seed: u64, count: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| (random.bits() % VOCAB as u64) as u32).collect()
}

/// Appends ids to a cache, by chunks where they are several.
fn append(cube: &Cube, model: &mut Tiny, cache: &mut Cache, position: usize, ids: &[u32]) -> Outcome {
    let wanted = Wanted::Logits(if ids.len() > 1 { Logits::All } else { Logits::Last });
    let mut entrants = [Entrant { input: Input::Ids(ids), position, cache, wanted }];
    let outcomes = cube.run(&mut entrants, model).expect("enqueued").wait().expect("computed");
    outcomes.into_iter().next().expect("one sequence")
}

/// The logits of every position of a text, by chunks of a sequence alone.
fn by_chunks(cube: &Cube, model: &mut Tiny, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut cache = cache(cube, 64);
    // A chunk of one token would be a step.
    let chunks = ids.chunks(CHUNK).enumerate();
    chunks.flat_map(|(i, chunk)| append(cube, model, &mut cache, i * CHUNK, chunk).logits).collect()
}

/// Steps of several sequences whose caches hold all before `at`, and the logits of each.
fn step(
    cube: &Cube,
    model: &mut Tiny,
    caches: &mut [&mut Cache],
    texts: &[&[u32]],
    at: &[usize],
) -> Vec<Vec<f32>> {
    let entrants = caches.iter_mut().zip(texts).zip(at).map(|((cache, ids), at)| Entrant {
        input: Input::Ids(&ids[*at..at + 1]),
        position: *at,
        cache: &mut **cache,
        wanted: Wanted::Logits(Logits::Last),
    });
    let mut entrants: Vec<_> = entrants.collect();
    let outcomes = cube.run(&mut entrants, model).expect("enqueued").wait().expect("computed");
    outcomes.into_iter().flat_map(|outcome| outcome.logits).collect()
}

fn assert_alike(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= TOLERANCE * largest, "{what}: {found}, not {expected}");
    }
}

fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

#[test]
fn steps_continue_chunks_beyond_the_ring() {
    let Some(cube) = cube(Precision::Exact) else { return };
    let mut model = Tiny::new(&cube);
    let text = ids(1, 40);
    let expected = by_chunks(&cube, &mut model, &text);
    let mut cache = cache(&cube, 64);
    append(&cube, &mut model, &mut cache, 0, &text[..10]);
    for at in 10..40 {
        let [logits] = &append(&cube, &mut model, &mut cache, at, &text[at..at + 1]).logits[..] else {
            panic!("logits of one position");
        };
        assert_alike(logits, &expected[at], &format!("position {at}"));
    }
}

#[test]
fn sequences_come_into_groups_and_leave_them() {
    let Some(cube) = cube(Precision::Exact) else { return };
    let mut model = Tiny::new(&cube);
    let texts = [ids(2, 40), ids(3, 40), ids(4, 20), ids(5, 40)];
    let expected: Vec<_> = texts.iter().map(|text| by_chunks(&cube, &mut model, text)).collect();
    // The third never comes around its ring.
    let mut caches = [64, 50, 20, 64].map(|capacity| cache(&cube, capacity));
    let mut at = [12, 5, 3, 14];
    for (sequence, cache) in caches.iter_mut().enumerate() {
        append(&cube, &mut model, cache, 0, &texts[sequence][..at[sequence]]);
    }
    let rounds: [(&[usize], usize); 7] = [
        (&[0, 1, 2], 6),
        (&[0, 2], 3),
        (&[1], 2),
        (&[3, 0, 1], 5),
        (&[2, 3], 4),
        (&[0, 1, 2, 3], 2),
        (&[3, 1], 4),
    ];
    for (who, steps) in rounds {
        for _ in 0..steps {
            let mut some: Vec<_> = caches.iter_mut().enumerate().filter(|(i, _)| who.contains(i)).collect();
            some.sort_by_key(|(i, _)| who.iter().position(|other| other == i));
            let mut some: Vec<_> = some.into_iter().map(|(_, cache)| cache).collect();
            let of: Vec<&[u32]> = who.iter().map(|i| &texts[*i][..]).collect();
            let positions: Vec<usize> = who.iter().map(|i| at[*i]).collect();
            let logits = step(&cube, &mut model, &mut some, &of, &positions);
            for (sequence, logits) in who.iter().zip(logits) {
                let what = format!("sequence {sequence} at {} of {who:?}", at[*sequence]);
                assert_alike(&logits, &expected[*sequence][at[*sequence]], &what);
                at[*sequence] += 1;
            }
        }
    }
}

#[test]
fn a_clone_of_a_sequence_in_a_group_goes_its_own_way() {
    let Some(cube) = cube(Precision::Exact) else { return };
    let mut model = Tiny::new(&cube);
    let texts = [ids(6, 20), ids(7, 20)];
    let mut caches = [64, 64].map(|capacity| cache(&cube, capacity));
    for (cache, text) in caches.iter_mut().zip(&texts) {
        append(&cube, &mut model, cache, 0, &text[..8]);
    }
    let both = |model: &mut Tiny, caches: &mut [Cache; 2], at: usize| {
        let mut caches: Vec<_> = caches.iter_mut().collect();
        step(&cube, model, &mut caches, &[&texts[0], &texts[1]], &[at, at])
    };
    both(&mut model, &mut caches, 8);
    let mut clone = caches[0].clone();
    let mut other = texts[0][..9].to_vec();
    other.extend([3, 4, 5]);
    let expected = [texts[0].clone(), other.clone()].map(|text| by_chunks(&cube, &mut model, &text));
    for at in 9..12 {
        let logits = both(&mut model, &mut caches, at);
        assert_alike(&logits[0], &expected[0][at], "the sequence");
        let logits = append(&cube, &mut model, &mut clone, at, &other[at..at + 1]).logits;
        assert_alike(&logits[0], &expected[1][at], "its clone");
    }
    // Out of the group again.
    let logits = append(&cube, &mut model, &mut caches[0], 12, &texts[0][12..]).logits;
    assert_alike(&logits[7], &expected[0][19], "the sequence alone");
}

#[test]
fn tokens_are_chosen_ahead_of_the_host() {
    let Some(cube) = cube(Precision::Exact) else { return };
    let mut model = Tiny::new(&cube);
    let (options, history) = (SamplingOptions::greedy(), TokenHistory::default());
    let choice = Choice { options: &options, history: &history, suppressed: &[], seed: 0, sequence: 0 };
    assert!(cube.chooses(&[&choice; 3], VOCAB));
    for sequences in [1, 3] {
        let mut texts: Vec<Vec<u32>> = (0..sequences).map(|i| ids(20 + i as u64, 6 + i)).collect();
        let mut caches: Vec<Cache> = texts.iter().map(|_| cache(&cube, 64)).collect();
        for (cache, text) in caches.iter_mut().zip(&texts) {
            append(&cube, &mut model, cache, 0, &text[..text.len() - 1]);
        }
        let mut pending = Vec::new();
        for sent in 0..12 {
            let entrants = caches.iter_mut().zip(&texts).map(|(cache, text)| Entrant {
                input: if sent == 0 { Input::Ids(&text[text.len() - 1..]) } else { Input::Chosen },
                position: text.len() - 1 + sent,
                cache,
                wanted: Wanted::Token(&choice),
            });
            let mut entrants: Vec<_> = entrants.collect();
            pending.push(cube.run(&mut entrants, &mut model).expect("enqueued"));
        }
        for outcomes in pending {
            for (text, outcome) in texts.iter_mut().zip(outcomes.wait().expect("computed")) {
                text.push(outcome.token.expect("asked for").expect("a token"));
            }
        }
        for (i, text) in texts.iter().enumerate() {
            let logits = by_chunks(&cube, &mut model, text);
            for at in 6 + i..text.len() {
                assert_eq!(text[at], largest(&logits[at - 1]), "token {at} of {i} of {sequences}");
            }
        }
        // Only the last pass's tokens can enter the next.
        let (position, cache) = (texts[0].len(), &mut caches[0]);
        let mut entrants =
            [Entrant { input: Input::Chosen, position, cache, wanted: Wanted::Token(&choice) }];
        let error = cube.run(&mut entrants, &mut model).expect_err("no such token");
        assert!(matches!(error, MachineError::Bug { .. }));
    }
}

#[test]
fn a_pass_of_chunks_and_steps_keeps_the_order_of_its_sequences() {
    let Some(cube) = cube(Precision::Exact) else { return };
    let mut model = Tiny::new(&cube);
    let (options, history) = (SamplingOptions::greedy(), TokenHistory::default());
    let choice = Choice { options: &options, history: &history, suppressed: &[], seed: 0, sequence: 0 };
    let texts = [ids(30, 1), ids(31, 9), ids(32, 1), ids(33, 2)];
    let wanted = [
        Wanted::Token(&choice),
        Wanted::Logits(Logits::Last),
        Wanted::Logits(Logits::Last),
        Wanted::Logits(Logits::None),
    ];
    let expected: Vec<_> = texts.iter().map(|text| by_chunks(&cube, &mut model, text)).collect();
    let mut caches = [(); 4].map(|()| cache(&cube, 64));
    let entrants = caches.iter_mut().zip(&texts).zip(wanted);
    let entrants =
        entrants.map(|((cache, ids), wanted)| Entrant { input: Input::Ids(ids), position: 0, cache, wanted });
    let mut entrants: Vec<_> = entrants.collect();
    let outcomes = cube.run(&mut entrants, &mut model).expect("enqueued").wait().expect("computed");
    assert_eq!(outcomes[0].token, Some(Ok(largest(&expected[0][0]))));
    assert_alike(&outcomes[1].logits[0], &expected[1][8], "the chunk");
    assert_alike(&outcomes[2].logits[0], &expected[2][0], "the step");
    assert_eq!(outcomes[3], Outcome::default());
}

#[test]
fn what_is_looked_at_is_what_is_computed() {
    let Some(cube) = cube(Precision::Exact) else { return };
    let mut model = Tiny::new(&cube);
    let text = ids(8, 11);
    let expected = by_chunks(&cube, &mut model, &text);
    model.observes = true;
    let observed = append(&cube, &mut model, &mut cache(&cube, 64), 0, &text).logits;
    for (found, expected) in observed.iter().zip(&expected) {
        assert_alike(found, expected, "observed");
    }
    let seen: Vec<Vec<f32>> = model.seen.drain(..).map(|seen| seen.wait().expect("computed")).collect();
    let widths: Vec<usize> = seen.iter().map(|seen| seen.len() / text.len()).collect();
    assert_eq!(widths, [HEADS * HEAD_DIM, INTERMEDIATE, HIDDEN, HEADS * HEAD_DIM, INTERMEDIATE, HIDDEN]);
    assert_eq!(model.keys.len(), KV_HEADS * 2 * HEAD_DIM);

    // The embedding of the second token, taken away and given as a vector, and a stream that is added to and from.
    let scale = (HIDDEN as f32).sqrt();
    let all = cube.multiply(&identity(HIDDEN), &model.embedding).expect("computed");
    let second: Vec<f32> = (0..HIDDEN).map(|i| scale * all[i * VOCAB + text[1] as usize]).collect();
    let spans = [EmbeddedSpan { start: 1, vectors: Vectors::new(second, HIDDEN) }];
    let mut other = text.clone();
    other[1] = 0;
    model.observes = false;
    model.added = Some(vec![0.0; HIDDEN]);
    let input = Input::Placed { ids: &other, spans: &spans };
    let mut cache = cache(&cube, 64);
    let wanted = Wanted::Logits(Logits::All);
    let mut entrants = [Entrant { input, position: 0, cache: &mut cache, wanted }];
    let outcomes = cube.run(&mut entrants, &mut model).expect("enqueued").wait().expect("computed");
    for (found, expected) in outcomes[0].logits.iter().zip(&expected) {
        assert_alike(found, expected, "placed");
    }
}

fn identity(width: usize) -> Vec<f32> {
    (0..width * width).map(|at| if at / width == at % width { 1.0 } else { 0.0 }).collect()
}
