//! Decode steps that are recorded once and replayed, with their tokens chosen on the device: whatever happens to
//! the session in between, they agree with passes that are computed one by one. On devices without recorded
//! steps the same is trivially true.
//!
//! Tolerances: logits within 2e-4 (see `invariants.rs`); ids equal where the gap between the two best logits
//! exceeds 1e-3.

mod common;

use common::{assert_close, devices, golden, load};
use gemma3_core::CancelHandle;
use gemma3_core::cache::CacheOptions;
use gemma3_core::generate::{ContinueOptions, FinishReason, Session, SessionOptions, generate_batch};
use gemma3_core::model::{Model, Segment, SegmentInput};
use gemma3_core::sampling::SamplingOptions;

const TOLERANCE: f32 = 2e-4;

fn on_every_device(test: impl Fn(&Model)) {
    let Some(folder) = golden("tiny-text") else { return };
    for (name, device) in devices() {
        println!("on {name}");
        test(&load(&folder, &device));
    }
}

fn session(model: &Model) -> Session {
    let cache = CacheOptions { capacity: Some(160), chunk: 16, ..CacheOptions::default() };
    Session::new(model, &SessionOptions { cache, sequence: 0 }).expect("a session")
}

/// `count` ids that look random and are the same every time.
fn ids(model: &Model, count: usize, seed: u64) -> Vec<u32> {
    let vocab_size = model.text_config().vocab_size as u64;
    (0..count as u64).map(|i| ((i + seed).wrapping_mul(2_654_435_761) / 7 % vocab_size) as u32).collect()
}

/// The ids that a session goes on with.
fn generate(session: &mut Session, options: &ContinueOptions) -> Vec<u32> {
    let tokens = session.generate(options.clone()).expect("a stream");
    tokens.map(|token| token.expect("a token").id).collect()
}

fn greedy(count: usize) -> ContinueOptions {
    let sampling = SamplingOptions::greedy();
    ContinueOptions { sampling, max_new_tokens: Some(count), ..ContinueOptions::default() }
}

/// The same with the tokens chosen on the host, where log-probabilities are asked for.
fn on_the_host(options: &ContinueOptions) -> ContinueOptions {
    ContinueOptions { logprobs: Some(0), ..options.clone() }
}

#[test]
fn a_hundred_replayed_steps_equal_a_hundred_passes() {
    on_every_device(|model| {
        let ids = ids(model, 104, 1);
        let cache = CacheOptions { capacity: Some(160), chunk: 16, ..CacheOptions::default() };
        let mut passes = model.new_cache(&cache).expect("a cache");
        let mut session = session(model);
        let (prompt, rest) = ids.split_at(4);
        session.prefill(prompt).expect("a prefill");
        let mut forward = |ids: &[u32]| {
            let mut segments = [Segment { input: SegmentInput::Ids(ids), cache: &mut passes }];
            model.forward_last(&mut segments).expect("a pass").remove(0)
        };
        forward(prompt);
        for (index, id) in rest.iter().enumerate() {
            session.append(&[*id]).expect("room");
            let stepped = session.logits().expect("logits").to_vec();
            assert_close(&format!("step {index}"), &stepped, &forward(&[*id]), TOLERANCE);
        }
    });
}

#[test]
fn tokens_chosen_on_the_device_are_those_of_the_host() {
    let sampled =
        SamplingOptions { temperature: 0.8, top_k: 40, top_p: 0.9, seed: Some(5), ..greedy(0).sampling };
    let penalized = SamplingOptions {
        repetition_penalty: 1.3,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        min_p: 0.02,
        top_k: 0,
        top_p: 1.0,
        ..sampled.clone()
    };
    let biased =
        SamplingOptions { logit_bias: [(7, 3.0), (11, f32::NEG_INFINITY)].into(), ..sampled.clone() };
    on_every_device(|model| {
        for sampling in [SamplingOptions::greedy(), sampled.clone(), penalized.clone(), biased.clone()] {
            let options = ContinueOptions {
                sampling,
                max_new_tokens: Some(40),
                suppressed_ids: [3, 9].into(),
                ..ContinueOptions::default()
            };
            let run = |options: &ContinueOptions| {
                let mut session = session(model);
                session.append(&ids(model, 21, 2)).expect("room");
                generate(&mut session, options)
            };
            assert_eq!(run(&options), run(&on_the_host(&options)), "{options:?}");
        }
    });
}

#[test]
fn a_generation_leaves_the_session_as_if_it_had_been_computed() {
    on_every_device(|model| {
        let mut session = session(model);
        session.append(&ids(model, 30, 3)).expect("room");
        let mut stream = session.generate(greedy(64)).expect("a stream");
        for _ in 0..25 {
            stream.next().expect("goes on").expect("a token");
        }
        drop(stream); // With steps under way.
        assert_eq!((session.len(), session.computed()), (55, 54));
        let all = session.ids().to_vec();
        let expected = fresh_logits(model, &all);
        assert_close("after the stream", session.logits().expect("logits"), &expected, TOLERANCE);

        session.truncate(50).expect("within the window");
        assert_close(
            "cut back",
            session.logits().expect("logits"),
            &fresh_logits(model, &all[..50]),
            TOLERANCE,
        );
        session.append(&all[50..53]).expect("room");
        assert_eq!(generate(&mut session, &greedy(2)), all[53..55]);
    });
}

