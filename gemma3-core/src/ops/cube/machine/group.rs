//! Several sequences side by side, so that a step reads the weights once for all of them.
//!
//! A sequence lives in a slot of a group's buffers as long as it steps with others: its own buffers are then older. Whoever
//! needs it alone has it copied back first ([`Member::leave`]). A step is recorded over all slots of a group, so who
//! comes into a free one, and who leaves, changes nothing but the contents of buffers; slots of nobody are computed, but
//! nothing is written for them. So who begins may have a slot before its first step, and its prompt is computed there.

use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use super::Cube;
use super::cache::{LayerBuffers, Layers, Member};
use super::sampled::{Entering, Seat};
use super::step::Step;
use super::waiter::Answer;
use crate::ops::MachineError;
use crate::ops::cube::attention::CacheLayout;
use crate::ops::machine::{Choice, Entrant, Input, ModelShape, Program, Wanted};

/// Slots of several sequences, and the step over them.
#[derive(Debug)]
pub(super) struct Group {
    /// Those who live here hold the buffers: they are given back with the last of them.
    layers: Weak<Vec<LayerBuffers>>,
    step: Step,
    /// Who entered each slot last.
    slots: Vec<Weak<Member>>,
}

/// Positions to which the capacity of a group is rounded up, so that sequences of similar capacities can come later.
pub(super) const CAPACITY: usize = 1024;

const NOT_CHOSEN: MachineError =
    MachineError::Bug { what: "sequences go on with tokens that no step has chosen for them" };

/// An entrant of a pass and its place among them.
pub(super) type Indexed<'e, 'a> = (usize, &'e mut Entrant<'a, Cube>);

impl Group {
    /// Whether anybody lives here.
    pub(super) fn is_alive(&self) -> bool {
        self.layers.strong_count() > 0
    }

    /// Who lives in a slot of `layers`, which are those of the group.
    fn resident(&self, layers: &Layers, slot: usize) -> Option<Arc<Member>> {
        let member = self.slots.get(slot)?.upgrade()?;
        (member.slot_in(layers) == Some(slot)).then_some(member)
    }

    /// Whether these can all have slots, whoever has them now.
    fn has_room(
        &self,
        layers: &[LayerBuffers],
        shape: &ModelShape<'_, Cube>,
        members: &[Vec<CacheLayout>],
    ) -> bool {
        let layouts: Vec<CacheLayout> = layers.iter().map(|layer| layer.layout).collect();
        let windowed = windowed(shape, layouts.len());
        self.step.is_of(shape)
            && members.len() <= self.slots.len()
            && members.iter().all(|own| fits(&windowed, own, &layouts))
    }

