//! What happens inside of a pass, on its way to the host.

use cubecl::server::Handle;

use super::Cube;
use super::matrix::Matrix;
use super::sampled::floats;
use super::stream::{Form, Place, Rows, Stream, Tokens, expect};
use crate::ops::MachineError;
use crate::ops::cube::copy::add_to_rows;
use crate::ops::cube::gemm::{self, Output, Plan, RowFormat, Rows as Operands};
use crate::ops::machine::Values;

impl Cube {
    /// The stream with every branch joined.
    pub(super) fn read_stream(&self, x: &mut Stream<'_>) -> Result<Values, MachineError> {
        self.settle(x)?;
        self.read_rows(x.x(), RowFormat::F32, x.rows, x.buffers.widths.hidden)
    }

    /// Adds a vector to every row of the stream.
    pub(super) fn launch_add(&self, x: &mut Stream<'_>, vector: &[f32]) -> Result<(), MachineError> {
        let hidden = x.buffers.widths.hidden;
        expect(vector.len() == hidden, "what is added is not as wide as its stream")?;
        self.settle(x)?;
        add_to_rows(self.commands.client(), x.x(), &self.commands.upload(vector), x.rows, hidden / 4);
        Ok(())
    }

    /// Rows as the last operation left them.
    pub(super) fn read_place(&self, x: &Stream<'_>, rows: &Rows) -> Result<Values, MachineError> {
        if let Place::Qkv { parts } = rows.place {
            expect(parts == 1, "rows in parts were looked at")?;
        }
        match (rows.form, self.many(x)) {
            (Form::Floats, _) => self.read_rows(rows.floats(x.buffers), RowFormat::F32, x.rows, rows.width),
            (Form::Written, Some(inputs)) => {
                let operands = rows.operands(inputs)?;
                self.read_rows(&operands.handle, operands.format, x.rows, rows.width)
            }
            (Form::Written, None) => {
                Err(MachineError::Bug { what: "few rows were written as many are read" })
            }
        }
    }

    /// Reads the first rows of a buffer.
    pub(super) fn read_rows(
        &self,
        handle: &Handle,
        format: RowFormat,
        rows: usize,
        cols: usize,
    ) -> Result<Values, MachineError> {
        let after = handle.size_in_used().saturating_sub(format.bytes(rows, cols) as u64);
        let queue = self.waiter.queue()?;
        let reading = self.commands.start_reading(&handle.clone().offset_end(after));
        let row_bytes = format.bytes(1, cols).max(1);
        Ok(queue.promise(reading, move |bytes| match format {
            RowFormat::F32 => floats(bytes),
            RowFormat::Bf16 => {
                let rows = bytes.chunks_exact(row_bytes).flat_map(|row| &row.as_chunks().0[..cols]);
                rows.map(|half| half::bf16::from_le_bytes(*half).to_f32()).collect()
            }
            RowFormat::F16 => {
                let rows = bytes.chunks_exact(row_bytes).flat_map(|row| {
                    let factor = row.as_chunks().0[RowFormat::factor_word(cols)];
                    let halves = &row.as_chunks().0[..cols];
                    halves.iter().map(move |half| (half, f32::from_le_bytes(factor)))
                });
                rows.map(|(half, factor)| half::f16::from_le_bytes(*half).to_f32() * factor).collect()
            }
        }))
    }

    /// `rows Wᵀ` by the exact kernel, of rows on the host. Waits for the device.
    pub(super) fn multiply_exactly(&self, rows: &[f32], matrix: &Matrix) -> Result<Vec<f32>, MachineError> {
        let (client, cols) = (self.commands.client(), matrix.cols());
        expect(cols > 0 && rows.len().is_multiple_of(cols), "rows are not as wide as their matrix")?;
        let count = rows.len() / cols;
        let mut products = Vec::with_capacity(matrix.stacks().len());
        for part in matrix.stacks() {
            let width = part.layout.cols;
            expect(width >= cols, "the parts of a matrix differ in width")?;
            // Rows that are filled up with zeros.
            let mut filled = vec![0.0; count * width];
            for (to, from) in filled.chunks_exact_mut(width).zip(rows.chunks_exact(cols)) {
                to[..cols].copy_from_slice(from);
            }
            let out = client.empty((count * part.layout.rows).max(1) * size_of::<f32>());
            let (x, to) = (Operands::f32(&self.commands.upload(&filled)), Operands::f32(&out));
            gemm::launch(client, Plan::Exact { unit_m: 1 }, &x, part, Output::plain(&to), count, None);
            products.push((self.commands.download(&out)?, part.layout.rows));
        }
        let mut all = Vec::with_capacity(count * matrix.outputs());
        for row in 0..count {
            for (product, width) in &products {
                all.extend_from_slice(&product[row * width..][..*width]);
            }
        }
        Ok(all)
    }

    /// The keys of a sequence of the pass. Waits for the device.
    pub(super) fn read_keys(
        &self,
        x: &Stream<'_>,
        sequence: usize,
        layer: usize,
        positions: std::ops::Range<usize>,
    ) -> Result<Vec<f32>, MachineError> {
        let missing = MachineError::Bug { what: "keys were looked for where a pass has none" };
        let Tokens::Chunks(chunks) = &x.tokens else { return Err(missing) };
        let layers = chunks.all.get(sequence).map(|chunk| &chunk.layers);
        let layer = layers.and_then(|layers| layers.get(layer)).ok_or(missing)?;
        layer.read_keys(&self.commands, positions)
    }
}
