//! A weight matrix: it knows its format, how to multiply with it, and how to look rows up.
//!
//! On flex, and in the decoder on GPUs, weights stay in the format of their file, in memory and in every product.
//! Elsewhere they are expanded to f32 when they are loaded.

#[cfg(feature = "cube")]
mod device;

#[cfg(feature = "cube")]
pub(crate) use device::DeviceMatrix;

use std::borrow::Cow;
#[cfg(feature = "flex")]
use std::ops::Range;
#[cfg(feature = "flex")]
use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorCreationOptions, TensorData};

use crate::checkpoint::TensorView;
use crate::device::DeviceFailed;
use crate::formats::blocks::BlockError;
use crate::formats::{Quantization, TensorFormat, quantize};
#[cfg(feature = "flex")]
use crate::ops::cpu::packed::{PackedError, PackedMatrix, SharedBytes};
#[cfg(feature = "flex")]
use crate::ops::extension::PackedProducts;
use crate::ops::{self, Norm, Precision};

/// A matrix \[out, in\] of weights.
#[derive(Debug, Clone)]
pub struct Matrix {
    device: Device,
    storage: Storage,
}

// A model has a few hundred of these, so that a tensor's handle may lie in each.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
enum Storage {
    /// \[out, in\] in f32, from a file of the given format.
    Floats { weight: Tensor<2>, format: TensorFormat },
    /// In the file's format.
    #[cfg(feature = "flex")]
    Packed { weight: Arc<PackedMatrix>, precision: Precision },
    /// In the file's format, in a GPU's memory.
    #[cfg(feature = "cube")]
    Device(DeviceMatrix),
}

