//! Rows of numbers on a GPU, for what of a model lives in other crates: the image encoder.
//!
//! The kernels behind it check nothing; this does, once an operation: every shape is known here, so that a mistake is
//! an error and not a read out of bounds. Operations return at once, [`Gpu::download`] waits.

use burn::tensor::Device;

use crate::checkpoint::TensorView;
use crate::matrix::{DeviceMatrix, Matrix, MatrixError};
use crate::ops::Precision;
use crate::ops::cube::attention::{FullAttention, FullBuffers, full_attention};
use crate::ops::cube::gemm::{
    self, LayerNorm, Output, Processor, RowFormat, Rows, linear, write_layer_norm, write_rows,
};
use crate::ops::cube::matvec::{Input, Machine};
use crate::ops::cube::patches::{self, mean_of_squares, write_patches};
use crate::ops::cube::stream::{Reading, Stream};

/// A stream of commands on a GPU. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Gpu {
    stream: Stream,
    machine: Machine,
    processor: Processor,
    precision: Precision,
}

/// Rows of numbers in a GPU's memory, \[count, width\]. They are given back when the last of them is dropped.
#[derive(Debug, Clone)]
pub struct GpuRows {
    rows: Rows,
    count: usize,
    width: usize,
}

/// How rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// In f32.
    Floats,
    /// As products read them: bf16 for tensor cores in [`Precision::Fast`], f32 elsewhere.
    Operands,
}

/// What happens to the sums of a product.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// Added to every row, \[1, outputs\].
    pub bias: &'a GpuRows,
    /// Whether the activation `gelu_tanh` follows.
    pub gelu: bool,
    /// Rows of f32 that are added at last, \[rows, outputs\].
    pub added: Option<&'a GpuRows>,
}

/// How a square image of several channels is divided into square patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchShape {
    /// Planes of the image.
    pub channels: usize,
    /// Pixels along a side of the image.
    pub side: usize,
    /// Pixels along a side of a patch.
    pub patch: usize,
}

/// Why something could not be computed on a GPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// Shapes that do not fit together.
    #[error("{operation}: expected {expected}, found {found}")]
    WrongShape {
        /// What was to be done.
        operation: &'static str,
        /// What fits.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A matrix that lies elsewhere.
    #[error("the matrix does not lie on this GPU by itself")]
    WrongMatrix,
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
}

/// The widest head that attention has been laid out and tested for.
const MAX_HEAD_DIM: usize = 256;

fn wrong(operation: &'static str, expected: impl std::fmt::Debug, found: impl std::fmt::Debug) -> GpuError {
    GpuError::WrongShape { operation, expected: format!("{expected:?}"), found: format!("{found:?}") }
}

impl GpuRows {
    /// Number of rows and of numbers in each.
    pub fn shape(&self) -> [usize; 2] {
        [self.count, self.width]
    }

    fn expect(&self, operation: &'static str, shape: [usize; 2], format: RowFormat) -> Result<(), GpuError> {
        match (self.shape(), self.rows.format) == (shape, format) {
            true => Ok(()),
            false => Err(wrong(operation, (shape, format), (self.shape(), self.rows.format))),
        }
    }

    fn expect_floats(&self, operation: &'static str, shape: [usize; 2]) -> Result<(), GpuError> {
        self.expect(operation, shape, RowFormat::F32)
    }
}

impl Gpu {
    /// A new stream on a device; `None` if it is no GPU of cubecl's.
    pub fn open(device: &Device, precision: Precision) -> Option<Self> {
        let stream = Stream::open(device)?;
        let (machine, processor) = (Machine::of(stream.client()), Processor::of(stream.client()));
        Some(Self { stream, machine, processor, precision })
    }

    /// Whether attention has kernels for heads of this width.
    pub fn attends(head_dim: usize) -> bool {
        head_dim.is_multiple_of(8) && (8..=MAX_HEAD_DIM).contains(&head_dim)
    }

    /// A tensor of a checkpoint as a matrix for [`linear`](Self::linear). Its columns have to be a multiple of 4. For
    /// tensor cores it is kept in bf16, in the format of the file otherwise.
    ///
    /// # Errors
    ///
    /// Bytes that are not what format and shape ask for, and rows that kernels can't read.
    pub fn matrix(&self, view: TensorView<'_>, device: &Device) -> Result<Matrix, MatrixError> {
        match self.processor.row_format(self.precision) {
            RowFormat::Bf16 => {
                let filled = RowFormat::Bf16.width(1);
                Matrix::load_for_tensor_cores(view, device, &self.stream, filled)
            }
            RowFormat::F32 => {
                let quantization = crate::formats::Quantization::None;
                let mut matrices = Matrix::load_on_gpu(vec![view], device, &self.stream, quantization)?;
                Ok(matrices.swap_remove(0)) // One for each view.
            }
        }
    }

