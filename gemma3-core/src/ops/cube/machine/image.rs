//! The image encoder's operations: launches of the kernels for many rows. Biases, activations and residuals are added
//! where products store their sums.
//!
//! The kernels behind them check nothing; this does, once an operation: every shape is known here, so that a mistake is
//! an error and not a read out of bounds.

use std::sync::Arc;

use super::Cube;
use super::device_rows::DeviceRows;
use super::matrix::{Matrix, Vector};
use crate::checkpoint::TensorView;
use crate::config::VisionConfig;
use crate::formats::{Quantization, TensorFormat};
use crate::ops::cube::attention::{FullAttention, FullBuffers, full_attention};
use crate::ops::cube::gemm::{self, Output, RowFormat, Rows, write_layer_norm, write_rows};
use crate::ops::cube::limits::product_flops;
use crate::ops::cube::matvec::Input;
use crate::ops::cube::patches::{Patches, mean_of_squares, write_patches};
use crate::ops::image::{Ending, ImageMachine, LayerNorm, Numbers, PatchShape, expect};
use crate::ops::machine::{Norm, Values};
use crate::ops::pending::Pending;
use crate::ops::vectors::Vectors;
use crate::ops::{MachineError, MatrixError};

/// Rows of numbers in the device's memory, \[count, width\]. They are given back when the last of them is dropped.
#[derive(Debug, Clone)]
pub struct Features {
    rows: Rows,
    count: usize,
    width: usize,
}

impl Features {
    fn shape(&self) -> [usize; 2] {
        [self.count, self.width]
    }

    fn expect(&self, shape: [usize; 2], format: RowFormat) -> Result<(), MachineError> {
        let fits = (self.shape(), self.rows.format) == (shape, format);
        expect(fits, "rows of another shape than the image encoder's weights")
    }

    /// Rows of f32 whose width is a multiple of 4.
    fn expect_quads(&self) -> Result<(), MachineError> {
        let fits = self.rows.format == RowFormat::F32 && self.width.is_multiple_of(4);
        expect(fits, "rows that are not of f32 in fours")
    }
}

impl Vector {
    fn expect(&self, width: usize) -> Result<(), MachineError> {
        expect(self.len == width, "numbers of another width than the image encoder's rows")
    }
}

impl Cube {
    /// Whether attention of images has kernels for heads of this width.
    pub(crate) fn attends(head_dim: usize) -> bool {
        head_dim.is_multiple_of(8) && (8..=super::MAX_HEAD_DIM).contains(&head_dim)
    }

    /// Whether the kernels can run an image encoder of this shape.
    pub(crate) fn encodes(config: &VisionConfig) -> bool {
        let heads = config.num_attention_heads.max(1);
        let patch = config.num_channels * config.patch_size.pow(2);
        [config.hidden_size, config.intermediate_size, patch].iter().all(|width| width.is_multiple_of(4))
            && config.hidden_size.is_multiple_of(heads)
            && Self::attends(config.hidden_size / heads)
    }

    fn format(&self, numbers: Numbers) -> RowFormat {
        match numbers {
            Numbers::Floats => RowFormat::F32,
            Numbers::Operands => self.processor.row_format(self.precision),
        }
    }

    fn empty(&self, count: usize, width: usize, numbers: Numbers) -> Result<Features, MachineError> {
        self.empty_of(count, width, self.format(numbers))
    }

    fn empty_of(&self, count: usize, width: usize, format: RowFormat) -> Result<Features, MachineError> {
        let during = "to hold what the image encoder computes";
        self.commands.limits().expect_buffer(format.bytes(count, width), during)?;
        let rows = Rows::empty(self.commands.client(), format, count, width);
        Ok(Features { rows, count, width })
    }

    /// Rows of f32 in the format that was asked for, where the kernel that made them can't write it.
    fn written(&self, x: Features, numbers: Numbers) -> Result<Features, MachineError> {
        let Features { rows, count, width } = &x;
        if rows.format == self.format(numbers) {
            return Ok(x);
        }
        let out = self.empty(*count, *width, numbers)?;
        let input = Input::Plain { x: &rows.handle };
        write_rows(self.commands.client(), &self.hardware, input, &out.rows, *count, *width);
        Ok(out)
    }

