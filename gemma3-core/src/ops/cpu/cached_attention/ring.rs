//! Where positions lie in the ring of slots.

use std::ops::Range;

/// Consecutive positions in consecutive slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// The first position.
    pub(super) position: usize,
    /// Its slot.
    pub(super) slot: usize,
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

/// Divides `positions` into blocks of at most `size`, which end where the ring does.
#[inline(always)]
pub(super) fn blocks(positions: Range<usize>, slots: usize, size: usize) -> impl Iterator<Item = Block> {
    let mut position = positions.start;
    std::iter::from_fn(move || {
        if position >= positions.end {
            return None;
        }
        let slot = position % slots;
        let len = size.min(positions.end - position).min(slots - slot);
        position += len;
        Some(Block { position: position - len, slot, len })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_where_the_ring_does() {
        let found: Vec<_> = blocks(4..17, 7, 5).map(|b| (b.position, b.slot, b.len)).collect();
        assert_eq!(found, [(4, 4, 3), (7, 0, 5), (12, 5, 2), (14, 0, 3)]);
        assert_eq!(blocks(3..3, 7, 5).count(), 0);
    }

    #[test]
    fn an_overlap_is_counted_from_the_blocks_beginning() {
        let block = Block { position: 10, slot: 3, len: 4 };
        assert_eq!(block.overlap(&(0..12)), 0..2);
        assert_eq!(block.overlap(&(11..40)), 1..4);
        assert!(block.overlap(&(0..10)).is_empty() && block.overlap(&(14..20)).is_empty());
    }
}
