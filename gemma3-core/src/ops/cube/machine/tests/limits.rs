//! Devices that allow less than this one does: matrices in several parts, passes of fewer rows, short submissions.

use super::*;
use crate::checkpoint::TensorView;
use crate::formats::TensorFormat;
use crate::ops::cube::limits::{DeviceLimits, FORCED};
use crate::ops::cube::matvec::WITHOUT_PLANES;
use crate::ops::cube::testing::file_bytes;
use crate::ops::image::{Ending, ImageMachine, Numbers};

const UNLIMITED: DeviceLimits =
    DeviceLimits { buffer_bytes: u64::MAX, alignment: 256, submission_flops: None };

/// A machine on a device of such limits.
fn limited(limits: DeviceLimits) -> Option<Cube> {
    FORCED.set(Some(limits));
    let cube = cube(Precision::Exact);
    FORCED.set(None);
    cube
}

#[test]
fn a_model_in_several_parts_computes_the_same() {
    // 64 rows of 64 numbers: all but the output projections lie in parts, gates and up projections across their border.
    let Some(small) = limited(DeviceLimits { buffer_bytes: 64 * 256, ..UNLIMITED }) else { return };
    let Some(cube) = cube(Precision::Exact) else { return };
    let (mut whole, mut parts) = (Tiny::new(&cube), Tiny::new(&small));
    assert_eq!((whole.embedding.stacks().len(), parts.embedding.stacks().len()), (1, 5));
    // What the small one has uploaded is there for the other's commands.
    small.commands().wait().expect("uploaded");

    let texts = [ids(50, 30), ids(51, 30), ids(52, 30)];
    let expected: Vec<_> = texts.iter().map(|text| by_chunks(&cube, &mut whole, text)).collect();
    for (text, expected) in texts.iter().zip(&expected) {
        for (position, logits) in by_chunks(&cube, &mut parts, text).iter().enumerate() {
            assert_alike(logits, &expected[position], &format!("chunks, position {position}"));
        }
    }
    // Few rows, too, and steps: alone and together.
    let mut caches = [(); 3].map(|()| cache(&cube, 64));
    for (cache, (text, expected)) in caches.iter_mut().zip(texts.iter().zip(&expected)) {
        for (position, logits) in append(&cube, &mut parts, cache, 0, &text[..3]).logits.iter().enumerate() {
            assert_alike(logits, &expected[position], &format!("a short chunk, position {position}"));
        }
        for at in 3..6 {
            let logits = append(&cube, &mut parts, cache, at, &text[at..at + 1]).logits;
            assert_alike(&logits[0], &expected[at], &format!("a step alone, position {at}"));
        }
    }
    for at in 6..10 {
        let mut some: Vec<_> = caches.iter_mut().collect();
        let texts: Vec<&[u32]> = texts.iter().map(|text| &text[..]).collect();
        let logits = step(&cube, &mut parts, &mut some, &texts, &[at; 3]);
        for (logits, expected) in logits.iter().zip(&expected) {
            assert_alike(logits, &expected[at], &format!("a step together, position {at}"));
        }
    }
}

