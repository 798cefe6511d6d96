//! Named tensors of one or several files: where their bytes lie, in which shape and format.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use super::random::RandomBytes;
use super::{CheckpointBytes, CheckpointError};
use crate::config::json::shorten;
use crate::formats::TensorFormat;
use crate::formats::blocks::{self, BlockError};

/// One tensor's bytes as they are stored.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// The tensor's name in its file, for errors.
    pub file_name: &'a str,
    /// What holds the tensor, for errors: the file's path, or what stands for it.
    pub source: &'a str,
    /// Row-major shape: `[out, in]` for a matrix.
    pub shape: Vec<usize>,
    /// How the numbers are stored.
    pub format: TensorFormat,
    /// The stored bytes, exactly as many as shape and format ask for: borrowed from the mapped
    /// file, or made just now for random weights.
    pub bytes: Cow<'a, [u8]>,
    /// Where in which file borrowed bytes lie, for those who keep them.
    pub(crate) place: Option<(CheckpointBytes, Range<usize>)>,
}

impl TensorView<'_> {
    /// The elements in f32, row-major, decoded on the current thread pool.
    ///
    /// # Errors
    ///
    /// When the bytes are not what format and shape ask for.
    pub fn expand(&self) -> Result<Vec<f32>, BlockError> {
        blocks::expand(self.format, &self.shape, &self.bytes)
    }

    /// The same tensor with other content: its elements in another order, say. The bytes are as many as shape and
    /// format ask for.
    pub fn with_bytes(self, shape: Vec<usize>, format: TensorFormat, bytes: Vec<u8>) -> Self {
        Self { shape, format, bytes: Cow::Owned(bytes), place: None, ..self }
    }
}

/// The format as the file gives it: one that is read, or the name of one that isn't.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoredFormat {
    Known(TensorFormat),
    Unknown(String),
}

/// Where the bytes of a tensor come from.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A range of a file's bytes.
    File { file: usize, range: Range<usize> },
    /// Made when asked for.
    Random(RandomBytes),
}

/// What a file's header says of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) shape: Vec<usize>,
    pub(super) format: StoredFormat,
    pub(super) content: Content,
}

/// A file that is part of a checkpoint.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// Its name in errors.
    pub(super) label: String,
    pub(super) bytes: CheckpointBytes,
}

/// The tensors of a checkpoint by name.
#[derive(Debug, Default)]
pub(super) struct TensorTable {
    pub(super) files: Vec<SourceFile>,
    pub(super) entries: BTreeMap<String, Entry>,
}

impl TensorTable {
    /// Adds a file with the tensors of its header.
    pub(super) fn add_file(
        &mut self,
        label: String,
        bytes: CheckpointBytes,
        tensors: Vec<FileTensor>,
    ) -> Result<(), CheckpointError> {
        let file = self.files.len();
        for tensor in tensors {
            if let Some(other) = self.entries.get(&tensor.name) {
                return Err(CheckpointError::TensorInTwoFiles {
                    first: self.label_of(other).to_owned(),
                    second: label,
                    tensor: shorten(&tensor.name),
                });
            }
            let entry = Entry {
                shape: tensor.shape,
                format: tensor.format,
                content: Content::File { file, range: tensor.range },
            };
            self.entries.insert(tensor.name, entry);
        }
        self.files.push(SourceFile { label, bytes });
        Ok(())
    }

    /// The name of the file that an entry is in.
    pub(super) fn label_of(&self, entry: &Entry) -> &str {
        match entry.content {
            Content::File { file, .. } => self.files.get(file).map_or("", |file| &file.label),
            Content::Random(_) => "random weights",
        }
    }

    /// Stored bytes of a tensor of a known format.
    pub(super) fn bytes_of(&self, name: &str) -> Option<u64> {
        let entry = self.entries.get(name)?;
        match &entry.format {
            StoredFormat::Known(format) => format.tensor_bytes(&entry.shape).ok().map(|bytes| bytes as u64),
            StoredFormat::Unknown(_) => None,
        }
    }

    /// The tensor with the given name; `source` names the checkpoint in the error.
    pub(super) fn view(&self, name: &str, source: &str) -> Result<TensorView<'_>, CheckpointError> {
        let (name, entry) = self.entries.get_key_value(name).ok_or_else(|| {
            CheckpointError::MissingTensor { file: source.to_owned(), tensor: shorten(name), expected: None }
        })?;
        let file = self.label_of(entry);
        let format = match &entry.format {
            StoredFormat::Known(format) => *format,
            StoredFormat::Unknown(found) => {
                return Err(CheckpointError::UnsupportedFormat {
                    file: file.to_owned(),
                    tensor: shorten(name),
                    expected: &TensorFormat::ALL,
                    found: found.clone(),
                });
            }
        };
        let expected = format.tensor_bytes(&entry.shape).map_err(|source| {
            CheckpointError::InvalidTensor { file: file.to_owned(), tensor: shorten(name), source }
        })?;
        let mut place = None;
        let bytes = match &entry.content {
            Content::Random(random) => Cow::Owned(random.bytes(name, expected)),
            Content::File { file: index, range } => {
                // Checked when the header was read; checked again because an application's bytes
                // may have changed since.
                let file_bytes = self.files.get(*index).map(|file| &file.bytes);
                place = file_bytes.map(|bytes| (bytes.clone(), range.clone()));
                let all = file_bytes.map(CheckpointBytes::as_slice).unwrap_or_default();
                let bytes = all.get(range.clone()).filter(|b| b.len() == expected);
                Cow::Borrowed(bytes.ok_or_else(|| CheckpointError::OutOfFile {
                    file: file.to_owned(),
                    tensor: shorten(name),
                    offset: range.start as u64,
                    expected: expected as u64,
                    found: all.len() as u64,
                })?)
            }
        };
        Ok(TensorView { file_name: name, source: file, shape: entry.shape.clone(), format, bytes, place })
    }
}

/// A tensor in one file's header, as the parsers give it.
#[derive(Debug, Clone)]
pub(super) struct FileTensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) format: StoredFormat,
    /// Its bytes in the file, for a known format checked to lie within it.
    pub(super) range: Range<usize>,
}
