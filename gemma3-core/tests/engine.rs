//! Sequences that join and leave: each gets the tokens that it gets alone, whoever runs beside it.
//!
//! In exact mode tokens are equal: drawn ones because random numbers depend on seed, sequence and position, and because
//! the tiny model's probabilities are not so close that sums in another order change a choice of these seeds.

mod common;

use common::{devices, golden, load};
use gemma3_core::CancelHandle;
use gemma3_core::cache::CacheOptions;
use gemma3_core::generate::{
    ContinueOptions, Engine, Event, FinishReason, GenerateError, Session, SessionOptions, SlotId,
};
use gemma3_core::model::Model;
use gemma3_core::sampling::SamplingOptions;

fn on_every_device(test: impl Fn(&str, &Model)) {
    let Some(folder) = golden("tiny-text") else { return };
    for (name, device) in devices() {
        println!("on {name}");
        test(name, &load(&folder, &device));
    }
}

/// A sequence with a prompt and a context of its own.
fn session(model: &Model, sequence: usize) -> Session {
    let capacity = Some([120, 90, 64][sequence % 3]);
    let cache = CacheOptions { capacity, chunk: 16, ..CacheOptions::default() };
    let options = SessionOptions { cache, sequence: sequence as u64 };
    let mut session = Session::new(model, &options).expect("a session");
    let count = [1, 40, 7, 18][sequence % 4];
    let ids: Vec<u32> = (0..count).map(|i| 3 + ((i * 37 + sequence * 91) % 250) as u32).collect();
    session.append(&ids).expect("room");
    session
}

/// Lengths, ways of choosing, and who chooses: on the device, or with log-probabilities on the host.
fn options(sequence: usize) -> ContinueOptions {
    let drawn =
        SamplingOptions { do_sample: true, temperature: 0.9, top_k: 30, seed: Some(7), ..Default::default() };
    ContinueOptions {
        sampling: if sequence.is_multiple_of(2) { SamplingOptions::greedy() } else { drawn },
        max_new_tokens: Some([5, 14, 2, 9, 1][sequence % 5]),
        logprobs: (sequence % 7 == 3).then_some(0),
        ..ContinueOptions::default()
    }
}

fn alone(model: &Model, sequence: usize) -> Vec<u32> {
    let mut session = session(model, sequence);
    let stream = session.generate(options(sequence)).expect("a stream");
    stream.map(|token| token.expect("a token").id).collect()
}

