use std::collections::BTreeMap;

use super::*;
use crate::ops::cube::attention::NOBODY;
use crate::ops::cube::testing::{Random, client, poisoned, upload};
use crate::ops::machine::Fault;
use crate::sampling::{RandomKey, Sampler, SamplingOptions, TokenHistory, uniform};

const NONE: f32 = f32::NEG_INFINITY;

/// A sequence as both sides see it.
#[derive(Clone)]
struct Sequence {
    options: SamplingOptions,
    suppressed: Vec<u32>,
    history: TokenHistory,
    seed: u64,
    sequence: u64,
    /// Position of the last token.
    position: u32,
}

impl Sequence {
    fn new(options: SamplingOptions) -> Self {
        Self { options, suppressed: vec![], history: TokenHistory::new(), seed: 7, sequence: 3, position: 11 }
    }

    fn key(&self, step: usize) -> RandomKey {
        let position = u64::from(self.position) + 1 + step as u64;
        RandomKey { seed: self.seed, sequence: self.sequence, position }
    }

    fn sampler(&self) -> Sampler {
        Sampler::new(self.options.clone()).unwrap().with_suppressed(self.suppressed.clone())
    }
}

/// A device with the buffers of a step.
struct Device {
    client: Client,
    plan: Sampling,
    logits: Handle,
    parameters: Handle,
    adjustments: Handle,
    biases: Handle,
    positions: Handle,
    tokens: Handle,
    journal: Handle,
    scores: Handle,
    work: Handle,
}

fn words(client: &Client, words: &[u32]) -> Handle {
    client.create_from_slice(u32::as_bytes(words))
}

fn read_words(client: &Client, handle: &Handle) -> Vec<u32> {
    u32::from_bytes(&client.read_one_unchecked(handle.clone())).to_vec()
}

impl Device {
    fn new(client: &Client, plan: Sampling, logits: &[f32], sequences: &[Sequence]) -> Self {
        let mut parameters = vec![];
        let mut adjustments = vec![];
        let mut biases = vec![];
        let mut journal = vec![];
        for s in sequences {
            assert!(plan.supports(&s.options, !s.suppressed.is_empty()));
            parameters.extend(plan.parameters(&s.options, s.seed, s.sequence));
            adjustments.extend(plan.adjustments(&s.options, &s.history, &s.suppressed));
            biases.extend(plan.bias_list(&s.options));
            journal.extend(Journal::cleared(&plan));
        }
        if !plan.adjusts {
            adjustments = vec![0; 4];
            biases = vec![0; 4];
        }
        let positions: Vec<u32> = sequences.iter().map(|s| s.position).collect();
        Self {
            client: client.clone(),
            plan,
            logits: upload(client, logits),
            parameters: words(client, &parameters),
            adjustments: words(client, &adjustments),
            biases: words(client, &biases),
            positions: words(client, &positions),
            tokens: words(client, &vec![u32::MAX; sequences.len()]),
            journal: words(client, &journal),
            scores: poisoned(client, plan.score_floats()),
            work: poisoned(client, plan.work_words()),
        }
    }

    fn step(&self) {
        sample(&self.client, self.plan, self.buffers());
    }

    fn buffers(&self) -> Buffers<'_> {
        Buffers {
            logits: &self.logits,
            parameters: &self.parameters,
            adjustments: &self.adjustments,
            biases: &self.biases,
            positions: &self.positions,
            tokens: &self.tokens,
            journal: &self.journal,
            scores: &self.scores,
            work: &self.work,
        }
    }

    fn journals(&self) -> Vec<Journal> {
        let words = read_words(&self.client, &self.journal);
        words
            .chunks(words.len() / self.plan.sequences)
            .map(|words| Journal::of_words(words).unwrap())
            .collect()
    }
}

fn plan(client: &Client, sequences: usize, vocabulary: usize) -> Sampling {
    Sampling { journal: 256, ..Sampling::new(client, sequences, vocabulary).unwrap() }
}

