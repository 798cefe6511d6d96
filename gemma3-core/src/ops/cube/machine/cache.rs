//! Keys and values of a sequence: in buffers of its own, and, while it steps with others, in a slot of theirs.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cubecl::client::{Client, Graph};
use cubecl::server::Handle;

use super::step::Step;
use crate::cache::{CacheDtype, CacheShape, Ring};
use crate::ops::MachineError;
use crate::ops::cube::attention::{CacheFormat, CacheLayout};
use crate::ops::cube::commands::{Commands, waiting};
use crate::ops::cube::copy::{Rectangle, copy, copy_rectangle};

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub(super) struct LayerBuffers {
    /// As `layout` says.
    pub(super) keys: Handle,
    /// As `layout` says.
    pub(super) values: Handle,
    pub(super) layout: CacheLayout,
}

/// Those of all layers.
pub(super) type Layers = Arc<Vec<LayerBuffers>>;

/// Keys and values of a sequence. Clones share buffers until one writes.
#[derive(Debug)]
pub struct Cache {
    member: Arc<Member>,
    /// The recorded step over it: it is bound to the buffers, so a clone makes its own.
    pub(super) step: Option<Box<Step>>,
}

/// What a group knows of a sequence that has a slot in it.
#[derive(Debug)]
pub(super) struct Member {
    commands: Commands,
    /// Locked for the time in which commands are enqueued: a group may send a sequence home while others clone it.
    place: Mutex<Whereabouts>,
}

#[derive(Debug)]
struct Whereabouts {
    layers: Layers,
    home: Option<Home>,
}

/// A slot of the buffers of a group.
#[derive(Debug)]
struct Home {
    group: Layers,
    slot: usize,
    /// Whether entries have been written there that the sequence's own buffers lack.
    newer: bool,
}

impl Clone for Cache {
    fn clone(&self) -> Self {
        let mut place = self.member.lock();
        place.catch_up(&self.member.commands);
        let place = Mutex::new(Whereabouts { layers: place.layers.clone(), home: None });
        Self { member: Arc::new(Member { commands: self.member.commands.clone(), place }), step: None }
    }
}

impl Cache {
    /// Allocates; nothing reads a slot before it is written.
    pub(super) fn new(commands: &Commands, shape: &CacheShape) -> Self {
        let CacheShape { kv_heads, head_dim, .. } = *shape;
        let format = format_of(shape.dtype);
        let layers = shape.rings.iter().map(|ring| {
            let layout = CacheLayout { sequences: 1, kv_heads, slots: ring.slots(), head_dim, format };
            LayerBuffers::empty(commands.client(), layout)
        });
        let place = Mutex::new(Whereabouts { layers: Arc::new(layers.collect()), home: None });
        Self { member: Arc::new(Member { commands: commands.clone(), place }), step: None }
    }

    /// The sequence's own buffers, with all that it has, of which nobody else may read afterwards what is written now:
    /// where a clone shares them they are copied first.
    pub(super) fn own(&mut self) -> Layers {
        let mut place = self.member.lock();
        place.leave(&self.member.commands);
        if Arc::strong_count(&place.layers) > 1 {
            let client = self.member.commands.client();
            let copies = place.layers.iter().map(|layer| LayerBuffers {
                keys: duplicate(client, &layer.keys),
                values: duplicate(client, &layer.values),
                layout: layer.layout,
            });
            place.layers = Arc::new(copies.collect());
        }
        place.layers.clone()
    }

    /// Where the sequence's next tokens are written: its slot among others', where it has one that can be seen as a buffer,
    /// or its [`own`](Self::own) buffers.
    pub(super) fn newest(&mut self) -> Layers {
        {
            let mut place = self.member.lock();
            let alignment = self.member.commands.limits().alignment;
            if let Some(home) = &mut place.home
                && home.group.iter().all(|layer| layer.can_be_divided(alignment))
            {
                home.newer = true;
                return Arc::new(home.group.iter().map(|layer| layer.slot(home.slot)).collect());
            }
        }
        self.own()
    }

    /// The recorded step over it, and the commands that it belongs to.
    pub(crate) fn recorded(&self) -> Option<(&Graph, &Commands)> {
        Some((self.step.as_ref()?.graph()?, &self.member.commands))
    }

    pub(super) fn member(&self) -> &Arc<Member> {
        &self.member
    }
}

impl Member {
    fn lock(&self) -> MutexGuard<'_, Whereabouts> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shapes of the sequence's own layers.
    pub(super) fn layouts(&self) -> Vec<CacheLayout> {
        self.lock().layers.iter().map(|layer| layer.layout).collect()
    }

    /// The slot of the buffers of a group in which the newest entries lie.
    pub(super) fn slot_in(&self, group: &Layers) -> Option<usize> {
        let place = self.lock();
        place.home.as_ref().filter(|home| Arc::ptr_eq(&home.group, group)).map(|home| home.slot)
    }

    /// Copies all that the sequence has into a slot, where it lives from then on.
    pub(super) fn enter(&self, group: &Layers, slot: usize) {
        let mut place = self.lock();
        place.leave(&self.commands);
        for (own, all) in place.layers.iter().zip(group.iter()) {
            own.exchange(all, slot, self.commands.client(), |own, all| [own, all]);
        }
        place.home = Some(Home { group: group.clone(), slot, newer: false });
    }