    /// Whether those of `entrants` whose tokens are [`Input::Chosen`] go on in this group, and the others, who choose so,
    /// can come to them.
    fn goes_on(
        &self,
        cube: &Cube,
        layers: &Layers,
        shape: &ModelShape<'_, Cube>,
        entrants: &[Indexed<'_, '_>],
        choices: &[&Choice<'_>],
    ) -> bool {
        let seat = |(_, entrant): &Indexed<'_, '_>| {
            let slot = entrant.cache.member().slot_in(layers)?;
            Some(Seat { slot, position: entrant.position })
        };
        let staying = entrants.iter().filter(|(_, entrant)| matches!(entrant.input, Input::Chosen));
        let staying: Option<Vec<Seat>> = staying.map(seat).collect();
        let layouts: Vec<_> = entrants.iter().map(|(_, entrant)| entrant.cache.member().layouts()).collect();
        staying.is_some_and(|staying| self.step.continues(&staying))
            && self.step.admits(cube.commands.client(), choices)
            && self.has_room(layers, shape, &layouts)
    }

    /// Gives each a slot, those that they have and free ones first, and sends everybody else home.
    fn seat(&mut self, layers: &Layers, members: &[Arc<Member>]) -> Result<Vec<usize>, MachineError> {
        let mut taken = vec![false; self.slots.len()];
        let mut seats: Vec<Option<usize>> = members.iter().map(|member| member.slot_in(layers)).collect();
        seats.iter().flatten().for_each(|slot| taken[*slot] = true);
        let mut others: Vec<usize> = (0..taken.len()).filter(|slot| !taken[*slot]).collect();
        // Taken from the end: those of nobody.
        others.sort_by_key(|slot| self.resident(layers, *slot).is_none());
        for (member, seat) in members.iter().zip(&mut seats).filter(|(_, seat)| seat.is_none()) {
            let full = MachineError::Bug { what: "a group has fewer slots than sequences" };
            let slot = others.pop().ok_or(full)?;
            if let Some(other) = self.resident(layers, slot) {
                other.leave();
            }
            member.enter(layers, slot);
            self.slots[slot] = Arc::downgrade(member);
            *seat = Some(slot);
        }
        Ok(seats.into_iter().flatten().collect())
    }
}

impl Cube {
    /// Steps several sequences together, all of which want tokens, or all logits; those who go on with a token that the
    /// last step chose, and those who enter. `chunks` join them where all can be one pass, and are then gone. `None`, with
    /// nothing done, if the caches can't lie side by side.
    ///
    /// # Errors
    ///
    /// When the device fails, and where tokens are to go on that no step has chosen.
    pub(super) fn step_together<P: Program<Self>>(
        &self,
        entrants: &mut [Indexed<'_, '_>],
        chunks: &mut Vec<Indexed<'_, '_>>,
        program: &mut P,
    ) -> Result<Option<Answer>, MachineError> {
        let members: Vec<Arc<Member>> = entrants.iter().map(|(_, e)| e.cache.member().clone()).collect();
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = |(_, entrant): &Indexed<'_, '_>| matches!(entrant.input, Input::Chosen);
        let found = match entrants.iter().position(stays) {
            Some(first) => home_of(&mut groups, &members[first]),
            None => self.group_for(&mut groups, &program.shape(), &members),
        };
        let Some((group, layers)) = found else { return Ok(None) };
        let choices = entrants.iter().filter(|entrant| !stays(entrant)).filter_map(|(_, e)| match e.wanted {
            Wanted::Token(choice) => Some(choice),
            Wanted::Logits(_) => None,
        });
        if entrants.iter().any(stays)
            && !group.goes_on(self, &layers, &program.shape(), entrants, &choices.collect::<Vec<_>>())
        {
            return Err(NOT_CHOSEN);
        }
        let slots = group.seat(&layers, &members)?;
        let (mut entering, mut staying) = (Vec::new(), Vec::new());
        for (slot, (_, entrant)) in slots.iter().zip(entrants.iter()) {
            match entrant.input {
                Input::Chosen => staying.push(Seat { slot: *slot, position: entrant.position }),
                input => entering.push(entering_of(&input, entrant.position, &entrant.wanted, *slot)?),
            }
        }
        group.step.begin(self, &entering, &staying)?;
        members.iter().for_each(|member| member.has_stepped());
        self.seat_newcomers(group, &layers, &program.shape(), chunks);
        if self.is_one_pass(&group.step, &layers, chunks) {
            self.step_with_chunks(&group.step, &layers, &mut std::mem::take(chunks), program)?;
        } else {
            group.step.run(self, program, &layers)?;
        }
        let indices = entrants.iter().map(|(index, _)| *index).collect();
        Ok(Some(group.step.answer(self, slots, indices)))
    }

    /// Whether some of these, who enter a step, can do so while the others go on with tokens that the device holds.
    pub(super) fn may_go_on(&self, entrants: &[Indexed<'_, '_>], shape: &ModelShape<'_, Self>) -> bool {
        let stays = |(_, entrant): &Indexed<'_, '_>| matches!(entrant.input, Input::Chosen);
        let Some((_, first)) = entrants.iter().find(|entrant| stays(entrant)) else { return true };
        let mut choices = Vec::with_capacity(entrants.len());
        for (_, entrant) in entrants.iter().filter(|entrant| !stays(entrant)) {
            match entrant.wanted {
                Wanted::Token(choice) => choices.push(choice),
                Wanted::Logits(_) => return false,
            }
        }
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        home_of(&mut groups, first.cache.member())
            .is_some_and(|(group, layers)| group.goes_on(self, &layers, shape, entrants, &choices))
    }

    /// Gives those who begin a slot that nobody has, so that nothing has to be copied there when they step.
    fn seat_newcomers(
        &self,
        group: &mut Group,
        layers: &Layers,
        shape: &ModelShape<'_, Self>,
        chunks: &[Indexed<'_, '_>],
    ) {
        let alignment = self.commands.limits().alignment;
        if !group.step.is_going() || !layers.iter().all(|layer| layer.can_be_divided(alignment)) {
            return;
        }
        for (_, entrant) in chunks.iter().filter(|(_, entrant)| entrant.position == 0) {
            let member = entrant.cache.member();
            let free = (0..group.slots.len())
                .find(|slot| group.resident(layers, *slot).is_none_or(|other| Arc::ptr_eq(&other, member)));
            if let Some(slot) = free
                && group.has_room(layers, shape, &[member.layouts()])
            {
                member.settle(layers, slot);
                group.slots[slot] = Arc::downgrade(member);
            }
        }
    }

