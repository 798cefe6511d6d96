//! Why a checkpoint couldn't be opened, or a tensor not be had.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::gguf::GgufError;
use crate::config::ConfigError;
use crate::formats::{FormatError, TensorFormat};

/// Why a checkpoint couldn't be opened, or a tensor not be had.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// Nothing lies at the path.
    #[error("{path}: no such file or folder; check the path, or download the model first")]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused to read.
    #[error("{path}: {source}; check the file's permissions and that its disk is reachable")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The path is a device, a pipe or a folder where a file was expected.
    #[error("{path}: expected a regular file; name the file that holds the weights")]
    NotARegularFile {
        /// The path.
        path: PathBuf,
    },
    /// The file holds no bytes.
    #[error("{file}: the file is empty; download it again")]
    EmptyFile {
        /// The file.
        file: String,
    },
    /// A text file is larger than any real one.
    #[error("{file}: expected at most {limit} bytes, found {found}; this is not a model's file")]
    FileTooLarge {
        /// The file.
        file: String,
        /// The most that is read.
        limit: u64,
        /// Its size.
        found: u64,
    },
    /// The file is neither safetensors nor GGUF.
    #[error(
        "{path}: expected a Hugging Face folder, a .safetensors file or a .gguf file, found \
         {found}; name one of those"
    )]
    UnknownFileType {
        /// The path.
        path: PathBuf,
        /// What it seems to be.
        found: String,
    },
    /// A folder lacks a file that a checkpoint needs.
    #[error("{folder}: {missing} is missing; {advice}")]
    IncompleteFolder {
        /// The folder.
        folder: PathBuf,
        /// The missing file.
        missing: &'static str,
        /// What to do.
        advice: String,
    },
    /// `config.json`, `generation_config.json` or the metadata of a GGUF doesn't describe a model
    /// that this crate runs.
    #[error("{file}: {source}")]
    Config {
        /// The file.
        file: String,
        /// The field and its value.
        source: ConfigError,
    },
    /// The header of a safetensors file is damaged.
    #[error("{file}: not a valid safetensors file: {problem}; download it again")]
    Safetensors {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// `model.safetensors.index.json` is damaged or names files that it must not.
    #[error("{file}: {problem}; download the index and its shards again")]
    Index {
        /// The index.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// The GGUF file is damaged or of a kind that isn't read.
    #[error("{file}: {source}")]
    Gguf {
        /// The file.
        file: String,
        /// What is wrong and what to do.
        source: GgufError,
    },
    /// Two files of one checkpoint hold a tensor of the same name.
    #[error("tensor `{tensor}` is in both {first} and {second}; pass each shard once")]
    TensorInTwoFiles {
        /// The tensor.
        tensor: String,
        /// The one file.
        first: String,
        /// The other file.
        second: String,
    },
    /// A tensor that the model needs, or that was asked for by name, is absent.
    #[error(
        "{file}: tensor `{tensor}`{} is missing; the checkpoint is incomplete, or its \
         configuration belongs to another model",
        of_shape(expected)
    )]
    MissingTensor {
        /// The file or folder.
        file: String,
        /// The tensor's name in the file.
        tensor: String,
        /// The shape it should have, where known.
        expected: Option<Vec<usize>>,
    },
    /// A tensor's shape isn't the one that the configuration asks for.
    #[error(
        "{file}: tensor `{tensor}`: expected shape {expected:?} by the configuration, found \
         {found:?}; weights and configuration don't belong together"
    )]
    WrongShape {
        /// The file.
        file: String,
        /// The tensor's name in the file.
        tensor: String,
        /// Row-major shape by the configuration.
        expected: Vec<usize>,
        /// Row-major shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a format that isn't read, or that its role doesn't allow.
    #[error(
        "{file}: tensor `{tensor}`: expected one of the formats {}, found {found}; convert the \
         file to one of them",
        Formats(expected)
    )]
    UnsupportedFormat {
        /// The file.
        file: String,
        /// The tensor's name in the file.
        tensor: String,
        /// The formats that would do.
        expected: &'static [TensorFormat],
        /// The file's name of its format.
        found: String,
    },
    /// A tensor's shape and format don't go together.
    #[error("{file}: tensor `{tensor}`: {source}; the file is damaged")]
    InvalidTensor {
        /// The file.
        file: String,
        /// The tensor's name in the file.
        tensor: String,
        /// Why.
        source: FormatError,
    },
    /// A tensor's bytes lie outside its file.
    #[error(
        "{file}: tensor `{tensor}`: expected {expected} bytes at byte {offset}, the file has \
         {found}; it was cut short, download it again"
    )]
    OutOfFile {
        /// The file.
        file: String,
        /// The tensor's name in the file.
        tensor: String,
        /// Where its bytes should begin.
        offset: u64,
        /// How many there should be.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A layer number that the model doesn't have.
    #[error("layer {layer}: the model has {layers} layers, counted from 0")]
    NoSuchLayer {
        /// The layer asked for.
        layer: usize,
        /// How many there are.
        layers: usize,
    },
}

impl CheckpointError {
    /// An I/O error, telling apart a file that isn't there.
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::NotFound { path },
            _ => Self::Io { path, source },
        }
    }

    /// A refused configuration, with the file that it came from.
    pub(super) fn config(file: &str, source: ConfigError) -> Self {
        Self::Config { file: file.to_owned(), source }
    }
}

fn of_shape(expected: &Option<Vec<usize>>) -> String {
    match expected {
        Some(shape) => format!(" of shape {shape:?}"),
        None => String::new(),
    }
}

/// Format names with commas.
struct Formats<'a>(&'a [TensorFormat]);

impl fmt::Display for Formats<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, format) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(formatter, "{separator}{format}")?;
        }
        Ok(())
    }
}