fn fresh_logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut session = session(model);
    session.append(ids).expect("room");
    session.logits().expect("logits").to_vec()
}

#[test]
fn forks_go_on_independently() {
    on_every_device(|model| {
        let mut parent = session(model);
        parent.append(&ids(model, 20, 4)).expect("room");
        generate(&mut parent, &greedy(10));
        let mut child = parent.clone();
        let (left, right) = (ids(model, 3, 5), ids(model, 3, 6));
        parent.append(&left).expect("room");
        child.append(&right).expect("room");
        // In turns, so that a step over the other's cache would show.
        for _ in 0..4 {
            generate(&mut parent, &greedy(2));
            generate(&mut child, &greedy(2));
        }
        for session in [&mut parent, &mut child] {
            let expected = fresh_logits(model, session.ids());
            let ids = session.ids().to_vec();
            assert_close("fork", session.logits().expect("logits"), &expected, TOLERANCE);
            assert_eq!(ids.len(), 41);
        }
    });
}

#[test]
fn a_session_goes_on_in_another_thread() {
    on_every_device(|model| {
        let prompt = ids(model, 20, 7);
        let mut whole = session(model);
        whole.append(&prompt).expect("room");
        let expected = generate(&mut whole, &greedy(30));

        let mut moved = session(model);
        moved.append(&prompt).expect("room");
        let mut found = generate(&mut moved, &greedy(10));
        for _ in 0..2 {
            let (tokens, session) = std::thread::scope(|scope| {
                let there = scope.spawn(|| {
                    let mut session = moved;
                    (generate(&mut session, &greedy(10)), session)
                });
                there.join().expect("the thread ends well")
            });
            found.extend(tokens);
            moved = session;
        }
        assert_eq!(found, expected);
    });
}

#[test]
fn sessions_of_several_threads_do_not_disturb_each_other() {
    on_every_device(|model| {
        let run = |seed: u64| {
            let mut session = session(model);
            session.append(&ids(model, 10, seed)).expect("room");
            generate(&mut session, &greedy(20))
        };
        let expected: Vec<_> = (0..3).map(run).collect();
        let found: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|seed| scope.spawn(move || run(seed))).collect();
            threads.into_iter().map(|thread| thread.join().expect("ends well")).collect()
        });
        assert_eq!(found, expected);
    });
}

#[test]
fn a_batch_of_steps_equals_its_sessions_one_by_one() {
    on_every_device(|model| {
        let prompts = [ids(model, 9, 8), ids(model, 30, 9), ids(model, 17, 10)];
        let lengths = [12, 5, 20];
        let sessions = || -> Vec<Session> {
            let with = |prompt: &Vec<u32>| {
                let mut session = session(model);
                session.append(prompt).expect("room");
                session
            };
            prompts.iter().map(with).collect()
        };
        let mut single = sessions();
        let expected: Vec<_> =
            single.iter_mut().zip(lengths).map(|(session, n)| generate(session, &greedy(n))).collect();

        let mut together = sessions();
        let options = lengths.map(greedy);
        let mut all: Vec<_> = together.iter_mut().collect();
        let done = generate_batch(&mut all, &options, &CancelHandle::new()).expect("a batch");
        for ((completion, expected), session) in done.iter().zip(&expected).zip(&mut together) {
            let found: Vec<u32> = completion.tokens.iter().map(|token| token.id).collect();
            assert_eq!(&found, expected);
            assert_eq!(completion.finish_reason, FinishReason::Length);
            // What the batch computed is in the session's own cache again.
            let expected = fresh_logits(model, session.ids());
            assert_close("afterwards", session.logits().expect("logits"), &expected, TOLERANCE);
        }
    });
}

#[test]
fn the_same_seed_gives_the_same_tokens_again() {
    let sampling = SamplingOptions { temperature: 1.2, top_k: 50, seed: Some(11), ..greedy(0).sampling };
    let options = ContinueOptions { sampling, max_new_tokens: Some(60), ..ContinueOptions::default() };
    on_every_device(|model| {
        let run = || {
            let mut session = session(model);
            session.append(&ids(model, 12, 12)).expect("room");
            generate(&mut session, &options)
        };
        assert_eq!(run(), run());
    });
}

#[test]
fn steps_end_where_the_cache_does() {
    on_every_device(|model| {
        let cache = CacheOptions { capacity: Some(24), chunk: 16, ..CacheOptions::default() };
        let mut session = Session::new(model, &SessionOptions { cache, sequence: 0 }).expect("a session");
        session.append(&ids(model, 20, 11)).expect("room");
        let mut stream = session.generate(greedy(100)).expect("a stream");
        assert_eq!(stream.by_ref().count(), 4);
        assert_eq!(stream.finish_reason(), Some(FinishReason::ContextFull));
    });
}