/// Whether a token that differs from the host's may: the number drawn, or the share of top-p, is that close to
/// the boundary between two tokens.
fn is_close(s: &Sequence, logits: &[f32], key: RandomKey) -> bool {
    let u = uniform(key);
    let distribution = s.sampler().distribution(&mut logits.to_vec(), &s.history).unwrap();
    let mut cumulative = 0.0;
    distribution.iter().any(|(_, p)| {
        cumulative += f64::from(*p);
        (cumulative - u).abs() < 1e-5
    })
}

/// Draws with many keys from the same logits, and compares each token with the host's.
fn compare(client: &Client, logits: &[f32], s: &Sequence, steps: usize, what: &str) {
    let plan = plan(client, 1, logits.len());
    let device = Device::new(client, plan, logits, std::slice::from_ref(s));
    (0..steps).for_each(|_| device.step());
    let journal = &device.journals()[0];
    assert_eq!(journal.steps as usize, steps);
    assert_eq!(journal.fault, None, "{what}");
    let mut different = 0;
    for step in 0..steps {
        let key = s.key(step);
        let expected = s.sampler().sample(&mut logits.to_vec(), &s.history, key).unwrap();
        let found = journal.token(step as u32).unwrap();
        if found != expected {
            different += 1;
            assert!(is_close(s, logits, key), "{what}: step {step}: {found}, not {expected}");
        }
    }
    // Of 1,000 tokens of probability 1/1000 about 2% lie so close to u.
    assert!(different * 20 <= steps, "{what}: {different} of {steps}");
    let random = &read_words(client, &device.work)[plan.random_at()..][..2];
    let bits = (uniform(s.key(steps - 1)) * 2f64.powi(53)) as u64;
    assert_eq!((u64::from(random[1]) << 32 | u64::from(random[0])) >> 11, bits, "the random number");
}

/// About normal.
fn normal(random: &mut Random) -> f32 {
    (0..6).map(|_| random.unit()).sum::<f32>() * 0.7
}

fn logits_of_kind(kind: usize, len: usize, random: &mut Random) -> Vec<f32> {
    let mut logits: Vec<f32> = (0..len)
        .map(|_| match kind {
            0 => normal(random) * 3.0 + 5.0,
            1 => (random.bits() % 40) as f32 * 0.25 - 5.0,
            2 => random.unit() * 1e30,
            3 => normal(random) * 0.01 - 20.0,
            4 => (random.bits() % 3) as f32 - 1.0,
            _ => 1.5,
        })
        .collect();
    for logit in &mut logits {
        if random.bits().is_multiple_of(7) && kind < 5 {
            *logit = NONE;
        }
    }
    if logits.iter().all(|logit| *logit == NONE) {
        logits[0] = -0.0;
    }
    logits
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let Some(client) = client() else { return };
    let mut random = Random::new(1);
    for vocabulary in [1, 2, 5, 64, 1000, 1023, 4096, 9001] {
        for kind in 0..6 {
            let logits = logits_of_kind(kind, vocabulary, &mut random);
            let s = Sequence::new(SamplingOptions::greedy());
            let expected = s.sampler().sample(&mut logits.clone(), &s.history, s.key(0)).unwrap();
            for (draws, adjusts) in [(false, false), (true, true)] {
                let plan = Sampling { draws, adjusts, ..plan(&client, 1, vocabulary) };
                let device = Device::new(&client, plan, &logits, std::slice::from_ref(&s));
                device.step();
                let found = read_words(&client, &device.tokens);
                assert_eq!(found, [expected], "{vocabulary} logits of kind {kind}, draws {draws}");
                assert_eq!(read_words(&client, &device.positions), [s.position + 1]);
            }
        }
    }
}

