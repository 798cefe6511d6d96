//! The weights of a Hugging Face model in several safetensors files: by their index where there is one, else by
//! their numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde_json::Value;

use super::folder::{file_names, read_text};
use super::part_name::PartName;
use super::tensors::{FileTensor, TensorTable};
use super::{CheckpointBytes, CheckpointError, safetensors};
use crate::config::json;

/// Far above every real index; what is larger isn't read.
const MAX_INDEX_BYTES: u64 = 64 << 20;
const EXTENSION: &str = ".safetensors";

/// An index as shard -> names of its tensors.
pub(super) struct Index {
    /// Its path, for errors.
    label: String,
    shards: BTreeMap<String, BTreeSet<String>>,
}

impl Index {
    /// Reads a `….safetensors.index.json`.
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let label = path.display().to_string();
        let text = read_text(path, MAX_INDEX_BYTES)?;
        match shards_of_index(&text) {
            Ok(shards) => Ok(Self { label, shards }),
            Err(problem) => {
                Err(CheckpointError::Index { file: label, problem: json::shorten_sentence(&problem) })
            }
        }
    }

    /// Adds from each shard the tensors that the index places in it.
    pub(super) fn add_to(&self, table: &mut TensorTable, folder: &Path) -> Result<(), CheckpointError> {
        for (shard, names) in &self.shards {
            let path = folder.join(shard);
            if !path.exists() {
                return Err(self.refused(format!("its shard `{shard}` is missing")));
            }
            let bytes = CheckpointBytes::map(&path)?;
            let label = path.display().to_string();
            let tensors: Vec<FileTensor> = safetensors::parse(&label, bytes.as_slice())?
                .into_iter()
                .filter(|tensor| names.contains(&tensor.name))
                .collect();
            if tensors.len() < names.len() {
                let found: BTreeSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
                let missing = names.iter().find(|name| !found.contains(name.as_str()));
                return Err(self.refused(format!(
                    "it places tensor `{}` in `{shard}`, which doesn't have it",
                    missing.map_or("", String::as_str)
                )));
            }
            table.add_file(label, bytes, tensors)?;
        }
        Ok(())
    }

    /// An error if the index leaves out a shard that was asked for by name.
    fn require(&self, shard: &str) -> Result<(), CheckpointError> {
        match self.shards.contains_key(shard) {
            true => Ok(()),
            false => Err(self.refused(format!("it doesn't name `{shard}`, which lies beside it"))),
        }
    }

    fn refused(&self, problem: String) -> CheckpointError {
        CheckpointError::Index { file: self.label.clone(), problem: json::shorten_sentence(&problem) }
    }
}

/// Adds one safetensors file as a whole.
pub(super) fn add_file(table: &mut TensorTable, path: &Path) -> Result<(), CheckpointError> {
    let bytes = CheckpointBytes::map(path)?;
    let label = path.display().to_string();
    let tensors = safetensors::parse(&label, bytes.as_slice())?;
    table.add_file(label, bytes, tensors)
}

/// Adds what a file that was named by itself belongs to: the shards of its index, its numbered set, or the file
/// alone.
pub(super) fn add_with_its_set(table: &mut TensorTable, path: &Path) -> Result<(), CheckpointError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(part) = PartName::parse(name, EXTENSION) else {
        return add_file(table, path);
    };
    let index = folder.join(format!("{}{EXTENSION}.index.json", part.prefix));
    if index.exists() {
        let index = Index::read(&index)?;
        index.require(name)?;
        return index.add_to(table, folder);
    }
    add_numbered(table, folder, part)
}

/// Adds the shards `PREFIX-00001-of-00003.safetensors` and so on of a folder without an index; `false` if there
/// are none.
///
/// # Errors
/// [`CheckpointError::SeveralSets`], [`CheckpointError::MissingPart`], or what is wrong with a shard.
pub(super) fn add_only_set(
    table: &mut TensorTable,
    folder: &Path,
    prefix: &str,
) -> Result<bool, CheckpointError> {
    let names = file_names(folder);
    let mut shards = names
        .iter()
        .filter_map(|name| PartName::parse(name, EXTENSION))
        .filter(|shard| shard.prefix == prefix);
    let Some(shard) = shards.next() else { return Ok(false) };
    if let Some(other) = shards.find(|other| other.parts != shard.parts) {
        let [first, second] = [shard, other].map(|shard| shard.of_part(shard.part));
        return Err(CheckpointError::SeveralSets { folder: folder.to_owned(), first, second });
    }
    add_numbered(table, folder, shard)?;
    Ok(true)
}

fn add_numbered(table: &mut TensorTable, folder: &Path, part: PartName<'_>) -> Result<(), CheckpointError> {
    for name in part.all() {
        let path = folder.join(&name);
        if !path.exists() {
            return Err(CheckpointError::MissingPart { path, parts: part.parts });
        }
        add_file(table, &path)?;
    }
    Ok(())
}

fn shards_of_index(text: &str) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    let value = json::parse(text).map_err(|error| error.to_string())?;
    let Some(Value::Object(weight_map)) = value.get("weight_map") else {
        return Err("field `weight_map` is missing or isn't an object".to_owned());
    };
    let mut shards = BTreeMap::<String, BTreeSet<String>>::new();
    for (tensor, shard) in weight_map {
        let Some(shard) = shard.as_str() else {
            return Err(format!("the shard of tensor `{tensor}` isn't a string"));
        };
        if !is_plain_file_name(shard) {
            return Err(format!(
                "shard name `{}` must be a plain file name in the same folder",
                shard.escape_debug()
            ));
        }
        let names = shards.entry(shard.to_owned()).or_default();
        names.insert(tensor.clone());
    }
    Ok(shards)
}

/// A name that can't leave its folder, on any system: no separators, parents, drives or streams.
/// (A link of that name may still point elsewhere, as the Hugging Face cache's do: who made the
/// folder made the link.)
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let single = matches!(components.next(), Some(Component::Normal(_)));
    let no_more = components.next().is_none();
    single && no_more && !name.contains(['/', '\\', ':', '\0'])
}
