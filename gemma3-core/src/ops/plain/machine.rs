//! [`Plain`]: the machine that the definitions make up.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorCreationOptions, TensorData};

use super::attention::cached_attention;
use super::gelu::gelu_mul;
use super::linear::linear;
use super::norm::rms_norm;
use super::stream::{Kind, Layer, PlainCache, PlainRows, PlainStream, PlainVector, tensor};
use super::{cache, rope};
use crate::cache::{CacheDtype, CacheShape};
use crate::checkpoint::TensorView;
use crate::device::{DeviceFailed, read};
use crate::formats::Quantization;
use crate::ops::machine::{Entrant, Heads, Machine, Norm, Program, Values};
use crate::ops::pass::{Pass, Piece, pieces_of};
use crate::ops::pending::Pending;
use crate::ops::vectors::EmbeddedSpan;
use crate::ops::weights::each_matrix;
use crate::ops::{MachineError, MatrixError};

/// A device of burn's, on which the definitions run. Weights are expanded to f32 when they are loaded.
#[derive(Debug, Clone)]
pub struct Plain {
    pub(super) device: Device,
}

impl Plain {
    /// The machine on a device of burn's.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone() }
    }

    pub(super) fn tensor<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        tensor(values, shape, &self.device)
    }

    /// Rows `ids` of a table \[vocab, hidden\], times `scale`.
    fn rows_of(&self, table: &Tensor<2>, ids: &[u32], scale: f32) -> Tensor<2> {
        let count = ids.len();
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let options = TensorCreationOptions::new(self.device.clone()).with_dtype(DType::I32);
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), options);
        table.clone().select(0, ids) * scale
    }

    fn vectors_of(&self, span: &EmbeddedSpan, width: usize) -> Result<Tensor<2>, MachineError> {
        let vectors = &span.vectors;
        if vectors.width() != width {
            return Err(MachineError::Bug {
                what: "vectors of another width than the stream entered a pass",
            });
        }
        if let Some((PlainRows(rows), range)) = vectors.on::<PlainRows>()
            && rows.device() == self.device
        {
            return Ok(rows.clone().narrow(0, range.start, range.len()));
        }
        Ok(self.tensor(vectors.to_vec()?, [vectors.len(), width]))
    }
}

impl Machine for Plain {
    type Matrix = Vec<Tensor<2>>;
    type Vector = PlainVector;
    type Rows = Vec<Tensor<2>>;
    type Cache = PlainCache;
    type Stream<'a> = PlainStream<'a>;

    fn name(&self) -> String {
        format!("{:?}", self.device)
    }

    fn matrix(
        &self,
        stacked: Vec<TensorView<'_>>,
        quantization: Quantization,
    ) -> Result<Self::Matrix, MatrixError> {
        each_matrix(stacked, quantization, |view, shape| Ok(self.tensor(view.expand()?, shape)))
    }

    fn matrix_bytes(&self, matrix: &Self::Matrix) -> u64 {
        matrix.iter().map(|weight| (weight.shape().num_elements() * size_of::<f32>()) as u64).sum()
    }

    fn vector(&self, values: Vec<f32>) -> Result<PlainVector, DeviceFailed> {
        let host = Arc::from(&values[..]);
        let count = values.len();
        Ok(PlainVector { tensor: self.tensor(values, [count]), values: host })
    }

    fn vector_values(&self, vector: &PlainVector) -> Result<Vec<f32>, DeviceFailed> {
        Ok(vector.values.to_vec())
    }

    fn cache(&self, shape: &CacheShape) -> PlainCache {
        let dtype = match shape.dtype {
            CacheDtype::F32 => DType::F32,
            CacheDtype::BF16 => DType::BF16,
            CacheDtype::F16 => DType::F16,
        };
        let options = TensorCreationOptions::new(self.device.clone()).with_dtype(dtype);
        let layers = shape.rings.iter().map(|ring| {
            let empty = || Tensor::zeros([shape.kv_heads, ring.slots(), shape.head_dim], options.clone());
            Layer { keys: empty(), values: empty() }
        });
        PlainCache { layers: layers.collect() }
    }

