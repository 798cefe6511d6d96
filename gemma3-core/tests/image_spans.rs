//! Sessions in which some positions are given as vectors, as images are: whatever the schedule, the result is
//! that of the whole prompt at once. The vectors are random; no encoder is needed.

mod common;

use common::{assert_close, devices, golden};
use gemma3_core::Device;
use gemma3_core::cache::{CacheError, CacheOptions};
use gemma3_core::generate::{ContinueOptions, GenerateError, Session, SessionOptions};
use gemma3_core::model::{EmbeddedSpan, ForwardError, Model, Vectors};
use gemma3_core::sampling::SamplingOptions;

/// Two schedules of the same sums: the bound of the design for exact mode.
const TOLERANCE: f32 = 2e-4;
/// The tiny multimodal model's placeholder.
const IMAGE: u32 = 390;

fn model(device: &Device) -> Option<Model> {
    Some(common::load(&golden("tiny-multimodal")?, device))
}

fn session(model: &Model, chunk: usize) -> Session {
    let cache = CacheOptions { capacity: Some(128), chunk, ..CacheOptions::default() };
    Session::new(model, &SessionOptions { cache, sequence: 0 }).expect("a session")
}

/// Vectors that look random, about as large as the model's own.
fn vectors(model: &Model, tokens: usize, seed: u64) -> Vectors {
    let hidden = model.text_config().hidden_size;
    let value = |i: usize| {
        let mixed = (i as u64 + seed * 7919).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        mixed as f32 / (1 << 23) as f32 - 1.0
    };
    Vectors::new((0..tokens * hidden).map(value).collect(), hidden)
}

/// 11 tokens of text, an image of 4, 6 of text, two images of 4 and 3 with one token between them, 5 of text.
fn prompt(model: &Model) -> (Vec<u32>, Vec<EmbeddedSpan>) {
    let text = |count: usize| (0..count).map(|i| 20 + (i as u32 * 37) % 300).collect::<Vec<u32>>();
    let image = |count: usize| vec![IMAGE; count];
    let ids = [text(11), image(4), text(6), image(4), text(1), image(3), text(5)].concat();
    let span = |start, tokens| EmbeddedSpan { start, vectors: vectors(model, tokens, start as u64) };
    (ids, vec![span(11, 4), span(21, 4), span(26, 3)])
}

fn logits(session: &mut Session) -> Vec<f32> {
    session.logits().expect("logits").to_vec()
}

fn greedy(session: &mut Session, count: usize) -> Vec<u32> {
    let options = ContinueOptions {
        sampling: SamplingOptions::greedy(),
        max_new_tokens: Some(count),
        ..ContinueOptions::default()
    };
    session.generate(options).expect("a stream").map(|token| token.expect("a token").id).collect()
}

#[test]
fn chunks_never_split_an_image_and_do_not_change_the_result() {
    for (name, device) in devices() {
        let Some(model) = model(&device) else { return };
        let (ids, spans) = prompt(&model);
        let mut whole = session(&model, 64);
        whole.append_with(&ids, &spans).expect("a prompt");
        let expected = logits(&mut whole);
        let chunks: &[usize] =
            if name == "flex" || name == "ndarray" { &[1, 4, 5, 7, 12, 13, 33] } else { &[13] };
        for chunk in chunks {
            let mut chunked = session(&model, *chunk);
            chunked.append_with(&ids, &spans).expect("a prompt");
            assert_close(
                &format!("chunks of {chunk} on {name}"),
                &logits(&mut chunked),
                &expected,
                TOLERANCE,
            );
        }
    }
}

#[test]
fn a_prompt_with_images_in_several_parts_equals_the_whole() {
    let (_, device) = devices().swap_remove(0);
    let Some(model) = model(&device) else { return };
    let (ids, spans) = prompt(&model);
    let mut whole = session(&model, 64);
    whole.append_with(&ids, &spans).expect("a prompt");
    let mut parts = session(&model, 64);
    parts.append(&ids[..11]).expect("text");
    parts.append_with(&ids[11..22], &[spans[0].at(0)]).expect_err("an image without vectors");
    parts.append_with(&ids[11..21], &[spans[0].at(0)]).expect("an image and text");
    logits(&mut parts);
    let rest: Vec<EmbeddedSpan> = spans[1..].iter().map(|span| span.at(span.start - 21)).collect();
    parts.append_with(&ids[21..], &rest).expect("two images");
    assert_eq!(parts.ids(), whole.ids());
    assert_close("in parts", &logits(&mut parts), &logits(&mut whole), TOLERANCE);
    assert_eq!(greedy(&mut parts, 12), greedy(&mut whole, 12));
}

/// What stands after an image depends on it, and on which of two images it is.
#[test]
fn images_matter_and_are_not_exchanged() {
    let (_, device) = devices().swap_remove(0);
    let Some(model) = model(&device) else { return };
    let (ids, spans) = prompt(&model);
    let of = |spans: &[EmbeddedSpan]| {
        let mut session = session(&model, 64);
        session.append_with(&ids, spans).expect("a prompt");
        logits(&mut session)
    };
    let exchanged = [spans[1].at(11), spans[0].at(21), spans[2].clone()];
    let difference = common::max_difference(&of(&spans), &of(&exchanged));
    assert!(difference > 0.01, "{difference}");
}

