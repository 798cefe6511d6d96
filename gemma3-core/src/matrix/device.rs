//! A matrix in a GPU's memory, in the format of its file.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use super::{Matrix, MatrixError, Storage};
use crate::checkpoint::TensorView;
use crate::device::DeviceFailed;
use crate::formats::{Quantization, TensorFormat, quantize};
use crate::ops::cube::gemm::{self, Output, Plan, Rows};
use crate::ops::cube::packed::{PackedMatrix, rows};
use crate::ops::cube::stream::Stream;

/// Some rows of a matrix in a GPU's memory. Matrices that are multiplied with the same input lie one after the
/// other, so that one launch serves them all.
#[derive(Debug, Clone)]
pub(crate) struct DeviceMatrix {
    stream: Stream,
    stack: Arc<PackedMatrix>,
    rows: Range<usize>,
    /// Columns before the zeros that a row may be filled up with.
    cols: usize,
}

impl DeviceMatrix {
    pub(super) fn format(&self) -> TensorFormat {
        self.stack.layout.format
    }

    pub(super) fn out_features(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn in_features(&self) -> usize {
        self.cols
    }

    /// Bytes of these rows.
    pub(super) fn bytes(&self) -> u64 {
        let layout = &self.stack.layout;
        (layout.bytes() / layout.rows.max(1) * self.rows.len()) as u64
    }

    /// `x Wᵀ` with f32 sums: what traces compute aside. Its numbers pass through the host.
    pub(super) fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>, DeviceFailed> {
        let (device, count) = (x.device(), x.dims()[0]);
        let filling = self.stack.layout.cols - self.cols;
        let x = match filling {
            0 => x,
            _ => Tensor::cat(vec![x, Tensor::zeros([count, filling], &device)], 1),
        };
        let client = self.stream.client();
        let all = self.stack.layout.rows;
        let out = client.empty(count * all * size_of::<f32>());
        let x = Rows::f32(&self.stream.upload_tensor(x)?);
        let rows = Rows::f32(&out);
        gemm::launch(client, Plan::Exact { unit_m: 1 }, &x, &self.stack, Output::plain(&rows), count, None);
        let out = self.stream.download_tensor(&out, [count, all], &device)?;
        Ok(out.narrow(1, self.rows.start, self.rows.len()))
    }

    /// Rows `ids`, \[ids, in\].
    pub(super) fn rows(&self, ids: &[u32], device: &Device) -> Result<Tensor<2>, DeviceFailed> {
        let (client, cols) = (self.stream.client(), self.stack.layout.cols);
        let ids: Vec<u32> = ids.iter().map(|id| id + self.rows.start as u32).collect();
        let out = client.empty(ids.len() * cols * size_of::<f32>());
        rows(client, &self.stack, &self.stream.upload_words(&ids), &out, ids.len(), 1.0);
        let out = self.stream.download_tensor(&out, [ids.len(), cols], device)?;
        Ok(out.narrow(1, 0, self.cols))
    }

    /// The stack, if `matrices` are all of it in their order.
    pub(crate) fn whole_stack(matrices: &[&Matrix]) -> Option<Arc<PackedMatrix>> {
        let mut end = 0;
        let mut stack: Option<&Arc<PackedMatrix>> = None;
        for matrix in matrices {
            let Storage::Device(part) = &matrix.storage else { return None };
            let first = stack.get_or_insert(&part.stack);
            if !Arc::ptr_eq(first, &part.stack) || part.rows.start != end {
                return None;
            }
            end = part.rows.end;
        }
        stack.filter(|stack| stack.layout.rows == end).cloned()
    }
}

impl Matrix {
    /// Tensors of a checkpoint as matrices in a GPU's memory, in the format of the file or quantized. Those of
    /// one format and width lie one after the other.
    ///
    /// # Errors
    ///
    /// Bytes that are not what format and shape ask for, and rows that kernels can't read.
    pub(crate) fn load_on_gpu(
        views: Vec<TensorView<'_>>,
        device: &Device,
        stream: &Stream,
        quantization: Quantization,
    ) -> Result<Vec<Self>, MatrixError> {
        let views = views.into_iter().map(|view| quantized(view, quantization));
        let views = views.collect::<Result<Vec<_>, MatrixError>>()?;
        let kind = |view: &TensorView<'_>| (view.format, view.shape[1..].iter().product::<usize>());
        let mut matrices = Vec::with_capacity(views.len());
        for views in views.chunk_by(|a, b| kind(a) == kind(b)) {
            let (format, cols) = kind(&views[0]);
            let parts: Vec<&[u8]> = views.iter().map(|view| &*view.bytes).collect();
            let stack = Arc::new(PackedMatrix::upload(stream.client(), format, cols, &parts)?);
            let mut start = 0;
            for view in views {
                let rows = start..start + view.shape[0];
                start = rows.end;
                let part = DeviceMatrix { stream: stream.clone(), stack: stack.clone(), rows, cols };
                matrices.push(Self { device: device.clone(), storage: Storage::Device(part) });
            }
        }
        for view in views {
            if let Some((bytes, range)) = view.place {
                bytes.release(range);
            }
        }
        Ok(matrices)
    }
}

impl Matrix {
    /// A tensor of a checkpoint as a matrix in a GPU's memory, for products of many rows with tensor cores alone: in
    /// bf16, to which they round a weight of another float format anyway, with rows filled up with zeros to a
    /// multiple of `filled` columns. Formats of blocks stay as they are.
    ///
    /// # Errors
    ///
    /// Those of [`load_on_gpu`](Self::load_on_gpu).
    pub(crate) fn load_for_tensor_cores(
        view: TensorView<'_>,
        device: &Device,
        stream: &Stream,
        filled: usize,
    ) -> Result<Self, MatrixError> {
        let [rows, ref rest @ ..] = view.shape[..] else {
            return Err(MatrixError::NotAMatrix { found: view.shape });
        };
        let cols: usize = rest.iter().product();
        let width = cols.next_multiple_of(filled);
        let is_float = matches!(view.format, TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16);
        let is_ready = view.format == TensorFormat::BF16 && width == cols;
        let view = match is_float && !is_ready {
            false => view,
            true => {
                let values = view.expand()?;
                let mut bytes = vec![0; rows * width * size_of::<half::bf16>()];
                for (to, from) in bytes.chunks_exact_mut(2 * width).zip(values.chunks_exact(cols.max(1))) {
                    for (to, from) in to.chunks_exact_mut(2).zip(from) {
                        to.copy_from_slice(&half::bf16::from_f32(*from).to_le_bytes());
                    }
                }
                view.with_bytes(vec![rows, width], TensorFormat::BF16, bytes)
            }
        };
        let mut matrices = Self::load_on_gpu(vec![view], device, stream, Quantization::None)?;
        let mut matrix = matrices.swap_remove(0); // One for each view.
        if let Storage::Device(part) = &mut matrix.storage {
            part.cols = cols;
        }
        Ok(matrix)
    }
}

fn quantized(view: TensorView<'_>, quantization: Quantization) -> Result<TensorView<'_>, MatrixError> {
    let [_, ref rest @ ..] = view.shape[..] else {
        return Err(MatrixError::NotAMatrix { found: view.shape });
    };
    let cols = rest.iter().product();
    let Some(format) = quantization.target(view.format, cols) else { return Ok(view) };
    let bytes = std::borrow::Cow::Owned(quantize(view.format, &view.shape, &view.bytes, format)?);
    Ok(TensorView { format, bytes, ..view })
}