    /// The group that most of these live in, and its buffers, if it has room for all; else a new one.
    fn group_for<'g>(
        &self,
        groups: &'g mut MutexGuard<'_, Vec<Group>>,
        shape: &ModelShape<'_, Self>,
        members: &[Arc<Member>],
    ) -> Option<(&'g mut Group, Layers)> {
        let layouts: Vec<Vec<CacheLayout>> = members.iter().map(|member| member.layouts()).collect();
        let homes = groups.iter().enumerate().filter_map(|(index, group)| {
            let layers = group.layers.upgrade()?;
            let count = members.iter().filter(|member| member.slot_in(&layers).is_some()).count();
            (count > 0 && group.has_room(&layers, shape, &layouts)).then_some((count, index, layers))
        });
        if let Some((_, index, layers)) = homes.max_by_key(|(count, ..)| *count) {
            return groups.get_mut(index).map(|group| (group, layers));
        }
        let windowed = windowed(shape, layouts.first().map_or(0, Vec::len));
        let layout = side_by_side(&windowed, &layouts)?;
        // What nobody needs any more is given back first.
        members.iter().for_each(|member| member.leave());
        groups.retain(Group::is_alive);
        let (client, sequences) = (self.commands.client(), members.len());
        let layers: Vec<_> = layout.into_iter().map(|layout| CacheLayout { sequences, ..layout }).collect();
        let logits = sequences * shape.head.outputs() * size_of::<f32>();
        let mut bytes = layers.iter().map(|layer| layer.bytes()).chain([logits]);
        if bytes.any(|bytes| bytes as u64 > self.commands.limits().buffer_bytes) {
            return None;
        }
        let layers: Layers =
            Arc::new(layers.into_iter().map(|layout| LayerBuffers::empty(client, layout)).collect());
        groups.push(Group {
            layers: Arc::downgrade(&layers),
            step: Step::new(self, shape, sequences),
            slots: (0..sequences).map(|_| Weak::new()).collect(),
        });
        groups.last_mut().map(|group| (group, layers))
    }

    /// Steps one sequence by itself.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub(super) fn step_alone<P: Program<Self>>(
        &self,
        (index, entrant): &mut Indexed<'_, '_>,
        program: &mut P,
    ) -> Result<Answer, MachineError> {
        let layers = entrant.cache.own();
        let step = {
            let shape = program.shape();
            let last = entrant.cache.step.take().filter(|step| step.is_of(&shape));
            let step = last.unwrap_or_else(|| Box::new(Step::new(self, &shape, 1)));
            entrant.cache.step.insert(step)
        };
        if matches!(entrant.input, Input::Chosen) {
            let seat = Seat { slot: 0, position: entrant.position };
            if !step.continues(&[seat]) {
                return Err(NOT_CHOSEN);
            }
        } else {
            let (input, position, wanted) = (entrant.input, entrant.position, entrant.wanted);
            step.begin(self, &[entering_of(&input, position, &wanted, 0)?], &[])?;
        }
        step.run(self, program, &layers)?;
        Ok(step.answer(self, vec![0], vec![*index]))
    }
}

/// The group that a sequence lives in, and its buffers.
fn home_of<'g>(
    groups: &'g mut MutexGuard<'_, Vec<Group>>,
    member: &Member,
) -> Option<(&'g mut Group, Layers)> {
    groups.iter_mut().find_map(|group| {
        let layers = group.layers.upgrade()?;
        member.slot_in(&layers).is_some().then_some((group, layers))
    })
}

/// A token that enters a step.
fn entering_of<'a>(
    input: &Input<'_>,
    position: usize,
    wanted: &'a Wanted<'_>,
    slot: usize,
) -> Result<Entering<'a>, MachineError> {
    let (Input::Ids([token]) | Input::Placed { ids: [token], spans: [] }) = *input else {
        return Err(MachineError::Bug { what: "a step is of one token of each sequence" });
    };
    let choice = match wanted {
        Wanted::Token(choice) => Some(*choice),
        Wanted::Logits(_) => None,
    };
    Ok(Entering { seat: Seat { slot, position }, token: *token, choice })
}

