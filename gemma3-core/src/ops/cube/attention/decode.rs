//! Attention of one token of each sequence over its cache, with the token's own norms, rotation and entry in
//! the cache.
//!
//! The keys are divided among a fixed number of cubes, however many there are, so that the launch doesn't
//! depend on the position; those beyond the sequence's length have little to do. Each cube prepares the
//! queries of one head of keys for itself, while its first keys are on their way, and leaves a softmax that is
//! combined with the others' afterwards ([`combine_splits`](super::combine_splits)), or, where cubes see what others have
//! written, by the last of them. The cube to whose keys the newest position belongs writes its key and value; nobody reads
//! them from the cache in the same launch.

use std::cmp::min;

use cubecl::client::Client;
use cubecl::features::AtomicUsage;
use cubecl::ir::Type;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::cache::{CacheLayout, NOBODY, load, slot_of, slot_start};
use super::heads::prepare_heads;
use super::softmax::{combine_groups, gather, update, update_spread};
use super::splits::{LOWEST, combine_last};
use crate::ops::cube::gemm::{RowFormat, Rows};
use crate::ops::cube::matvec::Hardware;
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::{Groups, group_of_cube, unit_of_group};

/// The shape of decode attention, a constant of its kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecodeAttention {
    /// The cache.
    pub cache: CacheLayout,
    /// Query heads; a multiple of the key heads.
    pub heads: usize,
    /// Keys that a token sees, itself included; `None`: all.
    pub window: Option<usize>,
    /// Cubes among which the keys of a head are divided.
    pub splits: usize,
    /// Keys that a group of units works on at once.
    pub keys_at_once: usize,
    /// The units of a cube: each group takes keys of its own.
    pub groups: Groups,
    /// Query heads of which the groups' results meet in shared memory at once.
    pub heads_at_once: usize,
    /// Parts of queries, keys and values that are added up first.
    pub parts: usize,
}

/// What the step reads and writes; f32 where nothing else is said.
#[derive(Debug, Clone, Copy)]
pub struct DecodeInputs<'a> {
    /// Queries, keys and values side by side, \[parts, sequences, (heads + 2 * kv_heads) * head_dim\].
    pub qkv: &'a Handle,
    /// Scale of the queries' norm, \[head_dim\].
    pub q_scale: &'a Handle,
    /// Scale of the keys' norm, \[head_dim\].
    pub k_scale: &'a Handle,
    /// Radians per position, \[head_dim / 2\].
    pub inv_freq: &'a Handle,
    /// Position of each sequence's token, u32 \[sequences\]: read on the device, so that a recorded step can
    /// be replayed. Below 131,072, or [`NOBODY`].
    pub positions: &'a Handle,
    /// Keys; see [`CacheLayout`]. The token's own is written here.
    pub keys: &'a Handle,
    /// Values, as the keys.
    pub values: &'a Handle,
    /// Receives the splits' softmaxes, \[sequences, heads, splits, head_dim + 4\]: weighted values, then largest
    /// score and sum of the exponentials.
    pub partial: &'a Handle,
    /// Factor of the queries: `query_pre_attn_scalar^-0.5`.
    pub query_factor: f32,
    /// Added to the mean of the squares.
    pub eps: f32,
}

/// The fewest units of a group.
const GROUP_UNITS: usize = 32;
/// Positions beyond are taken for this one: sums of positions have to stay numbers.
const LAST_POSITION: u32 = 0x00ff_ffff;

impl DecodeAttention {
    /// Attention divided for a device.
    pub fn choose(hardware: &Hardware, cache: CacheLayout, heads: usize, window: Option<usize>) -> Self {
        // Many groups of a few units would leave more results than there is shared memory.
        let groups = hardware.groups((GROUP_UNITS / hardware.lanes).max(1));
        let seen = window.map_or(cache.slots, |window| window.min(cache.slots));
        // Sums over several planes go through shared memory, too.
        let keys_at_once = if hardware.plane_operations && groups.planes == 1 { 4 } else { 2 };
        // A cube for each multiprocessor, as far as each has a turn's keys; few sequences of long contexts need
        // all of them.
        let cubes = hardware.multiprocessors() / (cache.kv_heads * cache.sequences);
        let splits = (seen / (groups.groups * keys_at_once)).clamp(1, cubes.max(8));
        let queries = heads / cache.kv_heads;
        let head_bytes = groups.groups * cache.head_dim * size_of::<f32>();
        let heads_at_once = if hardware.shared_bytes >= 4 * queries * head_bytes { queries } else { 1 };
        Self { cache, heads, window, splits, keys_at_once, groups, heads_at_once, parts: 1 }
    }

