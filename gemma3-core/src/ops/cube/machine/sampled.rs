//! Tokens that are chosen on the device, ahead of the host that reads them.

use std::sync::Arc;

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::server::Handle;

use super::Cube;
use super::step::{Step, StepBuffers};
use super::waiter::Answer;
use crate::ops::MachineError;
use crate::ops::cube::limits::DeviceLimits;
use crate::ops::cube::sampling::{self, Journal, PARAMETER_WORDS, Sampling};
use crate::ops::machine::{Choice, Fault};
use crate::sampling::SamplingOptions;

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

/// Choices under way.
#[derive(Debug)]
pub(super) struct Sampled {
    pub(super) buffers: Arc<SamplingBuffers>,
    /// Whose tokens are chosen: their places in the step, and where they began.
    members: Vec<Seat>,
    /// Steps since they began.
    sent: u32,
}

/// A sequence's place among those of a step, and the position of the token that it enters with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) slot: usize,
    pub(super) position: usize,
}

/// A token that enters a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entering<'a> {
    pub(super) seat: Seat,
    pub(super) token: u32,
    /// How the next is chosen, if the device does it.
    pub(super) choice: Option<&'a Choice<'a>>,
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

    /// Puts the state of choices that begin into place: of each sequence of the step, `None` where nobody asks.
    fn begin(&self, client: &Client, choices: &[Option<&Choice<'_>>]) {
        let plan = &self.plan;
        let nobody = SamplingOptions::greedy();
        let options = |choice: &Option<&Choice<'_>>| choice.map_or(nobody.clone(), |c| c.options.clone());
        let write = |to: &Handle, words: Vec<u32>| client.write(to, Bytes::from_elems(words));
        let all = |words: &dyn Fn(&Option<&Choice<'_>>) -> Vec<u32>| {
            choices.iter().flat_map(words).collect::<Vec<_>>()
        };
        let parameters = |choice: &Option<&Choice<'_>>| {
            let (seed, sequence) = choice.map_or((0, 0), |choice| (choice.seed, choice.sequence));
            plan.parameters(&options(choice), seed, sequence)
        };
        write(&self.parameters, all(&parameters));
        if plan.adjusts {
            let known = |choice: &Option<&Choice<'_>>| match choice {
                Some(choice) => plan.adjustments(choice.options, choice.history, choice.suppressed),
                None => vec![0; plan.vocabulary],
            };
            write(&self.adjustments, all(&known));
            write(&self.biases, all(&|choice| plan.bias_list(&options(choice))));
        }
        write(&self.journal, all(&|_| Journal::cleared(plan)));
    }
}