#[test]
fn a_device_of_small_buffers_computes_the_same() {
    let Some(cube) = cube(Precision::Exact) else { return };
    let Some(small) = limited(DeviceLimits { buffer_bytes: 64 * 256, ..UNLIMITED }) else { return };
    let (mut whole, mut parts) = (Tiny::new(&cube), Tiny::new(&small));
    let texts = [ids(53, CHUNK), ids(54, CHUNK), ids(55, 9)];
    let expected: Vec<_> = texts.iter().map(|text| by_chunks(&cube, &mut whole, text)).collect();
    // Several passes: a pass has room for 16 rows, and a buffer for the logits of 12.
    let mut caches = [(); 3].map(|()| cache(&small, 64));
    let entrants = caches.iter_mut().zip(&texts).map(|(cache, ids)| Entrant {
        input: Input::Ids(ids),
        position: 0,
        cache,
        wanted: Wanted::Logits(Logits::All),
    });
    let mut entrants: Vec<_> = entrants.collect();
    let outcomes = small.run(&mut entrants, &mut parts).expect("enqueued").wait().expect("computed");
    for (outcome, expected) in outcomes.iter().zip(&expected) {
        assert_eq!(outcome.logits.len(), expected.len());
        for (logits, expected) in outcome.logits.iter().zip(expected) {
            assert_alike(logits, expected, "passes of several sequences");
        }
    }
    // The caches of several don't fit one buffer: their steps are a pass over chunks.
    let more = [ids(56, 4), ids(57, 4), ids(58, 4)];
    for at in 0..4 {
        let mut some: Vec<_> = caches.iter_mut().collect();
        let lengths: Vec<usize> = texts.iter().map(|text| text.len() + at).collect();
        let all: Vec<Vec<u32>> = texts.iter().zip(&more).map(|(a, b)| [&a[..], &b[..]].concat()).collect();
        let slices: Vec<&[u32]> = all.iter().map(|text| &text[..]).collect();
        let logits = step(&small, &mut parts, &mut some, &slices, &lengths);
        for (sequence, logits) in logits.iter().enumerate() {
            let expected = by_chunks(&cube, &mut whole, &all[sequence][..=lengths[sequence]]);
            assert_alike(logits, &expected[lengths[sequence]], &format!("step {at} of {sequence}"));
        }
    }
    // More rows than any buffer holds are an error that says how many bytes they take.
    let long = ids(59, CHUNK + 1);
    let mut cache = cache(&small, 64);
    let wanted = Wanted::Logits(Logits::Last);
    let mut entrants = [Entrant { input: Input::Ids(&long), position: 0, cache: &mut cache, wanted }];
    let error = small.run(&mut entrants, &mut parts).expect_err("too many rows").to_string();
    assert!(error.contains("17408 bytes") && error.contains("16384"), "{error}");
}

#[test]
fn a_device_of_other_planes_and_little_shared_memory_computes_the_same() {
    let Some(whole) = cube(Precision::Exact) else { return };
    let text = ids(57, 24);
    let expected = by_chunks(&whole, &mut Tiny::new(&whole), &text);
    for planes in [[8, 16 << 10], [16, 32 << 10], [64, 16 << 10], [128, 32 << 10]] {
        WITHOUT_PLANES.set(Some(planes));
        let other = cube(Precision::Exact).expect("as before");
        let mut model = Tiny::new(&other);
        let chunks = by_chunks(&other, &mut model, &text);
        let mut caches = [(); 3].map(|()| cache(&other, 64));
        let steps = (0..6).flat_map(|at| {
            let mut some: Vec<_> = caches.iter_mut().collect();
            // The first steps alone.
            let count = if at < 3 { 1 } else { 3 };
            if at == 3 {
                for cache in &mut some[1..] {
                    append(&other, &mut model, cache, 0, &text[..3]);
                }
            }
            step(&other, &mut model, &mut some[..count], &[&text[..]; 3][..count], &[at; 3][..count])
                .into_iter()
                .map(move |logits| (at, logits))
                .collect::<Vec<_>>()
        });
        let steps: Vec<_> = steps.collect();
        WITHOUT_PLANES.set(None);
        for (position, logits) in chunks.iter().enumerate() {
            assert_alike(logits, &expected[position], &format!("{planes:?}, position {position}"));
        }
        for (position, logits) in steps {
            assert_alike(&logits, &expected[position], &format!("{planes:?}, a step at {position}"));
        }
    }
}

#[test]
fn tokens_are_chosen_alike_with_other_planes() {
    let Some(whole) = cube(Precision::Exact) else { return };
    let text = ids(58, 6);
    let chosen = |cube: &Cube| {
        let mut model = Tiny::new(cube);
        let (options, history) =
            (SamplingOptions { seed: Some(3), ..SamplingOptions::default() }, TokenHistory::default());
        let choice = Choice { options: &options, history: &history, suppressed: &[], seed: 3, sequence: 0 };
        let mut cache = cache(cube, 64);
        append(cube, &mut model, &mut cache, 0, &text[..5]);
        let mut tokens = Vec::new();
        for sent in 0..8 {
            let input = if sent == 0 { Input::Ids(&text[5..]) } else { Input::Chosen };
            let wanted = Wanted::Token(&choice);
            let mut entrants = [Entrant { input, position: 5 + sent, cache: &mut cache, wanted }];
            let outcomes = cube.run(&mut entrants, &mut model).expect("enqueued").wait().expect("computed");
            tokens.push(outcomes[0].token.expect("asked for").expect("a token"));
        }
        tokens
    };
    let expected = chosen(&whole);
    for planes in [[8, 16 << 10], [16, 32 << 10], [64, 16 << 10]] {
        WITHOUT_PLANES.set(Some(planes));
        let found = cube(Precision::Exact).map(|other| chosen(&other));
        WITHOUT_PLANES.set(None);
        assert_eq!(found.as_ref(), Some(&expected), "{planes:?}");
    }
}