/// Why bytes do not make a matrix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// The bytes are not what format and shape ask for.
    #[error(transparent)]
    Blocks(#[from] BlockError),
    /// The bytes cannot be kept in their format.
    #[cfg(feature = "flex")]
    #[error(transparent)]
    Packed(#[from] PackedError),
    /// The bytes cannot be kept in their format on a GPU.
    #[cfg(feature = "cube")]
    #[error("{0}")]
    Device(String),
    /// A tensor without axes.
    #[error("expected a matrix, found a tensor of shape {found:?}")]
    NotAMatrix {
        /// The tensor's shape.
        found: Vec<usize>,
    },
}

#[cfg(feature = "cube")]
impl From<crate::ops::cube::packed::PackError> for MatrixError {
    fn from(error: crate::ops::cube::packed::PackError) -> Self {
        Self::Device(error.to_string())
    }
}

impl Matrix {
    /// A tensor of a checkpoint as a matrix over its first axis, in its own format (or quantized) where the
    /// device multiplies that, in f32 elsewhere, with the values that the format gives. What is multiplied
    /// in its own format is copied out of a mapped file, whose pages are given back meanwhile; of bytes that the
    /// application holds, formats without blocks are used where they lie.
    ///
    /// # Errors
    ///
    /// When the bytes are not what format and shape ask for.
    pub fn load(
        view: TensorView<'_>,
        device: &Device,
        precision: Precision,
        quantization: Quantization,
    ) -> Result<Self, MatrixError> {
        let [out_features, ref rest @ ..] = view.shape[..] else {
            return Err(MatrixError::NotAMatrix { found: view.shape });
        };
        let shape = [out_features, rest.iter().product()];
        let place = view.place.clone();
        let view = match quantization.target(view.format, shape[1]) {
            None => view,
            Some(format) => {
                let bytes = Cow::Owned(quantize(view.format, &view.shape, &view.bytes, format)?);
                TensorView { format, bytes, place: None, ..view }
            }
        };
        let matrix = Self::load_kept(view, shape, device, precision)?;
        if let Some((bytes, range)) = place {
            bytes.release(range);
        }
        Ok(matrix)
    }

    fn load_kept(
        view: TensorView<'_>,
        shape: [usize; 2],
        device: &Device,
        precision: Precision,
    ) -> Result<Self, MatrixError> {
        #[cfg(feature = "flex")]
        if ops::is_flex(device) {
            let format = view.format;
            let weight = match view.place {
                // Pages of a mapped file are given back as they are copied: at no time are both in memory.
                Some((bytes, place)) if bytes.is_mapped() => {
                    let shared = SharedBytes::new(bytes.owner(), place.clone())?;
                    let done = |part: Range<usize>| {
                        bytes.release(place.start + part.start..place.start + part.end);
                    };
                    PackedMatrix::from_file(format, shape, &shared, &done)?
                }
                Some((bytes, place)) => {
                    PackedMatrix::new(format, shape, SharedBytes::new(bytes.owner(), place)?)?
                }
                None => PackedMatrix::new(format, shape, SharedBytes::from(view.bytes.into_owned()))?,
            };
            let weight = Arc::new(weight);
            let storage = Storage::Packed { weight, precision };
            return Ok(Self { device: device.clone(), storage });
        }
        let _ = precision; // In f32 there is only one.
        Ok(Self::from_floats(view.expand()?, shape, view.format, device))
    }

    /// A matrix from its values in f32, row-major \[out_features, in_features\].
    pub fn from_values(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Self {
        Self::from_floats(values, shape, TensorFormat::F32, device)
    }

    fn from_floats(values: Vec<f32>, shape: [usize; 2], format: TensorFormat, device: &Device) -> Self {
        let options = TensorCreationOptions::new(device.clone()).with_dtype(DType::F32);
        let weight = Tensor::from_data(TensorData::new(values, shape), options);
        Self { device: device.clone(), storage: Storage::Floats { weight, format } }
    }

    /// The format of the file that the weights came from.
    pub fn format(&self) -> TensorFormat {
        match &self.storage {
            Storage::Floats { format, .. } => *format,
            #[cfg(feature = "flex")]
            Storage::Packed { weight, .. } => weight.format(),
            #[cfg(feature = "cube")]
            Storage::Device(weight) => weight.format(),
        }
    }

    /// Rows: the width of what [`Matrix::forward`] returns.
    pub fn out_features(&self) -> usize {
        match &self.storage {
            Storage::Floats { weight, .. } => weight.dims()[0],
            #[cfg(feature = "flex")]
            Storage::Packed { weight, .. } => weight.out_features(),
            #[cfg(feature = "cube")]
            Storage::Device(weight) => weight.out_features(),
        }
    }

    /// Columns: the width of what [`Matrix::forward`] takes.
    pub fn in_features(&self) -> usize {
        match &self.storage {
            Storage::Floats { weight, .. } => weight.dims()[1],
            #[cfg(feature = "flex")]
            Storage::Packed { weight, .. } => weight.in_features(),
            #[cfg(feature = "cube")]
            Storage::Device(weight) => weight.in_features(),
        }
    }

    /// Bytes of memory that the weights occupy.
    pub fn bytes(&self) -> u64 {
        match &self.storage {
            Storage::Floats { weight, .. } => (weight.shape().num_elements() * size_of::<f32>()) as u64,
            #[cfg(feature = "flex")]
            Storage::Packed { weight, .. } => weight.bytes(),
            #[cfg(feature = "cube")]
            Storage::Device(weight) => weight.bytes(),
        }
    }

    /// `x Wᵀ`: \[tokens, in\] → \[tokens, out\]. As in burn's own operations, `x` is of the matrix's width, on its device,
    /// and in f32.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>, DeviceFailed> {
        Ok(match &self.storage {
            Storage::Floats { weight, .. } => ops::portable::linear(x, weight),
            #[cfg(feature = "flex")]
            Storage::Packed { weight, precision } => {
                let weights = vec![weight.clone()];
                ops::packed_linear(x, PackedProducts { weights, precision: *precision }).swap_remove(0)
            }
            #[cfg(feature = "cube")]
            Storage::Device(weight) => return weight.forward(x),
        })
    }

    /// `x Wᵀ` for several matrices with the same input, which is prepared once for all.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn forward_each<const N: usize>(
        matrices: [&Self; N],
        x: Tensor<2>,
    ) -> Result<[Tensor<2>; N], DeviceFailed> {
        #[cfg(feature = "flex")]
        if let Some(products) = all_packed(&matrices)
            && let Ok(products) = ops::packed_linear(x.clone(), products).try_into()
        {
            return Ok(products);
        }
        let products = matrices.iter().map(|matrix| matrix.forward(x.clone()));
        let products: Vec<_> = products.collect::<Result<_, _>>()?;
        Ok(products.try_into().expect("one for each matrix"))
    }

    /// `norm(x) Wᵀ` for several matrices with the same input.
    pub(crate) fn forward_normed<const N: usize>(
        matrices: [&Self; N],
        x: Tensor<2>,
        norm: Norm<'_>,
    ) -> Result<[Tensor<2>; N], DeviceFailed> {
        #[cfg(feature = "flex")]
        if let Some(products) = all_packed(&matrices)
            && let Ok(products) = ops::packed_norm_linear(x.clone(), norm, products).try_into()
        {
            return Ok(products);
        }
        Self::forward_each(matrices, ops::rms_norm(x, norm.scale, norm.eps))
    }

    /// `gelu_tanh(norm(x) gateᵀ) * (norm(x) upᵀ)`: \[tokens, in\] → \[tokens, out\].
    pub(crate) fn forward_gated(
        gate: &Self,
        up: &Self,
        x: Tensor<2>,
        norm: Norm<'_>,
    ) -> Result<Tensor<2>, DeviceFailed> {
        #[cfg(feature = "flex")]
        if let Some(products) = all_packed(&[gate, up]) {
            return Ok(ops::packed_gated_linear(x, norm, products));
        }
        let [gate, up] = Self::forward_normed([gate, up], x, norm)?;
        Ok(ops::gelu_mul(gate, up))
    }

    /// `residual + norm(x Wᵀ)`: `x` \[tokens, in\], `residual` \[tokens, out\] → \[tokens, out\].
    pub(crate) fn forward_norm_add(
        &self,
        x: Tensor<2>,
        norm: Norm<'_>,
        residual: Tensor<2>,
    ) -> Result<Tensor<2>, DeviceFailed> {
        #[cfg(feature = "flex")]
        if let Some(products) = all_packed(&[self]) {
            return Ok(ops::packed_linear_norm_add(x, products, norm, residual));
        }
        Ok(residual + ops::rms_norm(self.forward(x)?, norm.scale, norm.eps))
    }

    /// Rows `ids` of the matrix, \[ids, in\]. The ids must be below [`Matrix::out_features`].
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor<2>, DeviceFailed> {
        let count = ids.len();
        Ok(match &self.storage {
            Storage::Floats { weight, .. } => {
                let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
                let options = TensorCreationOptions::new(self.device.clone()).with_dtype(DType::I32);
                let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), options);
                weight.clone().select(0, ids)
            }
            #[cfg(feature = "flex")]
            Storage::Packed { weight, .. } => {
                let width = weight.in_features();
                let mut values = vec![0.0; count * width];
                for (row, id) in values.chunks_exact_mut(width.max(1)).zip(ids) {
                    weight.row(*id as usize, row);
                }
                let options = TensorCreationOptions::new(self.device.clone()).with_dtype(DType::F32);
                Tensor::from_data(TensorData::new(values, [count, width]), options)
            }
            #[cfg(feature = "cube")]
            Storage::Device(weight) => return weight.rows(ids, &self.device),
        })
    }
}

/// The weights of matrices that are all packed, to be multiplied alike.
#[cfg(feature = "flex")]
fn all_packed(matrices: &[&Matrix]) -> Option<PackedProducts> {
    let mut common = None;
    let mut weights = Vec::with_capacity(matrices.len());
    for matrix in matrices {
        let Storage::Packed { weight, precision } = &matrix.storage else { return None };
        if *common.get_or_insert(*precision) != *precision {
            return None;
        }
        weights.push(weight.clone());
    }
    Some(PackedProducts { weights, precision: common? })
}
