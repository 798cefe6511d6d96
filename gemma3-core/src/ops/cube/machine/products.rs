//! Products with weights, of few rows and of many.

use cubecl::server::Handle;

use super::Cube;
use super::buffers::{Apart, Inputs};
use super::matrix::{Matrix, Vector};
use super::stream::{Branch, Form, Place, Rows, Stream, Tokens, expect};
use crate::ops::MachineError;
use crate::ops::cube::copy::{Rectangle, copy_rectangle, gather_rows};
use crate::ops::cube::gelu::gelu_mul;
use crate::ops::cube::gemm::{
    Output, RowFormat, Rows as Operands, linear, linear_parts, write_rows, write_rows_of_parts,
};
use crate::ops::cube::matvec::{Input, MAX_BATCH, Tiling, gated, matvec};
use crate::ops::cube::packed::PackedMatrix;
use crate::ops::machine::Norm;

impl Cube {
    /// Queries, keys and values of the normalized stream.
    pub(super) fn launch_project(
        &self,
        x: &mut Stream<'_>,
        norm: &Norm<Vector>,
        qkv: &Matrix,
    ) -> Result<Rows, MachineError> {
        let widths = x.buffers.widths;
        let fits = qkv.takes(widths.hidden) && qkv.outputs() <= widths.qkv;
        expect(fits, "a projection is not as wide as its stream")?;
        x.hold(Some(qkv), &[&norm.scale]);
        self.normalize(x, norm)?;
        let (input, out) = (x.input(norm)?, &x.buffers.qkv);
        let parts = match qkv.stacks() {
            [whole] => self.product(x, input, |inputs| &inputs.normed, whole, out, x.is_divided()),
            _ => {
                self.side_by_side(x, input, qkv, out, x.buffers.apart()?);
                1
            }
        };
        x.advance();
        Ok(Rows { place: Place::Qkv { parts }, form: Form::Floats, width: qkv.outputs() })
    }

    /// `gelu(gate) * up` of the normalized stream.
    pub(super) fn launch_gate(
        &self,
        x: &mut Stream<'_>,
        norm: &Norm<Vector>,
        gate_up: &Matrix,
    ) -> Result<Rows, MachineError> {
        let (widths, width) = (x.buffers.widths, gate_up.outputs() / 2);
        let fits = gate_up.takes(widths.hidden)
            && width <= widths.intermediate
            && gate_up.outputs() == 2 * width
            && width.is_multiple_of(4);
        expect(fits, "a gate and its up projection are not as wide as their stream")?;
        x.hold(Some(gate_up), &[&norm.scale]);
        self.normalize(x, norm)?;
        let (client, buffers, rows) = (self.commands.client(), x.buffers, x.rows);
        let input = x.input(norm)?;
        let mut form = Form::Floats;
        match (gate_up.stacks(), self.many(x)) {
            ([gate_up], None) => {
                let tiling = self.tiling(gate_up, rows, 2, true);
                let input = self.fitting(input, tiling, &buffers.normed, rows, widths.hidden);
                gated(client, input, gate_up, &buffers.gated, rows, tiling);
            }
            ([gate_up], Some(inputs)) => {
                let (normed, parts) = (&inputs.normed, inputs.parts.as_ref());
                // As the next product reads them, where this one can write that.
                let floats = Operands::f32(&buffers.gated);
                let out = match normed.format.of_products() {
                    RowFormat::F32 => &floats,
                    _ => {
                        form = Form::Written;
                        &inputs.gated
                    }
                };
                linear(client, &self.processor, normed, gate_up, Output::gated(out), rows, parts);
            }
            _ => {
                let apart = buffers.apart()?;
                self.side_by_side(x, input, gate_up, &apart.gate_up, apart);
                gelu_mul(client, &apart.gate_up, &buffers.gated, rows, width);
            }
        }
        x.advance();
        Ok(Rows { place: Place::Gated, form, width })
    }

