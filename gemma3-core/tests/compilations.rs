//! Nothing compiles while a text is generated: after a warm-up, cubecl's log of compiled kernels stays as it is,
//! whatever the prompts and the options of the kind that was warmed up.
//!
//! One test in a process of its own: the log is the process's, and other tests compile too.
#![cfg(feature = "cube")]

mod common;
mod count_compilations;

use common::devices;
use count_compilations::{Compilations, tiny_model};
use gemma3_core::CancelHandle;
use gemma3_core::Device;
use gemma3_core::cache::CacheOptions;
use gemma3_core::generate::{
    ContinueOptions, Engine, Event, Session, SessionOptions, generate_batch, warm_up, warm_up_batch,
};
use gemma3_core::model::Model;
use gemma3_core::sampling::SamplingOptions;

/// Longer than the rests of prompts that a warm-up compiles one by one.
const CHUNK: usize = 80;

fn session_options() -> SessionOptions {
    let cache = CacheOptions { capacity: Some(256), chunk: CHUNK, ..CacheOptions::default() };
    SessionOptions { cache, sequence: 0 }
}

fn session(model: &Model, prompt: usize) -> Session {
    let mut session = Session::new(model, &session_options()).expect("a session");
    let ids: Vec<u32> = (0..prompt as u32).map(|i| 3 + i * 37 % 300).collect();
    session.append(&ids).expect("room");
    session
}

fn options(sampling: SamplingOptions, tokens: usize) -> ContinueOptions {
    ContinueOptions { sampling, max_new_tokens: Some(tokens), ..ContinueOptions::default() }
}

/// How many tokens a session goes on for.
fn generate(session: &mut Session, options: ContinueOptions) -> usize {
    let tokens = session.generate(options).expect("a stream");
    tokens.collect::<Result<Vec<_>, _>>().expect("tokens").len()
}

/// What a warm-up is made with, and what may follow it.
fn kinds() -> [(&'static str, SamplingOptions, Vec<SamplingOptions>); 4] {
    let drawn = SamplingOptions { seed: Some(1), ..SamplingOptions::default() };
    let filtered = SamplingOptions {
        temperature: 0.7,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.05,
        seed: Some(2),
        ..drawn.clone()
    };
    let penalized = SamplingOptions { repetition_penalty: 1.2, ..drawn.clone() };
    let penalties = SamplingOptions {
        repetition_penalty: 1.0,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        logit_bias: [(7, 2.0), (9, f32::NEG_INFINITY)].into(),
        ..filtered.clone()
    };
    let greedy = SamplingOptions::greedy();
    let greedy_penalties = SamplingOptions { do_sample: false, ..penalties.clone() };
    let greedy_penalized = SamplingOptions { do_sample: false, ..penalized.clone() };
    [
        ("greedy", greedy.clone(), vec![greedy]),
        ("drawn", drawn.clone(), vec![drawn, filtered]),
        ("greedy, penalized", greedy_penalized, vec![greedy_penalties]),
        ("drawn, penalized", penalized.clone(), vec![penalized, penalties]),
    ]
}

/// Counts what a GPU compiles between two looks.
struct Gpu<'a> {
    device: &'a Device,
    compilations: &'a Compilations,
    known: usize,
}

impl Gpu<'_> {
    /// The kernels compiled since the last look.
    fn new_kernels(&mut self) -> Vec<String> {
        let all = self.compilations.so_far(self.device);
        let new = all[self.known..].to_vec();
        self.known = all.len();
        new
    }

    fn assert_grew(&mut self, what: &str) {
        let count = self.new_kernels().len();
        println!("{what}: {count} kernels compiled");
        assert!(count > 0, "{what}: nothing was compiled, or it is not counted");
    }

    fn assert_still(&mut self, what: &str) {
        let new = self.new_kernels();
        assert!(new.is_empty(), "{what} compiled {new:#?}");
    }
}

#[test]
fn after_a_warm_up_nothing_is_compiled() {
    let folder = tempfile::tempdir().expect("a folder");
    let compilations = Compilations::log_to(&folder.path().join("compilations.log"));
    let mut tested = 0;
    for (name, device) in devices() {
        let model = tiny_model(&device);
        if !gemma3_core::device::is_gpu(&device) {
            continue; // It compiles nothing.
        }
        println!("on {name}");
        let mut gpu = Gpu { device: &device, compilations: &compilations, known: 0 };
        gpu.new_kernels(); // Those of loading, and of other devices.
        texts(&model, &mut gpu);
        prompts(&model, &mut gpu);
        batches(&model, &mut gpu);
        tested += 1;
    }
    if tested == 0 {
        println!("skipped: no GPU to test on");
    }
}

