//! The residual stream of a pass, and whose rows it is made of.

use std::ops::Range;
use std::sync::Arc;

use cubecl::server::Handle;

use super::buffers::{Buffers, Inputs};
use super::cache::LayerBuffers;
use super::matrix::{Matrix, Vector};
use crate::ops::MachineError;
use crate::ops::cube::attention::visible_ranges;
use crate::ops::cube::commands::Commands;
use crate::ops::cube::gemm::Rows as Operands;
use crate::ops::cube::matvec::Input;
use crate::ops::machine::Norm;
use crate::ops::vectors::Vectors;

/// The residual stream between two launches: the sum so far, and the norm of what has not joined it yet.
#[derive(Debug)]
pub struct Stream<'a> {
    pub(super) buffers: &'a Buffers,
    pub(super) rows: usize,
    /// What to look up, u32 \[rows\].
    pub(super) ids: &'a Handle,
    pub(super) tokens: Tokens<'a>,
    /// Which of the two buffers of the stream holds the sum.
    current: usize,
    pub(super) branch: Option<Branch>,
    /// f32 \[wanted, vocab\], at the end: in as many buffers as hold them, and their rows.
    pub(super) logits: Vec<(Handle, usize)>,
    /// Weights that launches have read, where a record has to keep them.
    pub(super) held: Option<Vec<Handle>>,
}

/// What has not joined the stream yet.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    /// In how many parts it lies.
    pub(super) parts: usize,
    pub(super) norm: Norm<Vector>,
}

/// Whose tokens the rows of a pass are.
#[derive(Debug)]
pub(super) enum Tokens<'a> {
    /// One of each sequence of a cache.
    Step(StepTokens<'a>),
    /// Consecutive ones of one sequence after the other.
    Chunks(Chunks),
    /// Both: first the rows of the step, then those of the chunks, of which no logits are asked for.
    Both(StepTokens<'a>, Chunks),
}

/// One token of each sequence: nothing of it depends on the positions but the contents of a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepTokens<'a> {
    /// u32 \[sequences\].
    pub(super) positions: &'a Handle,
    pub(super) layers: &'a [LayerBuffers],
    /// Where the parts of attention are gathered.
    pub(super) partial: &'a Handle,
    /// Zeros, by which the last of the cubes that make them knows that it is, where it combines them.
    pub(super) counters: Option<&'a Handle>,
    /// Where logits go, f32 \[sequences, vocab\].
    pub(super) logits: &'a Handle,
    /// Where those of a part of the head are made, if it lies in several.
    pub(super) part: Option<&'a Handle>,
}

/// Consecutive tokens of one sequence after the other.
#[derive(Debug)]
pub(super) struct Chunks {
    pub(super) all: Vec<Chunk>,
    /// First row, and what stands there in the place of embeddings.
    pub(super) spans: Vec<(usize, Vectors)>,
    /// Rows whose logits are asked for.
    pub(super) wanted: Vec<u32>,
}

/// Rows that are consecutive tokens of a sequence.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Their positions.
    pub(super) queries: Range<usize>,
    /// Positions of images.
    pub(super) images: Vec<Range<usize>>,
    /// Position of the first, u32 \[1\].
    pub(super) position: Handle,
    pub(super) layers: Arc<Vec<LayerBuffers>>,
    /// First and end of the positions that each row sees, u32 \[rows, 2\], by the window of a layer.
    pub(super) visible: Vec<(Option<usize>, Handle)>,
}

impl Chunk {
    /// What each row sees through a window: [`visible`](Self::visible), which is made when it is first asked for.
    pub(super) fn visible(&mut self, window: Option<usize>, commands: &Commands) -> Handle {
        if let Some((_, handle)) = self.visible.iter().find(|(known, _)| *known == window) {
            return handle.clone();
        }
        let ranges = visible_ranges(self.queries.clone(), window, &self.images);
        let handle = commands.upload_words(&ranges);
        self.visible.push((window, handle.clone()));
        handle
    }
}

/// Rows of numbers between two operations: a claim on a buffer of the pass.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    pub(super) place: Place,
    pub(super) form: Form,
    /// Numbers in each.
    pub(super) width: usize,
}