    /// Copies rows of f32 to the device.
    ///
    /// # Errors
    ///
    /// Values that are not whole rows.
    pub fn upload(&self, values: &[f32], width: usize) -> Result<GpuRows, GpuError> {
        if width == 0 || !values.len().is_multiple_of(width) {
            return Err(wrong("upload", format!("rows of {width}"), values.len()));
        }
        let rows = Rows::f32(&self.stream.upload(values));
        Ok(GpuRows { rows, count: values.len() / width, width })
    }

    /// Reads rows of f32 back, after everything before them.
    ///
    /// # Errors
    ///
    /// Rows of another format, and a device that fails.
    pub fn download(&self, rows: &GpuRows) -> Result<Vec<f32>, GpuError> {
        rows.expect_floats("download", rows.shape())?;
        self.stream.download(&rows.rows.handle).map_err(|error| GpuError::Device(error.to_string()))
    }

    /// A mark after everything so far, that can be waited for.
    pub fn mark(&self) -> Mark {
        let word = self.stream.upload_words(&[0]);
        Mark(self.stream.start_reading(&word))
    }

    /// `x Wᵀ` and what [`Ending`] says. `x` as [`Numbers::Operands`].
    ///
    /// # Errors
    ///
    /// Shapes that do not fit, or a matrix that [`matrix`](Self::matrix) did not make.
    pub fn linear(
        &self,
        x: &GpuRows,
        weight: &Matrix,
        ending: Option<Ending<'_>>,
        numbers: Numbers,
    ) -> Result<GpuRows, GpuError> {
        let stack = DeviceMatrix::whole_stack(&[weight]).ok_or(GpuError::WrongMatrix)?;
        let outputs = weight.out_features();
        x.expect("linear", [x.count, weight.in_features()], self.format(Numbers::Operands))?;
        let out = self.empty(x.count, outputs, numbers);
        let output = match ending {
            None => Output::plain(&out.rows),
            Some(Ending { bias, gelu, added }) => {
                bias.expect_floats("linear's bias", [1, outputs])?;
                if let Some(added) = added {
                    added.expect_floats("linear's added rows", [x.count, outputs])?;
                }
                let added = added.map(|added| (&added.rows.handle, added.count));
                Output::ending(&out.rows, gemm::Ending { bias: &bias.rows.handle, gelu, added })
            }
        };
        linear(self.stream.client(), &self.processor, &x.rows, &stack, output, x.count, None);
        Ok(out)
    }

    /// Layer normalization of rows of f32, as [`Numbers::Operands`] or f32; `scale` and `bias` \[1, width\]. The width
    /// is a multiple of 4.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit.
    pub fn layer_norm(
        &self,
        x: &GpuRows,
        scale: &GpuRows,
        bias: &GpuRows,
        eps: f32,
        numbers: Numbers,
    ) -> Result<GpuRows, GpuError> {
        let [count, width] = self.quads(x, "layer_norm")?;
        scale.expect_floats("layer_norm's scale", [1, width])?;
        bias.expect_floats("layer_norm's bias", [1, width])?;
        let out = self.empty(count, width, numbers);
        let (scale, bias) = (&scale.rows.handle, &bias.rows.handle);
        let norm = LayerNorm { x: &x.rows.handle, scale, bias, eps };
        write_layer_norm(self.stream.client(), &self.machine, norm, &out.rows, count, width);
        Ok(out)
    }

    /// RMS normalization of rows of f32, as [`Numbers::Operands`] or f32; `scale` \[1, width\] is the whole multiplier.
    /// The width is a multiple of 4.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit.
    pub fn rms_norm(
        &self,
        x: &GpuRows,
        scale: &GpuRows,
        eps: f32,
        numbers: Numbers,
    ) -> Result<GpuRows, GpuError> {
        let [count, width] = self.quads(x, "rms_norm")?;
        scale.expect_floats("rms_norm's scale", [1, width])?;
        let out = self.empty(count, width, numbers);
        let norm = Input::Normed { x: &x.rows.handle, scale: &scale.rows.handle, eps };
        write_rows(self.stream.client(), &self.machine, norm, &out.rows, count, width);
        Ok(out)
    }

    /// The numbers that [`attention`](Self::attention) takes in this shape.
    pub fn attention_numbers(&self, tokens: usize, heads: usize, head_dim: usize) -> Numbers {
        let attention = FullAttention { sequences: 1, tokens, heads, head_dim };
        match attention.row_format(self.stream.client(), self.format(Numbers::Operands)) {
            RowFormat::Bf16 => Numbers::Operands,
            RowFormat::F32 => Numbers::Floats,
        }
    }