    /// Numbers of the splits' softmaxes.
    pub const fn partial_floats(&self) -> usize {
        self.cache.sequences * self.heads * self.splits * (self.cache.head_dim + 4)
    }

    /// Query heads that share a head of keys.
    pub(crate) const fn queries_per_key(&self) -> usize {
        self.heads / self.cache.kv_heads
    }

    /// Quads of a head that a unit holds.
    pub(crate) const fn share(&self) -> usize {
        (self.cache.head_dim / 4).div_ceil(self.groups.units())
    }

    /// Whether the units of a group share the scores of a turn among them, instead of all having all.
    pub(crate) const fn spreads(&self) -> bool {
        let scores = self.keys_at_once * self.queries_per_key();
        self.groups.plane_operations
            && self.groups.lanes == self.groups.plane_units
            && self.groups.planes == 1
            && self.keys_at_once.is_power_of_two()
            && scores.is_power_of_two()
            && scores <= self.groups.lanes
    }

    /// Keys of a cube's turn.
    const fn step(&self) -> usize {
        self.groups.groups * self.keys_at_once
    }

    /// Heads in shared memory: first the token's own, then those of each group.
    const fn shared_heads(&self) -> usize {
        let own = self.queries_per_key() + 2;
        let groups = self.groups.groups * self.heads_at_once;
        if own > groups { own } else { groups }
    }
}

/// Where the attended values of a step go that the last cubes combine.
#[derive(Debug, Clone, Copy)]
pub struct Combined<'a> {
    /// u32 \[sequences * kv_heads\], zeros; a launch leaves them so.
    pub counters: &'a Handle,
    /// Receives \[sequences, heads * head_dim\]; rows that are full in their format ([`RowFormat::is_full`]).
    pub out: &'a Rows,
}

/// Whether the last cubes of a launch can combine what the others have left.
pub fn combines_at_once(client: &Client) -> bool {
    let counts = client.properties().atomic_type_usage(Type::atomic(u32::elem_type_native()));
    let can = |usage| counts.contains(usage);
    client.features().device_memory_scope && can(AtomicUsage::Add) && can(AtomicUsage::LoadStore)
}

/// Launches the step; what it leaves in `partial` is for [`combine_splits`](super::combine_splits), unless it is
/// `combined`, which a device has to be [able](combines_at_once) to.
pub fn decode_attention(
    client: &Client,
    attention: DecodeAttention,
    inputs: DecodeInputs<'_>,
    combined: Option<Combined<'_>>,
) {
    let CacheLayout { sequences, kv_heads, head_dim, format, .. } = attention.cache;
    let quads = head_dim / 4;
    let all_heads = attention.heads + 2 * kv_heads;
    let count = CubeCount::Static(attention.splits as u32, kv_heads as u32, sequences as u32);
    let dim = attention.groups.dim();
    // SAFETY: the lengths are those of the shapes; the kernels take remainders by the number of slots and
    // keep to the splits.
    let buffer = |handle: &Handle, len| unsafe { BufferArg::from_raw_parts(handle.clone(), len) };
    let qkv = buffer(inputs.qkv, attention.parts * sequences * all_heads * quads);
    let [q_scale, k_scale] = [inputs.q_scale, inputs.k_scale].map(|scale| buffer(scale, quads));
    let (inv_freq, positions) = (buffer(inputs.inv_freq, quads / 2), buffer(inputs.positions, sequences));
    let [keys, values] = [inputs.keys, inputs.values].map(|cache| buffer(cache, attention.cache.quads()));
    let partial = buffer(inputs.partial, attention.partial_floats() / 4);
    let (words, query_factor, eps) = (format.quad_words(), inputs.query_factor, inputs.eps);
    match combined {
        // SAFETY: as above.
        None => unsafe {
            split_kernel::launch_unchecked(
                client,
                count,
                dim,
                words,
                qkv,
                q_scale,
                k_scale,
                inv_freq,
                positions,
                keys,
                values,
                partial,
                query_factor,
                eps,
                attention,
            );
        },
        // SAFETY: as above.
        Some(Combined { counters, out }) => unsafe {
            combining_kernel::launch_unchecked(
                client,
                count,
                dim,
                words,
                out.format.words_of_quad(),
                qkv,
                q_scale,
                k_scale,
                inv_freq,
                positions,
                keys,
                values,
                partial,
                buffer(counters, sequences * kv_heads),
                buffer(&out.handle, sequences * attention.heads * quads),
                query_factor,
                eps,
                attention,
                out.format,
            );
        },
    }
}

