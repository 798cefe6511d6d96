//! A Hugging Face model on disk: which files it consists of.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::foreign::{FileKind, adapter, quantized, shown, stand_in};
use super::shards::{self, Index};
use super::tensors::TensorTable;
use super::{CheckpointBytes, CheckpointError, Configs, safetensors};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const SINGLE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What shards are called before their numbers.
const SHARD_PREFIX: &str = "model";

/// Far above every real file of the kind; what is larger isn't read.
pub(super) const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// The contents of a Hugging Face folder as far as they concern the model.
pub(super) struct Folder {
    pub(super) configs: Configs,
    pub(super) table: TensorTable,
}

/// Opens `config.json`, `generation_config.json` if there is one, and the weights: like
/// transformers, `model.safetensors` where it exists, else the shards of the index; without an index the
/// numbered shards.
pub(super) fn open_folder(folder: &Path) -> Result<Folder, CheckpointError> {
    let mut configs = read_configs(folder)?;
    configs.warnings.extend(adapter::beside(folder));
    let mut table = TensorTable::default();
    let single = folder.join(SINGLE_FILE);
    let index = folder.join(INDEX);
    if single.exists() {
        shards::add_file(&mut table, &single)?;
    } else if index.exists() {
        Index::read(&index)?.add_to(&mut table, folder)?;
    } else if !shards::add_only_set(&mut table, folder, SHARD_PREFIX)? {
        return Err(incomplete(folder, SINGLE_FILE, &[".safetensors", ".gguf"]));
    }
    reject_foreign_tensors(&folder.display().to_string(), &table)?;
    Ok(Folder { configs, table })
}

/// Opens a `.safetensors` file, with those that it makes one model with, and the configurations beside it.
pub(super) fn open_single_file(path: &Path) -> Result<Folder, CheckpointError> {
    if let Some(error) = adapter::in_file(path) {
        return Err(error);
    }
    let mut table = TensorTable::default();
    shards::add_with_its_set(&mut table, path)?;
    reject_foreign_tensors(&path.display().to_string(), &table)?;
    let configs = read_configs(path.parent().unwrap_or(Path::new("")))?;
    Ok(Folder { configs, table })
}

/// Takes shards that are in memory.
pub(super) fn from_memory(
    config_json: &str,
    generation_config_json: Option<&str>,
    shards: impl Iterator<Item = CheckpointBytes>,
) -> Result<Folder, CheckpointError> {
    let mut configs = Configs::read(CONFIG, config_json)?;
    if let Some(text) = generation_config_json {
        configs.recommend(GENERATION_CONFIG, Ok(text.to_owned()));
    }
    let mut table = TensorTable::default();
    for (index, bytes) in shards.enumerate() {
        let label = format!("shard {index} in memory");
        let tensors = safetensors::parse(&label, bytes.as_slice())?;
        table.add_file(label, bytes, tensors)?;
    }
    reject_foreign_tensors("safetensors in memory", &table)?;
    Ok(Folder { configs, table })
}

fn read_configs(folder: &Path) -> Result<Configs, CheckpointError> {
    let path = folder.join(CONFIG);
    if !path.exists() {
        return Err(incomplete(folder, CONFIG, &[".gguf"]));
    }
    let mut configs = Configs::read(&path.display().to_string(), &read_text(&path, MAX_CONFIG_BYTES)?)?;
    let path = folder.join(GENERATION_CONFIG);
    if path.exists() {
        configs.recommend(&path.display().to_string(), read_text(&path, MAX_CONFIG_BYTES));
    }
    Ok(configs)
}

fn reject_foreign_tensors(source: &str, table: &TensorTable) -> Result<(), CheckpointError> {
    adapter::reject_tensors(source, table)?;
    quantized::reject_tensors(table)
}

/// The error for a folder that lacks a file: what it holds in its place, or which of its files the user may have
/// meant, by their endings.
fn incomplete(folder: &Path, missing: &'static str, endings: &[&str]) -> CheckpointError {
    adapter::in_folder(folder).unwrap_or_else(|| CheckpointError::IncompleteFolder {
        folder: folder.to_owned(),
        missing,
        advice: advice_without(folder, missing, endings),
    })
}

fn advice_without(folder: &Path, missing: &str, endings: &[&str]) -> String {
    let path = folder.join(missing);
    if path.is_symlink() {
        return "it is a link to a file that is gone: download it again".to_owned();
    }
    let names = file_names(folder);
    let has_ending = |name: &String| endings.iter().any(|ending| name.ends_with(ending));
    let is_meant = |name: &&String| has_ending(name) && folder.join(name).is_file();
    // An image encoder is no model by itself.
    let of_language = names.iter().filter(is_meant).find(|name| !name.contains("mmproj"));
    if let Some(name) = of_language.or_else(|| names.iter().find(is_meant)) {
        return format!("to open `{}`, name the file itself", shown(name));
    }
    let foreign = |name: &String| FileKind::by_name(Path::new(name)).filter(FileKind::holds_weights);
    if let Some((name, kind)) = names.iter().find_map(|name| Some((name, foreign(name)?))) {
        return format!("`{}` is {}: {}", shown(name), kind.found, kind.advice);
    }
    if let Some(inner) = model_below(folder, &names) {
        return format!("to open the model in `{}`, name that folder", shown(&inner));
    }
    match names.is_empty() {
        true => "the folder is empty: download the whole model folder".to_owned(),
        false if missing == CONFIG => "download the whole model folder".to_owned(),
        false => "download it, or the model's shards with their index".to_owned(),
    }
}

/// A model one folder further down, or where Hugging Face's cache has it.
fn model_below(folder: &Path, names: &[String]) -> Option<String> {
    const SNAPSHOTS: &str = "snapshots";
    let snapshots = file_names(&folder.join(SNAPSHOTS)).into_iter().map(|name| format!("{SNAPSHOTS}/{name}"));
    let mut candidates = names.iter().cloned().chain(snapshots);
    candidates.find(|name| folder.join(name).join(CONFIG).is_file())
}

/// The names of what lies in a folder, sorted; those that aren't Unicode are left out, and a folder that can't be
/// read has none.
pub(super) fn file_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The text of a file beside the weights, of at most `limit` bytes.
///
/// # Errors
/// [`CheckpointError`]: a path that is no readable regular file, more bytes, or bytes that aren't UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, CheckpointError> {
    let metadata = std::fs::metadata(path).map_err(|error| CheckpointError::io(path, error))?;
    if !metadata.is_file() {
        return Err(CheckpointError::NotARegularFile { path: path.to_owned() });
    }
    let too_large = |found| CheckpointError::FileTooLarge { file: path.display().to_string(), limit, found };
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    let file = File::open(path).map_err(|error| CheckpointError::io(path, error))?;
    let mut bytes = Vec::new();
    // Bounded once more: the file may have grown meanwhile.
    let most = limit.saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(|error| CheckpointError::io(path, error))?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    stand_in::reject(&path.display().to_string(), &bytes)?;
    String::from_utf8(bytes).map_err(|error| CheckpointError::NotText {
        path: path.to_owned(),
        valid_up_to: error.utf8_error().valid_up_to(),
    })
}