    /// `rows Wᵀ` into the branch.
    pub(super) fn launch_join(
        &self,
        x: &mut Stream<'_>,
        from: Rows,
        matrix: &Matrix,
        norm: &Norm<Vector>,
    ) -> Result<(), MachineError> {
        let fits = matrix.takes(from.width) && matrix.outputs() == x.buffers.widths.hidden;
        expect(fits, "a product is not as wide as the stream that it joins")?;
        x.hold(Some(matrix), &[&norm.scale]);
        if x.branch.is_some() {
            self.settle(x)?; // Nobody has read the stream since the last.
        }
        let (buffers, matrix) = (x.buffers, matrix.whole()?);
        let (floats, branch) = (from.floats(buffers), &buffers.branch);
        let parts = match (from.form, self.many(x)) {
            (Form::Written, None) => {
                return Err(MachineError::Bug { what: "few rows were written as many are read" });
            }
            (Form::Written, Some(inputs)) => {
                let (operands, divided) = (from.operands(inputs)?, x.is_divided());
                self.linear(operands, matrix, branch, inputs, x.rows, divided)
            }
            (Form::Floats, Some(inputs)) if from.operands(inputs)?.format == RowFormat::F32 => {
                let divided = x.is_divided();
                self.linear(&Operands::f32(floats), matrix, branch, inputs, x.rows, divided)
            }
            (Form::Floats, Some(inputs)) => {
                let (operands, divided) = (from.operands(inputs)?, x.is_divided());
                let (client, cols) = (self.commands.client(), matrix.layout.cols);
                write_rows(client, &self.hardware, Input::Plain { x: floats }, operands, x.rows, cols);
                self.linear(operands, matrix, branch, inputs, x.rows, divided)
            }
            (Form::Floats, None) => self.few(x, Input::Plain { x: floats }, matrix, branch),
        };
        x.branch = Some(Branch { parts, norm: norm.clone() });
        Ok(())
    }

    /// Final norm and head of the rows whose logits are asked for.
    pub(super) fn launch_logits(
        &self,
        x: &mut Stream<'_>,
        norm: &Norm<Vector>,
        head: &Matrix,
    ) -> Result<(), MachineError> {
        let hidden = x.buffers.widths.hidden;
        expect(head.takes(hidden), "the head is not as wide as its stream")?;
        x.hold(Some(head), &[&norm.scale]);
        let head = head.whole()?;
        match &x.tokens {
            Tokens::Step(step) => {
                let fits = x.rows * head.layout.rows * size_of::<f32>();
                expect(step.logits.size_in_used() as usize >= fits, "a step's head became larger")?;
                let inputs = x.buffers.inputs.as_ref().map(|inputs| (&inputs.normed, inputs.parts.as_ref()));
                let (input, normed) = (x.input(norm)?, &x.buffers.normed);
                self.launch_head(input, x.branch_parts(), head, step.logits, x.rows, normed, inputs);
                x.logits = Some(step.logits.clone());
            }
            Tokens::Chunks(chunks) if chunks.wanted.is_empty() => {}
            Tokens::Chunks(chunks) => {
                let client = self.commands.client();
                let count = chunks.wanted.len();
                let empty = |width: usize| client.empty(count * width * size_of::<f32>());
                let logits = empty(head.layout.rows);
                let indices = self.commands.upload_words(&chunks.wanted);
                let [sum, branch] = [x.x(), &x.buffers.branch].map(|from| {
                    let to = empty(hidden);
                    let all = x.buffers.rows.max(x.rows);
                    gather_rows(client, from, all, &indices, &to, count, hidden / 4);
                    to
                });
                let next = empty(hidden);
                let inputs = (count >= self.many_rows())
                    .then(|| Operands::empty(client, self.row_format(), count, hidden));
                let inputs = inputs.as_ref().map(|rows| (rows, None));
                let input = x.input_of([&sum, &branch, &next], norm)?;
                self.launch_head(input, x.branch_parts(), head, &logits, count, &empty(hidden), inputs);
                x.logits = Some(logits);
            }
        }
        Ok(())
    }

    /// Logits \[rows, vocab\]. `normed` is scratch of \[rows, hidden\], `inputs` the same in the format of products of
    /// many rows, and the scratch of these.
    #[allow(clippy::too_many_arguments, reason = "buffers of one launch")]
    fn launch_head(
        &self,
        input: Input<'_>,
        parts_of_branch: usize,
        head: &PackedMatrix,
        logits: &Handle,
        rows: usize,
        normed: &Handle,
        inputs: Option<(&Operands, Option<&Handle>)>,
    ) {
        let (client, hidden) = (self.commands.client(), head.layout.cols);
        match inputs {
            Some((inputs, parts)) if rows >= self.many_rows() => {
                write_rows_of_parts(client, &self.hardware, input, parts_of_branch, inputs, rows, hidden);
                let out = Operands::f32(logits);
                linear(client, &self.processor, inputs, head, Output::plain(&out), rows, parts);
            }
            _ => {
                let tiling = self.tiling(head, rows, 1, true);
                let input = self.fitting(input, tiling, normed, rows, hidden);
                matvec(client, input, head, logits, rows, tiling);
            }
        }
    }

    /// Has the branch join the stream now.
    pub(super) fn settle(&self, x: &mut Stream<'_>) -> Result<(), MachineError> {
        let Some(Branch { parts, norm }) = x.branch.clone() else { return Ok(()) };
        // What is normalized on the way is of no use; any scale will do.
        let (input, scratch) = (x.input(&norm)?, Operands::f32(&x.buffers.normed));
        let hidden = x.buffers.widths.hidden;
        write_rows_of_parts(self.commands.client(), &self.hardware, input, parts, &scratch, x.rows, hidden);
        x.advance();
        Ok(())
    }

