//! What enters a pass, and what comes back from it.

use super::*;
use crate::config::LayerType;
use crate::ops::machine::{Choice, Heads};
use crate::sampling::{SamplingOptions, TokenHistory};

const WIDTH: usize = 32;
const VOCAB: usize = 40;

/// Tokens, vectors in the place of some, and what the stream then is.
fn entered<M: Machine>(machine: &M, table: &[f32], spans: &[EmbeddedSpan], kept: Kept) -> Vec<f32> {
    let table = matrix(machine, table, &[VOCAB], kept);
    let mut caches = [0, 1].map(|_| cache(machine, CacheDtype::F32, 1));
    let [first, second] = &mut caches;
    let wanted = Wanted::Logits(Logits::None);
    let mut entrants = [
        Entrant { input: Input::Ids(&[7, 0, 39]), position: 0, cache: first, wanted },
        Entrant { input: Input::Placed { ids: &[1, 2, 3, 4, 5], spans }, position: 3, cache: second, wanted },
    ];
    let steps = |machine: &M, x: &mut M::Stream<'_>| {
        machine.embed(x, &table, 5.656_854)?;
        machine.look(x)?.wait()
    };
    let mut program = Steps(steps, Vec::new());
    let pending = machine.run(&mut entrants, &mut program).expect("a pass");
    assert_eq!(pending.wait(), Ok(vec![Outcome::default(); 2]));
    program.1
}

#[test]
fn tokens_and_vectors_enter_alike() {
    let mut random = Random(7);
    let table = random.values(VOCAB * WIDTH, 1.0);
    let vectors = Vectors::new(random.values(4 * WIDTH, 3.0), WIDTH);
    let spans =
        [(1, 0..2), (3, 3..4)].map(|(start, rows)| EmbeddedSpan { start, vectors: vectors.rows(rows) });
    for kept in FORMATS {
        let ours = entered(&cpu(), &table, &spans, kept);
        assert_eq!(ours, entered(&plain(), &table, &spans, kept), "{kept:?}");
        // The second sequence begins with row 3; its second to fourth rows are vectors, as they are.
        let vectors = vectors.to_vec().expect("on the host");
        assert_eq!(ours[4 * WIDTH..6 * WIDTH], vectors[..2 * WIDTH]);
        assert_eq!(ours[6 * WIDTH..7 * WIDTH], vectors[3 * WIDTH..]);
    }
}

#[test]
fn logits_are_of_the_rows_that_want_them() {
    for kept in FORMATS {
        let mut random = Random(8);
        let kinds = [Logits::Last, Logits::None, Logits::All, Logits::All, Logits::Last];
        let next = kinds.map(|logits| Next { logits, ..Next::new(random.values(3 * WIDTH, 2.0)) });
        let (scale, weights) = (random.values(WIDTH, 1.0), random.values(VOCAB * WIDTH, 1.0));
        fn outcomes<M: Machine>(m: &M, next: &[Next], scale: &[f32], w: &[f32], kept: Kept) -> Vec<Outcome> {
            let (head, norm) = (matrix(m, w, &[VOCAB], kept), norm(m, scale, 1e-6));
            let mut caches: Vec<_> = next.iter().map(|_| cache(m, CacheDtype::F32, 1)).collect();
            let found = pass(m, WIDTH, next, &mut caches, |m, x| {
                m.logits(x, &norm, &head)?;
                Ok(Vec::new())
            });
            found.expect("a pass").1
        }
        let ours = outcomes(&cpu(), &next, &scale, &weights, kept);
        let plain = outcomes(&plain(), &next, &scale, &weights, kept);
        let counts = |outcomes: &[Outcome]| outcomes.iter().map(|o| o.logits.len()).collect::<Vec<_>>();
        assert_eq!(counts(&ours), [1, 0, 3, 3, 1]);
        assert_eq!(counts(&plain), [1, 0, 3, 3, 1]);
        for (ours, plain) in ours.iter().zip(&plain) {
            for (ours, plain) in ours.logits.iter().zip(&plain.logits) {
                assert_eq!(ours.len(), VOCAB);
                let difference = max_difference(ours, plain);
                // As for the products of `products_of_many_rows_equal_their_definition`.
                assert!(difference <= 8.0 * 1.1 * WIDTH as f32 * f32::EPSILON, "{kept:?}: {difference:e}");
            }
        }
        // A sequence's rows are its own: alone it gets the same but for roundings.
        let alone = outcomes(&cpu(), &next[4..], &scale, &weights, kept);
        let difference = max_difference(&alone[0].logits[0], &ours[4].logits[0]);
        assert!(difference <= 8.0 * 1.1 * WIDTH as f32 * f32::EPSILON, "{kept:?}: {difference:e}");
    }
}

