//! One safetensors file: its header, checked, as a list of tensors.
//!
//! The `safetensors` crate does the parsing: it requires the tensors to cover the data without gap
//! or overlap, and sizes that match shape and type. What it lets through is checked here first:
//! names that occur twice (the last would win), and offsets beyond the file whose sum with the
//! header's length would overflow.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;

use super::foreign::stand_in;
use super::tensors::{FileTensor, StoredFormat};
use super::{CheckpointError, TensorFormat};
use crate::config::json;

/// Bytes of the header's length at the start of the file.
const LENGTH_BYTES: usize = 8;
/// The longest header that is parsed, as in the `safetensors` crate; real ones stay below 1 MB.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// The tensors of a file; `label` names it in errors.
pub(super) fn parse(label: &str, bytes: &[u8]) -> Result<Vec<FileTensor>, CheckpointError> {
    let refused = |problem: String| CheckpointError::Safetensors {
        file: label.to_owned(),
        problem: json::shorten_sentence(&problem),
    };
    if bytes.is_empty() {
        return Err(CheckpointError::EmptyFile { file: label.to_owned() });
    }
    stand_in::reject(label, bytes)?;
    check_header(bytes).map_err(&refused)?;
    let (header_len, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| refused(error.to_string()))?;
    let data_start = header_len.saturating_add(LENGTH_BYTES);
    let mut tensors = Vec::new();
    // By name: which of several faults is reported must not depend on a hash.
    let by_name: BTreeMap<_, _> = metadata.tensors().into_iter().collect();
    for (name, info) in by_name {
        let (start, end) = info.data_offsets;
        tensors.push(FileTensor {
            name,
            shape: info.shape.clone(),
            format: stored_format(info.dtype),
            range: start.saturating_add(data_start)..end.saturating_add(data_start),
        });
    }
    Ok(tensors)
}

/// Repeated names, and offsets past the end of the file.
fn check_header(bytes: &[u8]) -> Result<(), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("the file has only {} bytes", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let Some((header, data)) = header else {
        return Err(format!("its header should have {length} bytes, the file has {}", bytes.len()));
    };
    if header.len() > MAX_HEADER_BYTES {
        return Err(format!("its header has {length} bytes, at most {MAX_HEADER_BYTES} are read"));
    }
    let header = std::str::from_utf8(header).map_err(|_| "its header isn't UTF-8".to_owned())?;
    let header = json::parse(header).map_err(|error| format!("its header is {error}"))?;
    let Value::Object(tensors) = header else {
        return Err("its header isn't an object".to_owned());
    };
    for (name, tensor) in tensors.iter().filter(|(name, _)| *name != "__metadata__") {
        let end = tensor.get("data_offsets").and_then(|offsets| offsets.get(1)).and_then(Value::as_u64);
        if end.is_none_or(|end| end > data.len() as u64) {
            return Err(format!(
                "tensor `{}` should end within the {} bytes of data, it ends at {}",
                json::shorten(name),
                data.len(),
                json::brief(tensor.get("data_offsets").and_then(|o| o.get(1)).unwrap_or(tensor)),
            ));
        }
    }
    Ok(())
}

fn stored_format(dtype: Dtype) -> StoredFormat {
    match dtype {
        Dtype::F32 => StoredFormat::Known(TensorFormat::F32),
        Dtype::F16 => StoredFormat::Known(TensorFormat::F16),
        Dtype::BF16 => StoredFormat::Known(TensorFormat::BF16),
        other => StoredFormat::Unknown(format!("{other:?}")),
    }
}
