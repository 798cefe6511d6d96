//! [`Engine`]: the loop that generates. Streams and batches are faces of it.

use std::borrow::BorrowMut;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::slot::{Need, Slot, Token};
use super::{ContinueOptions, FinishReason, GenerateError, Session};
use crate::CancelHandle;
use crate::model::{EmbeddedSpan, ForwardError, Logits, Model, Trace};
use crate::ops::machine::{Choice, Outcome, Wanted};
use crate::run::{Receipt, Row};

/// Passes that are sent before the tokens of the first are read, at least and at most: while the host reads and decides,
/// the device has something to do.
pub(super) const AHEAD: [usize; 2] = [2, 6];
/// The time for which a device has to have something to do while sequences come and go: to launch a pass of prompts, which
/// is recorded nowhere, takes the host a few milliseconds.
const LEAD: Duration = Duration::from_millis(3);
/// Tokens of prompts up to which several are computed in one pass: such lengths are compiled in a warm-up.
const TOGETHER: usize = 64;

/// Continues any number of sessions of one model, which join and leave between two passes.
///
/// A pass carries the newest token of every sequence that is being continued, and a chunk of a prompt that is not
/// computed yet, or several short prompts. Sequences that begin wait for each other's prompts and then step together, so that
/// the weights are read once for all of them; those that step already go on meanwhile. A sequence that ends is in no
/// further pass, but for those that were sent before it was known.
///
/// `S` is a session, or a `&mut` to one that the caller keeps.
///
/// ```no_run
/// # use gemma3_core::generate::{Engine, Event, GenerateError, ContinueOptions, Session};
/// # fn main() -> Result<(), GenerateError> {
/// # let model: gemma3_core::model::Model = todo!();
/// # let waiting: Vec<Session> = vec![];
/// let mut engine = Engine::new(&model);
/// let mut waiting = waiting.into_iter();
/// loop {
///     while engine.len() < 32
///         && let Some(session) = waiting.next()
///     {
///         engine.start(session, ContinueOptions::default())?;
///     }
///     if engine.is_empty() {
///         break;
///     }
///     for event in engine.tick()? {
///         match event {
///             Event::Token { slot, token } => println!("{slot:?}: {}", token.id),
///             Event::Ended { slot, .. } => drop(engine.finish(slot)),
///             Event::Failed { error, .. } => return Err(error),
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine<S: BorrowMut<Session> = Session> {
    model: Model,
    next: u64,
    slots: BTreeMap<SlotId, Slot<S>>,
    /// The oldest first.
    under_way: VecDeque<Sent>,
    /// Those of the last step, in its order.
    members: Vec<SlotId>,
    /// Whether the device chooses their tokens.
    on_device: bool,
    pace: Pace,
}

/// How long passes take.
#[derive(Debug, Default)]
struct Pace {
    /// When the last one had come.
    last: Option<Instant>,
    /// Between the last two.
    interval: Option<Duration>,
}

impl Pace {
    /// A pass has brought what it had to.
    fn tick(&mut self) {
        let now = Instant::now();
        self.interval = self.last.map(|last| now - last);
        self.last = Some(now);
    }

    /// Passes that take as long as [`LEAD`], and the one that is read.
    fn ahead(&self) -> usize {
        let interval = self.interval.unwrap_or(LEAD).as_secs_f64();
        let [least, most] = AHEAD;
        // A device that needs no time at all needs no more than the most.
        ((LEAD.as_secs_f64() / interval).ceil().min(most as f64) as usize + 1).clamp(least, most)
    }
}

/// A sequence of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u64);

/// What happened in a pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A sequence has a token more; it is in its session already.
    Token {
        /// Which sequence.
        slot: SlotId,
        /// Its token.
        token: Token,
    },
    /// A sequence has ended, and stays in the engine until it is [finished](Engine::finish).
    Ended {
        /// Which sequence.
        slot: SlotId,
        /// Why.
        reason: FinishReason,
    },
    /// A sequence can't go on. The others do.
    Failed {
        /// Which sequence.
        slot: SlotId,
        /// Why.
        error: GenerateError,
    },
}

/// A pass on its way.
#[derive(Debug)]
struct Sent {
    receipt: Receipt,
    /// Whose rows they are, and whether they are steps.
    rows: Vec<(SlotId, Part)>,
}

/// What a row is to its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Tokens before the newest.
    Prompt,
    /// Tokens up to the newest, or the newest: logits come of it.
    Logits,
    /// The newest: the next token comes of it.
    Token,
}