/// Every kind of options: long texts.
fn texts(model: &Model, gpu: &mut Gpu<'_>) {
    for (kind, warm, used) in kinds() {
        let mut stages = Vec::new();
        warm_up(model, &session_options(), &options(warm, 1), &mut |progress| stages.push(progress))
            .expect("a warm-up");
        gpu.assert_grew(&format!("warm-up, {kind}"));
        let total = stages[0].total;
        assert!(stages.iter().map(|stage| (stage.done, stage.total)).eq((0..=total).map(|n| (n, total))));
        for sampling in used {
            assert_eq!(generate(&mut session(model, 21), options(sampling.clone(), 100)), 100);
            gpu.assert_still(&format!("a text with {sampling:?}"));
        }
    }
}

/// Prompts of all lengths that a warm-up compiles, tokens chosen on the host, forks and cuts.
fn prompts(model: &Model, gpu: &mut Gpu<'_>) {
    for prompt in (1..=65).chain([CHUNK, CHUNK + 1, CHUNK + 30, 2 * CHUNK]) {
        assert_eq!(generate(&mut session(model, prompt), options(SamplingOptions::greedy(), 3)), 3);
        gpu.assert_still(&format!("a prompt of {prompt} tokens"));
    }
    let mut parent = session(model, 30);
    let listed = ContinueOptions { logprobs: Some(2), ..options(SamplingOptions::greedy(), 20) };
    assert_eq!(generate(&mut parent, listed), 20);
    gpu.assert_still("a text with log-probabilities");
    let mut child = parent.clone();
    for session in [&mut parent, &mut child] {
        session.append(&[5, 6]).expect("room");
        assert_eq!(generate(session, options(SamplingOptions::greedy(), 5)), 5);
    }
    parent.rewind(12);
    parent.logits().expect("logits");
    gpu.assert_still("forks and cuts");
}

/// Batches, whose steps have kernels for the number of sequences.
fn batches(model: &Model, gpu: &mut Gpu<'_>) {
    for logprobs in [None, Some(1)] {
        let of = |tokens| ContinueOptions { logprobs, ..options(SamplingOptions::greedy(), tokens) };
        warm_up_batch(model, &session_options(), &vec![of(1); 3], &mut |_| {}).expect("a warm-up");
        // Steps are the same whoever chooses from their logits.
        match logprobs {
            None => gpu.assert_grew("warm-up of a batch"),
            Some(_) => gpu.assert_still("warm-up of a batch whose tokens the host chooses"),
        }
        let mut sessions = [9, 60, 33].map(|prompt| session(model, prompt));
        let mut sessions: Vec<_> = sessions.iter_mut().collect();
        let lengths = [40, 12, 100];
        let done = generate_batch(&mut sessions, &lengths.map(of), &CancelHandle::new()).expect("a batch");
        assert!(done.iter().map(|one| one.tokens.len()).eq(lengths));
        gpu.assert_still(&format!("a batch, log-probabilities: {logprobs:?}"));
        // Those who come first are two, or three.
        warm_up_batch(model, &session_options(), &vec![of(1); 2], &mut |_| {}).expect("a warm-up");
        gpu.new_kernels();
        come_and_go(model, &of);
        gpu.assert_still(&format!("sequences that come and go, log-probabilities: {logprobs:?}"));
    }
}

/// Nine sequences over three slots: prompts of which some share a pass with the others' steps.
fn come_and_go(model: &Model, options: &dyn Fn(usize) -> ContinueOptions) {
    let mut engine = Engine::new(model);
    let mut waiting = [2, 11, 40, 3, 70, 7, 1, 24, 9].into_iter();
    let mut ended = 0;
    while ended < 9 {
        while engine.len() < 3
            && let Some(prompt) = waiting.next()
        {
            engine.start(session(model, prompt), options(4 + prompt % 9)).expect("a slot");
        }
        for event in engine.tick().expect("a pass") {
            match event {
                Event::Token { .. } => {}
                Event::Ended { slot, .. } => {
                    engine.finish(slot).expect("its session");
                    ended += 1;
                }
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
    }
}