#[test]
fn a_vector_is_added_to_every_row() {
    fn added<M: Machine>(machine: &M) -> Vec<f32> {
        one(machine, 2, &[1.0, 2.0, 3.0, 4.0], |m, x| {
            m.add(x, &[0.5, -1.0])?;
            assert!(matches!(m.add(x, &[1.0]), Err(MachineError::Bug { .. })));
            m.look(x)?.wait()
        })
    }
    assert_eq!(added(&cpu()), [1.5, 1.0, 3.5, 3.0]);
    assert_eq!(added(&plain()), [1.5, 1.0, 3.5, 3.0]);
}

#[test]
fn parts_are_looked_at_side_by_side() {
    fn seen<M: Tested>(machine: &M) -> Vec<f32> {
        let rows = machine.rows_of(&[1.0, 2.0, 3.0, 4.0, 10.0, 20.0], &[2, 1]);
        one(machine, 1, &[0.0, 0.0], |m, x| m.look_at(x, &rows)?.wait())
    }
    assert_eq!(seen(&cpu()), [1.0, 2.0, 10.0, 3.0, 4.0, 20.0]);
    assert_eq!(seen(&plain()), [1.0, 2.0, 10.0, 3.0, 4.0, 20.0]);
}

#[test]
fn vectors_come_back() {
    fn back<M: Machine>(machine: &M) -> Vec<f32> {
        machine.vector(vec![1.5, -2.0]).and_then(|vector| machine.vector_values(&vector)).expect("a vector")
    }
    assert_eq!(back(&cpu()), [1.5, -2.0]);
    assert_eq!(back(&plain()), [1.5, -2.0]);
}

#[test]
fn what_a_machine_cannot_do_is_an_error() {
    fn check<M: Machine>(machine: &M) {
        let choice = Choice {
            options: &SamplingOptions::default(),
            history: &TokenHistory::default(),
            suppressed: &[],
            seed: 0,
            sequence: 0,
        };
        assert!(!machine.chooses(&[&choice], 8));
        let mut cache = cache(machine, CacheDtype::F32, 1);
        let nothing = |_: &M, _: &mut M::Stream<'_>| Ok(Vec::new());
        let is_bug =
            |result: Result<Vec<Outcome>, MachineError>| matches!(result, Err(MachineError::Bug { .. }));
        let no_logits = Wanted::Logits(Logits::None);
        for (input, wanted) in [
            (Input::Ids(&[0]), Wanted::Token(&choice)),
            (Input::Chosen, no_logits),
            (Input::Ids(&[]), no_logits),
            // The program makes none.
            (Input::Ids(&[0]), Wanted::Logits(Logits::Last)),
        ] {
            let mut entrants = [Entrant { input, position: 0, cache: &mut cache, wanted }];
            let result = machine.run(&mut entrants, &mut Steps(nothing, Vec::new()));
            assert!(is_bug(result.and_then(|pending| pending.wait())), "{input:?}, {wanted:?}");
        }
        assert!(is_bug(machine.run(&mut [], &mut Steps(nothing, Vec::new())).and_then(|p| p.wait())));

        // Rows of another width than the weights, and layers that there are not.
        let (table, norm) = (matrix(machine, &[1.0; 6], &[2], FORMATS[0]), norm(machine, &[1.0; 2], 1e-6));
        assert!(machine.multiply(&[1.0; 4], &table).is_err());
        let mut entrants =
            [Entrant { input: Input::Ids(&[0]), position: 0, cache: &mut cache, wanted: no_logits }];
        let steps = |m: &M, x: &mut M::Stream<'_>| {
            m.embed(x, &table, 1.0)?;
            assert!(matches!(m.keys(x, 0, 1, 0..1), Err(MachineError::Bug { .. })));
            assert!(matches!(m.keys(x, 1, 0, 0..1), Err(MachineError::Bug { .. })));
            assert!(matches!(m.keys(x, 0, 0, 0..2), Err(MachineError::Bug { .. })));
            assert!(matches!(m.gate(x, &norm, &table), Err(MachineError::Bug { .. })));
            Ok(Vec::new())
        };
        let result = machine.run(&mut entrants, &mut Steps(steps, Vec::new()));
        assert!(result.is_ok(), "{result:?}");
    }
    check(&cpu());
    check(&plain());
}

