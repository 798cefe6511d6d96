//! [`PackedMatrix`]: weights as they are kept, and the choice of the kernel.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;

use super::activations::Activations;
use super::few_rows::FewRows;
use super::formats::{Format, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use super::layout::{PANEL_ROWS, copy, interleave, panels_bytes, read_row};
use super::many_floats::{HalfRows, PanelFloats, PlainFloats};
use super::many_rows::ManyRows;
use super::memory::Pages;
use super::plain::{Bf16, F16, F32, Plain, PlainRows};
#[cfg(test)]
use super::products::multiply_each;
use super::strips::Strip;
use super::tiles::FEW_ROWS;
use super::{many_bytes, many_words};
use crate::formats::blocks::{BlockError, dequantize};
use crate::formats::{FormatError, TensorFormat};
use crate::ops::Precision;

/// Bytes that something else owns, such as a mapped file.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// Part of the bytes of `owner`.
    ///
    /// # Errors
    ///
    /// [`PackedError::NoSuchBytes`] if the owner doesn't have them.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Result<Self, PackedError> {
        let len = (*owner).as_ref().len();
        if (*owner).as_ref().get(range.clone()).is_none() {
            return Err(PackedError::NoSuchBytes { range, len });
        }
        Ok(Self { owner, range })
    }

    fn as_slice(&self) -> &[u8] {
        // The range was checked; an owner that has become shorter yields no bytes, on which the kernels
        // panic rather than read elsewhere.
        (*self.owner).as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SharedBytes").field("range", &self.range).finish_non_exhaustive()
    }
}

/// Why bytes aren't a matrix.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PackedError {
    /// The rows aren't whole blocks, or too large.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The bytes aren't as many as the matrix takes.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The owner of the bytes is shorter than the range.
    #[error("expected bytes within 0..{len}, found {}..{}", range.start, range.end)]
    NoSuchBytes {
        /// The bytes asked for.
        range: Range<usize>,
        /// The bytes that there are.
        len: usize,
    },
    /// The system does not give the memory.
    #[error("the system does not give the {bytes} bytes that the weights take")]
    OutOfMemory {
        /// Bytes of the weights.
        bytes: usize,
    },
}

/// A matrix \[out, in\] of weights in the format of its file: block formats in panels of eight rows (at
/// most seven rows more than in the file), plain formats as they lie in the file.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    format: TensorFormat,
    out_features: usize,
    in_features: usize,
    weights: Weights,
}

#[derive(Debug, Clone)]
enum Weights {
    /// The bytes of plain formats, which somebody else holds.
    Shared(SharedBytes),
    /// A copy of them, or the panels of block formats ([`super::layout`]).
    Own(Arc<Pages>),
}

impl PackedMatrix {
    /// Block formats are laid out anew, on the current thread pool, after which `bytes` are dropped; the bytes of
    /// plain formats are kept.
    ///
    /// # Errors
    ///
    /// [`PackedError`] unless `bytes` are exactly the whole blocks of `out_features` rows.
    pub fn new(format: TensorFormat, shape: [usize; 2], bytes: SharedBytes) -> Result<Self, PackedError> {
        let expected = check(format, shape, &bytes)?;
        let weights = if format.is_block() {
            Self::own(format, shape, expected, bytes.as_slice(), &|_| ())?
        } else {
            Weights::Shared(bytes)
        };
        Ok(Self { format, out_features: shape[0], in_features: shape[1], weights })
    }

    /// Takes the bytes out of a mapped file into memory with larger pages, which is faster to read. `done` is told
    /// of each range of `bytes` that is not read again, so that both copies are never in memory.
    ///
    /// # Errors
    ///
    /// Those of [`PackedMatrix::new`].
    pub fn from_file(
        format: TensorFormat,
        shape: [usize; 2],
        bytes: &SharedBytes,
        done: &dyn Fn(Range<usize>),
    ) -> Result<Self, PackedError> {
        let expected = check(format, shape, bytes)?;
        let weights = Self::own(format, shape, expected, bytes.as_slice(), done)?;
        Ok(Self { format, out_features: shape[0], in_features: shape[1], weights })
    }

    fn own(
        format: TensorFormat,
        shape: [usize; 2],
        expected: usize,
        bytes: &[u8],
        done: &dyn Fn(Range<usize>),
    ) -> Result<Weights, PackedError> {
        let len = if format.is_block() { panels_bytes(format, shape) } else { expected };
        let mut pages = Pages::zeroed(len).map_err(|_| PackedError::OutOfMemory { bytes: len })?;
        if format.is_block() {
            interleave(format, shape[1], bytes, pages.as_mut_slice(), done);
        } else {
            copy(bytes, pages.as_mut_slice(), done);
        }
        Ok(Weights::Own(Arc::new(pages)))
    }

    /// Rows: the outputs of a product.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns: the inputs of a product.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes of the weights in memory.
    pub fn bytes(&self) -> u64 {
        self.stored().len() as u64
    }

    fn stored(&self) -> &[u8] {
        match &self.weights {
            Weights::Shared(bytes) => bytes.as_slice(),
            Weights::Own(pages) => pages.as_slice(),
        }
    }

    /// `out[r, n] = Σ_k x[r, k] W[n, k]` on the current thread pool, with `x` \[rows, in\] and `out`
    /// \[rows, out\] row-major.
    ///
    /// # Panics
    ///
    /// When a slice hasn't the length of its shape: a mistake of the caller, not of its input.
    #[cfg(test)]
    pub fn multiply(&self, x: &[f32], rows: usize, out: &mut [f32], precision: Precision) {
        self.multiply_prepared(&Activations::new(x, rows, self.in_features, precision), out);
    }

