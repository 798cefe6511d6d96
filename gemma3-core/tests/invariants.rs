//! What must hold whatever the schedule: decode and prefill, chunked and whole, batched and single,
//! forked and fresh, cached and uncached agree.
//!
//! Agreement means within 2e-4 on logits (another order of summation moves them by up to 3e-5, the
//! smallest mistake by 4e-3), and equal ids where the gap between the two best logits exceeds 1e-3.

mod common;

use common::{assert_close, devices, golden, load, max_difference};
use gemma3_core::CancelHandle;
use gemma3_core::Device;
use gemma3_core::cache::{CacheError, CacheOptions};
use gemma3_core::config::LayerType;
use gemma3_core::generate::{
    ContinueOptions, FinishReason, GenerateError, Session, SessionOptions, generate_batch,
};
use gemma3_core::model::{ForwardError, Model, Segment, SegmentInput};
use gemma3_core::sampling::SamplingOptions;

const TOLERANCE: f32 = 2e-4;
const MIN_GAP: f32 = 1e-3;

/// The tiny text model on every device.
fn on_every_device(test: impl Fn(&Model, &Device)) {
    on_devices(|_| true, test);
}

/// The tiny text model on every device but software GPUs, which compile each of the many shapes for
/// seconds. What runs there as well is in `on_every_device`.
fn on_fast_devices(test: impl Fn(&Model, &Device)) {
    on_devices(|device| !is_software_gpu(device), test);
}

fn on_devices(is_wanted: impl Fn(&Device) -> bool, test: impl Fn(&Model, &Device)) {
    let Some(folder) = golden("tiny-text") else { return };
    for (name, device) in devices().into_iter().filter(|(_, device)| is_wanted(device)) {
        println!("on {name}");
        test(&load(&folder, &device), &device);
    }
}

/// Mesa's llvmpipe, a GPU made of CPU threads.
fn is_software_gpu(device: &Device) -> bool {
    #[cfg(feature = "wgpu")]
    return device.identity().is_some_and(|identity| identity.name.contains("llvmpipe"));
    #[cfg(not(feature = "wgpu"))]
    {
        let _ = device;
        false
    }
}

fn window(model: &Model) -> usize {
    model.text_config().sliding_window
}

/// `count` ids that look random and are the same every time, starting with <bos>.
fn prompt(model: &Model, count: usize) -> Vec<u32> {
    let vocab_size = model.text_config().vocab_size as u64;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let random = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % (vocab_size - 6)) as u32 + 6
    });
    // The placeholder of images stands for no text.
    let placeholder = model.config().image_tokens.map(|tokens| tokens.image);
    std::iter::once(2).chain(random.filter(|id| Some(*id) != placeholder)).take(count).collect()
}

fn options(capacity: usize, chunk: usize) -> CacheOptions {
    CacheOptions { capacity: Some(capacity), chunk, ..CacheOptions::default() }
}

fn session(model: &Model, cache: CacheOptions) -> Session {
    Session::new(model, &SessionOptions { cache, sequence: 0 }).expect("a session")
}

/// The logits after `ids`, computed in one piece by a fresh session.
fn whole(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut session = session(model, options(ids.len().max(1), ids.len().max(1)));
    session.append(ids).expect("room");
    session.logits().expect("logits").to_vec()
}

/// The two largest logits' difference.
fn gap(logits: &[f32]) -> f32 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted[0] - sorted[1]
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("logits")
}

fn assert_agree(what: &str, found: &[f32], expected: &[f32]) {
    assert_close(what, found, expected, TOLERANCE);
    if gap(expected) > MIN_GAP {
        assert_eq!(argmax(found), argmax(expected), "{what}: the best id");
    }
}

/// The lengths at which a window goes wrong.
fn lengths(window: usize) -> [usize; 6] {
    [1, window - 1, window, window + 1, 2 * window + 3, 7 * window + 5]
}

#[test]
fn decoding_token_by_token_agrees_with_prefill() {
    on_every_device(|model, _| {
        let ids = prompt(model, 7 * window(model) + 5);
        // A ring of the smallest size, so that it comes around many times.
        let mut session = session(model, options(ids.len(), 1));
        for (i, id) in ids.iter().enumerate() {
            session.prefill(&[*id]).expect("room");
            if lengths(window(model)).contains(&(i + 1)) {
                let expected = whole(model, &ids[..=i]);
                assert_agree(
                    &format!("after {} tokens", i + 1),
                    session.logits().expect("logits"),
                    &expected,
                );
            }
        }
    });
}