/// The layers of a group in which such caches have slots, given which of them see a window; `None` if there are none.
fn side_by_side(windowed: &[bool], members: &[Vec<CacheLayout>]) -> Option<Vec<CacheLayout>> {
    let layers = members.first()?.iter().zip(windowed).enumerate().map(|(index, (layout, windowed))| {
        let slots = members.iter().filter_map(|own| Some(own.get(index)?.slots)).max().unwrap_or(0);
        // A ring that comes around has the same slots everywhere.
        let slots = if *windowed { slots } else { slots.next_multiple_of(CAPACITY) };
        CacheLayout { slots, ..*layout }
    });
    let layers: Vec<CacheLayout> = layers.collect();
    members.iter().all(|own| fits(windowed, own, &layers)).then_some(layers)
}

/// Whether every position of a sequence lies in the same slot in its own layers and in those of a group: because they
/// have as many, or because its own are as many as its capacity, so that they never come around, and the group's are
/// more.
fn fits(windowed: &[bool], own: &[CacheLayout], group: &[CacheLayout]) -> bool {
    let whole = own.iter().zip(windowed).find(|(_, windowed)| !**windowed);
    let capacity = whole.map(|(layout, _)| layout.slots);
    own.len() == group.len()
        && own.iter().zip(group).all(|(own, group)| {
            let alike = CacheLayout { sequences: group.sequences, slots: group.slots, ..*own } == *group;
            let never_around = own.slots <= group.slots && Some(own.slots) == capacity;
            alike && (own.slots == group.slots || never_around)
        })
}

/// Whether the queries of each layer see a window.
fn windowed(shape: &ModelShape<'_, Cube>, layers: usize) -> Vec<bool> {
    let mut windowed = vec![true; layers];
    for block in shape.blocks.iter().filter(|block| block.heads.window.is_none()) {
        if let Some(layer) = windowed.get_mut(block.heads.layer) {
            *layer = false;
        }
    }
    windowed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cube::attention::CacheFormat;

    const WINDOWED: [bool; 2] = [true, false];

    /// A windowed layer and one that keeps everything.
    fn layouts(slots: [usize; 2]) -> Vec<CacheLayout> {
        let layout =
            |slots| CacheLayout { sequences: 1, kv_heads: 1, slots, head_dim: 8, format: CacheFormat::F16 };
        slots.map(layout).to_vec()
    }

    fn together(members: &[[usize; 2]]) -> Option<Vec<usize>> {
        let members: Vec<_> = members.iter().map(|slots| layouts(*slots)).collect();
        side_by_side(&WINDOWED, &members).map(|layers| layers.iter().map(|layer| layer.slots).collect())
    }

    #[test]
    fn rings_that_come_around_have_the_same_slots() {
        assert_eq!(together(&[[32, 100], [32, 3000]]), Some(vec![32, 3072]));
        // One that holds all of its 20 positions lies in the first slots of the other.
        assert_eq!(together(&[[32, 100], [20, 20]]), Some(vec![32, 1024]));
        assert_eq!(together(&[[20, 20], [24, 24]]), Some(vec![24, 1024]));
        // Chunks of another length.
        assert_eq!(together(&[[32, 100], [40, 100]]), None);
        // The first comes around where the second does not.
        assert_eq!(together(&[[32, 100], [40, 40]]), None);
    }

    #[test]
    fn who_comes_later_fits_a_group_that_is_as_long() {
        let group = layouts([32, 1024]);
        assert!(fits(&WINDOWED, &layouts([32, 1024]), &group));
        assert!(fits(&WINDOWED, &layouts([8, 8]), &group));
        assert!(!fits(&WINDOWED, &layouts([32, 1025]), &group));
        assert!(!fits(&WINDOWED, &layouts([31, 100]), &group));
        let halves = CacheLayout { format: CacheFormat::F32, ..group[0] };
        assert!(!fits(&WINDOWED, &[halves, group[1]], &group));
    }

    #[test]
    fn without_a_layer_that_keeps_everything_rings_are_the_same() {
        let windowed = [true, true];
        assert!(!fits(&windowed, &layouts([8, 8]), &layouts([16, 16])));
        assert!(fits(&windowed, &layouts([8, 8]), &layouts([8, 8])));
    }
}