    fn run<P: Program<Self>>(
        &self,
        entrants: &mut [Entrant<'_, Self>],
        program: &mut P,
    ) -> Result<Pending, MachineError> {
        let pass = Pass::new(entrants)?;
        let (inputs, caches) = entrants.iter_mut().map(|e| (e.input, &mut *e.cache)).unzip();
        let mut stream = PlainStream { x: None, pass, inputs, caches, kinds: Vec::new(), logits: None };
        program.run(self, &mut stream)?;
        let PlainStream { pass, logits, .. } = stream;
        Ok(Pending::deferred(move || {
            let logits = logits.map(read).transpose()?;
            pass.outcomes(logits.unwrap_or_default())
        }))
    }

    fn embed(&self, x: &mut PlainStream<'_>, table: &Self::Matrix, scale: f32) -> Result<(), MachineError> {
        let table = only(table)?;
        let [_, width] = table.dims();
        let mut pieces = Vec::with_capacity(x.inputs.len());
        for piece in x.inputs.iter().map(pieces_of).collect::<Result<Vec<_>, _>>()?.concat() {
            pieces.push(match piece {
                Piece::Ids(ids) => self.rows_of(table, ids, scale),
                Piece::Vectors(span) => self.vectors_of(span, width)?,
            });
        }
        x.x = Some(joined(pieces));
        Ok(())
    }

    fn project(
        &self,
        x: &mut PlainStream<'_>,
        norm: &Norm<PlainVector>,
        qkv: &Self::Matrix,
    ) -> Result<Self::Rows, MachineError> {
        let x = rms_norm(x.x()?, &norm.scale.tensor, norm.eps);
        Ok(qkv.iter().map(|weight| linear(x.clone(), weight)).collect())
    }

    fn attend(
        &self,
        x: &mut PlainStream<'_>,
        qkv: Self::Rows,
        heads: &Heads<PlainVector>,
    ) -> Result<Self::Rows, MachineError> {
        let kind = x.make_kind(heads, &self.device);
        let Some(Kind { cos, sin, visibility, .. }) = x.kinds.get(kind) else {
            return Err(MachineError::Bug { what: "a pass lacks the angles it just made" });
        };
        let [q, k, v] = parts(qkv, [heads.query_width(), heads.key_width(), heads.key_width()])?;
        let (q_norm, k_norm) = (&heads.q_norm, &heads.k_norm);
        let q = rope::norm_rope(q, &q_norm.scale.tensor, q_norm.eps, cos, sin, heads.query_factor);
        let k = rope::norm_rope(k, &k_norm.scale.tensor, k_norm.eps, cos, sin, 1.0);

        let mut attended = Vec::with_capacity(x.caches.len());
        for ((sequence, cache), visibility) in x.pass.sequences.iter().zip(&mut x.caches).zip(visibility) {
            let own = |all: &Tensor<2>| all.clone().narrow(0, sequence.rows.start, sequence.rows.len());
            let layer = cache.layers.get_mut(heads.layer).ok_or(NO_LAYER)?;
            layer.keys.inplace(|all| cache::write(all, own(&k), sequence.position));
            layer.values.inplace(|all| cache::write(all, own(&v), sequence.position));
            attended.push(cached_attention(own(&q), &layer.keys, &layer.values, heads.heads, visibility));
        }
        Ok(vec![joined(attended)])
    }

    fn gate(
        &self,
        x: &mut PlainStream<'_>,
        norm: &Norm<PlainVector>,
        gate_up: &Self::Matrix,
    ) -> Result<Self::Rows, MachineError> {
        let [gate, up] = &gate_up[..] else {
            return Err(MachineError::Bug { what: "a gated product without a gate and what it gates" });
        };
        let x = rms_norm(x.x()?, &norm.scale.tensor, norm.eps);
        Ok(vec![gelu_mul(linear(x.clone(), gate), linear(x, up))])
    }

    fn join(
        &self,
        x: &mut PlainStream<'_>,
        rows: Self::Rows,
        matrix: &Self::Matrix,
        norm: &Norm<PlainVector>,
    ) -> Result<(), MachineError> {
        let branch = linear(side_by_side(rows), only(matrix)?);
        x.x = Some(x.x()? + rms_norm(branch, &norm.scale.tensor, norm.eps));
        Ok(())
    }

    fn logits(
        &self,
        x: &mut PlainStream<'_>,
        norm: &Norm<PlainVector>,
        head: &Self::Matrix,
    ) -> Result<(), MachineError> {
        let wanted = x.pass.wanted();
        if wanted.is_empty() {
            return Ok(());
        }
        let all = x.x()?;
        let rows =
            joined(wanted.into_iter().map(|run| all.clone().narrow(0, run.start, run.len())).collect());
        x.logits = Some(linear(rms_norm(rows, &norm.scale.tensor, norm.eps), only(head)?));
        Ok(())
    }

    fn look(&self, x: &mut PlainStream<'_>) -> Result<Values, MachineError> {
        Ok(on_its_way(x.x()?))
    }

    fn add(&self, x: &mut PlainStream<'_>, vector: &[f32]) -> Result<(), MachineError> {
        let all = x.x()?;
        if all.dims()[1] != vector.len() {
            return Err(MachineError::Bug { what: "a vector of another width was added to the stream" });
        }
        x.x = Some(all + self.tensor(vector.to_vec(), [1, vector.len()]));
        Ok(())
    }

    fn look_at(&self, _x: &PlainStream<'_>, rows: &Self::Rows) -> Result<Values, MachineError> {
        Ok(on_its_way(side_by_side(rows.clone())))
    }

    fn multiply(&self, rows: &[f32], matrix: &Self::Matrix) -> Result<Vec<f32>, MachineError> {
        let width = matrix.first().map_or(0, |weight| weight.dims()[1]);
        let count = rows.len().checked_div(width).unwrap_or_default();
        if count == 0 || count * width != rows.len() {
            return Err(MachineError::Bug { what: "rows of another width were multiplied with a matrix" });
        }
        let rows = self.tensor(rows.to_vec(), [count, width]);
        let products = matrix.iter().map(|weight| linear(rows.clone(), weight)).collect();
        Ok(read(side_by_side(products))?)
    }

    fn keys(
        &self,
        x: &PlainStream<'_>,
        sequence: usize,
        layer: usize,
        positions: Range<usize>,
    ) -> Result<Vec<f32>, MachineError> {
        let layer = x.caches.get(sequence).and_then(|cache| cache.layers.get(layer)).ok_or(NO_LAYER)?;
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        if positions.len() > layer.keys.dims()[1] {
            return Err(MachineError::Bug { what: "more positions were asked for than a layer keeps" });
        }
        Ok(read(cache::entries(&layer.keys, positions))?)
    }
}

const NO_LAYER: MachineError = MachineError::Bug { what: "a cache lacks a layer of the model" };

pub(super) fn on_its_way(tensor: Tensor<2>) -> Values {
    Pending::deferred(move || Ok(read(tensor)?))
}

/// The matrix that is multiplied alone.
pub(super) fn only(matrix: &[Tensor<2>]) -> Result<&Tensor<2>, MachineError> {
    match matrix {
        [weight] => Ok(weight),
        _ => Err(MachineError::Bug { what: "several matrices in the place of one" }),
    }
}

/// Outputs of several matrices as columns of one tensor.
fn side_by_side(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(parts, 1) }
}

/// Rows of several sequences, one after the other.
fn joined(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(parts, 0) }
}

/// Columns of these widths, whether they came from matrices of their own or from one.
fn parts<const N: usize>(rows: Vec<Tensor<2>>, widths: [usize; N]) -> Result<[Tensor<2>; N], MachineError> {
    let wrong = MachineError::Bug { what: "queries, keys and values of other widths than the heads" };
    if rows.iter().map(|part| part.dims()[1]).eq(widths) {
        return rows.try_into().map_err(|_| wrong);
    }
    let all = side_by_side(rows);
    if all.dims()[1] != widths.iter().sum::<usize>() {
        return Err(wrong);
    }
    let mut end = 0;
    Ok(widths.map(|width| {
        end += width;
        all.clone().narrow(1, end - width, width)
    }))
}