    /// Rows of the format that was asked for, or of f32 where a kernel needs more than its part of a row for it.
    fn empty_of_parts(&self, count: usize, width: usize, numbers: Numbers) -> Result<Features, MachineError> {
        self.empty_of(count, width, self.format(numbers).of_products())
    }

    /// The numbers that an attention takes.
    fn attention_numbers(&self, attention: FullAttention) -> Numbers {
        match attention.row_format(self.commands.client(), self.format(Numbers::Operands)) {
            RowFormat::Bf16 | RowFormat::F16 => Numbers::Operands,
            RowFormat::F32 => Numbers::Floats,
        }
    }
}

/// The attention of images over rows of these sizes.
fn attention_of(
    [rows, width]: [usize; 2],
    images: usize,
    heads: usize,
) -> Result<FullAttention, MachineError> {
    let fits = rows > 0
        && images > 0
        && rows.is_multiple_of(images)
        && heads > 0
        && width.is_multiple_of(heads)
        && Cube::attends(width / heads);
    expect(fits, "an image's heads are such as attention has no kernel for")?;
    Ok(FullAttention { sequences: images, tokens: rows / images, heads, head_dim: width / heads })
}

impl ImageMachine for Cube {
    type Features = Features;

    /// For tensor cores it is kept in what they multiply, in the format of the file otherwise.
    fn image_matrix(&self, view: TensorView<'_>) -> Result<Matrix, MatrixError> {
        let matrix = match self.format(Numbers::Operands) {
            RowFormat::Bf16 => Matrix::for_tensor_cores(&self.commands, view, RowFormat::Bf16.width(1))?,
            RowFormat::F16 => Matrix::for_cooperative_matrices(&self.commands, view)?,
            RowFormat::F32 => Matrix::load(&self.commands, vec![view], Quantization::None)?,
        };
        let during = "to hold the weights of the image encoder";
        match matrix.stacks() {
            [_] => Ok(matrix),
            _ => Err(self.commands.limits().too_large(matrix.bytes(), during).into()),
        }
    }

    fn images_at_once(&self) -> usize {
        1
    }

    fn operands(&self) -> TensorFormat {
        match self.format(Numbers::Operands) {
            RowFormat::Bf16 => TensorFormat::BF16,
            RowFormat::F16 => TensorFormat::F16,
            RowFormat::F32 => TensorFormat::F32,
        }
    }

    fn features(&self, values: Vec<f32>, width: usize) -> Result<Features, MachineError> {
        expect(width > 0 && values.len().is_multiple_of(width), "features that are no whole rows")?;
        let rows = Rows::f32(&self.commands.upload(&values));
        Ok(Features { rows, count: values.len() / width, width })
    }

    fn features_shape(&self, x: &Features) -> [usize; 2] {
        x.shape()
    }

    fn patches(&self, pixels: Vec<f32>, images: usize, shape: PatchShape) -> Result<Features, MachineError> {
        expect(images == 1 && shape.fits(pixels.len(), images), "an image that is no whole patches")?;
        let PatchShape { channels, side, patch } = shape;
        let out = self.empty_of_parts(shape.patches(), shape.width(), Numbers::Operands)?;
        let pixels = self.commands.hand_over(pixels);
        write_patches(self.commands.client(), &pixels, Patches { channels, side, patch }, &out.rows);
        self.written(out, Numbers::Operands)
    }

    fn layer_norm(
        &self,
        x: &Features,
        norm: &LayerNorm<Vector>,
        numbers: Numbers,
    ) -> Result<Features, MachineError> {
        x.expect_quads()?;
        norm.scale.expect(x.width)?;
        norm.bias.expect(x.width)?;
        let out = self.empty(x.count, x.width, numbers)?;
        let (scale, bias, eps) = (&norm.scale.handle, &norm.bias.handle, norm.eps);
        let norm = gemm::LayerNorm { x: &x.rows.handle, scale, bias, eps };
        write_layer_norm(self.commands.client(), &self.hardware, norm, &out.rows, x.count, x.width);
        Ok(out)
    }

    fn rms_norm(&self, x: &Features, norm: &Norm<Vector>) -> Result<Features, MachineError> {
        x.expect_quads()?;
        norm.scale.expect(x.width)?;
        let out = self.empty(x.count, x.width, Numbers::Operands)?;
        let norm = Input::Normed { x: &x.rows.handle, scale: &norm.scale.handle, eps: norm.eps };
        write_rows(self.commands.client(), &self.hardware, norm, &out.rows, x.count, x.width);
        Ok(out)
    }

