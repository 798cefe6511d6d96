//! [`PackedMatrix`]: weights as they are kept, and the choice of the kernel.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use thiserror::Error;

use super::activations::Activations;
use super::few_rows::FewRows;
use super::formats::{Format, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use super::layout::{PANEL_ROWS, interleave, panel_bytes, read_row};
use super::many_floats::{HalfRows, PanelFloats, PlainFloats};
use super::many_rows::{ManyRows, OUTPUTS};
use super::plain::{Bf16, F16, F32, Plain, PlainRows};
use super::strips::Strip;
use super::tiles::FEW_ROWS;
use super::{many_bytes, many_words};
use crate::checkpoint::{FormatError, TensorFormat};
use crate::matrix::blocks::{BlockError, dequantize};
use crate::ops::Precision;

/// Products that a task computes at least: below this, handing it to another thread costs more.
const MIN_TASK_PRODUCTS: usize = 128 * 1024;
/// Tasks for every thread, so that one that was held up doesn't hold up all.
const TASKS_PER_THREAD: usize = 4;

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
}

/// A matrix \[out, in\] of weights in the format of its file: block formats in panels of eight rows (at
/// most seven rows more than in the file), plain formats as the file's own bytes.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    format: TensorFormat,
    out_features: usize,
    in_features: usize,
    weights: Weights,
}

#[derive(Debug, Clone)]
enum Weights {
    /// The file's bytes.
    Rows(SharedBytes),
    /// See [`super::layout`].
    Panels(Arc<[u8]>),
}

impl PackedMatrix {
    /// Takes the bytes of a file. Block formats are laid out anew, on the current thread pool, after which
    /// `bytes` are dropped; the bytes of plain formats are kept.
    ///
    /// # Errors
    ///
    /// [`PackedError`] unless `bytes` are exactly the whole blocks of `out_features` rows.
    pub fn new(
        format: TensorFormat,
        [out_features, in_features]: [usize; 2],
        bytes: SharedBytes,
    ) -> Result<Self, PackedError> {
        let expected = format.tensor_bytes(&[out_features, in_features])?;
        // Room for the rows that fill the last panel, and for a row of f32 as `row` returns it.
        format.tensor_bytes(&[out_features.saturating_add(PANEL_ROWS), in_features])?;
        let found = bytes.as_slice().len();
        if found != expected {
            let weights = out_features * in_features;
            return Err(BlockError::WrongByteCount { format, weights, expected, found }.into());
        }
        let weights = if format.is_block() {
            Weights::Panels(interleave(format, in_features, bytes.as_slice()).into())
        } else {
            Weights::Rows(bytes)
        };
        Ok(Self { format, out_features, in_features, weights })
    }

    /// The format of the weights.
    pub fn format(&self) -> TensorFormat {
        self.format
    }

    /// Rows: the outputs of a product.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns: the inputs of a product.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes of the weights in memory (or in the mapped file).
    pub fn bytes(&self) -> u64 {
        self.stored().len() as u64
    }