/// Runs sequences with a number of slots; each gets the tokens that it gets alone.
fn run_through(
    name: &str,
    model: &Model,
    count: usize,
    room: usize,
    make: &dyn Fn(usize) -> (Session, ContinueOptions),
) {
    let expected = (0..count).map(|sequence| {
        let (mut session, options) = make(sequence);
        let stream = session.generate(options).expect("a stream");
        stream.map(|token| token.expect("a token").id).collect()
    });
    let expected: Vec<Vec<u32>> = expected.collect();
    let mut engine = Engine::new(model);
    let mut waiting = 0..count;
    let mut running: Vec<(SlotId, usize)> = Vec::new();
    let mut found = vec![Vec::new(); count];
    let mut ended = 0;
    while ended < count {
        while engine.len() < room
            && let Some(sequence) = waiting.next()
        {
            let (session, options) = make(sequence);
            running.push((engine.start(session, options).expect("a slot"), sequence));
        }
        for event in engine.tick().expect("a pass") {
            let of = |slot| running.iter().find(|(other, _)| *other == slot).expect("known").1;
            match event {
                Event::Token { slot, token } => found[of(slot)].push(token.id),
                Event::Ended { slot, reason } => {
                    assert_eq!(reason, FinishReason::Length);
                    let session = engine.finish(slot).expect("its session");
                    assert!(session.ids().ends_with(&found[of(slot)]));
                    ended += 1;
                }
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
    }
    assert!(engine.is_empty() && engine.is_idle());
    assert_eq!(found, expected, "on {name}, {room} at once");
}

#[test]
fn sequences_that_join_and_leave_get_the_tokens_that_they_get_alone() {
    on_every_device(|name, model| {
        for room in [1, 3, 13] {
            run_through(name, model, 13, room, &|sequence| (session(model, sequence), options(sequence)));
        }
    });
}

#[test]
fn sequences_join_a_step_that_runs_ahead() {
    // Of one size, so that those who come are given a slot at once, with short prompts, which share a pass with the
    // others' step, and all of them chosen for on the device: adjusted by token, drawn and greedy ones.
    let make = |model: &Model, sequence: usize| {
        let capacity = Some(model.capacity_in_batch(64, 64).min(model.text_config().max_position_embeddings));
        let cache = CacheOptions { capacity, chunk: 16, ..CacheOptions::default() };
        let session_options = SessionOptions { cache, sequence: sequence as u64 };
        let mut session = Session::new(model, &session_options).expect("a session");
        let prompt: Vec<u32> =
            (0..2 + sequence % 4).map(|i| 3 + ((i * 37 + sequence * 91) % 250) as u32).collect();
        session.append(&prompt).expect("room");
        let mut options = options(sequence);
        options.logprobs = None;
        options.max_new_tokens = Some(3 + sequence * 7 % 16);
        options.sampling.repetition_penalty = if sequence.is_multiple_of(3) { 1.3 } else { 1.0 };
        (session, options)
    };
    on_every_device(|name, model| {
        for room in [2, 4] {
            run_through(name, model, 14, room, &|sequence| make(model, sequence));
        }
    });
}

#[test]
fn a_session_goes_on_alone_from_where_an_engine_left_it() {
    on_every_device(|name, model| {
        // Some of their steps are under way when they are taken out.
        let long = |sequence| ContinueOptions { max_new_tokens: Some(24), ..options(sequence) };
        for sequence in [0, 1] {
            let all = |mut session: Session, count| -> Vec<u32> {
                let options = ContinueOptions { max_new_tokens: Some(count), ..long(sequence) };
                session.generate(options).expect("a stream").map(|token| token.expect("a token").id).collect()
            };
            let expected = all(session(model, sequence), 24);
            let mut engine = Engine::new(model);
            let slots = [sequence, sequence + 2, sequence + 4]
                .map(|n| engine.start(session(model, n), long(sequence)).expect("a slot"));
            let mut begun = Vec::new();
            while begun.len() < 10 {
                for event in engine.tick().expect("a pass") {
                    if let Event::Token { slot, token } = event
                        && slot == slots[0]
                    {
                        begun.push(token.id);
                    }
                }
            }
            let session = engine.finish(slots[0]).expect("its session");
            assert!(session.computed() < session.len(), "the newest token is computed when it is needed");
            let rest = all(session, 24 - begun.len());
            assert_eq!([begun, rest].concat(), expected, "on {name}");
            // The others go on.
            let before = engine.session(slots[1]).expect("a session").len();
            while engine.session(slots[1]).expect("a session").len() < before + 3 {
                engine.tick().expect("a pass");
            }
        }
    });
}

#[test]
fn one_that_is_stopped_or_cancelled_leaves_the_others_alone() {
    on_every_device(|name, model| {
        let long = ContinueOptions { max_new_tokens: Some(12), ..options(0) };
        let expected: Vec<u32> = {
            let mut session = session(model, 8);
            session
                .generate(long.clone())
                .expect("a stream")
                .map(|token| token.expect("a token").id)
                .collect()
        };
        let cancel = CancelHandle::new();
        let mut engine = Engine::new(model);
        let cancelled = engine.start_with(session(model, 4), long.clone(), cancel.clone()).expect("a slot");
        let stopped = engine.start(session(model, 6), long.clone()).expect("a slot");
        let whole = engine.start(session(model, 8), long.clone()).expect("a slot");
        let (mut tokens, mut ends) = (Vec::new(), Vec::new());
        while !engine.is_idle() {
            for event in engine.tick().expect("a pass") {
                match event {
                    Event::Token { slot, token } if slot == whole => tokens.push(token.id),
                    Event::Token { slot, .. } if slot == stopped => {
                        if engine.session(slot).expect("a session").len() >= session(model, 6).len() + 3 {
                            engine.finish_with(slot, FinishReason::Stop);
                        }
                    }
                    Event::Token { slot, .. } => {
                        if engine.session(slot).expect("a session").len() >= session(model, 4).len() + 4 {
                            cancel.cancel();
                        }
                    }
                    Event::Ended { slot, reason } => ends.push((slot, reason)),
                    Event::Failed { error, .. } => panic!("{error}"),
                }
            }
        }
        assert_eq!(tokens, expected, "on {name}");
        assert!(ends.contains(&(cancelled, FinishReason::Cancelled)), "{ends:?}");
        assert!(ends.contains(&(whole, FinishReason::Length)), "{ends:?}");
        assert_eq!(engine.finish_reason(stopped), Some(FinishReason::Stop));
        assert_eq!(engine.session(stopped).expect("a session").len(), session(model, 6).len() + 3);
    });
}

#[test]
fn sessions_that_the_caller_keeps_end_with_the_tokens_it_has_seen() {
    on_every_device(|name, model| {
        let expected = alone(model, 1);
        let mut kept = [session(model, 1), session(model, 6)];
        let prompt = kept[0].len();
        let [first, second] = &mut kept;
        let mut engine = Engine::new(model);
        let slot = engine.start(first, options(1)).expect("a slot");
        engine.start(second, options(1)).expect("a slot");
        let mut seen = 0;
        while seen < 4 {
            let events = engine.tick().expect("a pass");
            seen +=
                events.iter().filter(|e| matches!(e, Event::Token { slot: of, .. } if *of == slot)).count();
        }
        drop(engine);
        assert_eq!(kept[0].ids()[prompt..], expected[..seen], "on {name}");
        let rest = ContinueOptions { max_new_tokens: Some(expected.len() - seen), ..options(1) };
        let rest: Vec<u32> =
            kept[0].generate(rest).expect("a stream").map(|token| token.expect("a token").id).collect();
        assert_eq!(rest, expected[seen..], "on {name}");
    });
}

#[test]
fn one_that_is_ready_does_not_wait_for_those_who_come_later() {
    on_every_device(|name, model| {
        let mut engine = Engine::new(model);
        let tokens = |count| ContinueOptions { max_new_tokens: Some(count), logprobs: Some(0), ..options(0) };
        let long = engine.start(session(model, 2), tokens(6)).expect("a slot");
        let mut later = engine.start(session(model, 1), tokens(1)).expect("a slot");
        let (mut found, mut came) = (0, 1);
        while found < 6 {
            assert!(came < 20, "on {name}: {found} tokens while {came} others came and went");
            assert!(engine.is_ready(), "nothing is under way between ticks where the host chooses");
            for event in engine.tick().expect("a pass") {
                match event {
                    Event::Token { slot, .. } => found += usize::from(slot == long),
                    Event::Ended { slot, .. } if slot == later => {
                        engine.finish(slot);
                        // There is always a prompt that waits.
                        later = engine.start(session(model, 1), tokens(1)).expect("a slot");
                        came += 1;
                    }
                    Event::Ended { .. } => {}
                    Event::Failed { error, .. } => panic!("{error}"),
                }
            }
        }
    });
}

#[test]
fn what_an_engine_cannot_take_is_refused() {
    let Some(folder) = golden("tiny-text") else { return };
    let (_, device) = &devices()[0];
    let (model, other) = (load(&folder, device), load(&folder, device));
    let mut engine = Engine::new(&model);
    let error = engine.start(session(&other, 0), options(0)).map(|_| ());
    assert!(matches!(error, Err(GenerateError::MixedModels { .. })), "{error:?}");
    let empty = Session::new(&model, &SessionOptions::default()).expect("a session");
    assert_eq!(engine.start(empty, options(0)).map(|_| ()), Err(GenerateError::EmptySession));
    assert!(engine.is_empty());
    assert_eq!(engine.tick().map(|events| events.len()), Ok(0));
}
