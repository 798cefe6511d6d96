//! Models that llama.cpp has split into several GGUF files. Each part is a GGUF file with its number, how many
//! there are and the tensors of all of them in its metadata; only the first has the rest of the metadata.

use std::path::Path;

use super::file::{GgufFile, read_header};
use super::{GgufError, GgufMetadata};
use crate::checkpoint::part_name::PartName;
use crate::checkpoint::tensors::TensorTable;
use crate::checkpoint::{CheckpointBytes, CheckpointError};

/// From 0.
const NUMBER: &str = "split.no";
const PARTS: &str = "split.count";
/// Of all parts together.
const TENSORS: &str = "split.tensors.count";

/// What the metadata says of a split: which part this is, counted from 1, and of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) part: u64,
    pub(super) parts: u64,
}

impl Split {
    /// `None` for a file that is whole.
    pub(super) fn of(metadata: &GgufMetadata) -> Option<Self> {
        let parts = number(metadata, PARTS).filter(|parts| *parts > 1)?;
        let part = number(metadata, NUMBER).unwrap_or(0).saturating_add(1);
        Some(Self { part, parts })
    }

    /// The error for a part without the others.
    pub(super) fn alone(self) -> GgufError {
        GgufError::Split { part: self.part, parts: self.parts }
    }
}

/// Opens all parts of the model that the file at `path` is one of; they lie in its folder and differ in their
/// numbers only.
pub(super) fn open(path: &Path, split: Split) -> Result<GgufFile, CheckpointError> {
    let label = path.display().to_string();
    let named = path.file_name().and_then(|name| name.to_str());
    let named = named.and_then(|name| PartName::parse(name, ".gguf"));
    // The name leads to the other parts, so it must not say something else than the file.
    let is_right = |name: &PartName<'_>| split == Split { part: name.part.into(), parts: name.parts.into() };
    let Some(part) = named.filter(is_right) else {
        let Split { part, parts } = split;
        return Err(refused(label, GgufError::SplitName { part, parts }));
    };
    let mut set = PartSet::default();
    for (number, name) in (1..).zip(part.all()) {
        let path = path.with_file_name(name);
        if !path.exists() {
            return Err(CheckpointError::MissingPart { path, parts: part.parts });
        }
        set.add(&path, Split { part: number, ..split })?;
    }
    set.finish(label)
}

/// The parts that have been read.
#[derive(Default)]
struct PartSet {
    table: TensorTable,
    /// The metadata of the first part, and how many tensors it says that all have.
    first: Option<(GgufMetadata, Option<u64>)>,
}

impl PartSet {
    /// Reads a part that should be the one of this number.
    fn add(&mut self, path: &Path, expected: Split) -> Result<(), CheckpointError> {
        let label = path.display().to_string();
        let bytes = CheckpointBytes::map(path)?;
        let (metadata, tensors) = read_header(&label, &bytes)?;
        let tensor_count = number(&metadata, TENSORS);
        let first_count = self.first.as_ref().map_or(tensor_count, |(_, count)| *count);
        let agree = [
            (NUMBER, Some(expected.part.saturating_sub(1)), number(&metadata, NUMBER)),
            (PARTS, Some(expected.parts), number(&metadata, PARTS)),
            (TENSORS, first_count, tensor_count),
        ];
        for (key, expected, found) in agree {
            if expected != found {
                return Err(refused(label, GgufError::SplitDisagrees { key, expected, found }));
            }
        }
        self.table.add_file(label, bytes, tensors)?;
        self.first.get_or_insert((metadata, tensor_count));
        Ok(())
    }

    fn finish(self, label: String) -> Result<GgufFile, CheckpointError> {
        let found = self.table.entries.len() as u64;
        match self.first {
            Some((_, Some(expected))) if expected != found => {
                Err(refused(label, GgufError::SplitTensorCount { expected, found }))
            }
            Some((metadata, _)) => Ok(GgufFile::of_parts(label, metadata, self.table)),
            // A set has two parts or more.
            None => Err(CheckpointError::EmptyFile { file: label }),
        }
    }
}

fn number(metadata: &GgufMetadata, key: &str) -> Option<u64> {
    metadata.u64(key).ok().flatten()
}

fn refused(file: String, source: GgufError) -> CheckpointError {
    CheckpointError::Gguf { file, source }
}
