//! Vectors that stand for tokens: the soft tokens of images.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::device::{DeviceFailed, read};

/// Vectors \[positions, hidden\] of f32, wherever they were made. Those that the machine of the decoder made stay on its
/// device; others come through the host. Cloning shares them.
#[derive(Clone)]
pub struct Vectors {
    place: Arc<dyn MachineRows>,
    /// Rows of what lies there.
    rows: Range<usize>,
}

/// Rows of f32 that lie on a machine, or on the host.
pub trait MachineRows: Any + fmt::Debug + Send + Sync {
    /// Rows, and numbers in each.
    fn shape(&self) -> [usize; 2];

    /// Reads all of them, row-major. Waits for the device.
    ///
    /// # Errors
    ///
    /// When the device fails.
    fn read(&self) -> Result<Vec<f32>, DeviceFailed>;

    /// For the machine that made them.
    fn as_any(&self) -> &dyn Any;
}

#[derive(Debug)]
struct OnHost {
    values: Vec<f32>,
    width: usize,
}

impl MachineRows for OnHost {
    fn shape(&self) -> [usize; 2] {
        [self.values.len() / self.width.max(1), self.width]
    }

    fn read(&self) -> Result<Vec<f32>, DeviceFailed> {
        Ok(self.values.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Vectors {
    /// Vectors of `width` numbers, one after the other; what is left over beyond whole ones is left out.
    pub fn new(mut values: Vec<f32>, width: usize) -> Self {
        values.truncate(values.len() / width.max(1) * width);
        Self::of_machine(Arc::new(OnHost { values, width }))
    }

    /// The rows of a tensor \[positions, hidden\], whatever device it lies on.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn of_tensor(tensor: Tensor<2>) -> Result<Self, DeviceFailed> {
        let width = tensor.dims()[1];
        Ok(Self::new(read(tensor)?, width))
    }

    /// Rows that lie on a machine.
    pub fn of_machine(rows: Arc<dyn MachineRows>) -> Self {
        Self { rows: 0..rows.shape()[0], place: rows }
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Numbers in each.
    pub fn width(&self) -> usize {
        self.place.shape()[1]
    }

    /// Some of them, which share the memory of all; what lies beyond is left out.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let within = |row: usize| self.rows.start.saturating_add(row).min(self.rows.end);
        Self { place: self.place.clone(), rows: within(rows.start)..within(rows.end.max(rows.start)) }
    }

    /// The values, row-major. Waits for the device on which they were made.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn to_vec(&self) -> Result<Vec<f32>, DeviceFailed> {
        let (mut values, width) = (self.place.read()?, self.width());
        values.truncate(self.rows.end * width);
        values.drain(..self.rows.start * width);
        Ok(values)
    }

    /// Where they lie, if a machine with rows of this type made them, and which rows of that they are.
    pub fn on<R: MachineRows>(&self) -> Option<(&R, Range<usize>)> {
        self.place.as_any().downcast_ref().map(|rows| (rows, self.rows.clone()))
    }
}

impl fmt::Debug for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vectors").field("shape", &[self.len(), self.width()]).finish_non_exhaustive()
    }
}

/// A run of positions whose vectors enter the first layer as they are, in place of the embeddings of their
/// ids. The positions of a span see each other in both directions, and no later span.
#[derive(Debug, Clone)]
pub struct EmbeddedSpan {
    /// Position of the first vector among the ids that the span is given with.
    pub start: usize,
    /// As wide as the model.
    pub vectors: Vectors,
}

impl EmbeddedSpan {
    /// Number of positions.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
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
        (kept > 0).then(|| Self { start: self.start, vectors: self.vectors.rows(0..kept) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_rows_are_those_of_the_first() {
        let vectors = Vectors::new((0..12).map(|x| x as f32).collect(), 3);
        assert_eq!((vectors.len(), vectors.width()), (4, 3));
        let middle = vectors.rows(1..4);
        assert_eq!(middle.rows(1..2).to_vec(), Ok(vec![6.0, 7.0, 8.0]));
        assert_eq!(middle.rows(2..9).len(), 1);
        assert!(middle.rows(5..9).is_empty());
    }
}
