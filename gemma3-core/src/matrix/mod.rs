//! A weight matrix: it knows its format, how to multiply with it, and how to look rows up.
//!
//! This is the seam behind which packed weights will live. At present every format is expanded to f32
//! when it is loaded, and only [`Matrix::format`] remembers the file's.

pub mod blocks;

use burn::tensor::{DType, Device, Int, Tensor, TensorCreationOptions, TensorData};
use rayon::prelude::*;

use crate::checkpoint::{TensorFormat, TensorView};
use crate::ops;
use blocks::BlockError;

/// A matrix \[out, in\] of weights.
#[derive(Debug, Clone)]
pub struct Matrix {
    format: TensorFormat,
    /// \[out, in\] in f32.
    weight: Tensor<2>,
}

/// Elements that one thread expands at a time: enough to hide the hand-over, few enough to balance.
const EXPAND_TASK_ELEMENTS: usize = 1 << 16;

/// The elements of a tensor in f32, row-major, expanded on the current thread pool.
///
/// # Errors
///
/// When the bytes are not what format and shape ask for.
pub fn expand(view: &TensorView<'_>) -> Result<Vec<f32>, BlockError> {
    let elements: usize = view.shape.iter().product();
    let mut out = vec![0.0; elements];
    let block = view.format.block_len();
    let task = EXPAND_TASK_ELEMENTS.next_multiple_of(block);
    let task_bytes = task / block * view.format.block_bytes();
    out.par_chunks_mut(task)
        .zip(view.bytes.par_chunks(task_bytes))
        .try_for_each(|(out, bytes)| blocks::dequantize(view.format, bytes, out))?;
    Ok(out)
}

impl Matrix {
    /// A matrix from its values in f32, row-major \[out_features, in_features\].
    ///
    /// `format` is the format of the file that they came from.
    pub fn from_values(
        values: Vec<f32>,
        [out_features, in_features]: [usize; 2],
        format: TensorFormat,
        device: &Device,
    ) -> Self {
        let options = TensorCreationOptions::new(device.clone()).with_dtype(DType::F32);
        let data = TensorData::new(values, [out_features, in_features]);
        Self { format, weight: Tensor::from_data(data, options) }
    }

    /// The format of the file that the weights came from.
    pub fn format(&self) -> TensorFormat {
        self.format
    }

    /// Rows: the width of what [`Matrix::forward`] returns.
    pub fn out_features(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Columns: the width of what [`Matrix::forward`] takes.
    pub fn in_features(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Bytes of memory that the weights occupy.
    pub fn bytes(&self) -> u64 {
        let [rows, columns] = self.weight.dims();
        (rows * columns * size_of::<f32>()) as u64
    }

    /// `x Wᵀ`: \[tokens, in\] → \[tokens, out\].
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::linear(x, &self.weight)
    }

    /// Rows `ids` of the matrix, \[ids, in\]. The ids must be below [`Matrix::out_features`].
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        let device = self.weight.device();
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let count = ids.len();
        let options = TensorCreationOptions::new(device).with_dtype(DType::I32);
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), options);
        self.weight.clone().select(0, ids)
    }
}