    fn stored(&self) -> &[u8] {
        match &self.weights {
            Weights::Rows(bytes) => bytes.as_slice(),
            Weights::Panels(bytes) => bytes,
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
    pub fn multiply_prepared(&self, x: &Activations<'_>, out: &mut [f32]) {
        assert_eq!(x.in_features, self.in_features, "columns of x and of the weights");
        assert_eq!(Some(out.len()), x.rows.checked_mul(self.out_features), "out is not [rows, out_features]");
        if out.is_empty() || self.in_features == 0 {
            out.fill(0.0);
            return;
        }
        match self.format {
            TensorFormat::F32 => self.multiply_plain::<F32>(x, out),
            TensorFormat::F16 => self.multiply_plain::<F16>(x, out),
            TensorFormat::BF16 => self.multiply_plain::<Bf16>(x, out),
            TensorFormat::Q4_0 => self.multiply_blocks::<Q4_0>(x, out, many_bytes::multiply::<Q4_0>),
            TensorFormat::Q4_1 => self.multiply_blocks::<Q4_1>(x, out, many_bytes::multiply::<Q4_1>),
            TensorFormat::Q5_0 => self.multiply_blocks::<Q5_0>(x, out, many_bytes::multiply::<Q5_0>),
            TensorFormat::Q5_1 => self.multiply_blocks::<Q5_1>(x, out, many_bytes::multiply::<Q5_1>),
            TensorFormat::Q8_0 => self.multiply_blocks::<Q8_0>(x, out, many_words::multiply::<Q8_0>),
            TensorFormat::Q4_K => self.multiply_blocks::<Q4K>(x, out, many_bytes::multiply::<Q4K>),
            TensorFormat::Q5_K => self.multiply_blocks::<Q5K>(x, out, many_bytes::multiply::<Q5K>),
            TensorFormat::Q6_K => self.multiply_blocks::<Q6K>(x, out, many_words::multiply::<Q6K>),
        }
    }

    fn multiply_blocks<F: Format + Send + Sync>(
        &self,
        x: &Activations<'_>,
        out: &mut [f32],
        many_rows: fn(&Activations<'_>, &[u8], Strip<'_>),
    ) {
        let (in_features, format) = (self.in_features, PhantomData::<F>);
        let (few, exact) = (x.rows <= FEW_ROWS, x.precision == Precision::Exact);
        // Made here, so that no task waits for another that makes it.
        if exact {
            x.floats();
        } else if few || F::BITS <= 5 {
            x.bytes();
        } else {
            x.words();
        }
        let row_bytes = panel_bytes(self.format, in_features) / PANEL_ROWS;
        self.for_each_task(x, out, row_bytes, |panels, strip| {
            if few {
                x.level.run(FewRows { x, panels, strip, format });
            } else if exact {
                x.level.run(ManyRows { x, weights: PanelFloats { panels, in_features, format }, strip });
            } else {
                many_rows(x, panels, strip);
            }
        });
    }

    fn multiply_plain<P: Plain + Send + Sync>(&self, x: &Activations<'_>, out: &mut [f32]) {
        let in_features = self.in_features;
        let row_bytes = in_features * P::BYTES / 8;
        let format = PhantomData::<P>;
        let halves = self.format == TensorFormat::BF16
            && x.precision == Precision::Fast
            && x.level.has_bf16_dot()
            && in_features.is_multiple_of(2);
        if x.rows > FEW_ROWS && halves {
            x.halves();
        } else if x.rows > FEW_ROWS {
            x.floats();
        }
        self.for_each_task(x, out, row_bytes, |rows, strip| {
            if x.rows <= FEW_ROWS {
                x.level.run(PlainRows { x, rows, strip, format });
            } else if halves {
                x.level.run(ManyRows { x, weights: HalfRows { rows, in_features }, strip });
            } else {
                x.level.run(ManyRows { x, weights: PlainFloats { rows, in_features, format }, strip });
            }
        });
    }

    /// Divides the weights into contiguous pieces and runs `task(bytes, outputs)` for each on the current
    /// thread pool.
    fn for_each_task(
        &self,
        x: &Activations<'_>,
        out: &mut [f32],
        row_bytes: usize,
        task: impl Fn(&[u8], Strip<'_>) + Send + Sync,
    ) {
        let products = self.out_features.saturating_mul(self.in_features).saturating_mul(x.rows);
        let most = TASKS_PER_THREAD * rayon::current_num_threads();
        let tasks = (products / MIN_TASK_PRODUCTS).clamp(1, most);
        let outputs = self.out_features.div_ceil(tasks).next_multiple_of(OUTPUTS);
        let pieces = self.stored().chunks(outputs * row_bytes);
        let mut tasks: Vec<_> = pieces.zip(Strip::divide(out, self.out_features, outputs)).collect();
        if tasks.len() == 1 {
            tasks.drain(..).for_each(|(bytes, strip)| task(bytes, strip));
        } else {
            tasks.into_par_iter().with_max_len(1).for_each(|(bytes, strip)| task(bytes, strip));
        }
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
        let decoded = match &self.weights {
            Weights::Rows(bytes) => {
                dequantize(self.format, &bytes.as_slice()[index * row_bytes..][..row_bytes], out)
            }
            Weights::Panels(panels) => {
                let panel = &panels[index / PANEL_ROWS * PANEL_ROWS * row_bytes..][..PANEL_ROWS * row_bytes];
                let mut bytes = vec![0; row_bytes];
                read_row(self.format, panel, index % PANEL_ROWS, &mut bytes);
                dequantize(self.format, &bytes, out)
            }
        };
        decoded.expect("a row of whole blocks");
    }
}
