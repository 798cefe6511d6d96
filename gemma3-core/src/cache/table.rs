//! Where positions lie: the one text that knows it on the host. (Kernels know it from
//! `ops/cube/attention/cache.rs`.)

use std::ops::Range;

use super::CacheDtype;

/// The slots of one layer of one sequence. Position `p` lies in slot `p % slots`; a layer that keeps all positions is
/// the case in which the ring never comes around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ring {
    slots: usize,
}

impl Ring {
    /// A ring of so many slots, at least one.
    pub fn new(slots: usize) -> Self {
        Self { slots: slots.max(1) }
    }

    /// Positions that it holds at once.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Where a position lies.
    pub fn slot(&self, position: usize) -> usize {
        position % self.slots
    }

    /// The runs of slots that hold consecutive positions, at most as many as there are slots: one run, or two where they
    /// pass the ring's end.
    pub fn runs(&self, positions: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let first = self.slot(positions.start);
        let end = first + positions.len();
        [first..end.min(self.slots), 0..end.saturating_sub(self.slots)]
            .into_iter()
            .filter(|run| !run.is_empty())
    }
}

/// What the keys and values of one sequence occupy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheShape {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Of each layer.
    pub rings: Vec<Ring>,
    /// In which numbers keys and values are kept.
    pub dtype: CacheDtype,
}

impl CacheShape {
    /// Bytes of the keys of the largest layer; its values take as many.
    pub(super) fn layer_bytes(&self) -> u64 {
        let slots = self.rings.iter().map(Ring::slots).max().unwrap_or(0) as u64;
        let position = (self.kv_heads * self.head_dim) as u64 * self.dtype.bytes();
        slots.saturating_mul(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_around_the_ring() {
        let ring = Ring::new(5);
        let runs = |positions| ring.runs(positions).collect::<Vec<_>>();
        assert_eq!(ring.slot(12), 2);
        assert_eq!(runs(0..5), std::slice::from_ref(&(0..5)));
        assert_eq!(runs(3..5), std::slice::from_ref(&(3..5)));
        assert_eq!(runs(8..12), [3..5, 0..2]);
        assert_eq!(runs(7..7), [0_usize..0; 0]);
    }
}