/// Two layers of each kind, so that memory that operations leave is met again, over passes of several lengths.
#[test]
fn layers_equal_their_definition() {
    fn run<M: Machine>(m: &M, kept: Kept) -> Vec<Vec<Outcome>> {
        let mut random = Random(9);
        let mut weights = |outs: &[usize], width: usize| {
            let values = random.values(outs.iter().sum::<usize>() * width, 0.3);
            matrix(m, &values, outs, kept)
        };
        let (table, qkv) = (weights(&[VOCAB], WIDTH), weights(&[64, 32, 32], WIDTH));
        let (o, gate_up, down) = (weights(&[WIDTH], 64), weights(&[96, 96], WIDTH), weights(&[WIDTH], 96));
        let mut scale = |width: usize| norm(m, &random.values(width, 1.0), 1e-6);
        let wide = scale(WIDTH);
        let heads = [0, 1, 2, 3].map(|layer| {
            let (kind, window, theta) = match layer % 2 {
                0 => (LayerType::SlidingAttention, Some(5), 1e4_f32),
                _ => (LayerType::FullAttention, None, 1e6),
            };
            let inv_freq = (0..8).map(|j| theta.powf(-(j as f32) / 8.0)).collect();
            let inv_freq = m.vector(inv_freq).expect("a vector");
            let (q_norm, k_norm) = (scale(16), scale(16));
            let (heads, kv_heads, head_dim, query_factor) = (4, 2, 16, 0.25);
            Heads { layer, kind, heads, kv_heads, head_dim, query_factor, window, q_norm, k_norm, inv_freq }
        });
        let shape = CacheShape {
            kv_heads: 2,
            head_dim: 16,
            rings: [30, 64, 30, 64].map(Ring::new).to_vec(),
            dtype: CacheDtype::F32,
        };
        let mut cache = m.cache(&shape);
        let mut position = 0;
        let passes = [20, 1, 1, 7, 1].map(|count| {
            let ids: Vec<u32> = (position..position + count).map(|n| (n * 7 % VOCAB) as u32).collect();
            let wanted = Wanted::Logits(if count > 1 { Logits::All } else { Logits::Last });
            let mut entrants = [Entrant { input: Input::Ids(&ids), position, cache: &mut cache, wanted }];
            position += count;
            let steps = |m: &M, x: &mut M::Stream<'_>| {
                m.embed(x, &table, (WIDTH as f32).sqrt())?;
                for heads in &heads {
                    let projected = m.project(x, &wide, &qkv)?;
                    let attended = m.attend(x, projected, heads)?;
                    m.join(x, attended, &o, &wide)?;
                    let gated = m.gate(x, &wide, &gate_up)?;
                    m.join(x, gated, &down, &wide)?;
                }
                m.logits(x, &wide, &table)?;
                Ok(Vec::new())
            };
            m.run(&mut entrants, &mut Steps(steps, Vec::new())).and_then(|pending| pending.wait())
        });
        passes.into_iter().map(|outcomes| outcomes.expect("a pass")).collect()
    }
    for kept in FORMATS {
        let (ours, plain) = (run(&cpu(), kept), run(&plain(), kept));
        for (ours, plain) in ours.iter().flatten().zip(plain.iter().flatten()) {
            assert_eq!(ours.logits.len(), plain.logits.len());
            for (ours, plain) in ours.logits.iter().zip(&plain.logits) {
                let difference = max_difference(ours, plain);
                // The library's bound for different ways to the same logits.
                assert!(difference <= 2e-4, "{kept:?}: {difference:e}");
                assert!(ours.iter().any(|logit| logit.abs() > 0.1), "logits of some size");
            }
        }
    }
}