    /// `softmax(factor * q kᵀ) v` of each head, of every row over all rows: all three \[tokens, heads * head_dim\] in the
    /// numbers that [`attention_numbers`](Self::attention_numbers) says, the result as [`Numbers::Operands`].
    ///
    /// # Errors
    ///
    /// Shapes that do not fit, or heads for which there is no kernel.
    pub fn attention(
        &self,
        [q, k, v]: [&GpuRows; 3],
        heads: usize,
        factor: f32,
    ) -> Result<GpuRows, GpuError> {
        let [tokens, width] = q.shape();
        let head_dim = width / heads.max(1);
        if head_dim * heads != width || !Self::attends(head_dim) || tokens == 0 {
            return Err(wrong("attention", "heads of a multiple of 8", (q.shape(), heads)));
        }
        let format = self.format(self.attention_numbers(tokens, heads, head_dim));
        for rows in [q, k, v] {
            rows.expect("attention", [tokens, width], format)?;
        }
        let attention = FullAttention { sequences: 1, tokens, heads, head_dim };
        let numbers = self.attention_numbers(tokens, heads, head_dim);
        let attended = self.empty(tokens, width, numbers);
        let buffers = FullBuffers { queries: &q.rows, keys: &k.rows, values: &v.rows, out: &attended.rows };
        full_attention(self.stream.client(), attention, factor, buffers);
        if format == self.format(Numbers::Operands) {
            return Ok(attended);
        }
        let rounded = self.empty(tokens, width, Numbers::Operands);
        let input = Input::Plain { x: &attended.rows.handle };
        write_rows(self.stream.client(), &self.machine, input, &rounded.rows, tokens, width);
        Ok(rounded)
    }

    /// The patches of an image, row by row, as [`Numbers::Operands`], \[patches, channels * patch * patch\]. `pixels` is
    /// one row of f32: channels, rows, columns.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit.
    pub fn patches(&self, pixels: &GpuRows, shape: PatchShape) -> Result<GpuRows, GpuError> {
        let PatchShape { channels, side, patch } = shape;
        if patch == 0 || !side.is_multiple_of(patch) || side == 0 || channels == 0 {
            return Err(wrong("patches", "whole patches", shape));
        }
        let shape = patches::Patches { channels, side, patch };
        pixels.expect_floats("patches", [1, shape.pixels()])?;
        let out = self.empty(shape.per_side().pow(2), shape.width(), Numbers::Operands);
        write_patches(self.stream.client(), &pixels.rows.handle, shape, &out.rows);
        Ok(out)
    }

    /// The mean of each square of `size` by `size` rows of f32, which lie in a square of `side` by `side`:
    /// \[side * side, width\] to f32 \[(side / size)², width\]. The width is a multiple of 4.
    ///
    /// # Errors
    ///
    /// Shapes that do not fit.
    pub fn mean_of_squares(&self, x: &GpuRows, side: usize, size: usize) -> Result<GpuRows, GpuError> {
        let [_, width] = self.quads(x, "mean_of_squares")?;
        x.expect_floats("mean_of_squares", [side * side, width])?;
        if size == 0 || !side.is_multiple_of(size) {
            return Err(wrong("mean_of_squares", "whole squares", (side, size)));
        }
        let out = self.empty((side / size).pow(2), width, Numbers::Floats);
        mean_of_squares(self.stream.client(), &x.rows.handle, &out.rows.handle, side, size, width);
        Ok(out)
    }

    fn format(&self, numbers: Numbers) -> RowFormat {
        match numbers {
            Numbers::Floats => RowFormat::F32,
            Numbers::Operands => self.processor.row_format(self.precision),
        }
    }

    fn empty(&self, count: usize, width: usize, numbers: Numbers) -> GpuRows {
        let rows = Rows::empty(self.stream.client(), self.format(numbers), count, width);
        GpuRows { rows, count, width }
    }

    /// Rows of f32 whose width is a multiple of 4.
    fn quads(&self, x: &GpuRows, operation: &'static str) -> Result<[usize; 2], GpuError> {
        x.expect_floats(operation, x.shape())?;
        match x.width.is_multiple_of(4) {
            true => Ok(x.shape()),
            false => Err(wrong(operation, "a width that is a multiple of 4", x.width)),
        }
    }
}

/// A place in a stream.
pub struct Mark(Reading);

impl Mark {
    /// Waits until the device has come here.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn wait(self) -> Result<(), GpuError> {
        self.0.words().map(|_| ()).map_err(|error| GpuError::Device(error.to_string()))
    }
}

impl Gpu {
    /// Whether products are of bf16 on tensor cores; they are of f32 otherwise.
    pub fn has_tensor_cores(&self) -> bool {
        self.format(Numbers::Operands) == RowFormat::Bf16
    }
}
