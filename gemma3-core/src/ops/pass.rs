//! Whose rows those of a pass are, and which of them get logits: what machines that compute at once know of a pass.

use std::ops::Range;

use super::MachineError;
use super::machine::{Entrant, Input, Logits, Machine, Outcome, Wanted};
use super::vectors::EmbeddedSpan;

/// The rows of a pass: those of its sequences, one sequence after the other.
#[derive(Debug)]
pub(crate) struct Pass {
    /// In the order of the entrants.
    pub(crate) sequences: Vec<Sequence>,
    /// Rows of all.
    pub(crate) rows: usize,
}

/// The rows of one sequence.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Which of the pass they are.
    pub(crate) rows: Range<usize>,
    /// Position of the first.
    pub(crate) position: usize,
    /// Positions of the images among them.
    pub(crate) images: Vec<Range<usize>>,
    /// Rows that get logits.
    wanted: Range<usize>,
}

impl Pass {
    /// The rows of some entrants.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bug`] where an entrant asks for what only a machine that chooses tokens can give, or brings
    /// no token, or where there is no entrant.
    pub(crate) fn new<M: Machine>(entrants: &[Entrant<'_, M>]) -> Result<Self, MachineError> {
        if entrants.is_empty() {
            return Err(MachineError::Bug { what: "a pass without sequences" });
        }
        let mut sequences = Vec::with_capacity(entrants.len());
        let mut end = 0;
        for Entrant { input, position, wanted, .. } in entrants {
            let Wanted::Logits(logits) = *wanted else {
                return Err(MachineError::Bug { what: "a machine that chooses no tokens was asked for one" });
            };
            if matches!(input, Input::Chosen) {
                return Err(MachineError::Bug { what: "a token was taken from a machine that chooses none" });
            }
            if input.is_empty() {
                return Err(MachineError::Bug { what: "a sequence entered a pass without a token" });
            }
            let rows = end..end + input.len();
            end = rows.end;
            let wanted = match logits {
                Logits::None => rows.end..rows.end,
                Logits::Last => rows.end - 1..rows.end,
                Logits::All => rows.clone(),
            };
            let (position, images) = (*position, input.images(*position));
            sequences.push(Sequence { rows, position, images, wanted });
        }
        Ok(Self { sequences, rows: end })
    }

    /// The position of every row.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().flat_map(Sequence::positions)
    }

    /// The rows that get logits, in their order, in as few runs as there are.
    pub(crate) fn wanted(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::with_capacity(self.sequences.len());
        for Sequence { wanted, .. } in &self.sequences {
            match runs.last_mut() {
                _ if wanted.is_empty() => {}
                Some(last) if last.end == wanted.start => last.end = wanted.end,
                _ => runs.push(wanted.clone()),
            }
        }
        runs
    }

    /// How many rows get logits.
    pub(crate) fn wanted_rows(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.wanted.len()).sum()
    }

    /// Divides the logits of [`wanted`](Self::wanted) rows among the sequences.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bug`] where they are not so many rows: the program ended without logits.
    pub(crate) fn outcomes(&self, logits: Vec<f32>) -> Result<Vec<Outcome>, MachineError> {
        let rows = self.wanted_rows();
        let vocab = logits.len().checked_div(rows).unwrap_or_default();
        if vocab * rows != logits.len() || (rows > 0 && vocab == 0) {
            return Err(MachineError::Bug { what: "a pass ended with other logits than it was asked for" });
        }
        // A single row, which is what decoding asks for, is handed on as it is.
        let mut rows: Box<dyn Iterator<Item = Vec<f32>>> = match rows {
            0 | 1 => Box::new(std::iter::once(logits)),
            _ => Box::new(logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect::<Vec<_>>().into_iter()),
        };
        let of = |sequence: &Sequence| Outcome {
            logits: rows.by_ref().take(sequence.wanted.len()).collect(),
            token: None,
        };
        Ok(self.sequences.iter().map(of).collect())
    }
}

impl Sequence {
    /// Positions of the rows.
    pub(crate) fn positions(&self) -> Range<usize> {
        self.position..self.position + self.rows.len()
    }
}

/// What enters in a run of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Piece<'a> {
    /// Tokens to look up.
    Ids(&'a [u32]),
    /// Vectors that are given.
    Vectors(&'a EmbeddedSpan),
}

impl Piece<'_> {
    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Vectors(span) => span.len(),
        }
    }
}

/// An input divided at its spans, in the order of its rows, nothing of it empty.
///
/// # Errors
///
/// [`MachineError::Bug`] for spans that are out of order or beyond the ids, and for a token that only a machine which
/// chooses tokens can know.
pub(crate) fn pieces_of<'a>(input: &Input<'a>) -> Result<Vec<Piece<'a>>, MachineError> {
    let (ids, spans) = match *input {
        Input::Ids(ids) => (ids, &[][..]),
        Input::Placed { ids, spans } => (ids, spans),
        Input::Chosen => return Err(MachineError::Bug { what: "a chosen token reached the embeddings" }),
    };
    let mut pieces = Vec::with_capacity(2 * spans.len() + 1);
    let mut done = 0;
    for span in spans {
        let range = span.range();
        let before = ids.get(done..range.start).filter(|_| range.end <= ids.len());
        let unordered = MachineError::Bug { what: "spans out of order entered a pass" };
        pieces.push(Piece::Ids(before.ok_or(unordered)?));
        pieces.push(Piece::Vectors(span));
        done = range.end;
    }
    pieces.push(Piece::Ids(&ids[done..]));
    pieces.retain(|piece| piece.len() > 0);
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(sequences: &[(usize, Range<usize>)]) -> Pass {
        let mut start = 0;
        let sequences = sequences.iter().map(|(rows, wanted)| {
            let rows = start..start + rows;
            let wanted = start + wanted.start..start + wanted.end;
            start = rows.end;
            Sequence { rows, position: 7, images: Vec::new(), wanted }
        });
        Pass { sequences: sequences.collect(), rows: start }
    }

    #[test]
    fn wanted_rows_that_lie_together_are_one_run() {
        let pass = pass(&[(1, 0..1), (2, 0..2), (3, 3..3), (4, 3..4)]);
        assert_eq!(pass.wanted(), [0..3, 9..10]);
        assert_eq!(pass.wanted_rows(), 4);
        assert_eq!(pass.positions().collect::<Vec<_>>(), [7, 7, 8, 7, 8, 9, 7, 8, 9, 10]);
    }

    #[test]
    fn logits_go_to_those_who_asked() {
        let logits = |outcomes: Vec<Outcome>| outcomes.into_iter().map(|o| o.logits).collect::<Vec<_>>();
        let some = pass(&[(2, 0..2), (3, 3..3), (4, 3..4)]);
        let found = some.outcomes(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).map(logits);
        assert_eq!(found, Ok(vec![vec![vec![1.0, 2.0], vec![3.0, 4.0]], vec![], vec![vec![5.0, 6.0]]]));
        assert_eq!(pass(&[(1, 0..1)]).outcomes(vec![1.0, 2.0]).map(logits), Ok(vec![vec![vec![1.0, 2.0]]]));
        assert_eq!(pass(&[(2, 2..2)]).outcomes(vec![]).map(logits), Ok(vec![Vec::<Vec<f32>>::new()]));
        assert!(matches!(some.outcomes(vec![]), Err(MachineError::Bug { .. })));
        assert!(matches!(some.outcomes(vec![0.0; 4]), Err(MachineError::Bug { .. })));
    }
}
