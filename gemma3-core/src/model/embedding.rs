//! Token ids to vectors, and, because the table is tied, vectors to logits.

use burn::tensor::Tensor;

use crate::device::DeviceFailed;
use crate::matrix::Matrix;

/// The token embedding table \[vocab, hidden\].
#[derive(Debug, Clone)]
pub(super) struct Embedding {
    table: Matrix,
    /// √hidden, unrounded f32: the reference rounds it to the weights' dtype, which is f32 here.
    scale: f32,
}

impl Embedding {
    pub(super) fn new(table: Matrix) -> Self {
        let scale = (table.in_features() as f32).sqrt();
        Self { table, scale }
    }

    /// Rows of the table, scaled: `ids` \[tokens\] → \[tokens, hidden\].
    pub(super) fn forward(&self, ids: &[u32]) -> Result<Tensor<2>, DeviceFailed> {
        Ok(self.table.rows(ids)? * self.scale)
    }

    pub(super) fn table(&self) -> &Matrix {
        &self.table
    }
}