#[test]
fn drawing_equals_the_host_with_every_option() {
    let Some(client) = client() else { return };
    let mut random = Random::new(2);
    let neutral = SamplingOptions::default;
    let all = [
        neutral(),
        SamplingOptions { temperature: 0.6, ..neutral() },
        SamplingOptions { top_k: 1, ..neutral() },
        SamplingOptions { top_k: 40, ..neutral() },
        SamplingOptions { top_p: 0.9, ..neutral() },
        SamplingOptions { top_p: 1e-6, ..neutral() },
        SamplingOptions { top_p: 0.5, temperature: 1.7, ..neutral() },
        SamplingOptions { min_p: 0.1, ..neutral() },
        SamplingOptions { min_p: 1.0, ..neutral() },
        SamplingOptions { top_k: 64, top_p: 0.95, ..neutral() },
        SamplingOptions { top_k: 300, top_p: 0.8, min_p: 0.02, temperature: 1.3, ..neutral() },
        SamplingOptions { top_k: usize::MAX, top_p: 0.999, ..neutral() },
    ];
    for vocabulary in [1, 7, 500, 3001, 9000] {
        for kind in 0..6 {
            let logits = logits_of_kind(kind, vocabulary, &mut random);
            for options in &all {
                let what = format!("{vocabulary} logits of kind {kind}, {options:?}");
                let s = Sequence {
                    seed: random.bits(),
                    sequence: random.bits(),
                    ..Sequence::new(options.clone())
                };
                compare(&client, &logits, &s, 24, &what);
            }
        }
    }
}

#[test]
fn suppression_penalties_and_biases_equal_the_host() {
    let Some(client) = client() else { return };
    let mut random = Random::new(3);
    for vocabulary in [11, 1200, 5001] {
        for round in 0..6 {
            let logits = logits_of_kind(round % 2, vocabulary, &mut random);
            let id = |random: &mut Random| (random.bits() % vocabulary as u64) as u32;
            let some = |random: &mut Random, n| (0..n).map(|_| id(random)).collect::<Vec<u32>>();
            let n = vocabulary / 10;
            let mut s = Sequence::new(SamplingOptions {
                do_sample: round > 1,
                repetition_penalty: 1.3,
                presence_penalty: 0.4,
                frequency_penalty: 0.15,
                temperature: 0.9,
                logit_bias: some(&mut random, n.min(300))
                    .into_iter()
                    .map(|id| (id, random.unit() * 4.0))
                    .collect(),
                ..SamplingOptions::default()
            });
            s.options.logit_bias.insert(id(&mut random), NONE);
            s.suppressed = some(&mut random, n);
            s.history = TokenHistory::from_tokens(&some(&mut random, n), &some(&mut random, n));
            let what = format!("{vocabulary} logits, round {round}");
            // One step, since the next would know the token.
            compare(&client, &logits, &s, 1, &what);
        }
    }
}

#[test]
fn penalties_follow_the_tokens_of_20_steps() {
    let Some(client) = client() else { return };
    let mut random = Random::new(4);
    let vocabulary = 130;
    for do_sample in [false, true] {
        let logits: Vec<f32> = (0..vocabulary).map(|_| normal(&mut random)).collect();
        let mut s = Sequence::new(SamplingOptions {
            do_sample,
            repetition_penalty: 1.1,
            presence_penalty: 0.3,
            frequency_penalty: 0.7,
            top_k: 20,
            ..SamplingOptions::default()
        });
        s.history = TokenHistory::from_tokens(&[3, 4, 5], &[9]);
        let plan = plan(&client, 1, vocabulary);
        let device = Device::new(&client, plan, &logits, std::slice::from_ref(&s));
        (0..20).for_each(|_| device.step());
        let journal = &device.journals()[0];
        for step in 0..20 {
            let expected = s.sampler().sample(&mut logits.clone(), &s.history, s.key(step)).unwrap();
            assert_eq!(journal.token(step as u32), Some(expected), "step {step}, draws {do_sample}");
            s.history.push_generated(expected);
        }
        let expected = plan.adjustments(&s.options, &s.history, &[]);
        assert_eq!(read_words(&client, &device.adjustments), expected);
    }
}