#[test]
fn chunked_prefill_agrees_with_whole_prefill() {
    on_every_device(|model, device| {
        let window = window(model);
        let is_slow = is_software_gpu(device);
        let (all_lengths, all_chunks) =
            (lengths(window), [2, 3, window - 1, window, window + 1, 2 * window + 1]);
        // The longest wraps around the ring several times with any chunk.
        let lengths = if is_slow { &all_lengths[5..] } else { &all_lengths[..] };
        let chunks = if is_slow { &all_chunks[3..4] } else { &all_chunks[..] };
        for len in lengths.iter().copied() {
            let ids = prompt(model, len);
            let expected = whole(model, &ids);
            for chunk in chunks.iter().copied() {
                let mut session = session(model, options(len + 4, chunk));
                session.append(&ids).expect("room");
                assert_agree(
                    &format!("{len} tokens by {chunk}"),
                    session.logits().expect("logits"),
                    &expected,
                );
            }
        }
    });
}

#[test]
fn sequences_in_a_batch_agree_with_single_ones() {
    on_every_device(|model, _| {
        let prompts: Vec<Vec<u32>> = lengths(window(model)).iter().map(|len| prompt(model, *len)).collect();
        let options = options(100, 100);
        let mut caches: Vec<_> =
            prompts.iter().map(|_| model.new_cache(&options).expect("a cache")).collect();
        let mut segments: Vec<_> = prompts
            .iter()
            .zip(&mut caches)
            .map(|(ids, cache)| Segment { input: SegmentInput::Ids(ids), cache })
            .collect();
        let rows = model.forward_last(&mut segments).expect("logits");
        for (ids, row) in prompts.iter().zip(&rows) {
            assert_agree(&format!("{} tokens in a batch", ids.len()), row, &whole(model, ids));
        }
    });
}

#[test]
fn sampled_tokens_in_a_batch_equal_those_of_single_sequences() {
    on_fast_devices(|model, _| {
        let lens = [3, window(model) + 2, 2 * window(model)];
        let sampled = ContinueOptions {
            sampling: SamplingOptions { seed: Some(11), top_k: 40, ..SamplingOptions::default() },
            max_new_tokens: Some(20),
            ..ContinueOptions::default()
        };
        let mut sessions: Vec<Session> = lens
            .iter()
            .enumerate()
            .map(|(i, len)| {
                let options = SessionOptions { cache: options(100, 16), sequence: i as u64 };
                let mut session = Session::new(model, &options).expect("a session");
                session.append(&prompt(model, *len)).expect("room");
                session
            })
            .collect();
        let singles: Vec<Vec<u32>> = sessions
            .iter()
            .map(|session| {
                let mut session = session.clone();
                let stream = session.generate(sampled.clone()).expect("a stream");
                stream.map(|token| token.expect("a token").id).collect()
            })
            .collect();
        assert_ne!(singles[0], singles[1], "sequences draw different numbers");
        let mut references: Vec<&mut Session> = sessions.iter_mut().collect();
        let options = vec![sampled; references.len()];
        let batch = generate_batch(&mut references, &options, &CancelHandle::new()).expect("a batch");
        for (single, completion) in singles.iter().zip(&batch) {
            let batched: Vec<u32> = completion.tokens.iter().map(|token| token.id).collect();
            assert_eq!(&batched, single);
            assert_eq!(completion.finish_reason, FinishReason::Length);
        }
    });
}

