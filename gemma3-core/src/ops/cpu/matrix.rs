//! Weights as they come out of a checkpoint: in the format of their file, or quantized.

use std::ops::Range;

use super::packed::{PackedMatrix, SharedBytes};
use crate::checkpoint::TensorView;
use crate::formats::Quantization;
use crate::ops::weights::each_matrix;
use crate::ops::{MachineError, MatrixError};

/// Weights \[out, in\] that are multiplied with the same input.
#[derive(Debug)]
pub struct CpuMatrix(Vec<PackedMatrix>);

impl CpuMatrix {
    /// What is multiplied in the format of its file is copied out of a mapped file, whose pages are given back
    /// meanwhile; of bytes that the application holds, formats without blocks are used where they lie.
    ///
    /// # Errors
    ///
    /// When bytes are not what format and shape ask for.
    pub(super) fn load(
        stacked: Vec<TensorView<'_>>,
        quantization: Quantization,
    ) -> Result<Self, MatrixError> {
        Ok(Self(each_matrix(stacked, quantization, load_kept)?))
    }

    /// Bytes of memory that the weights occupy.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(PackedMatrix::bytes).sum()
    }

    /// All of them, in their order.
    pub(super) fn all(&self) -> &[PackedMatrix] {
        &self.0
    }

    /// The matrix that is multiplied alone.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bug`] where there are several.
    pub(super) fn only(&self) -> Result<&PackedMatrix, MachineError> {
        match &self.0[..] {
            [matrix] => Ok(matrix),
            _ => Err(MachineError::Bug { what: "several matrices in the place of one" }),
        }
    }

    /// The gate, and what it gates.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bug`] where they are not two of one size.
    pub(super) fn gate_and_up(&self) -> Result<[&PackedMatrix; 2], MachineError> {
        match &self.0[..] {
            [gate, up] if gate.out_features() == up.out_features() => Ok([gate, up]),
            _ => Err(MachineError::Bug { what: "a gated product without a gate and what it gates" }),
        }
    }
}

fn load_kept(view: TensorView<'_>, shape: [usize; 2]) -> Result<PackedMatrix, MatrixError> {
    let format = view.format;
    Ok(match view.place {
        // Pages of a mapped file are given back as they are copied: at no time are both in memory.
        Some((bytes, place)) if bytes.is_mapped() => {
            let shared = SharedBytes::new(bytes.owner(), place.clone())?;
            let done = |part: Range<usize>| {
                bytes.release(place.start + part.start..place.start + part.end);
            };
            PackedMatrix::from_file(format, shape, &shared, &done)?
        }
        Some((bytes, place)) => PackedMatrix::new(format, shape, SharedBytes::new(bytes.owner(), place)?)?,
        None => PackedMatrix::new(format, shape, SharedBytes::from(view.bytes.into_owned()))?,
    })
}