#[test]
fn rows_that_no_buffer_holds_are_refused() {
    let Some(small) = limited(DeviceLimits { buffer_bytes: 3 * 256, ..UNLIMITED }) else { return };
    let error = small.matrix(vec![weight(8, 64, &mut Random::new(1))], Quantization::None);
    let error = error.expect_err("rows are not divided").to_string();
    assert!(error.contains("256 bytes") && error.contains("768 bytes"), "{error}");
}

fn weight(rows: usize, cols: usize, random: &mut Random) -> TensorView<'static> {
    let format = TensorFormat::F32;
    let bytes = file_bytes(format, rows, cols, random).into();
    TensorView { file_name: "w", source: "random", shape: vec![rows, cols], format, bytes, place: None }
}

/// Operations of a product of one row of [`product`].
const ROW_FLOPS: u64 = 2 * 96 * 64;

/// 200 rows with a bias, an activation and rows that are added, and the submissions that were asked for.
fn product(limits: DeviceLimits) -> Option<(Vec<f32>, u64)> {
    let cube = limited(limits)?;
    let mut random = Random::new(60);
    let weight = cube.image_matrix(weight(96, 64, &mut random)).expect("a matrix");
    let bias = cube.vector(random.floats(96)).expect("sent");
    let x = cube.features(random.floats(200 * 64), 64).expect("sent");
    let added = cube.features(random.floats(200 * 96), 96).expect("sent");
    let before = cube.commands().submissions();
    let ending = Ending { bias: &bias, gelu: true, added: Some(&added) };
    let out = cube.linear(&x, &weight, Some(ending), Numbers::Floats).expect("enqueued");
    let submissions = cube.commands().submissions() - before;
    Some((cube.look_at_features(&out).expect("enqueued").wait().expect("computed"), submissions))
}

#[test]
fn a_product_is_divided_among_submissions() {
    let Some((expected, none)) = product(UNLIMITED) else { return };
    assert_eq!(none, 0);
    // Launches of 64, 64, 64 and 8 rows, of which the last two fit a submission; of 128 and 72; of all.
    for (rows, submissions) in [(127, 2), (128, 1), (199, 1), (200, 0)] {
        let limits = DeviceLimits { submission_flops: Some(rows * ROW_FLOPS), ..UNLIMITED };
        let (found, counted) = product(limits).expect("as before");
        assert_eq!((found == expected, counted), (true, submissions), "{rows} rows in a submission");
    }
}

#[test]
fn a_prompt_is_divided_among_submissions() {
    let prompt = |limits: DeviceLimits| {
        let cube = limited(limits)?;
        let mut model = Tiny::new(&cube);
        let rings = vec![Ring::new(128); 2];
        let shape = CacheShape { kv_heads: KV_HEADS, head_dim: HEAD_DIM, rings, dtype: CacheDtype::F32 };
        let mut cache = cube.cache(&shape);
        let text = ids(61, 130);
        append(&cube, &mut model, &mut cache, 0, &text[..30]);
        let before = cube.commands().submissions();
        // The second chunk is longer than a launch.
        let logits = append(&cube, &mut model, &mut cache, 30, &text[30..]).logits;
        Some((logits, cube.commands().submissions() - before))
    };
    let Some((expected, none)) = prompt(UNLIMITED) else { return };
    let limits = DeviceLimits { submission_flops: Some(1), ..UNLIMITED };
    let (found, submissions) = prompt(limits).expect("as before");
    assert_eq!(none, 0);
    // In two launches each: queries, keys and values (in the second layer apart), attention, output, gate and up (apart
    // likewise), down; and the head.
    assert_eq!(submissions, 2 * (5 + 8 + 1));
    for (position, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_alike(found, expected, &format!("position {}", position + 30));
    }
}
