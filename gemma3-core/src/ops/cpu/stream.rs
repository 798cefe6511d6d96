//! The residual stream of a pass.

use super::cache::CpuCache;
use super::rows::Spare;
use crate::config::LayerType;
use crate::ops::machine::{Heads, Input};
use crate::ops::pass::Pass;
use crate::ops::plain::rope::cos_sin;

/// The residual stream of a pass, whose rows it carries, and what all its layers share.
#[derive(Debug)]
pub struct CpuStream<'a> {
    /// \[R, width\]; empty before the embeddings.
    pub(super) x: Vec<f32>,
    pub(super) width: usize,
    pub(super) pass: Pass,
    pub(super) inputs: Vec<Input<'a>>,
    pub(super) caches: Vec<&'a mut CpuCache>,
    /// Of the kinds of layers that have been met.
    pub(super) rotations: Vec<Rotation>,
    /// Of the rows that are to get them, \[rows, vocab\].
    pub(super) logits: Vec<f32>,
    /// Normalized rows, while they are multiplied.
    pub(super) normed: Vec<f32>,
    pub(super) spare: Spare,
}

/// Cosines and sines of the angles of every row, each \[R, head_dim / 2\].
#[derive(Debug)]
pub(super) struct Rotation {
    kind: LayerType,
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
}

impl<'a> CpuStream<'a> {
    pub(super) fn new(pass: Pass, inputs: Vec<Input<'a>>, caches: Vec<&'a mut CpuCache>) -> Self {
        Self {
            x: Vec::new(),
            width: 0,
            pass,
            inputs,
            caches,
            rotations: Vec::with_capacity(2),
            logits: Vec::new(),
            normed: Vec::new(),
            spare: Spare::default(),
        }
    }

    /// Makes the angles of a kind of layers when the first of them comes, and says where among `rotations` they
    /// are.
    pub(super) fn make_rotation(&mut self, heads: &Heads<Vec<f32>>) -> usize {
        if let Some(known) = self.rotations.iter().position(|known| known.kind == heads.kind) {
            return known;
        }
        let (cos, sin) = cos_sin(self.pass.positions(), &heads.inv_freq);
        self.rotations.push(Rotation { kind: heads.kind, cos, sin });
        self.rotations.len() - 1
    }
}