    /// `out[r, n] = Σ_k x[r, k] W[n, k]` on the current thread pool, with activations that other matrices are
    /// multiplied with too; `out` is \[rows, out\], row-major.
    ///
    /// # Panics
    ///
    /// When the widths differ, or `out` isn't \[rows, out\].
    #[cfg(test)]
    pub fn multiply_prepared(&self, x: &Activations<'_>, out: &mut [f32]) {
        multiply_each(x, [(self, out)]);
    }

    /// What multiplies rows of these weights with `x`; makes the form of `x` that it reads, so that no task
    /// waits for another that makes it.
    pub(super) fn kernel(&self, x: &Activations<'_>) -> Multiply {
        assert_eq!(x.in_features, self.in_features, "columns of x and of the weights");
        match self.format {
            TensorFormat::F32 => plain_kernel::<F32>(x),
            TensorFormat::F16 => plain_kernel::<F16>(x),
            TensorFormat::BF16 => bf16_kernel(x),
            TensorFormat::Q4_0 => block_kernel::<Q4_0>(x, many_bytes::multiply::<Q4_0>),
            TensorFormat::Q4_1 => block_kernel::<Q4_1>(x, many_bytes::multiply::<Q4_1>),
            TensorFormat::Q5_0 => block_kernel::<Q5_0>(x, many_bytes::multiply::<Q5_0>),
            TensorFormat::Q5_1 => block_kernel::<Q5_1>(x, many_bytes::multiply::<Q5_1>),
            TensorFormat::Q8_0 => block_kernel::<Q8_0>(x, many_words::multiply::<Q8_0>),
            TensorFormat::Q4_K => block_kernel::<Q4K>(x, many_bytes::multiply::<Q4K>),
            TensorFormat::Q5_K => block_kernel::<Q5K>(x, many_bytes::multiply::<Q5K>),
            TensorFormat::Q6_K => block_kernel::<Q6K>(x, many_words::multiply::<Q6K>),
        }
    }

    /// The weights of `outputs` consecutive rows (fewer at the end), piece by piece. `outputs` are whole panels.
    pub(super) fn pieces(&self, outputs: usize) -> std::slice::Chunks<'_, u8> {
        let row_bytes = self.in_features / self.format.block_len() * self.format.block_bytes();
        self.stored().chunks((outputs * row_bytes).max(1))
    }

    /// A row in f32, equal bit for bit to [`dequantize`]'s.
    ///
    /// # Panics
    ///
    /// When there is no such row or `out` isn't as long as one: a mistake of the caller.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.out_features, "row {index} of {}", self.out_features);
        assert_eq!(out.len(), self.in_features, "out is not a row");
        let row_bytes = self.in_features / self.format.block_len() * self.format.block_bytes();
        let decoded = if self.format.is_block() {
            let panel = index / PANEL_ROWS * PANEL_ROWS * row_bytes;
            let panel = &self.stored()[panel..][..PANEL_ROWS * row_bytes];
            let mut bytes = vec![0; row_bytes];
            read_row(self.format, panel, index % PANEL_ROWS, &mut bytes);
            dequantize(self.format, &bytes, out)
        } else {
            dequantize(self.format, &self.stored()[index * row_bytes..][..row_bytes], out)
        };
        decoded.expect("a row of whole blocks");
    }
}

/// The number of bytes, if they are those of such a matrix.
fn check(
    format: TensorFormat,
    [out_features, in_features]: [usize; 2],
    bytes: &SharedBytes,
) -> Result<usize, PackedError> {
    let expected = format.tensor_bytes(&[out_features, in_features])?;
    // Room for the rows that fill the last panel, and for a row of f32 as `row` returns it.
    format.tensor_bytes(&[out_features.saturating_add(PANEL_ROWS), in_features])?;
    let found = bytes.as_slice().len();
    if found != expected {
        let weights = out_features * in_features;
        return Err(BlockError::WrongByteCount { format, weights, expected, found }.into());
    }
    Ok(expected)
}

/// Multiplies the rows of weights that the bytes are; the strip is their outputs.
pub(super) type Multiply = fn(&Activations<'_>, &[u8], Strip<'_>);

fn block_kernel<F: Format>(x: &Activations<'_>, many_rows: Multiply) -> Multiply {
    let exact = x.precision == Precision::Exact;
    let few = x.rows <= FEW_ROWS;
    if exact {
        x.floats();
    } else if few || F::BITS <= 5 {
        x.bytes();
    } else {
        x.words();
    }
    match (few, exact) {
        (true, _) => |x, panels, strip| x.level.run(FewRows { x, panels, strip, format: PhantomData::<F> }),
        (false, true) => |x, panels, strip| {
            let weights = PanelFloats { panels, in_features: x.in_features, format: PhantomData::<F> };
            x.level.run(ManyRows { x, weights, strip });
        },
        (false, false) => many_rows,
    }
}

fn plain_kernel<P: Plain>(x: &Activations<'_>) -> Multiply {
    if x.rows <= FEW_ROWS {
        return |x, rows, strip| x.level.run(PlainRows { x, rows, strip, format: PhantomData::<P> });
    }
    x.floats();
    |x, rows, strip| {
        let weights = PlainFloats { rows, in_features: x.in_features, format: PhantomData::<P> };
        x.level.run(ManyRows { x, weights, strip });
    }
}

fn bf16_kernel(x: &Activations<'_>) -> Multiply {
    let fast = x.precision == Precision::Fast && x.level.has_bf16_dot();
    if x.rows <= FEW_ROWS || !fast || !x.in_features.is_multiple_of(2) {
        return plain_kernel::<Bf16>(x);
    }
    x.halves();
    |x, rows, strip| {
        x.level.run(ManyRows { x, weights: HalfRows { rows, in_features: x.in_features }, strip })
    }
}