#[test]
fn sequences_of_a_batch_have_options_of_their_own() {
    let Some(client) = client() else { return };
    let mut random = Random::new(5);
    let vocabulary = 2052;
    let options = [
        SamplingOptions::greedy(),
        SamplingOptions { top_k: 5, ..SamplingOptions::default() },
        SamplingOptions::default(),
        SamplingOptions { top_p: 0.7, presence_penalty: 0.2, ..SamplingOptions::default() },
    ];
    let sequences: Vec<Sequence> = (0..)
        .zip(options)
        .map(|(i, options)| Sequence { sequence: i, position: 100 * i as u32, ..Sequence::new(options) })
        .collect();
    let logits: Vec<f32> = (0..4 * vocabulary).map(|_| normal(&mut random) * 2.0).collect();
    let device = Device::new(&client, plan(&client, 4, vocabulary), &logits, &sequences);
    (0..5).for_each(|_| device.step());
    for (i, (journal, mut s)) in device.journals().into_iter().zip(sequences).enumerate() {
        let logits = &logits[i * vocabulary..][..vocabulary];
        for step in 0..5 {
            let expected = s.sampler().sample(&mut logits.to_vec(), &s.history, s.key(step)).unwrap();
            assert_eq!(journal.token(step as u32), Some(expected), "sequence {i}, step {step}");
            s.history.push_generated(expected);
        }
    }
}

#[test]
fn faults_are_those_of_the_host() {
    let Some(client) = client() else { return };
    let default = SamplingOptions::default();
    let cold = SamplingOptions { temperature: 2e-5, ..default.clone() };
    let cases: [(&[f32], &SamplingOptions, Fault); 5] = [
        (&[0.0, 1.0, f32::NAN, f32::NAN], &default, Fault::Nan { id: 2, processed: false }),
        (&[0.0, 1.0, 2.0, f32::INFINITY, f32::NAN], &default, Fault::Infinite { id: 3, processed: false }),
        (&[0.0, 1e37], &cold, Fault::Infinite { id: 1, processed: true }),
        (&[NONE, NONE, NONE], &default, Fault::NothingLeft),
        (&[-f32::NAN, 0.0], &default, Fault::Nan { id: 0, processed: false }),
    ];
    for (logits, options, fault) in cases {
        let s = Sequence::new(options.clone());
        let device = Device::new(&client, plan(&client, 1, logits.len()), logits, &[s]);
        device.step();
        let journal = &device.journals()[0];
        assert_eq!(journal.fault, Some(fault));
        assert_eq!(journal.token(0), None);
        assert_eq!(read_words(&client, &device.tokens), [0]);
    }
}

/// Pearson's statistic of 20,000 draws. With 8 tokens left it has 7 degrees of freedom; 24.3 is its 99.9%
/// quantile. The keys are fixed, so the test passes or fails for ever.
#[test]
fn draws_have_the_stated_frequencies() {
    let Some(client) = client() else { return };
    let vocabulary = 40;
    let sequences = 100;
    let logits: Vec<f32> = (0..vocabulary).map(|i| ((i * 17) % 40) as f32 * 0.125).collect();
    let options = SamplingOptions { temperature: 0.8, top_k: 10, top_p: 0.9, ..SamplingOptions::default() };
    let s = Sequence::new(options);
    let distribution = s.sampler().distribution(&mut logits.clone(), &s.history).unwrap();
    assert_eq!(distribution.len(), 8);
    let all: Vec<Sequence> =
        (0..sequences as u64).map(|sequence| Sequence { sequence, ..s.clone() }).collect();
    let plan = Sampling { journal: 200, adjusts: false, ..plan(&client, sequences, vocabulary) };
    let device = Device::new(&client, plan, &logits.repeat(sequences), &all);
    (0..200).for_each(|_| device.step());
    let mut counts = BTreeMap::new();
    for journal in device.journals() {
        journal.ring.iter().for_each(|token| *counts.entry(*token).or_insert(0_u32) += 1);
    }
    assert!(counts.keys().eq(distribution.iter().map(|(id, _)| id)));
    let draws = (200 * sequences) as f64;
    let statistic: f64 = distribution
        .iter()
        .map(|(id, probability)| {
            let expected = f64::from(*probability) * draws;
            (f64::from(counts[id]) - expected).powi(2) / expected
        })
        .sum();
    assert!(statistic < 24.3, "{statistic}");
}

