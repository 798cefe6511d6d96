//! What is odd about a model's files and doesn't keep the model from running.

use std::fmt;

use crate::config::{Note, Topic};

/// Something odd in a model's files that doesn't change what the model computes, or that was decided one way
/// where the files say two things. Printed, it names the file, what is odd and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warning {
    /// The file, or what stands for it.
    pub file: String,
    /// What it concerns, for programs.
    pub kind: WarningKind,
    /// What is odd: the field, its value.
    pub problem: String,
    /// What follows from it, or was decided.
    pub effect: String,
}

/// What a [`Warning`] concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WarningKind {
    /// A recommended setting of sampling that can't be followed as it stands.
    Recommendation,
    /// A field that Gemma 3 doesn't use.
    IgnoredField,
    /// The id of a token with a meaning (padding, begin, end) that is none of the model's.
    SpecialToken,
    /// The matrix that makes the logits, where the files contradict each other.
    OutputMatrix,
    /// Tokens that the embedding has no row for; they can't be used.
    TokensWithoutRows,
    /// A file beside the model that was passed over.
    IgnoredFile,
}

impl Warning {
    /// A warning on a file.
    pub fn new(
        kind: WarningKind,
        file: impl Into<String>,
        problem: impl Into<String>,
        effect: impl Into<String>,
    ) -> Self {
        Self { file: file.into(), kind, problem: problem.into(), effect: effect.into() }
    }

    /// A remark on a configuration, with the file that it is in.
    pub(super) fn of_note(file: &str, note: Note) -> Self {
        let kind = match note.topic {
            Topic::Recommendation => WarningKind::Recommendation,
            Topic::IgnoredField => WarningKind::IgnoredField,
            Topic::SpecialToken => WarningKind::SpecialToken,
        };
        Self::new(kind, file, note.problem, note.effect)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}; {}", self.file, self.problem, self.effect)
    }
}
