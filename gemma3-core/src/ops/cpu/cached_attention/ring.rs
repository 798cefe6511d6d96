//! Blocks of positions, and the slots of the ring that they lie in.
//!
//! Sums are made block by block, so that where blocks begin is a matter of rounding: always at the multiples of
//! their size, whatever is asked for together and wherever the ring ends.

use std::ops::Range;

use crate::cache::Ring;

/// Consecutive positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// The first position.
    pub(super) position: usize,
    pub(super) len: usize,
}

impl Block {
    /// The part of `positions` that lies in the block, counted from its beginning; empty if there is none.
    #[inline(always)]
    pub(super) fn overlap(&self, positions: &Range<usize>) -> Range<usize> {
        let start = positions.start.saturating_sub(self.position).min(self.len);
        let end = positions.end.saturating_sub(self.position).min(self.len);
        start..end.max(start)
    }
}

/// Divides `positions` at the multiples of `size`.
#[inline(always)]
pub(super) fn blocks(positions: Range<usize>, size: usize) -> impl Iterator<Item = Block> {
    let mut position = positions.start;
    std::iter::from_fn(move || {
        if position >= positions.end {
            return None;
        }
        let len = (size - position % size).min(positions.end - position);
        position += len;
        Some(Block { position: position - len, len })
    })
}

/// The rows of a block in a ring of rows of `width` elements: where they lie, or put together in `gathered` where
/// the ring ends within the block.
///
/// # Panics
///
/// When the ring has fewer rows than the block: a mistake of this crate.
#[inline(always)]
pub(super) fn rows<'a, E: Copy>(
    ring: &'a [E],
    width: usize,
    block: &Block,
    gathered: &'a mut Vec<E>,
) -> &'a [E] {
    let first = Ring::new(ring.len() / width.max(1)).slot(block.position) * width;
    let len = block.len * width;
    if let Some(rows) = ring.get(first..first + len) {
        return rows;
    }
    gathered.clear();
    gathered.extend_from_slice(&ring[first..]);
    gathered.extend_from_slice(&ring[..first + len - ring.len()]);
    gathered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_begin_at_multiples_of_their_size() {
        let found: Vec<_> = blocks(4..17, 5).map(|block| (block.position, block.len)).collect();
        assert_eq!(found, [(4, 1), (5, 5), (10, 5), (15, 2)]);
        assert_eq!(blocks(3..3, 5).count(), 0);
    }

    #[test]
    fn a_block_is_put_together_where_the_ring_ends() {
        let ring = [80, 81, 50, 51, 60, 61, 70, 71]; // Positions 8, 5, 6 and 7 in four slots.
        let mut gathered = Vec::new();
        assert_eq!(rows(&ring, 2, &Block { position: 5, len: 3 }, &mut gathered), &ring[2..]);
        assert!(gathered.is_empty());
        let found = rows(&ring, 2, &Block { position: 6, len: 3 }, &mut gathered);
        assert_eq!(found, [60, 61, 70, 71, 80, 81]);
    }

    #[test]
    fn an_overlap_is_counted_from_the_blocks_beginning() {
        let block = Block { position: 10, len: 4 };
        assert_eq!(block.overlap(&(0..12)), 0..2);
        assert_eq!(block.overlap(&(11..40)), 1..4);
        assert!(block.overlap(&(0..10)).is_empty() && block.overlap(&(14..20)).is_empty());
    }
}