#[test]
fn a_fork_continues_like_a_fresh_session_and_leaves_its_parent_unchanged() {
    on_every_device(|model, _| {
        let window = window(model);
        let shared = prompt(model, 2 * window + 3);
        let mut parent = session(model, options(100, 6));
        parent.prefill(&shared).expect("room");
        let before = parent.logits().expect("logits").to_vec();

        let (left, right) = ([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110], [15, 25]);
        let mut fork = parent.clone();
        fork.prefill(&left).expect("room");
        let mut second_fork = parent.clone();
        second_fork.prefill(&right).expect("room");

        assert_agree(
            "first fork",
            fork.logits().expect("logits"),
            &whole(model, &[&shared[..], &left].concat()),
        );
        assert_agree(
            "second fork",
            second_fork.logits().expect("logits"),
            &whole(model, &[&shared[..], &right].concat()),
        );
        assert_eq!(parent.ids(), shared);
        assert_eq!(parent.logits().expect("logits"), before);
        parent.prefill(&right).expect("room");
        assert_agree(
            "parent going on",
            parent.logits().expect("logits"),
            &whole(model, &[&shared[..], &right].concat()),
        );
    });
}

#[test]
fn a_truncated_session_continues_like_a_fresh_one_or_says_that_it_cannot() {
    on_fast_devices(|model, _| {
        let window = window(model);
        let chunk = 6;
        for len in [window, window + chunk, 3 * window + 1] {
            let ids = prompt(model, len);
            let mut original = session(model, options(100, chunk));
            original.prefill(&ids).expect("room");
            for cut in 1..len {
                let mut session = original.clone();
                let tail = [33, 44, 55];
                match session.truncate(cut) {
                    Ok(()) => {
                        session.prefill(&tail).expect("room");
                        let expected = whole(model, &[&ids[..cut], &tail].concat());
                        assert_agree(
                            &format!("{len} cut to {cut}"),
                            session.logits().expect("logits"),
                            &expected,
                        );
                    }
                    Err(GenerateError::Cache(CacheError::CannotTruncate { earliest, .. })) => {
                        // Refused only where the ring has come around, and never more than necessary:
                        // the ring keeps window + chunk positions, of which the next query needs window - 1.
                        assert!(
                            len > window + chunk && cut - 1 < earliest,
                            "{len} cut to {cut}: earliest {earliest}"
                        );
                        assert_eq!(earliest, len - chunk - 1);
                        assert_eq!(session.ids(), ids, "unchanged");
                        session.rewind(cut);
                        session.prefill(&tail).expect("room");
                        let expected = whole(model, &[&ids[..cut], &tail].concat());
                        assert_agree(
                            &format!("{len} rewound to {cut}"),
                            session.logits().expect("logits"),
                            &expected,
                        );
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
}

#[test]
fn a_sequence_of_600_greedy_tokens_agrees_with_one_pass_over_them() {
    let Some(folder) = golden("tiny-multimodal") else {
        return;
    };
    for (name, device) in devices() {
        println!("on {name}");
        let model = load(&folder, &device);
        let ids = prompt(&model, 3);
        let mut session = session(&model, options(603, 4));
        session.append(&ids).expect("room");
        let options = ContinueOptions { sampling: SamplingOptions::greedy(), ..ContinueOptions::default() };
        let mut stream = session.generate(options).expect("a stream");
        let generated: Vec<u32> = stream.by_ref().map(|token| token.expect("a token").id).collect();
        assert_eq!(generated.len(), 600);
        assert_eq!(stream.finish_reason(), Some(FinishReason::ContextFull));

        let all = session.ids().to_vec();
        let mut cache = model.new_cache(&self::options(all.len(), all.len())).expect("a cache");
        let rows = model
            .forward_all(&mut [Segment { input: SegmentInput::Ids(&all), cache: &mut cache }])
            .expect("a forward pass");
        for (position, row) in rows.iter().enumerate().take(all.len() - 1).skip(ids.len() - 1) {
            if gap(row) > MIN_GAP {
                assert_eq!(argmax(row) as u32, all[position + 1], "token {}", position + 1);
            }
        }
    }
}

#[test]
fn scores_do_not_depend_on_how_a_text_is_cut() {
    on_fast_devices(|model, _| {
        let ids = prompt(model, 150);
        let score = |chunk: usize, cut: usize| -> Vec<f32> {
            let mut session = session(model, options(200, chunk));
            let mut scores = session.prefill_scored(&ids[..cut], 0).expect("scores");
            scores.extend(session.prefill_scored(&ids[cut..], 0).expect("scores"));
            scores.iter().map(|token| token.logprob).collect()
        };
        let expected = score(150, 150);
        assert_eq!(expected.len(), ids.len() - 1);
        for (chunk, cut) in [(7, 150), (100, 1), (16, 80), (150, 64), (150, 65)] {
            assert_close(&format!("chunk {chunk}, cut at {cut}"), &score(chunk, cut), &expected, TOLERANCE);
        }
    });
}

#[test]
fn the_cache_occupies_exactly_what_the_formula_says() {
    let Some(folder) = golden("tiny-text") else {
        return;
    };
    let (_, device) = devices().swap_remove(0);
    let model = load(&folder, &device);
    let config = model.text_config();
    for (capacity, chunk) in [(1, 1), (5, 3), (100, 4), (512, 512)] {
        let options = options(capacity, chunk);
        let global = config.layer_types.iter().filter(|kind| **kind == LayerType::FullAttention).count();
        let local = config.num_hidden_layers - global;
        let slots = global * capacity + local * capacity.min(config.sliding_window + chunk);
        let bytes = (2 * config.num_key_value_heads * config.head_dim * 4 * slots) as u64;
        assert_eq!(options.bytes(config), Ok(bytes));
        assert_eq!(model.new_cache(&options).expect("a cache").bytes(), bytes);
    }
}

#[test]
fn a_full_context_is_a_finish_reason() {
    on_fast_devices(|model, _| {
        for capacity in [4, window(model) + 3] {
            let mut session = session(model, options(capacity, 3));
            session.append(&prompt(model, 3)).expect("room");
            let options =
                ContinueOptions { sampling: SamplingOptions::greedy(), ..ContinueOptions::default() };
            let mut stream = session.generate(options.clone()).expect("a stream");
            assert_eq!(stream.by_ref().filter(Result::is_ok).count(), capacity - 3);
            assert_eq!(stream.finish_reason(), Some(FinishReason::ContextFull));
            // And again from a session that is already full.
            let mut stream = session.generate(options).expect("a stream");
            assert!(stream.next().is_none());
            assert_eq!(stream.finish_reason(), Some(FinishReason::ContextFull));
            assert!(matches!(
                session.append(&[7]),
                Err(GenerateError::PromptTooLong { prompt_tokens: 1, .. })
            ));
        }
    });
}

#[test]
fn a_prompt_longer_than_the_context_is_an_error_and_changes_nothing() {
    on_fast_devices(|model, _| {
        let mut session = session(model, options(10, 4));
        session.append(&prompt(model, 3)).expect("room");
        let error = session.append(&prompt(model, 8)).expect_err("too long");
        assert_eq!(error, GenerateError::PromptTooLong { prompt_tokens: 8, held: 3, capacity: 10 });
        assert_eq!(session.len(), 3);
    });
}

#[test]
fn bad_input_is_an_error_value() {
    on_fast_devices(|model, _| {
        let mut session = session(model, options(10, 4));
        assert_eq!(session.logits().expect_err("empty"), GenerateError::EmptySession);
        assert!(matches!(session.generate(ContinueOptions::default()), Err(GenerateError::EmptySession)));
        let vocab_size = model.text_config().vocab_size;
        for id in [vocab_size as u32, u32::MAX] {
            let unknown = ForwardError::UnknownToken { id, vocab_size };
            assert_eq!(session.append(&[2, id]), Err(GenerateError::Forward(unknown)));
        }
        assert!(session.is_empty());

        let mut cache = model.new_cache(&options(10, 4)).expect("a cache");
        let mut forward = |ids: &[u32]| {
            model.forward_last(&mut [Segment { input: SegmentInput::Ids(ids), cache: &mut cache }])
        };
        assert_eq!(forward(&[]), Err(ForwardError::EmptyInput));
        assert_eq!(forward(&[2; 5]), Err(CacheError::ChunkTooLong { count: 5, chunk: 4 }.into()));
        for _ in 0..2 {
            forward(&[2; 4]).expect("room");
        }
        assert_eq!(forward(&[2; 3]), Err(CacheError::Full { count: 3, len: 8, capacity: 10 }.into()));
        assert_eq!(model.forward_last(&mut []), Err(ForwardError::EmptyInput));

        session.append(&[2]).expect("room");
        for sampling in [
            SamplingOptions { temperature: f32::NAN, ..SamplingOptions::default() },
            SamplingOptions { temperature: -1.0, ..SamplingOptions::default() },
            SamplingOptions { top_p: 0.0, ..SamplingOptions::default() },
            SamplingOptions { repetition_penalty: 0.0, ..SamplingOptions::default() },
        ] {
            let options = ContinueOptions { sampling, ..ContinueOptions::default() };
            assert!(matches!(session.generate(options), Err(GenerateError::Sampling(_))));
        }
    });
}

#[test]
fn a_cache_that_cannot_be_made_is_an_error() {
    let Some(folder) = golden("tiny-multimodal") else {
        return;
    };
    let (name, device) = devices().swap_remove(0);
    let model = load(&folder, &device);
    let new = |capacity, chunk| {
        model
            .new_cache(&CacheOptions { capacity: Some(capacity), chunk, ..CacheOptions::default() })
            .map(|_| ())
    };
    let longest = model.text_config().max_position_embeddings;
    assert_eq!(new(0, 1), Err(CacheError::ZeroCapacity));
    assert_eq!(new(1, 0), Err(CacheError::ZeroChunk));
    assert_eq!(new(longest + 1, 1), Err(CacheError::BeyondTheModel { capacity: longest + 1, longest }));
    assert_eq!(new(longest, 512), Ok(()), "on {name}");

    let mut config = gemma3_core::config::TextConfig::gemma3_27b();
    config.max_position_embeddings = usize::MAX;
    let overflowing = CacheOptions { capacity: Some(usize::MAX), chunk: 512, ..CacheOptions::default() };
    assert_eq!(overflowing.bytes(&config), Err(CacheError::Overflow { capacity: usize::MAX }));
}

#[test]
fn a_cancelled_generation_stops_and_keeps_what_it_has() {
    on_fast_devices(|model, _| {
        let mut session = session(model, options(100, 4));
        session.append(&prompt(model, 20)).expect("room");
        let mut stream = session.generate(ContinueOptions::default()).expect("a stream");
        let cancel = stream.cancel_handle();
        let first = stream.next().expect("a token").expect("no error");
        cancel.cancel();
        assert!(stream.next().is_none());
        assert_eq!(stream.finish_reason(), Some(FinishReason::Cancelled));
        drop(stream);
        assert_eq!(session.ids().last(), Some(&first.id));
    });
}

#[test]
fn a_long_prefill_is_cancelled_within_a_chunk() {
    let Some(folder) = golden("tiny-multimodal") else {
        return;
    };
    let (_, device) = devices().swap_remove(0);
    let model = load(&folder, &device);
    let mut session = session(&model, options(20_000, 8));
    session.append(&prompt(&model, 20_000)).expect("room");
    let cancel = CancelHandle::new();
    let finished = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            cancel.cancel();
        });
        session.compute(&cancel).expect("no error")
    });
    assert!(!finished, "the prefill was cancelled");
    assert!(session.computed() > 0 && session.computed() < 20_000 && session.computed().is_multiple_of(8));
    // What is computed stays, and the session can go on from there.
    let computed = session.computed();
    session.truncate(computed + 4).expect("only uncomputed tokens are cut");
    assert_eq!(session.computed(), computed);
    let expected = whole(&model, session.ids());
    assert!(max_difference(session.logits().expect("logits"), &expected) <= TOLERANCE);
}

#[test]
fn ids_that_are_suppressed_are_never_generated() {
    on_fast_devices(|model, _| {
        let vocab_size = model.text_config().vocab_size as u32;
        let suppressed: Vec<u32> = (0..vocab_size).filter(|id| id % 5 != 3).collect();
        for sampling in [
            SamplingOptions::greedy(),
            SamplingOptions { seed: Some(1), temperature: 2.0, ..SamplingOptions::default() },
        ] {
            let mut session = session(model, options(60, 16));
            session.append(&prompt(model, 3)).expect("room");
            let options = ContinueOptions {
                sampling,
                max_new_tokens: Some(40),
                suppressed_ids: suppressed.clone().into(),
                ..ContinueOptions::default()
            };
            for token in session.generate(options).expect("a stream") {
                assert_eq!(token.expect("a token").id % 5, 3);
            }
        }
    });
}