/// Cube `[split, kv_head, sequence]`.
#[cube(launch_unchecked)]
fn split_kernel<N: Size>(
    qkv: &[Quad],
    q_scale: &[Quad],
    k_scale: &[Quad],
    inv_freq: &[Quad],
    positions: &[u32],
    keys: &mut [Vector<u32, N>],
    values: &mut [Vector<u32, N>],
    partial: &mut [Quad],
    query_factor: f32,
    eps: f32,
    #[comptime] attention: DecodeAttention,
) {
    attend_split::<N>(
        qkv,
        q_scale,
        k_scale,
        inv_freq,
        positions,
        keys,
        values,
        partial,
        query_factor,
        eps,
        attention,
    );
}

/// The same, and the last cube of a head of keys combines what all have left.
#[cube(launch_unchecked)]
fn combining_kernel<N: Size, O: Size>(
    qkv: &[Quad],
    q_scale: &[Quad],
    k_scale: &[Quad],
    inv_freq: &[Quad],
    positions: &[u32],
    keys: &mut [Vector<u32, N>],
    values: &mut [Vector<u32, N>],
    partial: &mut [Quad],
    counters: &[Atomic<u32>],
    out: &mut [Vector<u32, O>],
    query_factor: f32,
    eps: f32,
    #[comptime] attention: DecodeAttention,
    #[comptime] format: RowFormat,
) {
    attend_split::<N>(
        qkv,
        q_scale,
        k_scale,
        inv_freq,
        positions,
        keys,
        values,
        partial,
        query_factor,
        eps,
        attention,
    );
    combine_last::<O>(&*partial, counters, out, attention, format);
}