/// The shape of choices of `sequences` tokens together; `None` if the device can't choose as the options ask.
pub(super) fn plan(
    client: &Client,
    sequences: usize,
    vocab: usize,
    choices: &[&Choice<'_>],
) -> Option<Sampling> {
    let mut plan = Sampling::new(client, sequences, vocab)?;
    plan.draws = choices.iter().any(|choice| !choice.options.is_greedy());
    plan.adjusts = choices.iter().any(|choice| {
        let options = choice.options;
        !choice.suppressed.is_empty() || options.uses_history() || !options.logit_bias.is_empty()
    });
    let words = [plan.work_words(), plan.score_floats(), plan.adjustment_words()].into_iter().max()?;
    if (words * size_of::<u32>()) as u64 > DeviceLimits::of(client).buffer_bytes {
        return None;
    }
    let does = |choice: &&Choice<'_>| plan.supports(choice.options, !choice.suppressed.is_empty());
    choices.iter().all(does).then_some(plan)
}

impl Step {
    /// Sets out from tokens that are not computed yet. Where they have choices, the step chooses the next.
    ///
    /// # Errors
    ///
    /// Choices that the device can't make.
    pub(super) fn begin(&mut self, cube: &Cube, entering: &[Entering<'_>]) -> Result<(), MachineError> {
        let sequences = self.buffers.sequences;
        let (mut tokens, mut positions) = (vec![0; sequences], vec![0; sequences]);
        let mut choices = vec![None; sequences];
        for Entering { seat, token, choice } in entering {
            tokens[seat.slot] = *token;
            positions[seat.slot] = seat.position as u32;
            choices[seat.slot] = *choice;
        }
        let asked: Vec<&Choice<'_>> = choices.iter().flatten().copied().collect();
        let last = self.sampled.take();
        if !asked.is_empty() {
            let client = cube.commands.client();
            let plan = plan(client, sequences, self.buffers.vocab, &asked);
            let plan = plan.ok_or(MachineError::Bug { what: "a device was to choose as it can't" })?;
            let buffers = match last {
                Some(last) if last.buffers.plan == plan => last.buffers,
                _ => Arc::new(SamplingBuffers::new(client, plan)),
            };
            buffers.begin(client, &choices);
            let members = entering.iter().map(|entering| entering.seat).collect();
            self.sampled = Some(Sampled { buffers, members, sent: 0 });
        }
        self.place(cube, tokens, positions);
        Ok(())
    }

    /// Whether these continue with the tokens that the last step chose for them, and it chose for no others.
    pub(super) fn continues(&self, seats: &[Seat]) -> bool {
        self.sampled.as_ref().is_some_and(|sampled| {
            let moved = |seat: &Seat| Seat { position: seat.position + sampled.sent as usize, ..*seat };
            sampled.members.iter().map(moved).eq(seats.iter().copied())
        })
    }

    /// What the step that was just enqueued gives the sequences in these slots, whose outcomes are those at `indices`:
    /// tokens where it chose some, logits otherwise. Started behind this step and before the next, so that reading
    /// waits for this one only.
    pub(super) fn answer(&mut self, cube: &Cube, slots: Vec<usize>, indices: Vec<usize>) -> Answer {
        let of = slots.into_iter().zip(indices);
        let Some(sampled) = &mut self.sampled else {
            let (reading, vocab) = (cube.commands.start_reading(&self.buffers.logits), self.buffers.vocab);
            let fill = move |bytes: &[u8], outcomes: &mut [_]| fill_logits(bytes, vocab, of, outcomes);
            return Answer { reading, fill: Box::new(fill) };
        };
        let (plan, step) = (sampled.buffers.plan, sampled.sent);
        sampled.sent += 1;
        let reading = cube.commands.start_reading(&sampled.buffers.journal);
        let fill = move |bytes: &[u8], outcomes: &mut [crate::ops::machine::Outcome]| {
            let words: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
            let journals: Vec<_> = words.chunks_exact(plan.journal_words() / plan.sequences).collect();
            for (slot, index) in of {
                let missing = "a step has not written a journal for every sequence";
                let missing = || MachineError::Bug { what: missing };
                let journal = journals.get(slot).and_then(|words| Journal::of_words(words));
                let journal = journal.ok_or_else(missing)?;
                let token = journal.token(step);
                let token = token.ok_or_else(|| journal.fault.unwrap_or(Fault::NothingLeft));
                outcomes.get_mut(index).ok_or_else(missing)?.token = Some(token);
            }
            Ok(())
        };
        Answer { reading, fill: Box::new(fill) }
    }
}

/// Gives each sequence its row of logits \[rows, vocab\].
pub(super) fn fill_logits(
    bytes: &[u8],
    vocab: usize,
    of: impl Iterator<Item = (usize, usize)>,
    outcomes: &mut [crate::ops::machine::Outcome],
) -> Result<(), MachineError> {
    for (row, index) in of {
        let width = vocab * size_of::<f32>();
        let row = bytes.get(row * width..(row + 1) * width);
        let (Some(row), Some(outcome)) = (row, outcomes.get_mut(index)) else {
            return Err(MachineError::Bug { what: "a pass has not written all logits" });
        };
        outcome.logits.push(floats(row));
    }
    Ok(())
}

/// The numbers of f32 in bytes.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
