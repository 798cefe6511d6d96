//! Rows between two operations of a pass, and the memory that goes from one to the next.

/// Outputs of some matrices, one \[rows, width\] after the other.
#[derive(Debug)]
pub struct CpuRows {
    pub(super) values: Vec<f32>,
    /// Rows of each part.
    pub(super) rows: usize,
    /// Of the parts.
    pub(super) widths: Vec<usize>,
}

impl CpuRows {
    /// Rows of given numbers.
    #[cfg(test)]
    pub(crate) fn new(values: Vec<f32>, widths: Vec<usize>) -> Self {
        Self { rows: values.len() / widths.iter().sum::<usize>(), values, widths }
    }

    /// The parts side by side: \[rows, sum of the widths\].
    pub(super) fn side_by_side(&self) -> Vec<f32> {
        if self.widths.len() == 1 {
            return self.values.clone();
        }
        let mut all = Vec::with_capacity(self.values.len());
        for row in 0..self.rows {
            let mut start = 0;
            for width in &self.widths {
                all.extend_from_slice(&self.values[start + row * width..][..*width]);
                start += self.rows * width;
            }
        }
        all
    }
}

/// Memory that an operation of a pass has left, for the next: layers are alike, so that after the first nothing is
/// allocated.
#[derive(Debug, Default)]
pub(super) struct Spare(Vec<Vec<f32>>);

impl Spare {
    /// So many numbers, whatever they are.
    pub(super) fn take(&mut self, len: usize) -> Vec<f32> {
        let fitting = self.0.iter().enumerate().filter(|(_, spare)| spare.capacity() >= len);
        match fitting.min_by_key(|(_, spare)| spare.capacity()).map(|(n, _)| n) {
            None => vec![0.0; len],
            Some(n) => {
                let mut spare = self.0.swap_remove(n);
                spare.resize(len, 0.0);
                spare
            }
        }
    }

    /// Takes back what is not needed any more.
    pub(super) fn give(&mut self, values: Vec<f32>) {
        self.0.push(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_put_side_by_side() {
        let values = vec![1.0, 2.0, 3.0, 4.0, 10.0, 20.0];
        let rows = CpuRows { values, rows: 2, widths: vec![2, 1] };
        assert_eq!(rows.side_by_side(), [1.0, 2.0, 10.0, 3.0, 4.0, 20.0]);
        let rows = CpuRows { widths: vec![3], ..rows };
        assert_eq!(rows.side_by_side(), [1.0, 2.0, 3.0, 4.0, 10.0, 20.0]);
    }

    #[test]
    fn memory_is_used_again() {
        let mut spare = Spare::default();
        let (large, small) = (spare.take(100), spare.take(10));
        let place = small.as_ptr();
        spare.give(large);
        spare.give(small);
        let small = spare.take(8);
        assert_eq!((small.len(), small.as_ptr()), (8, place));
        assert_eq!(spare.take(50).len(), 50);
        assert_eq!(spare.0.len(), 0);
    }
}
