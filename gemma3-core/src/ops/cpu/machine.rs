//! [`Cpu`]: the decoder's operations, put together from kernels.

use std::ops::Range;

use super::cache::CpuCache;
use super::cached_attention::{MAX_FEW_ROWS, Queries};
use super::matrix::CpuMatrix;
use super::norm_rope::norm_rope;
use super::packed::{Activations, FEW_ROWS, PackedMatrix, multiply_each, multiply_gated};
use super::rms_norm::{rms_norm, rms_norm_add};
use super::rows::CpuRows;
use super::stream::CpuStream;
use crate::cache::CacheShape;
use crate::checkpoint::TensorView;
use crate::device::DeviceFailed;
use crate::formats::Quantization;
use crate::ops::machine::{Entrant, Heads, Machine, Norm, Program, Values};
use crate::ops::pass::{Pass, Piece, pieces_of};
use crate::ops::pending::Pending;
use crate::ops::visibility::VisibleKeys;
use crate::ops::{MachineError, MatrixError, Precision};

/// Rows of a product that are done together. Each piece of weights meets all of them, so that they should stay
/// in the last-level cache: 512 of the widest activations here (15,360 in the 12B) are 31 MB, of the image
/// encoder's 9 MB.
const MAX_ROWS_AT_ONCE: usize = 512;

/// So many rows of one sequence, or more, are computed alike: each as it would be among any others. Fewer go to
/// kernels that round otherwise.
const ALIKE_ROWS: usize = MAX_FEW_ROWS + 1;
const _: () = assert!(ALIKE_ROWS > FEW_ROWS && MAX_ROWS_AT_ONCE >= 2 * ALIKE_ROWS);

/// The processor. Everything runs on the threads of the current rayon pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// How exact products are.
    pub precision: Precision,
}

const OTHER_WIDTH: MachineError = MachineError::Bug { what: "rows of another width than the weights" };

impl Machine for Cpu {
    type Matrix = CpuMatrix;
    type Vector = Vec<f32>;
    type Rows = CpuRows;
    type Cache = CpuCache;
    type Stream<'a> = CpuStream<'a>;

    fn name(&self) -> String {
        "flex".to_owned()
    }

    fn matrix(
        &self,
        stacked: Vec<TensorView<'_>>,
        quantization: Quantization,
    ) -> Result<CpuMatrix, MatrixError> {
        CpuMatrix::load(stacked, quantization)
    }

