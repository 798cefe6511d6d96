//! The image encoder's operations of [`Cpu`], put together from kernels.

use std::sync::Arc;

use rayon::prelude::*;

use super::attention::{Sizes, attention};
use super::bias_gelu::bias_gelu;
use super::layer_norm::layer_norm;
use super::machine::{Cpu, Given};
use super::matrix::CpuMatrix;
use super::patches::{mean_of_squares, patches};
use super::rms_norm::rms_norm;
use crate::checkpoint::TensorView;
use crate::formats::Quantization;
use crate::ops::image::{Ending, ImageMachine, LayerNorm, Numbers, PatchShape, expect, expect_heads};
use crate::ops::machine::{Norm, Values};
use crate::ops::pending::Pending;
use crate::ops::vectors::Vectors;
use crate::ops::{MachineError, MatrixError};

/// Rows of f32, \[count, width\]. Cloning shares them.
#[derive(Debug, Clone)]
pub struct CpuFeatures {
    values: Arc<Vec<f32>>,
    count: usize,
    width: usize,
}

impl CpuFeatures {
    fn new(values: Vec<f32>, count: usize, width: usize) -> Self {
        Self { values: Arc::new(values), count, width }
    }

    fn shape(&self) -> [usize; 2] {
        [self.count, self.width]
    }
}

const OTHER_WIDTH: &str = "rows of another width than the image encoder's weights";

/// Elements below which one thread does it all: waking others would take longer.
const MIN_TASK_ELEMENTS: usize = 16 * 1024;

impl ImageMachine for Cpu {
    type Features = CpuFeatures;

    fn image_matrix(&self, view: TensorView<'_>) -> Result<CpuMatrix, MatrixError> {
        CpuMatrix::load(vec![view], Quantization::None)
    }

    fn features(&self, values: Vec<f32>, width: usize) -> Result<CpuFeatures, MachineError> {
        expect(width > 0 && values.len().is_multiple_of(width), "features that are no whole rows")?;
        let count = values.len() / width;
        Ok(CpuFeatures::new(values, count, width))
    }

    fn features_shape(&self, x: &CpuFeatures) -> [usize; 2] {
        x.shape()
    }

    fn patches(
        &self,
        pixels: Vec<f32>,
        images: usize,
        shape: PatchShape,
    ) -> Result<CpuFeatures, MachineError> {
        expect(shape.fits(pixels.len(), images), "images that are no whole patches")?;
        let (count, width) = (images * shape.patches(), shape.width());
        let mut out = vec![0.0; count * width];
        patches(&pixels, shape, &mut out);
        Ok(CpuFeatures::new(out, count, width))
    }

    fn layer_norm(
        &self,
        x: &CpuFeatures,
        norm: &LayerNorm<Vec<f32>>,
        _numbers: Numbers,
    ) -> Result<CpuFeatures, MachineError> {
        expect(norm.scale.len() == x.width && norm.bias.len() == x.width, OTHER_WIDTH)?;
        let mut out = vec![0.0; x.values.len()];
        layer_norm(&x.values, &norm.scale, &norm.bias, &mut out, norm.eps);
        Ok(CpuFeatures::new(out, x.count, x.width))
    }

    fn rms_norm(&self, x: &CpuFeatures, norm: &Norm<Vec<f32>>) -> Result<CpuFeatures, MachineError> {
        expect(norm.scale.len() == x.width, OTHER_WIDTH)?;
        let mut out = vec![0.0; x.values.len()];
        rms_norm(&x.values, &norm.scale, &mut out, norm.eps);
        Ok(CpuFeatures::new(out, x.count, x.width))
    }

    fn linear(
        &self,
        x: &CpuFeatures,
        matrix: &CpuMatrix,
        ending: Option<Ending<'_, Self>>,
        _numbers: Numbers,
    ) -> Result<CpuFeatures, MachineError> {
        let outputs = matrix.only()?.out_features();
        let [mut out] = self.products(x, [matrix])?;
        if let Some(Ending { bias, gelu, added }) = ending {
            expect(bias.len() == outputs, OTHER_WIDTH)?;
            let added = match added {
                None => &[][..],
                Some(added) => {
                    let repeats = added.count > 0 && x.count.is_multiple_of(added.count);
                    expect(added.width == outputs && repeats, OTHER_WIDTH)?;
                    &added.values
                }
            };
            if gelu {
                bias_gelu(&mut out, bias);
            }
            add_to_rows(&mut out, (!gelu).then_some(&**bias), added, outputs);
        }
        Ok(CpuFeatures::new(out, x.count, outputs))
    }