    /// Whether it lives in a slot.
    pub(super) fn has_home(&self) -> bool {
        self.lock().home.is_some()
    }

    /// Gives a sequence that has nothing yet a slot, where it lives from then on.
    pub(super) fn settle(&self, group: &Layers, slot: usize) {
        self.lock().home = Some(Home { group: group.clone(), slot, newer: false });
    }

    /// Notes that a step has written to the slot.
    pub(super) fn has_stepped(&self) {
        if let Some(home) = &mut self.lock().home {
            home.newer = true;
        }
    }

    /// Copies the newest entries back to the sequence's own buffers, if they lie elsewhere, and gives the slot up.
    pub(super) fn leave(&self) {
        self.lock().leave(&self.commands);
    }
}

impl Whereabouts {
    /// Copies the newest entries to the sequence's own buffers.
    fn catch_up(&mut self, commands: &Commands) {
        let Some(home) = self.home.as_mut().filter(|home| home.newer) else { return };
        home.newer = false;
        let client = commands.client();
        if Arc::strong_count(&self.layers) > 1 {
            // A clone reads those; what they hold is in the slot, too.
            let empty = self.layers.iter().map(|layer| LayerBuffers::empty(client, layer.layout));
            self.layers = Arc::new(empty.collect());
        }
        for (own, all) in self.layers.iter().zip(home.group.iter()) {
            own.exchange(all, home.slot, client, |own, all| [all, own]);
        }
    }

    fn leave(&mut self, commands: &Commands) {
        self.catch_up(commands);
        self.home = None;
    }
}

impl LayerBuffers {
    pub(super) fn empty(client: &Client, layout: CacheLayout) -> Self {
        Self { keys: client.empty(layout.bytes()), values: client.empty(layout.bytes()), layout }
    }

    /// Whether the part of one sequence can be taken for a buffer.
    pub(super) fn can_be_divided(&self, alignment: u64) -> bool {
        ((self.layout.bytes() / self.layout.sequences.max(1)) as u64).is_multiple_of(alignment.max(1))
    }

    /// The part of one sequence.
    fn slot(&self, slot: usize) -> Self {
        let layout = CacheLayout { sequences: 1, ..self.layout };
        let bytes = layout.bytes() as u64;
        let part = |all: &Handle| {
            let after = all.size_in_used() - (slot as u64 + 1) * bytes;
            all.clone().offset_start(slot as u64 * bytes).offset_end(after)
        };
        Self { keys: part(&self.keys), values: part(&self.values), layout }
    }

    /// Copies keys and values between one sequence's buffers and its slot of those of several, in the direction that
    /// `from_to` gives them. The slots are as many, or the sequence's fewer and never wrapped: its positions are then
    /// the first slots of each head in both.
    fn exchange<'a>(
        &'a self,
        all: &'a Self,
        slot: usize,
        client: &Client,
        from_to: fn(Rectangle<'a>, Rectangle<'a>) -> [Rectangle<'a>; 2],
    ) {
        let heads = self.layout.kv_heads;
        let (own_quads, all_quads) = (head_quads(&self.layout), head_quads(&all.layout));
        for (own, all) in [(&self.keys, &all.keys), (&self.values, &all.values)] {
            let own = Rectangle { buffer: own, width: own_quads, row: 0, column: 0 };
            let all = Rectangle { buffer: all, width: all_quads, row: slot * heads, column: 0 };
            let [from, to] = from_to(own, all);
            copy_rectangle(client, from, to, heads, own_quads.min(all_quads));
        }
    }

    /// The keys of some positions, \[kv_heads, positions, head_dim\]. Waits for the device.
    pub(super) fn read_keys(
        &self,
        commands: &Commands,
        positions: Range<usize>,
    ) -> Result<Vec<f32>, MachineError> {
        let CacheLayout { kv_heads, slots, head_dim, format, .. } = self.layout;
        let bytes = waiting(|| commands.client().read_one(self.keys.clone()))?;
        let (all, ring) = (decode(&bytes, format), Ring::new(slots));
        let mut keys = Vec::with_capacity(kv_heads * positions.len() * head_dim);
        for head in all.chunks_exact((slots * head_dim).max(1)) {
            for position in positions.clone() {
                keys.extend_from_slice(&head[ring.slot(position) * head_dim..][..head_dim]);
            }
        }
        Ok(keys)
    }
}

/// Copies the whole of a buffer into a new one.
pub(super) fn duplicate(client: &Client, buffer: &Handle) -> Handle {
    let to = client.empty(buffer.size_in_used() as usize);
    copy(client, buffer, &to);
    to
}

/// Quads of words of a head of one sequence.
fn head_quads(layout: &CacheLayout) -> usize {
    layout.slots * layout.head_dim / 4 * layout.format.quad_words() / 4
}

fn format_of(dtype: CacheDtype) -> CacheFormat {
    match dtype {
        CacheDtype::F32 => CacheFormat::F32,
        CacheDtype::BF16 => CacheFormat::BF16,
        CacheDtype::F16 => CacheFormat::F16,
    }
}

fn decode(bytes: &[u8], format: CacheFormat) -> Vec<f32> {
    match format {
        CacheFormat::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        CacheFormat::F16 => {
            bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
        }
        CacheFormat::BF16 => {
            bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
    }
}
