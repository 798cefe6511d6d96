//! Weights in the device's memory, in the format of their file.

use std::sync::Arc;

use cubecl::server::Handle;

use crate::checkpoint::TensorView;
use crate::formats::blocks::BlockError;
use crate::formats::{Quantization, TensorFormat};
use crate::ops::cube::commands::Commands;
use crate::ops::cube::packed::{Layout, PackError, PackedMatrix};
use crate::ops::weights::as_matrix;
use crate::ops::{MachineError, MatrixError};

/// Matrices with the same input: one after the other in one, so that one launch serves them all, or several, where their
/// formats differ or a buffer can't be as large.
#[derive(Debug, Clone)]
pub struct Matrix {
    stacks: Vec<Arc<PackedMatrix>>,
    /// Columns before the zeros that rows may be filled up with.
    cols: usize,
}

/// Numbers of f32.
#[derive(Debug, Clone)]
pub struct Vector {
    pub(super) handle: Handle,
    pub(super) len: usize,
    /// The size that none of them exceeds.
    pub(super) largest: f32,
}

impl Matrix {
    /// Tensors of a checkpoint in the format of the file, or quantized. Those of one format lie one after the other, in as
    /// few buffers as the device holds them in.
    ///
    /// # Errors
    ///
    /// Bytes that are not what format and shape ask for, and rows that kernels can't read or that no buffer holds.
    pub(super) fn load(
        commands: &Commands,
        views: Vec<TensorView<'_>>,
        quantization: Quantization,
    ) -> Result<Self, MatrixError> {
        let places: Vec<_> = views.iter().map(|view| view.place.clone()).collect();
        let views = views.into_iter().map(|view| Ok(as_matrix(view, quantization)?.0));
        let views = views.collect::<Result<Vec<_>, MatrixError>>()?;
        let kind = |view: &TensorView<'_>| (view.format, view.shape[1..].iter().product::<usize>());
        let mut stacks = Vec::with_capacity(1);
        for views in views.chunk_by(|a, b| kind(a) == kind(b)) {
            let (format, cols) = kind(&views[0]);
            let bytes: Vec<&[u8]> = views.iter().map(|view| &*view.bytes).collect();
            stacks.extend(upload(commands, format, cols, &bytes)?);
        }
        let cols = views.first().map_or(0, |view| kind(view).1);
        drop(views);
        for (bytes, range) in places.into_iter().flatten() {
            bytes.release(range);
        }
        Ok(Self { stacks, cols })
    }

    /// A tensor of a checkpoint for products of many rows with tensor cores alone: in bf16, to which they round a weight
    /// of another float format anyway, with rows filled up with zeros to a multiple of `filled` columns. Formats of
    /// blocks stay as they are.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load).
    pub(crate) fn for_tensor_cores(
        commands: &Commands,
        view: TensorView<'_>,
        filled: usize,
    ) -> Result<Self, MatrixError> {
        let [rows, ref rest @ ..] = view.shape[..] else {
            return Err(MatrixError::NotAMatrix { found: view.shape });
        };
        let cols: usize = rest.iter().product();
        let width = cols.next_multiple_of(filled);
        let is_float = matches!(view.format, TensorFormat::F32 | TensorFormat::F16 | TensorFormat::BF16);
        let is_ready = view.format == TensorFormat::BF16 && width == cols;
        let view = match is_float && !is_ready {
            false => view,
            true => {
                let values = view.expand()?;
                let mut bytes = vec![0; rows * width * size_of::<half::bf16>()];
                for (to, from) in bytes.chunks_exact_mut(2 * width).zip(values.chunks_exact(cols.max(1))) {
                    for (to, from) in to.chunks_exact_mut(2).zip(from) {
                        to.copy_from_slice(&half::bf16::from_f32(*from).to_le_bytes());
                    }
                }
                view.with_bytes(vec![rows, width], TensorFormat::BF16, bytes)
            }
        };
        Ok(Self { cols, ..Self::load(commands, vec![view], Quantization::None)? })
    }

    /// The same for cooperative matrices of f16 alone: in f16, multiplied by a power of two.
    ///
    /// # Errors
    ///
    /// Those of [`load`](Self::load).
    pub(crate) fn for_cooperative_matrices(
        commands: &Commands,
        view: TensorView<'_>,
    ) -> Result<Self, MatrixError> {
        let [_, ref rest @ ..] = view.shape[..] else {
            return Err(MatrixError::NotAMatrix { found: view.shape });
        };
        let cols: usize = rest.iter().product();
        if !matches!(view.format, TensorFormat::F32 | TensorFormat::BF16) {
            return Self::load(commands, vec![view], Quantization::None);
        }
        let matrix = PackedMatrix::upload_as_halves(commands.client(), cols, &view.expand()?)?;
        if let Some((bytes, range)) = view.place {
            bytes.release(range);
        }
        Ok(Self { stacks: vec![Arc::new(matrix)], cols })
    }

    /// Rows of one format, one after the other: each stack is multiplied by launches of its own.
    pub(crate) fn stacks(&self) -> &[Arc<PackedMatrix>] {
        &self.stacks
    }

    /// The only stack.
    ///
    /// # Errors
    ///
    /// Where there are several.
    pub(crate) fn whole(&self) -> Result<&Arc<PackedMatrix>, MachineError> {
        match &self.stacks[..] {
            [whole] => Ok(whole),
            _ => Err(MachineError::Bug { what: "a matrix lies in several parts where one is needed" }),
        }
    }

    /// Columns: the width of what it is multiplied with.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Rows: the width of all outputs side by side.
    pub(crate) fn outputs(&self) -> usize {
        self.stacks.iter().map(|stack| stack.layout.rows).sum()
    }

    /// Whether every stack is multiplied with rows of exactly so many numbers.
    pub(super) fn takes(&self, cols: usize) -> bool {
        self.stacks.iter().all(|stack| stack.layout.cols == cols)
    }

    /// Rows of the largest stack, where there are several; 0 where there is one.
    pub(super) fn largest_part(&self) -> usize {
        match &self.stacks[..] {
            [_] => 0,
            stacks => stacks.iter().map(|stack| stack.layout.rows).max().unwrap_or(0),
        }
    }

    /// Bytes in the device's memory.
    pub(super) fn bytes(&self) -> u64 {
        self.stacks.iter().map(|stack| stack.layout.bytes() as u64).sum()
    }
}

/// Copies rows of one format to the device, in as few buffers as it holds them in.
fn upload(
    commands: &Commands,
    format: TensorFormat,
    cols: usize,
    parts: &[&[u8]],
) -> Result<Vec<Arc<PackedMatrix>>, MatrixError> {
    let row_bytes = format.row_bytes(cols).map_err(|error| PackError::from(BlockError::from(error)))?.max(1);
    let rows = parts.iter().map(|part| part.len() / row_bytes).sum();
    let each = Layout::new(format, rows, cols)?.rows_of_part(commands.limits().buffer_bytes)?;
    let upload = |parts: &[&[u8]]| {
        PackedMatrix::upload(commands.client(), format, cols, parts).map(Arc::new).map_err(MatrixError::from)
    };
    if each == rows {
        return Ok(vec![upload(parts)?]);
    }
    let (mut stacks, mut stack, mut room) = (Vec::new(), Vec::new(), each * row_bytes);
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(room));
            stack.push(now);
            (rest, room) = (later, room - now.len());
            if room == 0 {
                stacks.push(upload(&stack)?);
                stack.clear();
                room = each * row_bytes;
            }
        }
    }
    if !stack.is_empty() {
        stacks.push(upload(&stack)?);
    }
    Ok(stacks)
}