/// Which buffer rows lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Queries, keys and values.
    Qkv {
        /// In how many parts.
        parts: usize,
    },
    /// What attention has made.
    Attended,
    /// `gelu(gate) * up`.
    Gated,
}

/// In what numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// f32.
    Floats,
    /// As products of many rows read them, among their inputs.
    Written,
}

impl Rows {
    /// Where they lie in f32.
    pub(super) fn floats<'b>(&self, buffers: &'b Buffers) -> &'b Handle {
        match self.place {
            Place::Qkv { .. } => &buffers.qkv,
            Place::Attended => &buffers.attended,
            Place::Gated => &buffers.gated,
        }
    }

    /// Where they lie, or would, as products of many rows read them.
    ///
    /// # Errors
    ///
    /// Queries, keys and values, which nothing is multiplied with.
    pub(super) fn operands<'b>(&self, inputs: &'b Inputs) -> Result<&'b Operands, MachineError> {
        match self.place {
            Place::Attended => Ok(&inputs.attended),
            Place::Gated => Ok(&inputs.gated),
            Place::Qkv { .. } => Err(MachineError::Bug { what: "keys were multiplied before attention" }),
        }
    }
}

impl<'a> Stream<'a> {
    pub(super) fn new(buffers: &'a Buffers, rows: usize, ids: &'a Handle, tokens: Tokens<'a>) -> Self {
        Self { buffers, rows, ids, tokens, current: 0, branch: None, logits: Vec::new(), held: None }
    }

    /// The sum so far.
    pub(super) fn x(&self) -> &'a Handle {
        &self.buffers.stream[self.current]
    }

    /// Where its next state goes.
    pub(super) fn next(&self) -> &'a Handle {
        &self.buffers.stream[1 - self.current]
    }

    /// In how many parts the branch lies.
    pub(super) fn branch_parts(&self) -> usize {
        self.branch.as_ref().map_or(1, |branch| branch.parts)
    }

    /// Whether the parts of a divided product may stay apart, to be added up by who reads them. Few rows spend more
    /// time between launches than in them; of a prompt, parts would be more to read than the product.
    pub(super) fn is_divided(&self) -> bool {
        matches!(self.tokens, Tokens::Step(_))
    }

    /// The stream with its branch added, normalized: the input of the next products.
    ///
    /// # Errors
    ///
    /// Norms that don't fit each other or the stream.
    pub(super) fn input<'b>(&'b self, norm: &'b Norm<Vector>) -> Result<Input<'b>, MachineError> {
        self.input_of([self.x(), &self.buffers.branch, self.next()], norm)
    }

    /// The same of other rows: the sum so far, the branch, and where the next state goes.
    pub(super) fn input_of<'b>(
        &'b self,
        [x, branch, stream]: [&'b Handle; 3],
        norm: &'b Norm<Vector>,
    ) -> Result<Input<'b>, MachineError> {
        expect(norm.scale.len == self.buffers.widths.hidden, "a norm is not as wide as its stream")?;
        let (scale, eps) = (&norm.scale.handle, norm.eps);
        let Some(Branch { norm: own, .. }) = &self.branch else { return Ok(Input::Normed { x, scale, eps }) };
        // Kernels take one.
        expect(own.eps == eps, "the norms of a stream differ in what they add")?;
        Ok(Input::Residual { x, branch, branch_scale: &own.scale.handle, scale, stream, eps })
    }

    /// A product has added the branch and written the sum.
    pub(super) fn advance(&mut self) {
        if self.branch.take().is_some() {
            self.current = 1 - self.current;
        }
    }

    /// Keeps weights that a launch reads, if this is recorded.
    pub(super) fn hold(&mut self, matrix: Option<&Matrix>, vectors: &[&Vector]) {
        if let Some(held) = &mut self.held {
            held.extend(vectors.iter().map(|vector| vector.handle.clone()));
            let parts = matrix.into_iter().flat_map(Matrix::stacks);
            held.extend(parts.flat_map(|part| [part.quants.clone(), part.side.clone()]));
        }
    }
}

/// Launches check nothing, so that what they rely on is checked in front of them.
pub(super) fn expect(holds: bool, what: &'static str) -> Result<(), MachineError> {
    match holds {
        true => Ok(()),
        false => Err(MachineError::Bug { what }),
    }
}
