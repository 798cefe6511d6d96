//! The decoder's attention: the newest positions of one sequence over the KV cache of one layer.
//!
//! ```text
//! write_rows(&k, &mut keys, ...);                          // into the ring, in the cache's format
//! write_rows(&v, &mut values, ...);
//! attend(Queries { .. }, KeysAndValues { .. }, &mut out);  // softmax(q kᵀ + mask) v
//! ```
//!
//! # The map
//!
//! | file | what it knows |
//! |---|---|
//! | `write_rows` | where new keys and values go |
//! | `element` | what the cache holds (f32, bf16, f16), to f32 and back |
//! | `ring` | blocks of positions, and their slots |
//! | `softmax` | the softmax, a block of keys at a time |
//! | `few_rows` | decoding: keys and values are read once, as they lie, by parts of the sequence |
//! | `many_rows` | prompts: tiles of queries meet blocks of keys in products |
//!
//! Neither way holds more scores than those of a tile and a block. Decoding holds a row for every part of the
//! sequence, which is as much memory as a few hundredths of the keys and values.
//!
//! Each way adds up what a query finds in an order that depends on positions alone: not on the number of threads, on
//! where the ring ends, or, for many rows, on the rows that are computed together. The two ways differ by roundings.

mod element;
mod few_rows;
mod many_rows;
mod ring;
mod softmax;
#[cfg(test)]
mod tests;
mod write_rows;

use std::ops::Range;
use std::sync::LazyLock;

use super::packed::SimdLevel;
use crate::ops::visibility::VisibleKeys;
pub(super) use element::CacheElement;
use ring::Block;
pub(super) use write_rows::write_rows;

/// The most rows that read the cache as it lies. For more, products make up for packing and converting it.
pub(super) const MAX_FEW_ROWS: usize = 16;

/// Asking the processor anew for every layer and token would show.
static LEVEL: LazyLock<SimdLevel> = LazyLock::new(SimdLevel::detect);

/// Queries of the newest positions of a sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queries<'a> {
    /// \[rows, heads * head_dim\], normalized, turned and scaled.
    pub(super) values: &'a [f32],
    /// Query heads.
    pub(super) heads: usize,
    /// Position of the first row.
    pub(super) position: usize,
    pub(super) visible: VisibleKeys<'a>,
}

/// Keys and values of one layer, which hold those of the queries' positions too.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeysAndValues<'a, E> {
    /// \[kv_heads, slots, head_dim\]; position `p` lies in slot `p % slots`.
    pub(super) keys: &'a [E],
    /// As `keys`.
    pub(super) values: &'a [E],
    /// Key and value heads; `heads / kv_heads` query heads share one.
    pub(super) kv_heads: usize,
    /// Positions that a head has room for.
    pub(super) slots: usize,
    /// Width of a head.
    pub(super) head_dim: usize,
}

/// `out = softmax(q kᵀ) v` over the keys that each row sees; `out` \[rows, heads * head_dim\].
///
/// Runs on the threads of the current rayon pool.
///
/// # Panics
///
/// When sizes don't fit each other, or the ring no longer holds what the rows see: mistakes of this crate, not
/// of its input.
pub(super) fn attend<E: CacheElement>(queries: Queries<'_>, cache: KeysAndValues<'_, E>, out: &mut [f32]) {
    attend_with(*LEVEL, MAX_FEW_ROWS, queries, cache, out);
}

/// [`attend`] with the instructions of a level; `max_few_rows` is the most that [`few_rows`] takes.
fn attend_with<E: CacheElement>(
    level: SimdLevel,
    max_few_rows: usize,
    queries: Queries<'_>,
    cache: KeysAndValues<'_, E>,
    out: &mut [f32],
) {
    let Some(attention) = Attention::new(queries, cache) else { return };
    assert_eq!(queries.values.len(), out.len(), "an output of the queries' size");
    // Vectors of eight lanes don't divide every width; products do.
    if attention.rows <= max_few_rows && cache.head_dim.is_multiple_of(8) {
        few_rows::attend(level, &attention, out);
    } else {
        many_rows::attend(level, &attention, out);
    }
}

/// An attention whose sizes have been checked.
#[derive(Debug, Clone, Copy)]
struct Attention<'a, E> {
    queries: Queries<'a>,
    cache: KeysAndValues<'a, E>,
    rows: usize,
    /// Query heads that share a key head.
    group: usize,
}

impl<'a, E: CacheElement> Attention<'a, E> {
    /// `None` where there is nothing to compute.
    fn new(queries: Queries<'a>, cache: KeysAndValues<'a, E>) -> Option<Self> {
        let width = queries.heads * cache.head_dim;
        if queries.values.is_empty() || width == 0 {
            return None;
        }
        let rows = queries.values.len() / width;
        assert_eq!(rows * width, queries.values.len(), "whole rows of queries");
        assert!(queries.heads.is_multiple_of(cache.kv_heads), "heads that share key heads evenly");
        let elements = cache.kv_heads * cache.slots * cache.head_dim;
        assert!(cache.keys.len() == elements && cache.values.len() == elements, "slots for every head");
        let attention = Self { queries, cache, rows, group: queries.heads / cache.kv_heads };
        let first = attention.visible(0).start;
        assert!(queries.position + rows - first <= cache.slots, "keys that the ring still holds");
        Some(attention)
    }

    /// Positions that a row sees.
    fn visible(&self, row: usize) -> Range<usize> {
        let keys = self.queries.visible.of(self.queries.position + row);
        // An image ends within the rows, if the caller kept it whole.
        keys.start..keys.end.min(self.queries.position + self.rows)
    }

    /// Positions that any of the rows sees. Both ends of what a row sees only move on from row to row.
    fn visible_of(&self, rows: Range<usize>) -> Range<usize> {
        self.visible(rows.start).start..self.visible(rows.end - 1).end
    }

    /// A row's queries that share a key head, \[group, head_dim\].
    fn queries_of(&self, row: usize, kv_head: usize) -> &'a [f32] {
        let width = self.group * self.cache.head_dim;
        &self.queries.values[(row * self.cache.kv_heads + kv_head) * width..][..width]
    }
}

/// Keys and values of a block in which the ring ends.
#[derive(Debug)]
struct Gathered<E> {
    keys: Vec<E>,
    values: Vec<E>,
}

impl<E> Gathered<E> {
    const fn new() -> Self {
        Self { keys: Vec::new(), values: Vec::new() }
    }
}

impl<'a, E: Copy> KeysAndValues<'a, E> {
    /// Keys and values of a block, each \[len, head_dim\].
    #[inline(always)]
    fn of_block<'b>(&self, kv_head: usize, block: &Block, gathered: &'b mut Gathered<E>) -> (&'b [E], &'b [E])
    where
        'a: 'b,
    {
        let ring = self.slots * self.head_dim;
        let (keys, values) = (&self.keys[kv_head * ring..][..ring], &self.values[kv_head * ring..][..ring]);
        let Gathered { keys: gathered_keys, values: gathered_values } = gathered;
        (
            ring::rows(keys, self.head_dim, block, gathered_keys),
            ring::rows(values, self.head_dim, block, gathered_values),
        )
    }
}
