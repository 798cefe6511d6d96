//! Tensors of a checkpoint on their way to a machine, as every machine takes them.

use std::borrow::Cow;

use super::MatrixError;
use crate::checkpoint::TensorView;
use crate::formats::{Quantization, quantize};

/// A tensor as a matrix over its first axis, quantized where that is asked for and can be: the tensor, which then has
/// bytes of its own, and rows and columns.
///
/// # Errors
///
/// A tensor without axes, and bytes that are not what format and shape ask for.
pub(super) fn as_matrix(
    view: TensorView<'_>,
    quantization: Quantization,
) -> Result<(TensorView<'_>, [usize; 2]), MatrixError> {
    let [rows, ref rest @ ..] = view.shape[..] else {
        return Err(MatrixError::NotAMatrix { found: view.shape });
    };
    let shape = [rows, rest.iter().product()];
    let Some(format) = quantization.target(view.format, shape[1]) else { return Ok((view, shape)) };
    let bytes = Cow::Owned(quantize(view.format, &view.shape, &view.bytes, format)?);
    Ok((TensorView { format, bytes, place: None, ..view }, shape))
}

/// Makes a matrix of each tensor, and gives back the pages of the file that it was mapped from.
///
/// # Errors
///
/// Those of [`as_matrix`] and of `make`.
#[cfg_attr(not(any(feature = "flex", feature = "ndarray")), allow(dead_code))]
pub(super) fn each_matrix<T>(
    stacked: Vec<TensorView<'_>>,
    quantization: Quantization,
    make: impl Fn(TensorView<'_>, [usize; 2]) -> Result<T, MatrixError>,
) -> Result<Vec<T>, MatrixError> {
    let load = |view: TensorView<'_>| {
        let place = view.place.clone();
        let (view, shape) = as_matrix(view, quantization)?;
        let matrix = make(view, shape)?;
        if let Some((bytes, range)) = place {
            bytes.release(range);
        }
        Ok(matrix)
    };
    stacked.into_iter().map(load).collect()
}