    fn matrix_bytes(&self, matrix: &CpuMatrix) -> u64 {
        matrix.bytes()
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, DeviceFailed> {
        Ok(values)
    }

    fn vector_values(&self, vector: &Vec<f32>) -> Result<Vec<f32>, DeviceFailed> {
        Ok(vector.clone())
    }

    fn cache(&self, shape: &CacheShape) -> CpuCache {
        CpuCache::new(shape)
    }

    fn alike_tokens(&self) -> usize {
        ALIKE_ROWS
    }

    fn run<P: Program<Self>>(
        &self,
        entrants: &mut [Entrant<'_, Self>],
        program: &mut P,
    ) -> Result<Pending, MachineError> {
        let pass = Pass::new(entrants)?;
        let (inputs, caches) = entrants.iter_mut().map(|e| (e.input, &mut *e.cache)).unzip();
        let mut stream = CpuStream::new(pass, inputs, caches);
        program.run(self, &mut stream)?;
        Ok(Pending::ready(stream.pass.outcomes(stream.logits)))
    }

    fn embed(&self, x: &mut CpuStream<'_>, table: &CpuMatrix, scale: f32) -> Result<(), MachineError> {
        let table = table.only()?;
        let width = table.in_features();
        let mut rows = x.spare.take(x.pass.rows * width);
        for (input, sequence) in x.inputs.iter().zip(&x.pass.sequences) {
            let mut rest = &mut rows[sequence.rows.start * width..sequence.rows.end * width];
            for piece in pieces_of(input)? {
                let (own, after) = rest.split_at_mut(piece.len() * width);
                rest = after;
                match piece {
                    Piece::Ids(ids) => look_up(table, ids, scale, own)?,
                    Piece::Vectors(span) if span.vectors.width() == width => {
                        own.copy_from_slice(&span.vectors.to_vec()?);
                    }
                    Piece::Vectors(_) => {
                        let what = "vectors of another width than the stream entered a pass";
                        return Err(MachineError::Bug { what });
                    }
                }
            }
        }
        (x.x, x.width) = (rows, width);
        Ok(())
    }

    fn project(
        &self,
        x: &mut CpuStream<'_>,
        norm: &Norm<Vec<f32>>,
        qkv: &CpuMatrix,
    ) -> Result<CpuRows, MachineError> {
        let rows = x.pass.rows;
        let widths: Vec<usize> = qkv.all().iter().map(PackedMatrix::out_features).collect();
        let mut values = x.spare.take(rows * widths.iter().sum::<usize>());
        let given = Given { x: &x.x, width: x.width, precision: self.precision };
        given.times(Some(norm), qkv.all(), &mut x.normed, &mut values)?;
        Ok(CpuRows { values, rows, widths })
    }

    fn attend(
        &self,
        x: &mut CpuStream<'_>,
        qkv: CpuRows,
        heads: &Heads<Vec<f32>>,
    ) -> Result<CpuRows, MachineError> {
        let (rows, width, key_width) = (x.pass.rows, heads.query_width(), heads.key_width());
        if qkv.rows != rows || qkv.widths != [width, key_width, key_width] {
            let what = "queries, keys and values of other widths than the heads";
            return Err(MachineError::Bug { what });
        }
        let of_head = [heads.q_norm.scale.len(), heads.k_norm.scale.len(), 2 * heads.inv_freq.len()];
        if of_head != [heads.head_dim; 3] {
            return Err(MachineError::Bug { what: "norms or frequencies of another width than a head" });
        }
        let rotation = x.make_rotation(heads);
        let CpuStream { pass, caches, spare, rotations, .. } = x;
        let Some(angles) = rotations.get(rotation) else {
            return Err(MachineError::Bug { what: "a pass lacks the angles it just made" });
        };
        let mut qkv = qkv.values;
        let (q, kv) = qkv.split_at_mut(rows * width);
        let (k, v) = kv.split_at_mut(rows * key_width);
        let Norm { scale, eps } = &heads.q_norm;
        norm_rope(q, scale, *eps, &angles.cos, &angles.sin, heads.heads, heads.query_factor);
        let Norm { scale, eps } = &heads.k_norm;
        norm_rope(k, scale, *eps, &angles.cos, &angles.sin, heads.kv_heads, 1.0);

        let mut attended = spare.take(rows * width);
        for (sequence, cache) in pass.sequences.iter().zip(caches) {
            let of = |width: usize| sequence.rows.start * width..sequence.rows.end * width;
            let layer = cache.layer_mut(heads.layer)?;
            layer.write(&k[of(key_width)], &v[of(key_width)], sequence.position)?;
            let queries = Queries {
                values: &q[of(width)],
                heads: heads.heads,
                position: sequence.position,
                visible: VisibleKeys { window: heads.window, images: &sequence.images },
            };
            layer.attend(queries, &mut attended[of(width)])?;
        }
        spare.give(qkv);
        Ok(CpuRows { values: attended, rows, widths: vec![width] })
    }

    fn gate(
        &self,
        x: &mut CpuStream<'_>,
        norm: &Norm<Vec<f32>>,
        gate_up: &CpuMatrix,
    ) -> Result<CpuRows, MachineError> {
        let [gate, up] = gate_up.gate_and_up()?;
        let (rows, width) = (x.pass.rows, gate.out_features());
        let mut values = x.spare.take(rows * width);
        let given = Given { x: &x.x, width: x.width, precision: self.precision };
        given.check(Some(norm), gate_up.all())?;
        for part in rows_at_once(rows) {
            let activations = given.activations(part.clone(), Some(norm), &mut x.normed);
            multiply_gated(&activations, gate, up, &mut values[part.start * width..part.end * width]);
        }
        Ok(CpuRows { values, rows, widths: vec![width] })
    }

    fn join(
        &self,
        x: &mut CpuStream<'_>,
        rows: CpuRows,
        matrix: &CpuMatrix,
        norm: &Norm<Vec<f32>>,
    ) -> Result<(), MachineError> {
        let [width] = rows.widths[..] else { return Err(OTHER_WIDTH) };
        if norm.scale.len() != x.width || matrix.only()?.out_features() != x.width || rows.rows != x.pass.rows
        {
            return Err(OTHER_WIDTH);
        }
        let mut joined = x.spare.take(x.x.len());
        let given = Given { x: &rows.values, width, precision: self.precision };
        given.times(None, matrix.all(), &mut x.normed, &mut joined)?;
        rms_norm_add(&mut joined, &norm.scale, &x.x, norm.eps);
        x.spare.give(std::mem::replace(&mut x.x, joined));
        x.spare.give(rows.values);
        Ok(())
    }

    fn logits(
        &self,
        x: &mut CpuStream<'_>,
        norm: &Norm<Vec<f32>>,
        head: &CpuMatrix,
    ) -> Result<(), MachineError> {
        let wanted = x.pass.wanted();
        let width = x.width;
        let of = |run: &Range<usize>| run.start * width..run.end * width;
        let gathered: Vec<f32>;
        let rows: &[f32] = match &wanted[..] {
            [] => return Ok(()),
            [run] => x.x.get(of(run)).ok_or(OTHER_WIDTH)?,
            runs => {
                let runs = runs.iter().map(|run| x.x.get(of(run)).ok_or(OTHER_WIDTH));
                gathered = runs.collect::<Result<Vec<_>, _>>()?.concat();
                &gathered
            }
        };
        let mut logits = vec![0.0; x.pass.wanted_rows() * head.only()?.out_features()];
        let given = Given { x: rows, width, precision: self.precision };
        given.times(Some(norm), head.all(), &mut x.normed, &mut logits)?;
        x.logits = logits;
        Ok(())
    }

    fn look(&self, x: &mut CpuStream<'_>) -> Result<Values, MachineError> {
        Ok(Pending::ready(Ok(x.x.clone())))
    }

    fn add(&self, x: &mut CpuStream<'_>, vector: &[f32]) -> Result<(), MachineError> {
        if vector.len() != x.width {
            return Err(MachineError::Bug { what: "a vector of another width was added to the stream" });
        }
        for row in x.x.chunks_exact_mut(x.width.max(1)) {
            row.iter_mut().zip(vector).for_each(|(x, added)| *x += added);
        }
        Ok(())
    }

    fn look_at(&self, _x: &CpuStream<'_>, rows: &CpuRows) -> Result<Values, MachineError> {
        Ok(Pending::ready(Ok(rows.side_by_side())))
    }

    fn multiply(&self, rows: &[f32], matrix: &CpuMatrix) -> Result<Vec<f32>, MachineError> {
        let width = matrix.all().first().map_or(0, PackedMatrix::in_features);
        let count = rows.len().checked_div(width).unwrap_or_default();
        let widths: Vec<usize> = matrix.all().iter().map(PackedMatrix::out_features).collect();
        let mut values = vec![0.0; count * widths.iter().sum::<usize>()];
        let given = Given { x: rows, width, precision: Precision::Exact };
        given.times(None, matrix.all(), &mut Vec::new(), &mut values)?;
        let product = CpuRows { values, rows: count, widths };
        Ok(if product.widths.len() == 1 { product.values } else { product.side_by_side() })
    }

    fn keys(
        &self,
        x: &CpuStream<'_>,
        sequence: usize,
        layer: usize,
        positions: Range<usize>,
    ) -> Result<Vec<f32>, MachineError> {
        let no_sequence = MachineError::Bug { what: "a pass was asked for a sequence that it lacks" };
        x.caches.get(sequence).ok_or(no_sequence)?.layer(layer)?.keys(positions)
    }
}

/// Rows that are multiplied with weights.
pub(super) struct Given<'a> {
    /// \[rows, width\].
    pub(super) x: &'a [f32],
    pub(super) width: usize,
    pub(super) precision: Precision,
}

impl Given<'_> {
    fn check<'m>(
        &self,
        norm: Option<&Norm<Vec<f32>>>,
        matrices: impl IntoIterator<Item = &'m PackedMatrix>,
    ) -> Result<(), MachineError> {
        let fits = matrices.into_iter().all(|matrix| matrix.in_features() == self.width)
            && norm.is_none_or(|norm| norm.scale.len() == self.width)
            && self.width > 0
            && !self.x.is_empty()
            && self.x.len().is_multiple_of(self.width);
        if fits { Ok(()) } else { Err(OTHER_WIDTH) }
    }

    /// Some of the rows, normalized into `normed` if they are to be.
    fn activations<'b>(
        &'b self,
        rows: Range<usize>,
        norm: Option<&Norm<Vec<f32>>>,
        normed: &'b mut Vec<f32>,
    ) -> Activations<'b> {
        let count = rows.len();
        let mut x = &self.x[rows.start * self.width..rows.end * self.width];
        if let Some(Norm { scale, eps }) = norm {
            normed.resize(x.len(), 0.0);
            rms_norm(x, scale, normed, *eps);
            x = normed;
        }
        Activations::new(x, count, self.width, self.precision)
    }

    /// Products with each of the matrices, one \[rows, out\] after the other in `out`.
    fn times(
        &self,
        norm: Option<&Norm<Vec<f32>>>,
        matrices: &[PackedMatrix],
        normed: &mut Vec<f32>,
        out: &mut [f32],
    ) -> Result<(), MachineError> {
        let rows = self.x.len().checked_div(self.width).unwrap_or_default();
        let outputs: usize = matrices.iter().map(PackedMatrix::out_features).sum();
        if out.len() != rows * outputs {
            return Err(OTHER_WIDTH);
        }
        let mut rest = out;
        let mut products = Vec::with_capacity(matrices.len());
        for matrix in matrices {
            let (out, tail) = rest.split_at_mut(rows * matrix.out_features());
            products.push((matrix, out));
            rest = tail;
        }
        self.times_each(norm, products, normed)
    }

    /// Products with each of the matrices, each \[rows, out\] in what is given with it.
    pub(super) fn times_each(
        &self,
        norm: Option<&Norm<Vec<f32>>>,
        mut products: Vec<(&PackedMatrix, &mut [f32])>,
        normed: &mut Vec<f32>,
    ) -> Result<(), MachineError> {
        self.check(norm, products.iter().map(|(matrix, _)| *matrix))?;
        let rows = self.x.len() / self.width;
        if products.iter().any(|(matrix, out)| out.len() != rows * matrix.out_features()) {
            return Err(OTHER_WIDTH);
        }
        for part in rows_at_once(rows) {
            let activations = self.activations(part.clone(), norm, normed);
            let products = products.iter_mut().map(|(matrix, out)| {
                let width = matrix.out_features();
                (*matrix, &mut out[part.start * width..part.end * width])
            });
            multiply_each(&activations, products);
        }
        Ok(())
    }
}

/// Divides rows evenly, so that the last are not so few that they would be rounded otherwise.
fn rows_at_once(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let times = rows.div_ceil(MAX_ROWS_AT_ONCE).max(1);
    (0..times).map(move |n| n * rows / times..(n + 1) * rows / times)
}

/// Rows of a table, times `scale`.
fn look_up(table: &PackedMatrix, ids: &[u32], scale: f32, out: &mut [f32]) -> Result<(), MachineError> {
    for (row, id) in out.chunks_exact_mut(table.in_features().max(1)).zip(ids) {
        if *id as usize >= table.out_features() {
            return Err(MachineError::Bug { what: "a token beyond the vocabulary entered a pass" });
        }
        table.row(*id as usize, row);
        row.iter_mut().for_each(|x| *x *= scale);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_divided_without_a_small_rest() {
        let lens = |rows| rows_at_once(rows).map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(lens(512), [512]);
        assert_eq!(lens(513), [256, 257]);
        assert_eq!(lens(1025), [341, 342, 342]);
        assert_eq!(lens(0), [0]);
        assert_eq!(rows_at_once(1025).last(), Some(683..1025));
    }
}