    fn linear(
        &self,
        x: &Features,
        matrix: &Matrix,
        ending: Option<Ending<'_, Self>>,
        numbers: Numbers,
    ) -> Result<Features, MachineError> {
        let (weight, outputs) = (matrix.whole()?, matrix.outputs());
        x.expect([x.count, matrix.cols()], self.format(Numbers::Operands))?;
        let has_added = ending.as_ref().is_some_and(|ending| ending.added.is_some());
        let out = match gemm::writes_halves(&self.processor, weight) && !has_added {
            true => self.empty(x.count, outputs, numbers)?,
            false => self.empty_of_parts(x.count, outputs, numbers)?,
        };
        let output = match ending {
            None => Output::plain(&out.rows),
            Some(Ending { bias, gelu, added }) => {
                bias.expect(outputs)?;
                if let Some(added) = added {
                    added.expect([added.count, outputs], RowFormat::F32)?;
                    let repeats = added.count > 0 && x.count.is_multiple_of(added.count);
                    expect(repeats, "rows that are added to a product are no part of it")?;
                }
                let added = added.map(|added| (&added.rows.handle, added.count));
                Output::ending(
                    &out.rows,
                    gemm::Ending { bias: &bias.handle, largest_bias: bias.largest, gelu, added },
                )
            }
        };
        self.launch_linear(&x.rows, weight, output, x.count, None);
        self.written(out, numbers)
    }

    fn queries_keys_values(
        &self,
        x: &Features,
        linears: [(&Matrix, &Vector); 3],
        images: usize,
        heads: usize,
    ) -> Result<[Features; 3], MachineError> {
        let numbers = self.attention_numbers(attention_of([x.count, linears[0].0.outputs()], images, heads)?);
        let [q, k, v] = linears.map(|(matrix, bias)| {
            self.linear(x, matrix, Some(Ending { bias, gelu: false, added: None }), numbers)
        });
        Ok([q?, k?, v?])
    }

    fn full_attention(
        &self,
        [q, k, v]: [Features; 3],
        images: usize,
        heads: usize,
        factor: f32,
    ) -> Result<Features, MachineError> {
        let attention = attention_of(q.shape(), images, heads)?;
        let numbers = self.attention_numbers(attention);
        for rows in [&q, &k, &v] {
            rows.expect(q.shape(), self.format(numbers))?;
        }
        let (client, [count, width]) = (self.commands.client(), q.shape());
        let attended = self.empty(count, width, numbers)?;
        let buffers = FullBuffers { queries: &q.rows, keys: &k.rows, values: &v.rows, out: &attended.rows };
        // Two products, of all heads together as wide as the rows.
        self.commands.spend(2 * product_flops(count, width, attention.tokens));
        full_attention(client, attention, factor, buffers);
        self.written(attended, Numbers::Operands)
    }

    fn mean_of_squares(
        &self,
        x: &Features,
        images: usize,
        side: usize,
        size: usize,
    ) -> Result<Features, MachineError> {
        x.expect_quads()?;
        let fits = images == 1 && size > 0 && side > 0 && side.is_multiple_of(size);
        expect(fits && x.count == side * side, "patches that are no whole squares")?;
        let out = self.empty((side / size).pow(2), x.width, Numbers::Floats)?;
        mean_of_squares(self.commands.client(), &x.rows.handle, &out.rows.handle, side, size, x.width);
        Ok(out)
    }

    fn look_at_features(&self, x: &Features) -> Result<Values, MachineError> {
        self.read_rows(&x.rows.handle, x.rows.format, x.count, x.width)
    }

    fn vectors(&self, x: Features) -> Result<Vectors, MachineError> {
        x.expect(x.shape(), RowFormat::F32)?;
        let Features { rows, count, width } = x;
        let rows = DeviceRows::new(&self.commands, &self.device, rows.handle, count, width);
        Ok(Vectors::of_machine(Arc::new(rows)))
    }

    fn mark(&self) -> Pending<()> {
        match self.waiter.queue() {
            Ok(queue) => {
                let word = self.commands.upload_words(&[0]);
                queue.promise(self.commands.start_reading(&word), |_| ())
            }
            Err(error) => Pending::ready(Err(error)),
        }
    }
}
