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
    #[error(
        "{path}: expected a regular file, found a folder, a device or a pipe; put the model's file there"
    )]
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
    /// A text file is not UTF-8.
    #[error(
        "{path}: expected UTF-8 text, found other bytes at byte {valid_up_to}; download it again, or save it as UTF-8"
    )]
    NotText {
        /// The file.
        path: PathBuf,
        /// How many bytes are text.
        valid_up_to: usize,
    },
    /// The file is neither safetensors nor GGUF.
    #[error(
        "{path}: expected a Hugging Face folder, a .safetensors file or a .gguf file, found \
         {found}; {advice}"
    )]
    UnknownFileType {
        /// The path.
        path: PathBuf,
        /// What it seems to be.
        found: String,
        /// What to do.
        advice: &'static str,
    },
    /// Git left a pointer where the file should be.
    #[error(
        "{file}: this is a Git LFS pointer{}, not the file itself; run `git lfs pull` in its folder, or download the \
         file from the model's page",
        to_bytes(bytes)
    )]
    GitLfsPointer {
        /// The file.
        file: String,
        /// Bytes of the real file, if the pointer says.
        bytes: Option<u64>,
    },
    /// A download left something else where the file should be.
    #[error(
        "{file}: expected a model's file, found {found}; accept the license on the model's page, log in, and \
         download it again"
    )]
    NotDownloaded {
        /// The file.
        file: String,
        /// What it is.
        found: &'static str,
    },
    /// What was trained on top of a model, without the model.
    #[error("{file}: this is {adapter}{}, not a whole model; {advice}", of_base(base_model))]
    Adapter {
        /// The file.
        file: String,
        /// Its kind, with the article.
        adapter: String,
        /// The model that it names as its base.
        base_model: Option<String>,
        /// What to do.
        advice: &'static str,
    },
    /// Safetensors whose weights a tool has quantized in a way that isn't read.
    #[error(
        "{file}: {sign}: the weights are quantized by {method}, which isn't read; take the model's unquantized \
         safetensors (`LoadOptions::quantization` makes them small), or a GGUF file of it"
    )]
    Quantized {
        /// The file.
        file: String,
        /// The tool or the method.
        method: String,
        /// The field or the tensor that says so.
        sign: String,
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
    /// One of the numbered files of a model is absent.
    #[error(
        "{path}: this file is missing, one of {parts} that hold the model together; put it beside the others, or \
         download the model again"
    )]
    MissingPart {
        /// Where it should be.
        path: PathBuf,
        /// How many files there are.
        parts: u32,
    },
    /// A folder holds the numbered files of more than one model.
    #[error(
        "{folder}: `{first}` and `{second}` belong to different sets of shards; keep one set in the folder, or name a \
         file of the one that is meant"
    )]
    SeveralSets {
        /// The folder.
        folder: PathBuf,
        /// A file of one set.
        first: String,
        /// A file of another set.
        second: String,
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
    #[error(
        "tensor `{tensor}` is in both {first} and {second}; give each file of the model once, and none of another"
    )]
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
    /// The configuration asks for a head of its own, and there is none.
    #[error(
        "{file}: tensor `{tensor}` is missing, although `tie_word_embeddings` is false in the \
         configuration; if the logits are made with the embedding, set it to true, else save the \
         model again with its head"
    )]
    MissingHead {
        /// The file or folder.
        file: String,
        /// The head's usual name.
        tensor: String,
    },
    /// The decoder's tensors are there under names that no version of transformers gives them.
    #[error("{file}: tensor `{tensor}` has the prefix `{prefix}`, which isn't the model's; {advice}")]
    UnknownNames {
        /// The file or folder.
        file: String,
        /// One of the tensors.
        tensor: String,
        /// The prefix that is in the way.
        prefix: String,
        /// What to do.
        advice: &'static str,
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

fn to_bytes(bytes: &Option<u64>) -> String {
    bytes.map_or(String::new(), |bytes| format!(" to a file of {bytes} bytes"))
}

fn of_base(base_model: &Option<String>) -> String {
    base_model.as_ref().map_or(String::new(), |name| format!(" of `{name}`"))
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
