//! Products with weights, of few rows and of many.

use cubecl::client::Client;
use cubecl::server::Handle;

use super::Cube;
use super::buffers::Inputs;
use super::matrix::{Matrix, Vector};
use super::stream::{Branch, Form, Place, Rows, Stream, Tokens, expect};
use crate::ops::MachineError;
use crate::ops::cube::commands::part as part_of;
use crate::ops::cube::copy::{copy_columns, gather_rows};
use crate::ops::cube::gelu::gelu_mul;
use crate::ops::cube::gemm::{
    Ending, Output, RowFormat, Rows as Operands, linear, linear_parts, write_rows, write_rows_of_parts,
};
use crate::ops::cube::limits::product_flops;
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
                self.side_by_side(x, input, qkv, out, &x.buffers.apart()?.part);
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
                self.launch_linear(normed, gate_up, Output::gated(out), rows, parts);
            }
            _ => {
                let apart = buffers.apart()?;
                self.side_by_side(x, input, gate_up, &apart.gate_up, &apart.part);
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
        let (buffers, floats) = (x.buffers, from.floats(x.buffers));
        let operands = match (from.form, self.many(x)) {
            (Form::Written, None) => {
                return Err(MachineError::Bug { what: "few rows were written as many are read" });
            }
            (Form::Floats, None) => None,
            (Form::Floats, Some(inputs)) if from.operands(inputs)?.format == RowFormat::F32 => {
                Some((Operands::f32(floats), inputs))
            }
            (Form::Floats, Some(inputs)) => {
                let (operands, client) = (from.operands(inputs)?, self.commands.client());
                write_rows(client, &self.hardware, Input::Plain { x: floats }, operands, x.rows, from.width);
                Some((operands.clone(), inputs))
            }
            (Form::Written, Some(inputs)) => Some((from.operands(inputs)?.clone(), inputs)),
        };
        let product = |matrix: &PackedMatrix, out: &Handle, divided| match &operands {
            Some((operands, inputs)) => self.linear(operands, matrix, out, inputs, x.rows, divided),
            None => self.few(x, Input::Plain { x: floats }, matrix, out),
        };
        let parts = match matrix.stacks() {
            [whole] => product(whole, &buffers.branch, x.is_divided()),
            _ => {
                let part = &buffers.apart()?.part;
                self.beside(matrix, &buffers.branch, x.rows, part, |matrix, out| {
                    product(matrix, out, false);
                });
                1
            }
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
        match &x.tokens {
            Tokens::Step(step) | Tokens::Both(step, _) => {
                let rows = step.layers.first().map_or(0, |layer| layer.layout.sequences);
                let fits = rows * head.outputs() * size_of::<f32>();
                expect(step.logits.size_in_used() as usize >= fits, "a step's head became larger")?;
                let inputs = x.buffers.inputs.as_ref().map(|inputs| (&inputs.normed, inputs.parts.as_ref()));
                let to = HeadBuffers { normed: &x.buffers.normed, inputs, part: step.part, out: step.logits };
                self.launch_head(x.input(norm)?, x.branch_parts(), head, rows, to);
                x.logits.push((step.logits.clone(), rows));
            }
            Tokens::Chunks(chunks) => {
                let most = self.commands.limits().buffer_bytes / (head.outputs() * size_of::<f32>()) as u64;
                let mut logits = Vec::new();
                for wanted in chunks.wanted.chunks((most as usize).max(1)) {
                    logits.push((self.logits_of(x, norm, head, wanted)?, wanted.len()));
                }
                x.logits = logits;
            }
        }
        Ok(())
    }

    /// Logits of some rows of a pass.
    fn logits_of(
        &self,
        x: &Stream<'_>,
        norm: &Norm<Vector>,
        head: &Matrix,
        wanted: &[u32],
    ) -> Result<Handle, MachineError> {
        let (client, hidden, count) = (self.commands.client(), x.buffers.widths.hidden, wanted.len());
        let empty = |width: usize| client.empty(count * width * size_of::<f32>());
        let indices = self.commands.upload_words(wanted);
        let [sum, branch] = [x.x(), &x.buffers.branch].map(|from| {
            let to = empty(hidden);
            let all = x.buffers.rows.max(x.rows);
            gather_rows(client, from, all, &indices, &to, count, hidden / 4);
            to
        });
        let (next, normed, out) = (empty(hidden), empty(hidden), empty(head.outputs()));
        let inputs =
            (count >= self.many_rows()).then(|| Operands::empty(client, self.row_format(), count, hidden));
        let inputs = inputs.as_ref().map(|rows| (rows, None));
        let part = Self::part_of_head(client, head, count);
        let to = HeadBuffers { normed: &normed, inputs, part: part.as_ref(), out: &out };
        self.launch_head(x.input_of([&sum, &branch, &next], norm)?, x.branch_parts(), head, count, to);
        Ok(out)
    }

    /// Where logits of some rows are made before they lie side by side, if the head lies in several parts.
    pub(super) fn part_of_head(client: &Client, head: &Matrix, rows: usize) -> Option<Handle> {
        let outputs = head.largest_part();
        (outputs > 0).then(|| client.empty(rows * outputs * size_of::<f32>()))
    }

    fn launch_head(
        &self,
        input: Input<'_>,
        parts_of_branch: usize,
        head: &Matrix,
        rows: usize,
        to: HeadBuffers<'_>,
    ) {
        let (client, hidden) = (self.commands.client(), head.cols());
        let mut input = input;
        let many = to.inputs.filter(|_| rows >= self.many_rows());
        if let Some((inputs, _)) = many {
            write_rows_of_parts(client, &self.hardware, input, parts_of_branch, inputs, rows, hidden);
        }
        let product = |matrix: &PackedMatrix, out: &Handle| match many {
            Some((inputs, parts)) => {
                let out = Operands::f32(out);
                self.launch_linear(inputs, matrix, Output::plain(&out), rows, parts);
            }
            None => {
                let tiling = self.tiling(matrix, rows, 1, true);
                matvec(
                    client,
                    self.fitting(input, tiling, to.normed, rows, hidden),
                    matrix,
                    out,
                    rows,
                    tiling,
                );
                input = joined(input);
            }
        };
        self.beside(head, to.out, rows, to.part.unwrap_or(to.out), product);
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

    /// The products of one input with a matrix in several parts, side by side in `out`; `part` is as in
    /// [`beside`](Self::beside).
    fn side_by_side(&self, x: &Stream<'_>, input: Input<'_>, matrix: &Matrix, out: &Handle, part: &Handle) {
        let mut input = input;
        self.beside(matrix, out, x.rows, part, |matrix, out| {
            self.product(x, input, |inputs| &inputs.normed, matrix, out, false);
            input = joined(input);
        });
    }

    /// The products of some rows with the parts of a matrix, side by side in `out`. Each is made by `product`, where it
    /// belongs or, where the outputs of a part don't lie in one piece, in `part`, from which they are copied.
    fn beside(
        &self,
        matrix: &Matrix,
        out: &Handle,
        rows: usize,
        part: &Handle,
        mut product: impl FnMut(&PackedMatrix, &Handle),
    ) {
        let (outputs, alignment) = (matrix.outputs(), self.commands.limits().alignment);
        let mut column = 0;
        for stack in matrix.stacks() {
            let width = stack.layout.rows;
            let start = column * size_of::<f32>();
            if width == outputs {
                product(stack, out);
            } else if rows == 1 && (start as u64).is_multiple_of(alignment) {
                product(stack, &part_of(out, start, width * size_of::<f32>()));
            } else {
                product(stack, part);
                copy_columns(self.commands.client(), [part, out], rows, width, outputs, column);
            }
            column += width;
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
        self.launch_linear(x, matrix, Output::plain(&out), rows, parts);
        1
    }

    /// A product of many rows, in launches that take no longer than a submission may.
    pub(super) fn launch_linear(
        &self,
        x: &Operands,
        matrix: &PackedMatrix,
        out: Output<'_>,
        rows: usize,
        scratch: Option<&Handle>,
    ) {
        let (client, layout) = (self.commands.client(), matrix.layout);
        let added = out.ending.and_then(|ending| ending.added);
        // Rows that begin anew are added to whole launches.
        let each = match added.is_some_and(|(_, count)| count != rows) {
            true => rows.max(1),
            false => self.commands.limits().rows_of_launch(rows, product_flops(1, layout.rows, layout.cols)),
        };
        for first in (0..rows).step_by(each) {
            let count = each.min(rows - first);
            self.commands.spend(product_flops(count, layout.rows, layout.cols));
            if count == rows {
                return linear(client, &self.processor, x, matrix, out, rows, scratch);
            }
            let outputs = if out.gated { layout.rows / 2 } else { layout.rows };
            let floats = |count: usize| count * outputs * size_of::<f32>();
            let added = added.map(|(added, _)| part_of(added, floats(first), floats(count)));
            let added = added.as_ref().map(|added| (added, count));
            let (x, rows) = (x.part(first, count, layout.cols), out.rows.part(first, count, outputs));
            let out =
                Output { rows: &rows, ending: out.ending.map(|ending| Ending { added, ..ending }), ..out };
            linear(client, &self.processor, &x, matrix, out, count, scratch);
        }
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

    /// The least number of rows of which products are made as those of prompts: CUDA's tensor cores read weights as fast
    /// for sixteen rows as for one. Cooperative matrices, which come through shared memory, don't.
    pub(super) fn many_rows(&self) -> usize {
        match self.row_format() {
            RowFormat::Bf16 => 2,
            RowFormat::F16 | RowFormat::F32 => MAX_BATCH + 1,
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

/// Where logits are made.
#[derive(Clone, Copy)]
struct HeadBuffers<'a> {
    /// Scratch, f32 \[rows, hidden\].
    normed: &'a Handle,
    /// The same in the format of products of many rows, and the scratch of these.
    inputs: Option<(&'a Operands, Option<&'a Handle>)>,
    /// Scratch of the products of a head in several parts.
    part: Option<&'a Handle>,
    /// f32 \[rows, vocab\].
    out: &'a Handle,
}

/// The input of the products that follow the first: that has added the branch to the stream.
fn joined(input: Input<'_>) -> Input<'_> {
    match input {
        Input::Residual { stream, scale, eps, .. } => Input::Normed { x: stream, scale, eps },
        input => input,
    }
}