impl<S: BorrowMut<Session>> Engine<S> {
    /// An engine for sessions of a model.
    pub fn new(model: &Model) -> Self {
        Self {
            model: model.clone(),
            next: 0,
            slots: BTreeMap::new(),
            under_way: VecDeque::new(),
            members: Vec::new(),
            on_device: false,
            pace: Pace::default(),
        }
    }

    /// Sets out to continue a session. Nothing is computed before the next [`tick`](Self::tick).
    ///
    /// # Errors
    ///
    /// Invalid options, an empty session, or one of another model.
    pub fn start(&mut self, session: S, options: ContinueOptions) -> Result<SlotId, GenerateError> {
        self.start_with(session, options, CancelHandle::new())
    }

    /// The same, to be stopped by `cancel`.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start).
    pub fn start_with(
        &mut self,
        session: S,
        options: ContinueOptions,
        cancel: CancelHandle,
    ) -> Result<SlotId, GenerateError> {
        if !session.borrow().model().is_same(&self.model) {
            return Err(GenerateError::MixedModels { index: self.slots.len() });
        }
        let slot = Slot::new(session, options, cancel)?;
        let id = SlotId(self.next);
        self.next += 1;
        self.slots.insert(id, slot);
        Ok(id)
    }

    /// Sequences in the engine, those that have ended among them.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether every sequence has ended.
    pub fn is_idle(&self) -> bool {
        self.slots.values().all(Slot::has_ended)
    }

    /// Whether the next [`tick`](Self::tick) finds what it needs, so that it does not wait for a device. (A CPU computes in
    /// the tick.)
    pub fn is_ready(&self) -> bool {
        self.under_way.front().is_none_or(|sent| sent.receipt.is_ready())
    }

    /// A sequence's session as it stands.
    pub fn session(&self, slot: SlotId) -> Option<&Session> {
        Some(self.slots.get(&slot)?.session())
    }

    /// Why a sequence ended; `None` while it goes on, and after an error.
    pub fn finish_reason(&self, slot: SlotId) -> Option<FinishReason> {
        self.slots.get(&slot)?.finish_reason()
    }

