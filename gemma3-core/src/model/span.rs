//! Positions whose vectors are given instead of looked up: the soft tokens of an image.

use std::ops::Range;

use burn::tensor::Tensor;

/// A run of positions whose vectors enter the first layer as they are, in place of the embeddings of their
/// ids. The positions of a span see each other in both directions, and no later span.
#[derive(Debug, Clone)]
pub struct EmbeddedSpan {
    /// Position of the first vector among the ids that the span is given with.
    pub start: usize,
    /// \[positions, hidden\], f32, on the model's device.
    pub vectors: Tensor<2>,
}

impl EmbeddedSpan {
    /// Number of positions.
    pub fn len(&self) -> usize {
        self.vectors.dims()[0]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The positions.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start.saturating_add(self.len()) // The start is the application's.
    }

    /// The same vectors at another start.
    #[must_use]
    pub fn at(&self, start: usize) -> Self {
        Self { start, vectors: self.vectors.clone() }
    }

    /// The part before position `end`, or `None` if there is none.
    pub(crate) fn before(self, end: usize) -> Option<Self> {
        let kept = end.saturating_sub(self.start).min(self.len());
        match kept {
            0 => None,
            _ if kept == self.len() => Some(self),
            _ => Some(Self { start: self.start, vectors: self.vectors.narrow(0, 0, kept) }),
        }
    }
}