    fn queries_keys_values(
        &self,
        x: &CpuFeatures,
        linears: [(&CpuMatrix, &Vec<f32>); 3],
        _images: usize,
        _heads: usize,
    ) -> Result<[CpuFeatures; 3], MachineError> {
        let outs = self.products(x, linears.map(|(matrix, _)| matrix))?;
        let biased = |mut out: Vec<f32>, bias: &Vec<f32>| -> Result<_, MachineError> {
            expect(x.count * bias.len() == out.len(), OTHER_WIDTH)?;
            add_to_rows(&mut out, Some(bias), &[], bias.len());
            Ok(CpuFeatures::new(out, x.count, bias.len()))
        };
        let ([q, k, v], [of_q, of_k, of_v]) = (outs, linears.map(|(_, bias)| bias));
        Ok([biased(q, of_q)?, biased(k, of_k)?, biased(v, of_v)?])
    }

    fn full_attention(
        &self,
        [q, k, v]: [CpuFeatures; 3],
        images: usize,
        heads: usize,
        factor: f32,
    ) -> Result<CpuFeatures, MachineError> {
        let [rows, width] = q.shape();
        expect_heads([q.shape(), k.shape(), v.shape()], images, heads)?;
        let mut out = vec![0.0; rows * width];
        let sizes = Sizes { sequences: images, heads, tokens: rows / images, width };
        attention(&q.values, &k.values, &v.values, &mut out, sizes, factor);
        Ok(CpuFeatures::new(out, rows, width))
    }

    fn mean_of_squares(
        &self,
        x: &CpuFeatures,
        images: usize,
        side: usize,
        size: usize,
    ) -> Result<CpuFeatures, MachineError> {
        let fits = size > 0 && side > 0 && side.is_multiple_of(size);
        expect(fits && x.count == images * side * side, "patches that are no whole squares")?;
        let count = images * (side / size) * (side / size);
        let mut out = vec![0.0; count * x.width];
        mean_of_squares(&x.values, side, size, x.width, &mut out);
        Ok(CpuFeatures::new(out, count, x.width))
    }

    fn look_at_features(&self, x: &CpuFeatures) -> Result<Values, MachineError> {
        Ok(Pending::ready(Ok(x.values.to_vec())))
    }

    fn vectors(&self, x: CpuFeatures) -> Result<Vectors, MachineError> {
        Ok(Vectors::new(Arc::unwrap_or_clone(x.values), x.width))
    }
}

impl Cpu {
    /// Products of the same rows with several matrices, for which the rows are prepared once.
    fn products<const N: usize>(
        &self,
        x: &CpuFeatures,
        matrices: [&CpuMatrix; N],
    ) -> Result<[Vec<f32>; N], MachineError> {
        let mut weights = Vec::with_capacity(N);
        for matrix in matrices {
            weights.push(matrix.only()?);
        }
        let given = Given { x: &x.values, width: x.width, precision: self.precision };
        let mut outs: [Vec<f32>; N] = std::array::from_fn(|n| vec![0.0; x.count * weights[n].out_features()]);
        let products = weights.into_iter().zip(outs.iter_mut().map(|out| &mut out[..])).collect();
        given.times_each(None, products, &mut Vec::new())?;
        Ok(outs)
    }
}

/// `out += bias`, then `out += added`, whose rows repeat if they are fewer; where there are such.
fn add_to_rows(out: &mut [f32], bias: Option<&[f32]>, added: &[f32], width: usize) {
    if width == 0 || (bias.is_none() && added.is_empty()) {
        return;
    }
    let rows = MIN_TASK_ELEMENTS.div_ceil(width);
    out.par_chunks_mut(rows * width).enumerate().for_each(|(task, out)| {
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            if let Some(bias) = bias {
                out.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
            if !added.is_empty() {
                let first = (task * rows + row) * width % added.len();
                out.iter_mut().zip(&added[first..]).for_each(|(x, added)| *x += added);
            }
        }
    });
}
