//! A GGUF file as a whole: header, metadata, and where each tensor lies.

use std::path::Path;

use super::parts::{self, Split};
use super::reader::Reader;
use super::{GgufError, GgufMetadata};
use crate::checkpoint::foreign::stand_in;
use crate::checkpoint::tensors::{FileTensor, StoredFormat, TensorTable, TensorView};
use crate::checkpoint::{CheckpointBytes, CheckpointError, TensorFormat};

const MAGIC: &[u8; 4] = b"GGUF";
/// What stands for the path of bytes that the application hands over.
const IN_MEMORY: &str = "GGUF in memory";
/// Where `general.alignment` is absent.
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's limit.
const MAX_DIMENSIONS: u32 = 4;

/// A GGUF file of any architecture: metadata and tensors by name. [`crate::checkpoint::Checkpoint`]
/// is the view of one that holds a Gemma 3 decoder; an image encoder has a file of its own, read
/// through this.
#[derive(Debug)]
pub struct GgufFile {
    label: String,
    metadata: GgufMetadata,
    table: TensorTable,
}

/// Whether the bytes begin like a GGUF file.
pub(in crate::checkpoint) fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

impl GgufFile {
    /// Maps and checks the file at `path`. If it is one part of several
    /// (`NAME-00001-of-00003.gguf`), the other parts are opened from its folder.
    ///
    /// # Errors
    /// [`CheckpointError::Gguf`] with what is wrong, [`CheckpointError::MissingPart`], or that a file
    /// couldn't be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let label = path.display().to_string();
        let bytes = CheckpointBytes::map(path)?;
        let (metadata, tensors) = read_header(&label, &bytes)?;
        match Split::of(&metadata) {
            Some(split) => parts::open(path, split),
            None => Self::of_one(label, bytes, metadata, tensors),
        }
    }

    /// Checks a file that is already in memory, which must be whole.
    ///
    /// # Errors
    /// [`CheckpointError::Gguf`] with what is wrong.
    pub fn from_bytes(bytes: impl Into<CheckpointBytes>) -> Result<Self, CheckpointError> {
        let (label, bytes) = (IN_MEMORY.to_owned(), bytes.into());
        let (metadata, tensors) = read_header(&label, &bytes)?;
        match Split::of(&metadata) {
            Some(split) => Err(CheckpointError::Gguf { file: label, source: split.alone() }),
            None => Self::of_one(label, bytes, metadata, tensors),
        }
    }

    fn of_one(
        label: String,
        bytes: CheckpointBytes,
        metadata: GgufMetadata,
        tensors: Vec<FileTensor>,
    ) -> Result<Self, CheckpointError> {
        let mut table = TensorTable::default();
        table.add_file(label.clone(), bytes, tensors)?;
        Ok(Self { label, metadata, table })
    }

    /// The files of a split model as one, with the metadata of the first.
    pub(super) fn of_parts(label: String, metadata: GgufMetadata, table: TensorTable) -> Self {
        Self { label, metadata, table }
    }

    /// The key-value pairs.
    pub fn metadata(&self) -> &GgufMetadata {
        &self.metadata
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.table.entries.keys().map(String::as_str)
    }

    /// A tensor by its name. Its shape is row-major: the file's dimensions reversed.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`] or [`CheckpointError::UnsupportedFormat`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        self.table.view(name, &self.label)
    }

    /// Stored bytes of the tensor of this name; `None` if there is none, or its format isn't read.
    pub fn bytes_of(&self, name: &str) -> Option<u64> {
        self.table.bytes_of(name)
    }

    /// A tensor's shape, without its bytes.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        let entry = self.table.entries.get(name)?;
        Some(&entry.shape)
    }

    /// The path of the file that was opened, or what stands for it; for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(in crate::checkpoint) fn into_parts(self) -> (TensorTable, GgufMetadata) {
        (self.table, self.metadata)
    }
}

/// Metadata and tensors of one file; `label` names it in errors.
pub(super) fn read_header(
    label: &str,
    bytes: &CheckpointBytes,
) -> Result<(GgufMetadata, Vec<FileTensor>), CheckpointError> {
    stand_in::reject(label, bytes.as_slice())?;
    parse_header(bytes)
        .map_err(|source| CheckpointError::Gguf { file: label.to_owned(), source: source.shortened() })
}