/// The softmax over a part of the keys.
#[cube]
fn attend_split<N: Size>(
    qkv: &[Quad],
    q_scale: &[Quad],
    k_scale: &[Quad],
    inv_freq: &[Quad],
    positions: &[u32],
    keys: &mut [Vector<u32, N>],
    values: &mut [Vector<u32, N>],
    partial: &mut [Quad],
    query_factor: f32,
    eps: f32,
    #[comptime] attention: DecodeAttention,
) {
    let layout = comptime!(attention.cache);
    let groups = comptime!(attention.groups);
    let shared_by = comptime!(attention.queries_per_key());
    let share = comptime!(attention.share());
    let quads = comptime!(layout.head_dim / 4);
    let at_once = comptime!(attention.keys_at_once);
    let split = CUBE_POS_X as usize;
    let sequence = CUBE_POS_Z as usize;
    let unit = unit_of_group(groups);
    let group = group_of_cube(groups);

    // The keys of this split: part `split` of those that the token sees.
    let asked = positions[sequence];
    let is_somebody = asked != NOBODY;
    let position = select(is_somebody, min(asked, LAST_POSITION), 0u32);
    let newest = position as usize;
    let end_of_all = newest + 1;
    let window = comptime!(match attention.window {
        Some(window) if window < layout.slots => window,
        _ => layout.slots,
    });
    let seen = min(end_of_all, window);
    let per_split = (seen + comptime!(attention.splits - 1)) / comptime!(attention.splits);
    let start = end_of_all - seen + split * per_split;
    let end = min(start + per_split, end_of_all);

    let mut key_words = Array::<Vector<u32, N>>::new(comptime!(at_once * share));
    let mut value_words = Array::<Vector<u32, N>>::new(comptime!(at_once * share));
    fetch_keys::<N>(&*keys, &*values, start, end, &mut key_words, &mut value_words, attention);
    let mut heads = Shared::<[Quad]>::new_slice(comptime!(attention.shared_heads() * quads));
    let owner = is_somebody && start <= newest && newest < end;
    prepare_heads::<N>(
        qkv,
        q_scale,
        k_scale,
        inv_freq,
        keys,
        values,
        &mut heads,
        position,
        owner,
        query_factor,
        eps,
        attention,
    );
    sync_cube();

    let mut q = Array::<Quad>::new(comptime!(shared_by * share));
    let mut attended = Array::<Quad>::new(comptime!(shared_by * share));
    let mut largest = Array::<f32>::new(shared_by);
    let mut sums = Array::<f32>::new(shared_by);
    #[unroll]
    for h in 0..shared_by {
        #[unroll]
        for i in 0..share {
            let at = unit + comptime!(i * groups.units());
            let loaded = heads[comptime!(h * quads) + min(at, comptime!(quads - 1))];
            q[comptime!(h * share + i)] = select(at < quads, loaded, Quad::new(0.0f32));
            attended[comptime!(h * share + i)] = Quad::new(0.0f32);
        }
        largest[h] = LOWEST;
        sums[h] = 0.0f32;
    }

    let step = comptime!(attention.step());
    let mut base = start;
    // Every group takes as many turns: sums may need the whole cube.
    while base < end {
        let mut scores = Array::<f32>::new(comptime!(at_once * shared_by));
        let mut v = Array::<Quad>::new(comptime!(at_once * share));
        #[unroll]
        for t in 0..at_once {
            let is_newest = min(base + group * at_once + t, end - 1) == newest;
            #[unroll]
            for h in 0..shared_by {
                scores[comptime!(t * shared_by + h)] = 0.0f32;
            }
            #[unroll]
            for i in 0..share {
                let place = comptime!(t * share + i);
                let mut k = load::<N>(key_words[place], comptime!(layout.format));
                v[place] = load::<N>(value_words[place], comptime!(layout.format));
                if is_newest {
                    let at = min(unit + comptime!(i * groups.units()), comptime!(quads - 1));
                    k = heads[comptime!(shared_by * quads) + at];
                    v[place] = heads[comptime!((shared_by + 1) * quads) + at];
                }
                #[unroll]
                for h in 0..shared_by {
                    scores[comptime!(t * shared_by + h)] +=
                        Vector::vector_sum(k * q[comptime!(h * share + i)]);
                }
            }
        }
        if base + step < end {
            fetch_keys::<N>(&*keys, &*values, base + step, end, &mut key_words, &mut value_words, attention);
        }
        let first = base + group * at_once;
        if comptime!(attention.spreads()) {
            update_spread(&mut scores, &v, &mut attended, &mut largest, &mut sums, first, end, attention);
        } else {
            update(&mut scores, &v, &mut attended, &mut largest, &mut sums, first, end, attention);
        }
        base += step;
    }
    if comptime!(attention.spreads()) {
        gather(&mut largest, &mut sums, attention);
    }
    sync_cube(); // The token's own heads have been read.
    combine_groups(&attended, &largest, &sums, &mut heads, partial, attention);
}

/// Loads the words of a turn's keys and values. Nothing here waits. Beyond the end the last key is loaded
/// again.
#[cube]
fn fetch_keys<N: Size>(
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    base: usize,
    end: usize,
    key_words: &mut Array<Vector<u32, N>>,
    value_words: &mut Array<Vector<u32, N>>,
    #[comptime] attention: DecodeAttention,
) {
    let layout = comptime!(attention.cache);
    let groups = comptime!(attention.groups);
    let share = comptime!(attention.share());
    let unit = unit_of_group(groups);
    let first = base + group_of_cube(groups) * comptime!(attention.keys_at_once);
    #[unroll]
    for t in 0..attention.keys_at_once {
        let slot = slot_of(min(first + t, end - 1) as u32, comptime!(layout.slots as u32));
        let slot_at = slot_start(CUBE_POS_Z as usize, CUBE_POS_Y as usize, slot, layout);
        #[unroll]
        for i in 0..share {
            let at = slot_at + min(unit + comptime!(i * groups.units()), comptime!(layout.head_dim / 4 - 1));
            key_words[comptime!(t * share + i)] = keys[at];
            value_words[comptime!(t * share + i)] = values[at];
        }
    }
}
