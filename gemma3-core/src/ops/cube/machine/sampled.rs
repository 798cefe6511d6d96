//! Tokens that are chosen on the device, ahead of the host that reads them.

use std::sync::Arc;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::Cube;
use super::step::{Step, StepBuffers};
use super::waiter::Answer;
use crate::ops::MachineError;
use crate::ops::cube::attention::NOBODY;
use crate::ops::cube::copy::copy_into;
use crate::ops::cube::limits::DeviceLimits;
use crate::ops::cube::sampling::{self, Journal, PARAMETER_WORDS, Sampling, Taken};
use crate::ops::machine::{Choice, Fault};

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
    /// Of each place of the step, how far who has it has come.
    seats: Vec<Option<Progress>>,
}

/// How far a sequence has come whose tokens a step chooses.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// The position of the token that enters the next step.
    position: usize,
    /// Steps since it took its place.
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

impl Sampled {
    /// Steps that who has a place has made since it took it.
    fn sent(&self, slot: usize) -> u32 {
        self.seats.get(slot).copied().flatten().map_or(0, |seat| seat.sent)
    }
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

    fn of_step<'a>(&'a self, step: &'a StepBuffers) -> sampling::Buffers<'a> {
        sampling::Buffers {
            logits: &step.logits,
            parameters: &self.parameters,
            adjustments: &self.adjustments,
            biases: &self.biases,
            positions: &step.positions,
            tokens: &step.tokens,
            journal: &self.journal,
            scores: &self.scores,
            work: &self.work,
        }
    }

    /// Launches the choice of a token from the step's logits; it becomes the next step's.
    pub(super) fn launch(&self, client: &Client, step: &StepBuffers) {
        sampling::sample(client, self.plan, self.of_step(step));
    }

    /// Puts the state of choices that begin into place, and nobody into the places `left`.
    fn begin(
        &self,
        client: &Client,
        step: &StepBuffers,
        entering: &[(&Entering<'_>, &Choice<'_>)],
        left: &[usize],
    ) {
        let plan = self.plan;
        let taken = entering.iter().map(|(Entering { seat, token, .. }, choice)| Taken {
            place: seat.slot,
            token: *token,
            position: seat.position as u32,
            options: choice.options,
            seed: choice.seed,
            sequence: choice.sequence,
        });
        sampling::take_places(client, plan, self.of_step(step), &taken.collect::<Vec<_>>(), left);
        if !plan.adjusts {
            return;
        }
        for (Entering { seat, .. }, choice) in entering {
            let known = plan.adjustments(choice.options, choice.history, choice.suppressed);
            let biases = plan.bias_list(choice.options);
            for (to, words) in [(&self.adjustments, known), (&self.biases, biases)] {
                let from = client.create_from_slice(u32::as_bytes(&words));
                copy_into(client, &from, to, seat.slot * words.len());
            }
        }
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
    /// Gives places to tokens that are not computed yet; where they have choices, the step chooses the next. Those who
    /// `stay` go on with what the last step chose for them ([`continues`](Self::continues)), and the other places are
    /// nobody's.
    ///
    /// # Errors
    ///
    /// Choices that the device can't make, or not beside those of who stays ([`admits`](Self::admits)).
    pub(super) fn begin(
        &mut self,
        cube: &Cube,
        entering: &[Entering<'_>],
        staying: &[Seat],
    ) -> Result<(), MachineError> {
        let (sequences, client) = (self.buffers.sequences, cube.commands.client());
        let choosing: Vec<_> = entering.iter().filter_map(|e| Some((e, e.choice?))).collect();
        if choosing.is_empty() && staying.is_empty() {
            self.sampled = None;
            let (mut tokens, mut positions) = (vec![0; sequences], vec![NOBODY; sequences]);
            for Entering { seat, token, .. } in entering {
                tokens[seat.slot] = *token;
                positions[seat.slot] = seat.position as u32;
            }
            self.place(cube, tokens, positions);
            return Ok(());
        }
        let choices: Vec<&Choice<'_>> = choosing.iter().map(|(_, choice)| *choice).collect();
        let admits = self.admits(client, &choices);
        let mut sampled = match self.sampled.take_if(|_| admits) {
            Some(last) => last,
            None if !staying.is_empty() => {
                return Err(MachineError::Bug { what: "a step was to choose beside others as it can't" });
            }
            None => {
                let wanted = plan(client, sequences, self.buffers.vocab, &choices);
                let wanted =
                    wanted.ok_or(MachineError::Bug { what: "a device was to choose as it can't" })?;
                self.sampled = None; // Its memory first.
                let buffers = Arc::new(SamplingBuffers::new(client, wanted));
                // Whatever is there has to be written over.
                Sampled { buffers, seats: vec![Some(Progress { position: 0, sent: 0 }); sequences] }
            }
        };
        let stays = |slot: usize| staying.iter().any(|seat| seat.slot == slot);
        let mut left = Vec::new();
        for (slot, seat) in sampled.seats.iter_mut().enumerate().filter(|(slot, _)| !stays(*slot)) {
            let enters = entering.iter().find(|entering| entering.seat.slot == slot);
            if enters.is_none() && seat.is_some() {
                left.push(slot);
            }
            *seat = enters.map(|entering| Progress { position: entering.seat.position, sent: 0 });
        }
        sampled.buffers.begin(client, &self.buffers, &choosing, &left);
        self.sampled = Some(sampled);
        Ok(())
    }

    /// Whether these continue with the tokens that the last step chose for them.
    pub(super) fn continues(&self, seats: &[Seat]) -> bool {
        self.sampled.as_ref().is_some_and(|sampled| {
            let progress = |seat: &Seat| sampled.seats.get(seat.slot).copied().flatten();
            seats.iter().all(|seat| progress(seat).is_some_and(|known| known.position == seat.position))
        })
    }

    /// Whether others, who are to choose so, can take places while those who have theirs go on. Nobody can always.
    pub(super) fn admits(&self, client: &Client, choices: &[&Choice<'_>]) -> bool {
        self.sampled.as_ref().is_some_and(|sampled| {
            let wanted = || plan(client, self.buffers.sequences, self.buffers.vocab, choices);
            choices.is_empty() || wanted().is_some_and(|wanted| sampled.buffers.plan.serves(&wanted))
        })
    }

    /// Whether tokens are being chosen for anybody.
    pub(super) fn is_going(&self) -> bool {
        self.sampled.as_ref().is_some_and(|sampled| sampled.seats.iter().any(Option::is_some))
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
        let plan = sampled.buffers.plan;
        // Whose token it is, and of which of its steps.
        let of: Vec<_> = of.map(|(slot, index)| (slot, index, sampled.sent(slot))).collect();
        for seat in sampled.seats.iter_mut().flatten() {
            *seat = Progress { position: seat.position + 1, sent: seat.sent + 1 };
        }
        let reading = cube.commands.start_reading(&sampled.buffers.journal);
        let fill = move |bytes: &[u8], outcomes: &mut [crate::ops::machine::Outcome]| {
            let words: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
            let journals: Vec<_> = words.chunks_exact(plan.journal_words() / plan.sequences).collect();
            for (slot, index, step) in of {
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