fn parse_header(bytes: &CheckpointBytes) -> Result<(GgufMetadata, Vec<FileTensor>), GgufError> {
    let all = bytes.as_slice();
    let mut reader = Reader::new(all, 0);
    let magic = all.get(..MAGIC.len()).unwrap_or(all);
    if magic != MAGIC {
        return Err(GgufError::WrongMagic { found: magic.to_vec() });
    }
    reader.take(MAGIC.len() as u64, "the magic bytes")?;
    let version = reader.u32("the version")?;
    match version {
        2 | 3 => {}
        swapped if matches!(swapped.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
        found => return Err(GgufError::WrongVersion { found }),
    }
    let tensor_count = reader.u64("the number of tensors")?;
    let metadata_count = reader.u64("the number of metadata entries")?;
    let metadata = GgufMetadata::parse(bytes, &mut reader, metadata_count)?;
    let alignment = alignment(&metadata)?;

    let mut descriptions = Vec::new();
    // Not `with_capacity`: the count is a number of the file. Each turn consumes bytes or fails.
    for _ in 0..tensor_count {
        descriptions.push(read_description(&mut reader, alignment)?);
    }
    let data_start = (reader.offset() as u64).checked_next_multiple_of(alignment);
    let data_start = data_start
        .and_then(|start| usize::try_from(start).ok())
        .filter(|start| *start <= all.len())
        // Nothing follows the header; only a file without weights can be whole then.
        .unwrap_or(all.len());
    let tensors = place(descriptions, data_start, all.len().saturating_sub(data_start))?;
    Ok((metadata, tensors))
}

fn alignment(metadata: &GgufMetadata) -> Result<u64, GgufError> {
    const KEY: &str = "general.alignment";
    let alignment = match metadata.u64(KEY) {
        Ok(Some(alignment)) => alignment,
        Ok(None) => DEFAULT_ALIGNMENT,
        Err(_) => 0,
    };
    match alignment.is_power_of_two() {
        true => Ok(alignment),
        false => Err(GgufError::InvalidAlignment { found: alignment }),
    }
}

/// A tensor as the header describes it.
struct Description {
    name: String,
    shape: Vec<usize>,
    format: StoredFormat,
    /// From the start of the data section.
    offset: u64,
    /// `None` for a format that isn't known.
    bytes: Option<usize>,
}

fn read_description(reader: &mut Reader<'_>, alignment: u64) -> Result<Description, GgufError> {
    let name = reader.string("a tensor's name")?.to_owned();
    let dimensions = reader.u32(&name)?;
    if dimensions > MAX_DIMENSIONS {
        return Err(GgufError::TooManyDimensions { tensor: name, found: dimensions });
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let dimension = reader.u64(&name)?;
        let dimension = usize::try_from(dimension).map_err(|_| GgufError::InvalidShape {
            tensor: name.clone(),
            problem: format!("a dimension of {dimension} is beyond the address space"),
        })?;
        shape.push(dimension);
    }
    // ggml names the dimension that varies fastest first.
    shape.reverse();
    let format = stored_format(reader.u32(&name)?);
    let offset = reader.u64(&name)?;
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::MisalignedTensor { tensor: name, alignment, found: offset });
    }
    let bytes =
        match &format {
            StoredFormat::Unknown(_) => None,
            StoredFormat::Known(format) => Some(format.tensor_bytes(&shape).map_err(|error| {
                GgufError::InvalidShape { tensor: name.clone(), problem: error.to_string() }
            })?),
        };
    Ok(Description { name, shape, format, offset, bytes })
}

/// Checks that tensors lie within the data section, once each, without overlap.
fn place(
    mut descriptions: Vec<Description>,
    data_start: usize,
    data_len: usize,
) -> Result<Vec<FileTensor>, GgufError> {
    descriptions.sort_by(|a, b| a.name.cmp(&b.name));
    for pair in descriptions.windows(2) {
        if let [first, second] = pair
            && first.name == second.name
        {
            return Err(GgufError::DuplicateTensor { tensor: first.name.clone() });
        }
    }
    // Empty tensors first, so that they may share a start with the one that follows.
    descriptions.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let mut tensors = Vec::new();
    let mut previous: Option<(String, usize)> = None;
    for tensor in descriptions {
        let bytes = tensor.bytes.unwrap_or(0);
        let start = usize::try_from(tensor.offset).ok();
        let range = start
            .and_then(|start| Some(start..start.checked_add(bytes)?))
            .filter(|range| range.end <= data_len);
        let Some(range) = range else {
            return Err(GgufError::TensorOutOfFile {
                tensor: tensor.name,
                offset: tensor.offset,
                expected: bytes as u64,
                found: data_len as u64,
            });
        };
        if let Some((first, end)) = previous
            && range.start < end
        {
            return Err(GgufError::OverlappingTensors { first, second: tensor.name });
        }
        previous = Some((tensor.name.clone(), range.end));
        tensors.push(FileTensor {
            name: tensor.name,
            shape: tensor.shape,
            format: tensor.format,
            // No overflow: the data section lies within the file.
            range: range.start + data_start..range.end + data_start,
        });
    }
    Ok(tensors)
}

/// ggml's numbers of tensor types.
fn stored_format(id: u32) -> StoredFormat {
    let format = match id {
        0 => TensorFormat::F32,
        1 => TensorFormat::F16,
        2 => TensorFormat::Q4_0,
        3 => TensorFormat::Q4_1,
        6 => TensorFormat::Q5_0,
        7 => TensorFormat::Q5_1,
        8 => TensorFormat::Q8_0,
        12 => TensorFormat::Q4_K,
        13 => TensorFormat::Q5_K,
        14 => TensorFormat::Q6_K,
        30 => TensorFormat::BF16,
        other => return StoredFormat::Unknown(unknown_format_name(other)),
    };
    StoredFormat::Known(format)
}

/// The names of formats that people have files of, for the error.
fn unknown_format_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return format!("ggml type {other}"),
    };
    name.to_owned()
}
