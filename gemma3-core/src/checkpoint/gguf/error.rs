//! Why a GGUF file was refused.

use thiserror::Error;

use crate::config::json::shorten;

/// Why a GGUF file was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GgufError {
    /// The first four bytes aren't `GGUF`.
    #[error(
        "expected the magic bytes \"GGUF\", found \"{}\"; this is not a GGUF file, name another or download it again",
        found.escape_ascii()
    )]
    WrongMagic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// A version that isn't read.
    #[error("expected GGUF version 2 or 3, found {found}; convert the model anew")]
    WrongVersion {
        /// The version.
        found: u32,
    },
    /// The numbers are big endian.
    #[error("expected a little-endian file, found a big-endian one; convert the model anew")]
    BigEndian,
    /// The file ends before what it announces.
    #[error(
        "expected {expected} more bytes for {what} at byte {offset}, found {found}; the file was \
         cut short or is damaged, download it again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where.
        offset: u64,
        /// Bytes that it should have. Saturated where the file's numbers overflow.
        expected: u64,
        /// Bytes that are left.
        found: u64,
    },
    /// A name or string isn't UTF-8.
    #[error("{what} at byte {offset} isn't valid UTF-8; the file is damaged")]
    NotUtf8 {
        /// What was being read.
        what: String,
        /// Where it begins.
        offset: u64,
    },
    /// A metadata value of a type that the format doesn't know.
    #[error("metadata `{key}`: expected a value type from 0 to 12, found {found}; file is damaged")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The type's number.
        found: u32,
    },
    /// An array of arrays, which no model uses.
    #[error("metadata `{key}`: arrays inside arrays aren't read; convert the model anew")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("metadata `{key}`: expected a boolean of 0 or 1, found {found}; the file is damaged")]
    InvalidBool {
        /// The key.
        key: String,
        /// The byte.
        found: u8,
    },
    /// A metadata key occurs twice.
    #[error("metadata `{key}` occurs twice; the file is damaged")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor name occurs twice.
    #[error("tensor `{tensor}` occurs twice; the file is damaged")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// `general.alignment` isn't a power of two.
    #[error("metadata `general.alignment`: expected a power of two, found {found}; file is damaged")]
    InvalidAlignment {
        /// Its value.
        found: u64,
    },
    /// A tensor has more dimensions than the format allows.
    #[error("tensor `{tensor}`: expected at most 4 dimensions, found {found}; the file is damaged")]
    TooManyDimensions {
        /// The tensor.
        tensor: String,
        /// How many it claims.
        found: u32,
    },
    /// A tensor's shape and format don't go together, or its size overflows.
    #[error("tensor `{tensor}`: {problem}; the file is damaged")]
    InvalidShape {
        /// The tensor.
        tensor: String,
        /// Why.
        problem: String,
    },
    /// A tensor doesn't begin at a multiple of the alignment.
    #[error(
        "tensor `{tensor}`: expected an offset that is a multiple of {alignment}, found {found}; \
         the file is damaged"
    )]
    MisalignedTensor {
        /// The tensor.
        tensor: String,
        /// The file's alignment.
        alignment: u64,
        /// The offset.
        found: u64,
    },
    /// A tensor's bytes lie beyond the end of the file.
    #[error(
        "tensor `{tensor}`: expected {expected} bytes at offset {offset} of the data, which has \
         {found}; the file was cut short, download it again"
    )]
    TensorOutOfFile {
        /// The tensor.
        tensor: String,
        /// Its offset in the data section.
        offset: u64,
        /// Its bytes.
        expected: u64,
        /// Bytes of the data section.
        found: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` overlap; the file is damaged")]
    OverlappingTensors {
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
    },
    /// The bytes in memory are one of several parts.
    #[error(
        "the bytes are part {part} of {parts}; open the file on disk with the other parts beside it, or merge \
         them first (with `llama-gguf-split --merge`)"
    )]
    Split {
        /// Its number, from 1.
        part: u64,
        /// How many parts there are.
        parts: u64,
    },
    /// The file is one of several parts, and its name doesn't lead to the others.
    #[error(
        "the file is part {part} of {parts}: expected a name that ends in -{part:05}-of-{parts:05}.gguf, by which \
         the others are found; rename the parts, or merge them (with `llama-gguf-split --merge`)"
    )]
    SplitName {
        /// Its number, from 1.
        part: u64,
        /// How many parts there are.
        parts: u64,
    },
    /// The parts of a model contradict each other.
    #[error(
        "metadata `{key}`: expected {} by the name and the first part, found {}; the parts belong to different \
         models, download them again",
        or_nothing(expected),
        or_nothing(found)
    )]
    SplitDisagrees {
        /// The key.
        key: &'static str,
        /// What the other parts say.
        expected: Option<u64>,
        /// What this one says.
        found: Option<u64>,
    },
    /// All parts together have another number of tensors than they say.
    #[error(
        "metadata `split.tensors.count`: expected {expected} tensors in all parts together, found {found}; \
         download the parts again"
    )]
    SplitTensorCount {
        /// The number in the metadata.
        expected: u64,
        /// Tensors in all parts.
        found: u64,
    },
}

fn or_nothing(number: &Option<u64>) -> String {
    number.map_or("nothing".to_owned(), |number| number.to_string())
}

impl GgufError {
    /// The same error with the file's words shortened: a name may have any length and any characters.
    pub(super) fn shortened(mut self) -> Self {
        let words: [Option<&mut String>; 2] = match &mut self {
            Self::Truncated { what: word, .. }
            | Self::NotUtf8 { what: word, .. }
            | Self::UnknownValueType { key: word, .. }
            | Self::NestedArray { key: word }
            | Self::InvalidBool { key: word, .. }
            | Self::DuplicateKey { key: word }
            | Self::DuplicateTensor { tensor: word }
            | Self::TooManyDimensions { tensor: word, .. }
            | Self::InvalidShape { tensor: word, .. }
            | Self::MisalignedTensor { tensor: word, .. }
            | Self::TensorOutOfFile { tensor: word, .. } => [Some(word), None],
            Self::OverlappingTensors { first, second } => [Some(first), Some(second)],
            _ => [None, None],
        };
        words.into_iter().flatten().for_each(|word| *word = shorten(word));
        self
    }
}