#[test]
fn a_whole_vocabulary_equals_the_host() {
    let Some(client) = client() else { return };
    let mut random = Random::new(8);
    for vocabulary in [262_144, 262_208, 100_001] {
        let logits: Vec<f32> = (0..vocabulary).map(|_| normal(&mut random) * 3.0).collect();
        let neutral = SamplingOptions::default;
        for options in [
            SamplingOptions::greedy(),
            neutral(),
            SamplingOptions { top_k: 64, top_p: 0.95, ..neutral() },
            SamplingOptions { top_p: 0.95, ..neutral() },
            SamplingOptions { top_k: 100_000, top_p: 0.999, min_p: 1e-4, ..neutral() },
        ] {
            let what = format!("{vocabulary} logits, {options:?}");
            compare(&client, &logits, &Sequence::new(options), 4, &what);
        }
    }
    // All alike: the longest list there is.
    let options = SamplingOptions { top_p: 0.3, ..SamplingOptions::default() };
    compare(&client, &vec![0.5; 262_144], &Sequence::new(options), 2, "all alike");
}

#[test]
fn what_a_plan_does_not_do_is_refused() {
    let Some(client) = client() else { return };
    let whole = plan(&client, 1, 100);
    let plain = Sampling { adjusts: false, ..whole };
    let greedy = Sampling { draws: false, ..whole };
    let default = SamplingOptions::default();
    assert!(whole.supports(&default, true));
    assert!(!plain.supports(&default, true));
    assert!(plain.supports(&default, false));
    assert!(!greedy.supports(&default, false));
    assert!(greedy.supports(&SamplingOptions::greedy(), true));
    let refused = [
        SamplingOptions { repetition_penalty: 1e-40, ..default.clone() },
        SamplingOptions { logit_bias: BTreeMap::from([(100, 1.0)]), ..default.clone() },
        SamplingOptions { temperature: f32::NAN, ..default.clone() },
    ];
    assert!(refused.iter().all(|options| !whole.supports(options, false)));
    assert_eq!(Sampling::new(&client, 1, 0), None);
    assert_eq!(Sampling::new(&client, 1, (1 << 19) + 1), None);
}

#[test]
fn places_are_taken_and_left_while_others_go_on() {
    let Some(client) = client() else { return };
    let mut random = Random::new(9);
    let (vocabulary, count) = (900, 3);
    let logits: Vec<f32> = (0..count).flat_map(|_| logits_of_kind(0, vocabulary, &mut random)).collect();
    let drawn = |seed| Sequence { seed, ..Sequence::new(SamplingOptions::default()) };
    let sequences = [drawn(1), drawn(2), drawn(3)];
    let plan = Sampling { adjusts: false, ..plan(&client, count, vocabulary) };
    let token = |s: &Sequence, place: usize, step: usize| {
        let logits = &logits[place * vocabulary..][..vocabulary];
        s.sampler().sample(&mut logits.to_vec(), &s.history, s.key(step)).unwrap()
    };
    let device = Device::new(&client, plan, &logits, &sequences);
    (0..2).for_each(|_| device.step());
    // Another comes to the second place, and the third is left.
    let new = Sequence { position: 40, ..drawn(77) };
    let taken = Taken {
        place: 1,
        token: 5,
        position: new.position,
        options: &new.options,
        seed: new.seed,
        sequence: new.sequence,
    };
    take_places(&client, plan, device.buffers(), &[taken], &[2]);
    assert_eq!(read_words(&client, &device.tokens)[1..], [5, 0]);
    (0..3).for_each(|_| device.step());
    let journals = device.journals();
    for step in 0..5 {
        assert_eq!(journals[0].token(step as u32), Some(token(&sequences[0], 0, step)), "step {step}");
    }
    assert_eq!((journals[1].steps, journals[1].fault), (3, None));
    for step in 0..3 {
        assert_eq!(journals[1].token(step as u32), Some(token(&new, 1, step)), "step {step}");
    }
    let first = sequences[0].position + 5;
    assert_eq!(read_words(&client, &device.positions), [first, new.position + 3, NOBODY]);
}
