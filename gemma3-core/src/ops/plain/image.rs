//! The image encoder's operations of [`Plain`], put together from the definitions.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::attention::attention;
use super::gelu::bias_gelu;
use super::linear::linear;
use super::machine::{on_its_way, only};
use super::{Plain, PlainRows, PlainVector, norm, patches};
use crate::checkpoint::TensorView;
use crate::device::{DeviceFailed, waiting};
use crate::formats::Quantization;
use crate::ops::image::{Ending, ImageMachine, LayerNorm, Numbers, PatchShape, expect, expect_heads};
use crate::ops::machine::{Machine, Norm, Values};
use crate::ops::pending::Pending;
use crate::ops::vectors::Vectors;
use crate::ops::{MachineError, MatrixError};

const OTHER_WIDTH: &str = "rows of another width than the image encoder's weights";

impl ImageMachine for Plain {
    type Features = Tensor<2>;

    fn image_matrix(&self, view: TensorView<'_>) -> Result<Self::Matrix, MatrixError> {
        self.matrix(vec![view], Quantization::None)
    }

    fn features(&self, values: Vec<f32>, width: usize) -> Result<Tensor<2>, MachineError> {
        expect(width > 0 && values.len().is_multiple_of(width), "features that are no whole rows")?;
        let count = values.len() / width;
        Ok(self.tensor(values, [count, width]))
    }

    fn features_shape(&self, x: &Tensor<2>) -> [usize; 2] {
        x.dims()
    }

    fn patches(&self, pixels: Vec<f32>, images: usize, shape: PatchShape) -> Result<Tensor<2>, MachineError> {
        expect(shape.fits(pixels.len(), images), "images that are no whole patches")?;
        let PatchShape { channels, side, patch } = shape;
        Ok(patches::patches(self.tensor(pixels, [images, channels, side, side]), patch))
    }

    fn layer_norm(
        &self,
        x: &Tensor<2>,
        norm: &LayerNorm<PlainVector>,
        _numbers: Numbers,
    ) -> Result<Tensor<2>, MachineError> {
        let (scale, bias) = (norm.scale.tensor(), norm.bias.tensor());
        expect([scale, bias].iter().all(|of_norm| of_norm.dims() == [x.dims()[1]]), OTHER_WIDTH)?;
        Ok(norm::layer_norm(x.clone(), scale, bias, norm.eps))
    }

    fn rms_norm(&self, x: &Tensor<2>, norm: &Norm<PlainVector>) -> Result<Tensor<2>, MachineError> {
        expect(norm.scale.tensor().dims() == [x.dims()[1]], OTHER_WIDTH)?;
        Ok(norm::rms_norm(x.clone(), norm.scale.tensor(), norm.eps))
    }

    fn linear(
        &self,
        x: &Tensor<2>,
        matrix: &Self::Matrix,
        ending: Option<Ending<'_, Self>>,
        _numbers: Numbers,
    ) -> Result<Tensor<2>, MachineError> {
        let weight = only(matrix)?;
        expect(weight.dims()[1] == x.dims()[1], OTHER_WIDTH)?;
        let product = linear(x.clone(), weight);
        let Some(Ending { bias, gelu, added }) = ending else { return Ok(product) };
        let [rows, outputs] = product.dims();
        expect(bias.tensor().dims() == [outputs], OTHER_WIDTH)?;
        let ended = match gelu {
            true => bias_gelu(product, bias.tensor()),
            false => product + bias.tensor().clone().unsqueeze::<2>(),
        };
        let Some(added) = added else { return Ok(ended) };
        let [count, width] = added.dims();
        expect(width == outputs && count > 0 && rows.is_multiple_of(count), OTHER_WIDTH)?;
        let repeated = ended.reshape([rows / count, count, outputs]) + added.clone().unsqueeze::<3>();
        Ok(repeated.reshape([rows, outputs]))
    }

    fn queries_keys_values(
        &self,
        x: &Tensor<2>,
        linears: [(&Self::Matrix, &PlainVector); 3],
        _images: usize,
        _heads: usize,
    ) -> Result<[Tensor<2>; 3], MachineError> {
        let [q, k, v] = linears.map(|(matrix, bias)| {
            self.linear(x, matrix, Some(Ending { bias, gelu: false, added: None }), Numbers::Operands)
        });
        Ok([q?, k?, v?])
    }

    fn full_attention(
        &self,
        [q, k, v]: [Tensor<2>; 3],
        images: usize,
        heads: usize,
        factor: f32,
    ) -> Result<Tensor<2>, MachineError> {
        expect_heads([q.dims(), k.dims(), v.dims()], images, heads)?;
        Ok(attention(q, k, v, heads, images, factor))
    }

    fn mean_of_squares(
        &self,
        x: &Tensor<2>,
        images: usize,
        side: usize,
        size: usize,
    ) -> Result<Tensor<2>, MachineError> {
        let fits = size > 0 && side > 0 && side.is_multiple_of(size);
        expect(fits && x.dims()[0] == images * side * side, "patches that are no whole squares")?;
        Ok(patches::mean_of_squares(x.clone(), side, size))
    }

    fn look_at_features(&self, x: &Tensor<2>) -> Result<Values, MachineError> {
        Ok(on_its_way(x.clone()))
    }

    fn vectors(&self, x: Tensor<2>) -> Result<Vectors, MachineError> {
        Ok(Vectors::of_machine(Arc::new(PlainRows(x))))
    }

    /// Waits for all that was enqueued before it is asked for: burn has no marks within a stream.
    fn mark(&self) -> Pending<()> {
        let device = self.device.clone();
        Pending::deferred(move || {
            let done = waiting(|| device.sync());
            let failed =
                |error| DeviceFailed::new(format!("{device:?}"), "while an image was encoded", error);
            Ok(done.map_err(failed)?)
        })
    }
}
