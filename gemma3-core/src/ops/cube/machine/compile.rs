//! What a device has to compile, and what of it can be compiled beforehand.

use std::collections::HashSet;
use std::sync::Arc;

use super::Cube;
use super::cache::duplicate;
use crate::ops::cube::copy::{Rectangle, copy_rectangle};
use crate::ops::cube::gemm::{Plan, RowFormat};
use crate::ops::cube::packed::{Layout, PackedMatrix};
use crate::ops::machine::ModelShape;

/// Lengths up to which each that has kernels of its own is worth compiling beforehand: turns of a chat, and what is
/// left of prompts.
pub(super) const SHORT: usize = 64;

impl Cube {
    /// Lengths of passes of one sequence, the longest first, that between them launch every kernel that passes of up
    /// to 64 tokens launch, and those of a pass of `most`, which is the longest. Products of cooperative matrices
    /// and those in registers are divided alike up to each power of two, so there it is every kernel of any length.
    pub(super) fn lengths(&self, most: usize, shape: &ModelShape<'_, Self>) -> Vec<usize> {
        let mut lengths = vec![most];
        let mut known = vec![self.plans(most, shape)];
        let powers = (SHORT.ilog2() + 1..usize::BITS).map(|power| 1_usize << power);
        let long: Vec<usize> = match self.row_format() {
            RowFormat::F16 | RowFormat::F32 => powers.take_while(|length| *length < most).collect(),
            RowFormat::Bf16 => vec![],
        };
        for length in (1..most.min(SHORT + 1)).chain(long).rev() {
            let plans = self.plans(length, shape);
            // Of few rows, kernels are made for their number.
            if plans.is_none() || !known.contains(&plans) {
                lengths.push(length);
                known.push(plans);
            }
        }
        lengths
    }

    /// How the products of a pass of so many rows are made, where they are those of many.
    fn plans(&self, rows: usize, shape: &ModelShape<'_, Self>) -> Option<HashSet<(Layout, bool, Plan)>> {
        let format = self.row_format();
        let plan = |matrix: &Arc<PackedMatrix>, gated| {
            (matrix.layout, gated, self.processor.plan(&matrix.layout, format, rows, gated))
        };
        let plans = shape.blocks.iter().flat_map(|block| {
            let projections = [block.qkv, block.output, block.down].into_iter().flat_map(|m| m.stacks());
            let gate_up = block.gate_up.stacks().iter().flat_map(|matrix| [(matrix, false), (matrix, true)]);
            projections.map(|matrix| (matrix, false)).chain(gate_up)
        });
        (rows >= self.many_rows()).then(|| plans.map(|(matrix, gated)| plan(matrix, gated)).collect())
    }

    /// Launches what clones and groups copy caches with over a few bytes, so that a device has compiled it: the kernels
    /// don't depend on sizes.
    pub(crate) fn warm_copies(&self) {
        let client = self.commands.client();
        let from = self.commands.upload_words(&[0; 4]);
        let to = duplicate(client, &from);
        let place = |buffer| Rectangle { buffer, width: 1, row: 0, column: 0 };
        copy_rectangle(client, place(&from), place(&to), 1, 1);
    }
}