#[test]
fn a_session_cut_back_around_an_image_equals_a_fresh_one() {
    let (_, device) = devices().swap_remove(0);
    let Some(model) = model(&device) else { return };
    let (ids, spans) = prompt(&model);
    // Before, at the start of, inside, at the end of, and after an image.
    for len in [5, 11, 12, 14, 15, 16, 20, 22, 25, 26, 29, 33] {
        let mut cut = session(&model, 64);
        cut.append_with(&ids, &spans).expect("a prompt");
        logits(&mut cut);
        greedy(&mut cut, 3);
        cut.rewind(len);
        // A cut inside of an image leaves a shorter image.
        let kept: Vec<EmbeddedSpan> = spans
            .iter()
            .filter(|span| span.start < len)
            .map(|span| EmbeddedSpan {
                start: span.start,
                vectors: span.vectors.rows(0..span.len().min(len - span.start)),
            })
            .collect();
        let mut fresh = session(&model, 64);
        fresh.append_with(&ids[..len], &kept).expect("a prompt");
        assert_close(&format!("cut to {len}"), &logits(&mut cut), &logits(&mut fresh), TOLERANCE);
        // And on again, with another image.
        let more = EmbeddedSpan { start: 1, vectors: vectors(&model, 4, 99) };
        for session in [&mut cut, &mut fresh] {
            session
                .append_with(&[30, IMAGE, IMAGE, IMAGE, IMAGE, 31], std::slice::from_ref(&more))
                .expect("more");
        }
        assert_close(&format!("on from {len}"), &logits(&mut cut), &logits(&mut fresh), TOLERANCE);
        assert_eq!(greedy(&mut cut, 5), greedy(&mut fresh, 5));
    }
}

#[test]
fn a_fork_keeps_its_images_and_its_parents_are_untouched() {
    let (_, device) = devices().swap_remove(0);
    let Some(model) = model(&device) else { return };
    let (ids, spans) = prompt(&model);
    let mut parent = session(&model, 5);
    parent.append_with(&ids[..26], &spans[..2]).expect("a prompt");
    // Forked before anything is computed.
    let mut fork = parent.clone();
    fork.append_with(&ids[26..], &[spans[2].at(0)]).expect("an image");
    let mut fresh = session(&model, 5);
    fresh.append_with(&ids, &spans).expect("a prompt");
    assert_close("fork", &logits(&mut fork), &logits(&mut fresh), TOLERANCE);
    let mut fresh_parent = session(&model, 5);
    fresh_parent.append_with(&ids[..26], &spans[..2]).expect("a prompt");
    assert_close("parent", &logits(&mut parent), &logits(&mut fresh_parent), TOLERANCE);
}

#[test]
fn vectors_that_do_not_fit_are_refused_and_change_nothing() {
    let (_, device) = devices().swap_remove(0);
    let Some(model) = model(&device) else { return };
    let mut session = session(&model, 5);
    assert_eq!(session.capacity(), 128);
    let span = |start, tokens| EmbeddedSpan { start, vectors: vectors(&model, tokens, 1) };
    let ids = [20, IMAGE, IMAGE, 21, IMAGE, IMAGE, 22];
    let refused = |session: &mut Session, ids: &[u32], spans: &[EmbeddedSpan]| {
        let error = session.append_with(ids, spans).expect_err("an error");
        assert!(session.is_empty());
        error
    };
    let placeholder = GenerateError::PlaceholderWithoutImage { id: IMAGE, position: 4 };
    assert_eq!(refused(&mut session, &ids, &[span(1, 2)]), placeholder);
    assert_eq!(
        session.append(&[20, IMAGE]),
        Err(GenerateError::PlaceholderWithoutImage { id: IMAGE, position: 1 })
    );
    for (spans, after) in [
        (vec![span(1, 2), span(2, 2)], 3),
        (vec![span(4, 2), span(1, 2)], 6),
        (vec![span(6, 2)], 0),
        (vec![span(1, 0)], 0),
    ] {
        let error = refused(&mut session, &ids, &spans);
        let expected = spans.last().expect("a span").range();
        assert_eq!(error, ForwardError::SpanOutOfOrder { span: expected, after, tokens: 7 }.into());
    }
    let wide = EmbeddedSpan { start: 1, vectors: Vectors::new(vec![0.0; 2 * 65], 65) };
    let error = refused(&mut session, &ids, &[wide]);
    assert_eq!(error, ForwardError::WrongWidth { expected: 64, found: 65 }.into());
    let error = refused(&mut session, &[IMAGE; 6], &[span(0, 6)]);
    assert_eq!(error, GenerateError::SpanLongerThanChunk { tokens: 6, chunk: 5 });
    let error = refused(&mut session, &[20; 200], &[]);
    assert!(matches!(error, GenerateError::PromptTooLong { .. }));
}

/// The chunk of a model that sees is at least an image; a chunk of nothing stays an error.
#[test]
fn the_cache_of_a_model_that_sees_takes_a_whole_image() {
    let (_, device) = devices().swap_remove(0);
    let Some(model) = model(&device) else { return };
    assert_eq!(
        model
            .new_cache(&CacheOptions { capacity: Some(64), chunk: 1, ..CacheOptions::default() })
            .expect("a cache")
            .chunk(),
        4
    );
    assert_eq!(
        model
            .new_cache(&CacheOptions { capacity: Some(64), chunk: 9, ..CacheOptions::default() })
            .expect("a cache")
            .chunk(),
        9
    );
    let nothing = CacheOptions { capacity: Some(64), chunk: 0, ..CacheOptions::default() };
    assert!(matches!(model.new_cache(&nothing), Err(CacheError::ZeroChunk)));
}
