//! What the plain machine keeps: numbers that go with weights, caches, and the residual stream of a pass.

use std::any::Any;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorCreationOptions, TensorData};

use super::rope::cos_sin;
use crate::config::LayerType;
use crate::device::{DeviceFailed, read};
use crate::ops::machine::{Heads, Input};
use crate::ops::pass::{Pass, Sequence};
use crate::ops::vectors::MachineRows;
use crate::ops::{MachineError, Visibility};

/// Numbers that go with weights, \[n\]: on the device, and on the host, where angles are computed.
#[derive(Debug, Clone)]
pub struct PlainVector {
    pub(super) tensor: Tensor<1>,
    pub(super) values: Arc<[f32]>,
}

impl PlainVector {
    /// The numbers on the device.
    pub fn tensor(&self) -> &Tensor<1> {
        &self.tensor
    }
}

/// Keys and values of one sequence, of each layer \[kv_heads, slots, head_dim\]. burn shares the memory of clones,
/// and copies that of a layer when one of them writes.
#[derive(Debug, Clone)]
pub struct PlainCache {
    pub(super) layers: Vec<Layer>,
}

#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) keys: Tensor<3>,
    pub(super) values: Tensor<3>,
}

/// Vectors on the device that may enter the first layer as they are, \[positions, hidden\] in f32.
#[derive(Debug, Clone)]
pub struct PlainRows(pub Tensor<2>);

impl MachineRows for PlainRows {
    fn shape(&self) -> [usize; 2] {
        self.0.dims()
    }

    fn read(&self) -> Result<Vec<f32>, DeviceFailed> {
        read(self.0.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The residual stream of a pass.
#[derive(Debug)]
pub struct PlainStream<'a> {
    /// \[R, hidden\]; `None` before the embeddings.
    pub(super) x: Option<Tensor<2>>,
    pub(super) pass: Pass,
    pub(super) inputs: Vec<Input<'a>>,
    pub(super) caches: Vec<&'a mut PlainCache>,
    /// Of the kinds of layers that have been met.
    pub(super) kinds: Vec<Kind>,
    /// Of the rows that are to get them, \[rows, vocab\].
    pub(super) logits: Option<Tensor<2>>,
}

/// What all layers of a kind share in a pass.
#[derive(Debug)]
pub(super) struct Kind {
    kind: LayerType,
    window: Option<usize>,
    /// \[R, 1, head_dim / 2\].
    pub(super) cos: Tensor<3>,
    /// As `cos`.
    pub(super) sin: Tensor<3>,
    /// Of each sequence.
    pub(super) visibility: Vec<Visibility>,
}

const NO_STREAM: MachineError = MachineError::Bug { what: "an operation came before the embeddings" };

impl PlainStream<'_> {
    /// The rows, \[R, hidden\].
    ///
    /// # Errors
    ///
    /// [`MachineError::Bug`] before the embeddings.
    pub(super) fn x(&self) -> Result<Tensor<2>, MachineError> {
        self.x.clone().ok_or(NO_STREAM)
    }

    /// Makes what layers of a kind share when the first of them comes, and says where among `kinds` it is.
    pub(super) fn make_kind(&mut self, heads: &Heads<PlainVector>, device: &Device) -> usize {
        let is_known = |known: &Kind| known.kind == heads.kind && known.window == heads.window;
        if let Some(known) = self.kinds.iter().position(is_known) {
            return known;
        }
        let inv_freq = &heads.inv_freq.values;
        let (cos, sin) = cos_sin(self.pass.positions(), inv_freq);
        let shape = [self.pass.rows, 1, inv_freq.len()];
        let visibility = |s: &Sequence| Visibility::new(s.positions(), heads.window, s.images.clone());
        self.kinds.push(Kind {
            kind: heads.kind,
            window: heads.window,
            cos: tensor(cos, shape, device),
            sin: tensor(sin, shape, device),
            visibility: self.pass.sequences.iter().map(visibility).collect(),
        });
        self.kinds.len() - 1
    }
}

/// Numbers of f32 on a device, whatever dtype it has by default.
pub(super) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    let options = TensorCreationOptions::new(device.clone()).with_dtype(DType::F32);
    Tensor::from_data(TensorData::new(values, shape), options)
}