    /// Ends a sequence with a reason that the caller found, such as a stop string. It takes precedence over a reason
    /// that the same token gave.
    pub fn finish_with(&mut self, slot: SlotId, reason: FinishReason) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.finish_with(reason);
        }
    }

    /// Takes a sequence out, whether it has ended or not, and gives its session back.
    pub fn finish(&mut self, slot: SlotId) -> Option<S> {
        Some(self.slots.remove(&slot)?.session)
    }

    pub(super) fn slot(&self, slot: SlotId) -> Option<&Slot<S>> {
        self.slots.get(&slot)
    }

    pub(super) fn slot_mut(&mut self, slot: SlotId) -> Option<&mut Slot<S>> {
        self.slots.get_mut(&slot)
    }

    /// Goes on by one pass, or by what an earlier one has brought: waits for a device at most as long as the oldest pass
    /// under way takes. What comes back may be nothing.
    ///
    /// # Errors
    ///
    /// When the device fails; no sequence can then go on.
    pub fn tick(&mut self) -> Result<Vec<Event>, GenerateError> {
        let mut events = Vec::new();
        self.decide(&mut events);
        if events.is_empty()
            && let Err(error) = self.pass(&mut events)
        {
            self.under_way.clear();
            for slot in self.slots.values_mut() {
                slot.fail();
                slot.session_mut().distrust();
            }
            return Err(error);
        }
        Ok(events)
    }

    /// What needs no pass: sequences that are cancelled, and tokens from logits that are here.
    fn decide(&mut self, events: &mut Vec<Event>) {
        for (id, slot) in &mut self.slots {
            if slot.has_ended() {
                continue;
            }
            if slot.cancel.is_cancelled() {
                slot.finish(FinishReason::Cancelled);
                events.push(Event::Ended { slot: *id, reason: FinishReason::Cancelled });
            } else if slot.need() == Need::Choice {
                let chosen = slot.choose();
                report(*id, slot, chosen, events);
            }
        }
    }

    /// Sends a pass, if one can be sent, and waits for the oldest where enough are under way.
    fn pass(&mut self, events: &mut Vec<Event>) -> Result<(), GenerateError> {
        let first_prompt = self.slots.iter().find(|(_, slot)| slot.need() == Need::Prompt).map(|(id, _)| *id);
        let has_prompts = first_prompt.is_some();
        for slot in self.slots.values_mut().filter(|slot| !slot.is_stepping && slot.need() == Need::Step) {
            // Not for those who come later, of whom there may always be one.
            let last = *slot.waits_for.get_or_insert(SlotId(self.next));
            slot.is_stepping = first_prompt.is_none_or(|prompt| prompt >= last);
        }
        let is_ahead = !self.under_way.is_empty();
        let chunks = self.chunks();
        let has_sent = match self.steps() {
            Some(steps) if has_prompts || !steps.is_empty() => self.send(&chunks, &steps)?,
            _ => false,
        };
        if !has_sent && is_ahead {
            // Meanwhile the device has prompts to compute; of logits there are none, which would come out of turn.
            let prompts: Vec<Chunk> = chunks.into_iter().filter(|chunk| chunk.part == Part::Prompt).collect();
            if !prompts.is_empty() {
                self.send(&prompts, &[])?;
            }
        }
        let enough = match has_sent && self.on_device {
            // One that is alone has none to wait for.
            true if self.members.len() > 1 => self.pace.ahead(),
            true => AHEAD[0],
            false => 1,
        };
        if self.under_way.len() >= enough
            && let Some(sent) = self.under_way.pop_front()
        {
            self.receive(sent, events)?;
        }
        Ok(())
    }

    /// Those who step in the next pass; `None` where what is under way has to come first.
    fn steps(&mut self) -> Option<Vec<SlotId>> {
        let awaits_logits = |id: &SlotId| {
            let mut rows = self.under_way.iter().flat_map(|sent| &sent.rows);
            rows.any(|(other, part)| other == id && *part == Part::Logits)
        };
        let stepping = self.slots.iter().filter(|(_, slot)| slot.is_stepping && slot.need() == Need::Step);
        let stepping = stepping.filter(|(id, _)| !awaits_logits(id));
        // Who may have all of its tokens already is in no further pass.
        let steps: Vec<SlotId> =
            stepping.filter(|(_, slot)| slot.may_run_ahead()).map(|(id, _)| *id).collect();
        if self.under_way.is_empty() {
            if steps != self.members {
                self.on_device = self.device_chooses(&steps);
            }
            return Some(steps);
        }
        // A token that is not known can only go on in the step after the one that chose it.
        let goes_on = |id: &SlotId| self.slots[id].under_way == 0 || self.members.contains(id);
        // Who is left alone steps alone, which is quicker.
        let is_left = steps.len() == 1 && self.members.len() > 1;
        let may = self.on_device && !steps.is_empty() && !is_left && steps.iter().all(goes_on);
        (may && (steps == self.members || self.device_chooses(&steps))).then_some(steps)
    }

    /// Sends chunks of prompts and the newest tokens of sequences on their way; `false`, with nothing done, where those
    /// who join have to wait for the tokens under way.
    fn send(&mut self, chunks: &[Chunk], steps: &[SlotId]) -> Result<bool, GenerateError> {
        let mut sessions = Vec::with_capacity(steps.len());
        let mut choices = Vec::with_capacity(steps.len());
        let mut parts = Vec::with_capacity(chunks.len() + steps.len());
        let mut rows: Vec<Row<'_>> = Vec::with_capacity(chunks.len() + steps.len());
        for (id, slot) in &mut self.slots {
            if let Some(Chunk { range, part, spans, .. }) = chunks.iter().find(|chunk| chunk.slot == *id) {
                let logits = if *part == Part::Logits { Logits::Last } else { Logits::None };
                rows.push(slot.session_mut().row(range.clone(), spans, Wanted::Logits(logits)));
                parts.push((*id, *part));
            } else if steps.contains(id) {
                let is_ahead = slot.under_way > 0;
                let (session, choice) = slot.parts();
                sessions.push((*id, session, is_ahead));
                choices.push(choice.filter(|_| self.on_device));
            }
        }
        let (mut stay, mut join) = (false, false);
        for ((id, session, is_ahead), choice) in sessions.into_iter().zip(&choices) {
            let newest = session.len() - 1..session.len();
            stay |= is_ahead;
            join |= !is_ahead;
            rows.push(match choice {
                Some(choice) if is_ahead => session.row_of_chosen(Wanted::Token(choice)),
                Some(choice) => session.row(newest, &[], Wanted::Token(choice)),
                None => session.row(newest, &[], Wanted::Logits(Logits::Last)),
            });
            parts.push((id, if choice.is_some() { Part::Token } else { Part::Logits }));
        }
        if stay && join && !self.model.runner().goes_on_with(&mut rows) {
            return Ok(false);
        }
        let receipt = self.model.send(&mut rows, &mut Trace::none())?;
        drop(rows);
        for (id, part) in &parts {
            if *part == Part::Token
                && let Some(slot) = self.slots.get_mut(id)
            {
                slot.under_way += 1;
            }
        }
        match parts.iter().all(|(_, part)| *part == Part::Prompt) {
            true => drop(receipt.wait()?), // It promises nothing.
            false => self.under_way.push_back(Sent { receipt, rows: parts }),
        }
        if !steps.is_empty() {
            self.members = steps.to_vec();
        }
        Ok(true)
    }

    /// What the next pass computes of prompts: a chunk of the first, and others as long as all are short.
    fn chunks(&mut self) -> Vec<Chunk> {
        let waiting = self.slots.iter().filter(|(_, slot)| slot.need() == Need::Prompt);
        let waiting: Vec<SlotId> = waiting.map(|(id, _)| *id).collect();
        let (mut chunks, mut tokens): (Vec<Chunk>, usize) = (Vec::new(), 0);
        for id in waiting {
            let chunk = self.chunk_of(id);
            tokens += chunk.range.len();
            if tokens > TOGETHER && !chunks.is_empty() {
                break;
            }
            chunks.push(chunk);
        }
        chunks
    }

    /// The next chunk of a prompt. Where the device is to choose, it does so in a step of the newest token.
    fn chunk_of(&mut self, slot: SlotId) -> Chunk {
        let steps_choose = self.device_chooses(&[slot]);
        let session = self.slots[&slot].session();
        let (computed, len) = (session.computed(), session.len());
        let limit = match steps_choose && !session.ends_in_image() {
            true => len - 1 - computed,
            false => usize::MAX,
        };
        let range = session.next_chunk(limit);
        let part = if range.end == len { Part::Logits } else { Part::Prompt };
        let spans = session.spans_in(&range);
        Chunk { slot, range, part, spans }
    }

    /// Whether the device can choose the tokens of these sequences together.
    fn device_chooses(&mut self, slots: &[SlotId]) -> bool {
        let among = self.slots.iter_mut().filter(|(id, _)| slots.contains(id));
        let choices: Option<Vec<Choice<'_>>> = among.map(|(_, slot)| slot.parts().1).collect();
        choices.is_some_and(|choices| {
            !choices.is_empty() && self.model.runner().chooses(&choices.iter().collect::<Vec<_>>())
        })
    }

    /// Waits for a pass and hands out what it brought.
    fn receive(&mut self, sent: Sent, events: &mut Vec<Event>) -> Result<(), GenerateError> {
        let outcomes = sent.receipt.wait()?;
        self.pace.tick();
        for ((id, part), Outcome { mut logits, token }) in sent.rows.into_iter().zip(outcomes) {
            // Of sequences that ended meanwhile nothing is wanted any more.
            let Some(slot) = self.slots.get_mut(&id).filter(|slot| !slot.has_ended()) else { continue };
            let missing = ForwardError::Bug { what: "a pass has not brought what was asked for" };
            let chosen = match part {
                Part::Prompt => continue,
                Part::Token => slot.receive(token.ok_or(missing)?),
                Part::Logits => {
                    slot.session_mut().set_logits(logits.pop().ok_or(missing)?);
                    slot.choose()
                }
            };
            report(id, slot, chosen, events);
        }
        Ok(())
    }
}

/// A part of a prompt.
struct Chunk {
    slot: SlotId,
    range: std::ops::Range<usize>,
    part: Part,
    /// The vectors in it.
    spans: Vec<EmbeddedSpan>,
}

/// The events of a token that was chosen, or could not be.
fn report<S: BorrowMut<Session>>(
    id: SlotId,
    slot: &mut Slot<S>,
    chosen: Result<Token, GenerateError>,
    events: &mut Vec<Event>,
) {
    match chosen {
        Ok(token) => {
            events.push(Event::Token { slot: id, token });
            if let Some(reason) = slot.finish_reason() {
                events.push(Event::Ended { slot: id, reason });
            }
        }
        Err(error) => {
            slot.fail();
            events.push(Event::Failed { slot: id, error });
        }
    }
}