    /// Where there are many rows, writes the normalized stream as products read it.
    fn normalize(&self, x: &Stream<'_>, norm: &Norm<Vector>) -> Result<(), MachineError> {
        let Some(inputs) = self.many(x) else { return Ok(()) };
        let (client, input, parts) = (self.commands.client(), x.input(norm)?, x.branch_parts());
        let hidden = x.buffers.widths.hidden;
        write_rows_of_parts(client, &self.hardware, input, parts, &inputs.normed, x.rows, hidden);
        Ok(())
    }

    /// The products of one input with several matrices, side by side in `out`.
    fn side_by_side(&self, x: &Stream<'_>, input: Input<'_>, matrix: &Matrix, out: &Handle, apart: &Apart) {
        let mut column = 0;
        let mut input = input;
        for part in matrix.stacks() {
            self.product(x, input, |inputs| &inputs.normed, part, &apart.part, false);
            let width = part.layout.rows / 4;
            let from = Rectangle { buffer: &apart.part, width, row: 0, column: 0 };
            let to = Rectangle { buffer: out, width: matrix.outputs() / 4, row: 0, column };
            copy_rectangle(self.commands.client(), from, to, x.rows, width);
            column += width;
            // The first product has added the branch to the stream.
            if let Input::Residual { stream, scale, eps, .. } = input {
                input = Input::Normed { x: stream, scale, eps };
            }
        }
    }

    /// A product of what has been written to its `place`, where there are many rows, of `input` otherwise; gives the
    /// parts in which it lies.
    fn product(
        &self,
        x: &Stream<'_>,
        input: Input<'_>,
        place: fn(&Inputs) -> &Operands,
        matrix: &PackedMatrix,
        out: &Handle,
        divided: bool,
    ) -> usize {
        match self.many(x) {
            Some(inputs) => self.linear(place(inputs), matrix, out, inputs, x.rows, divided),
            None => self.few(x, input, matrix, out),
        }
    }

    /// A product of few rows; it lies in one part.
    fn few(&self, x: &Stream<'_>, input: Input<'_>, matrix: &PackedMatrix, out: &Handle) -> usize {
        let stage = !matches!(input, Input::Plain { .. });
        let tiling = self.tiling(matrix, x.rows, 1, stage);
        let input = self.fitting(input, tiling, &x.buffers.normed, x.rows, x.buffers.widths.hidden);
        matvec(self.commands.client(), input, matrix, out, x.rows, tiling);
        1
    }

    /// A product of many rows; gives the parts in which it lies.
    fn linear(
        &self,
        x: &Operands,
        matrix: &PackedMatrix,
        out: &Handle,
        inputs: &Inputs,
        rows: usize,
        divided: bool,
    ) -> usize {
        let client = self.commands.client();
        if divided {
            return linear_parts(client, &self.processor, x, matrix, out, rows);
        }
        let (out, parts) = (Operands::f32(out), inputs.parts.as_ref());
        linear(client, &self.processor, x, matrix, Output::plain(&out), rows, parts);
        1
    }

    /// The input, normalized beforehand where it does not fit the shared memory of the product's cubes.
    fn fitting<'b>(
        &self,
        input: Input<'b>,
        tiling: Tiling,
        normed: &'b Handle,
        rows: usize,
        hidden: usize,
    ) -> Input<'b> {
        if tiling.staged || matches!(input, Input::Plain { .. }) {
            return input;
        }
        write_rows(self.commands.client(), &self.hardware, input, &Operands::f32(normed), rows, hidden);
        Input::Plain { x: normed }
    }

    /// The inputs of products of many rows, if there are many.
    pub(super) fn many<'b>(&self, x: &Stream<'b>) -> Option<&'b Inputs> {
        x.buffers.inputs.as_ref().filter(|_| x.rows >= self.many_rows())
    }

    /// The least number of rows of which products are made as those of prompts: tensor cores read weights as fast
    /// for sixteen rows as for one.
    pub(super) fn many_rows(&self) -> usize {
        match self.row_format() {
            RowFormat::Bf16 | RowFormat::F16 => 2,
            RowFormat::F32 => MAX_BATCH + 1,
        }
    }

    /// The rows that products of many take.
    pub(super) fn row_format(&self) -> RowFormat {
        self.processor.row_format(self.precision)
    }

    fn tiling(&self, matrix: &PackedMatrix, rows: usize, outputs: usize, stage: bool) -> Tiling {
        Tiling::choose(&self.hardware, &matrix.layout, rows, outputs, stage, self.precision)
    }
}
