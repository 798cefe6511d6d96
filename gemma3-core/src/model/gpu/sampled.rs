//! Steps that choose their tokens on the device, ahead of the host that reads them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::server::Handle;

use super::step::{DecodeStep, StepBuffers};
use crate::cache::DeviceCache;
use crate::model::ForwardError;
use crate::ops::cube::sampling::{self, Fault, Journal, PARAMETER_WORDS, Sampling};
use crate::ops::cube::stream::Reading;
use crate::sampling::{SamplingOptions, TokenHistory};

/// How the tokens of a sequence are chosen.
pub(crate) struct Choice<'a> {
    pub(crate) options: &'a SamplingOptions,
    pub(crate) history: &'a TokenHistory,
    /// Ids that are never chosen.
    pub(crate) suppressed: &'a [u32],
    /// See [`RandomKey`](crate::sampling::RandomKey).
    pub(crate) seed: u64,
    /// See [`RandomKey`](crate::sampling::RandomKey).
    pub(crate) sequence: u64,
}

/// Buffers of sampling, which a record is bound to.
#[derive(Debug)]
pub(super) struct SamplingBuffers {
    plan: Sampling,
    parameters: Handle,
    adjustments: Handle,
    biases: Handle,
    journal: Handle,
    scores: Handle,
    work: Handle,
}

impl SamplingBuffers {
    fn new(client: &Client, plan: Sampling) -> Self {
        let empty = |words: usize| client.empty(words * size_of::<u32>());
        Self {
            plan,
            parameters: empty(plan.sequences * PARAMETER_WORDS),
            adjustments: empty(plan.adjustment_words()),
            biases: empty(plan.bias_words()),
            journal: empty(plan.journal_words()),
            scores: empty(plan.score_floats()),
            work: empty(plan.work_words()),
        }
    }

    /// Launches the choice of a token from the step's logits; it becomes the next step's.
    pub(super) fn launch(&self, client: &Client, step: &StepBuffers) {
        let buffers = sampling::Buffers {
            logits: &step.logits,
            parameters: &self.parameters,
            adjustments: &self.adjustments,
            biases: &self.biases,
            positions: &step.positions,
            tokens: &step.tokens,
            journal: &self.journal,
            scores: &self.scores,
            work: &self.work,
        };
        sampling::sample(client, self.plan, buffers);
    }
}

const NOT_BEGUN: ForwardError = ForwardError::Bug { what: "steps go on that never began" };

/// Steps under way.
pub(super) struct SampledSteps {
    buffers: Arc<SamplingBuffers>,
    /// Journals on their way to the host, the oldest first.
    readings: VecDeque<Reading>,
    /// Tokens that have been read.
    read: u32,
}

impl fmt::Debug for SampledSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SampledSteps").field("ahead", &self.readings.len()).finish_non_exhaustive()
    }
}

impl DecodeStep {
    /// Sets out from `tokens` at `positions`, which are not computed yet. `false` if the device can't choose as
    /// the options ask.
    pub(crate) fn begin(&mut self, tokens: &[u32], positions: &[u32], choices: &[Choice<'_>]) -> bool {
        let decoder = self.decoder().clone();
        let client = decoder.stream.client();
        let sequences = choices.len();
        let Some(mut plan) = Sampling::new(client, sequences, decoder.sizes.vocab) else { return false };
        plan.draws = choices.iter().any(|choice| !choice.options.is_greedy());
        plan.adjusts = choices.iter().any(|choice| {
            let options = choice.options;
            !choice.suppressed.is_empty() || options.uses_history() || !options.logit_bias.is_empty()
        });
        if !choices.iter().all(|choice| plan.supports(choice.options, !choice.suppressed.is_empty())) {
            return false;
        }
        let buffers = match self.sampled.take() {
            Some(steps) if steps.buffers.plan == plan => steps.buffers,
            _ => Arc::new(SamplingBuffers::new(client, plan)),
        };
        let write = |to: &Handle, words: Vec<u32>| client.write(to, Bytes::from_elems(words));
        let all =
            |words: &dyn Fn(&Choice<'_>) -> Vec<u32>| choices.iter().flat_map(words).collect::<Vec<_>>();
        let parameters = |choice: &Choice<'_>| plan.parameters(choice.options, choice.seed, choice.sequence);
        write(&buffers.parameters, all(&parameters));
        if plan.adjusts {
            let known = |c: &Choice<'_>| plan.adjustments(c.options, c.history, c.suppressed);
            write(&buffers.adjustments, all(&known));
            write(&buffers.biases, all(&|choice| plan.bias_list(choice.options)));
        }
        write(&buffers.journal, all(&|_| Journal::cleared(&plan)));
        self.place(tokens, positions);
        self.sampled = Some(SampledSteps { buffers, readings: VecDeque::new(), read: 0 });
        true
    }

    /// Steps whose tokens have not been read.
    pub(crate) fn ahead(&self) -> usize {
        self.sampled.as_ref().map_or(0, |steps| steps.readings.len())
    }

    /// Sends a step on its way: the last token is computed, and the next one chosen.
    pub(crate) fn send(&mut self, cache: &mut DeviceCache) -> Result<(), ForwardError> {
        let buffers = self.sampled.as_ref().map(|steps| steps.buffers.clone()).ok_or(NOT_BEGUN)?;
        self.run(cache, Some(&buffers))?;
        // Behind this step and before the next, so that reading waits for this one only.
        let reading = self.decoder().stream.start_reading(&buffers.journal);
        if let Some(steps) = &mut self.sampled {
            steps.readings.push_back(reading);
        }
        Ok(())
    }

    /// Waits for the oldest step under way and returns the token that it chose for each sequence.
    pub(crate) fn receive(&mut self) -> Result<Vec<Result<u32, Fault>>, ForwardError> {
        let steps = self.sampled.as_mut().ok_or(NOT_BEGUN)?;
        let none = ForwardError::Bug { what: "a token is waited for, but no step is under way" };
        let reading = steps.readings.pop_front().ok_or(none)?;
        let words = reading.words()?;
        let plan = steps.buffers.plan;
        let step = steps.read;
        steps.read += 1;
        let tokens = words.chunks_exact(plan.journal_words() / plan.sequences).map(|words| {
            let journal = Journal::of_words(words);
            match journal.as_ref().and_then(|journal| journal.token(step)) {
                Some(token) => Ok(token),
                None => Err(journal.and_then(|journal| journal.fault).unwrap_or(Fault::NothingLeft)),
            }
        });
        let tokens: Vec<_> = tokens.collect();
        match tokens.len() == plan.sequences {
            true => Ok(tokens),
            false => Err(ForwardError::Bug { what: "a step has not written a journal for every sequence" }),
        }
    }
}
