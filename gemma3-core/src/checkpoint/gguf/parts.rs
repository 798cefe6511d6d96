//! Models that llama.cpp has split into several GGUF files. Each part is a GGUF file with its number, how many
//! there are and the tensors of all of them in its metadata; only the first has the rest of the metadata.

use std::path::Path;

use super::file::{GgufFile, read_header};
use super::{GgufError, GgufMetadata};
use crate::checkpoint::part_name::PartName;
use crate::checkpoint::tensors::{FileTensor, TensorTable};
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
    let read = |number: u32| Part::read(&path.with_file_name(part.of_part(number)), number, part.parts);
    let mut table = TensorTable::default();
    let first = read(1)?;
    let tensor_count = number(&first.metadata, TENSORS);
    table.add_file(first.label, first.bytes, first.tensors)?;
    for number in 2..=part.parts {
        let part = read(number)?;
        part.expect(TENSORS, tensor_count)?;
        table.add_file(part.label, part.bytes, part.tensors)?;
    }
    let found = table.entries.len() as u64;
    match tensor_count.filter(|expected| *expected != found) {
        Some(expected) => Err(refused(label, GgufError::SplitTensorCount { expected, found })),
        None => Ok(GgufFile::of_parts(label, first.metadata, table)),
    }
}

/// One file of a set.
struct Part {
    label: String,
    bytes: CheckpointBytes,
    metadata: GgufMetadata,
    tensors: Vec<FileTensor>,
}

impl Part {
    /// Reads a file that should be the part of this number, from 1.
    fn read(path: &Path, number: u32, parts: u32) -> Result<Self, CheckpointError> {
        if !path.exists() {
            return Err(CheckpointError::MissingPart { path: path.to_owned(), parts });
        }
        let label = path.display().to_string();
        let bytes = CheckpointBytes::map(path)?;
        let (metadata, tensors) = read_header(&label, &bytes)?;
        let part = Self { label, bytes, metadata, tensors };
        part.expect(NUMBER, number.checked_sub(1).map(u64::from))?;
        part.expect(PARTS, Some(parts.into()))?;
        Ok(part)
    }

    /// An error if the metadata say something else than the name and the other parts.
    fn expect(&self, key: &'static str, expected: Option<u64>) -> Result<(), CheckpointError> {
        match number(&self.metadata, key) {
            found if found == expected => Ok(()),
            found => Err(refused(self.label.clone(), GgufError::SplitDisagrees { key, expected, found })),
        }
    }
}

fn number(metadata: &GgufMetadata, key: &str) -> Option<u64> {
    metadata.u64(key).ok().flatten()
}

fn refused(file: String, source: GgufError) -> CheckpointError {
    CheckpointError::Gguf { file, source }
}
