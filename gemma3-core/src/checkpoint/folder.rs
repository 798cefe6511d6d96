//! A Hugging Face model on disk: which files it consists of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use serde_json::Value;

use super::tensors::{FileTensor, TensorTable};
use super::{CheckpointBytes, CheckpointError, safetensors};
use crate::config::{ConfigError, GenerationConfig, ModelConfig, json};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const SINGLE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Far above every real file of the kind; what is larger isn't read.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The contents of a Hugging Face folder as far as they concern the model.
pub(super) struct Folder {
    pub(super) config: ModelConfig,
    pub(super) generation_config: GenerationConfig,
    pub(super) table: TensorTable,
}

/// Opens `config.json`, `generation_config.json` if there is one, and the weights: like
/// transformers, `model.safetensors` where it exists, else the shards of the index.
pub(super) fn open_folder(folder: &Path) -> Result<Folder, CheckpointError> {
    let (config, generation_config) = read_configs(folder)?;
    let mut table = TensorTable::default();
    let single = folder.join(SINGLE_FILE);
    let index = folder.join(INDEX);
    if single.exists() {
        add_safetensors(&mut table, &single)?;
    } else if index.exists() {
        add_shards(&mut table, folder, &index)?;
    } else {
        return Err(CheckpointError::IncompleteFolder {
            folder: folder.to_owned(),
            missing: SINGLE_FILE,
            advice: advice_without(folder, &[".safetensors", ".gguf", ".bin"]),
        });
    }
    Ok(Folder { config, generation_config, table })
}

/// Opens one mapped `.safetensors` with the configurations beside it.
pub(super) fn open_single_file(path: &Path, bytes: CheckpointBytes) -> Result<Folder, CheckpointError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let (config, generation_config) = read_configs(folder)?;
    let mut table = TensorTable::default();
    let label = path.display().to_string();
    let tensors = safetensors::parse(&label, bytes.as_slice())?;
    table.add_file(label, bytes, tensors)?;
    Ok(Folder { config, generation_config, table })
}

/// Takes shards that are in memory.
pub(super) fn from_memory(
    config_json: &str,
    generation_config_json: Option<&str>,
    shards: impl Iterator<Item = CheckpointBytes>,
) -> Result<Folder, CheckpointError> {
    let config =
        ModelConfig::from_json(config_json).map_err(|error| CheckpointError::config(CONFIG, error))?;
    let generation_config = match generation_config_json {
        Some(text) => GenerationConfig::from_json(text)
            .map_err(|error| CheckpointError::config(GENERATION_CONFIG, error))?,
        None => GenerationConfig::default(),
    };
    let mut table = TensorTable::default();
    for (index, bytes) in shards.enumerate() {
        let label = format!("shard {index} in memory");
        let tensors = safetensors::parse(&label, bytes.as_slice())?;
        table.add_file(label, bytes, tensors)?;
    }
    Ok(Folder { config, generation_config, table })
}

/// What a file that isn't a checkpoint seems to be.
pub(super) fn describe(path: &Path, bytes: &[u8]) -> String {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    match (extension.as_deref(), bytes) {
        (Some("gguf"), _) => {
            let magic = bytes.get(..4).unwrap_or(bytes);
            format!("a .gguf file that begins with {magic:?} instead of \"GGUF\"")
        }
        (Some("bin" | "pt" | "pth"), _) => "a PyTorch file (convert it to safetensors)".to_owned(),
        (Some("json"), _) => "a JSON file (name its folder)".to_owned(),
        (_, [b'P', b'K', ..]) => "a zip archive (unpack it)".to_owned(),
        (Some(other), _) => format!("a .{other} file"),
        (None, _) => "a file without extension".to_owned(),
    }
}

fn read_configs(folder: &Path) -> Result<(ModelConfig, GenerationConfig), CheckpointError> {
    let path = folder.join(CONFIG);
    if !path.exists() {
        return Err(CheckpointError::IncompleteFolder {
            folder: folder.to_owned(),
            missing: CONFIG,
            advice: advice_without(folder, &[".gguf"]),
        });
    }
    let config = ModelConfig::from_json(&read_text(&path, MAX_CONFIG_BYTES)?)
        .map_err(|error| CheckpointError::config(&path.display().to_string(), error))?;
    let path = folder.join(GENERATION_CONFIG);
    let generation_config = if path.exists() {
        GenerationConfig::from_json(&read_text(&path, MAX_CONFIG_BYTES)?)
            .map_err(|error| CheckpointError::config(&path.display().to_string(), error))?
    } else {
        GenerationConfig::default()
    };
    Ok((config, generation_config))
}

/// Names a file that the user may have meant.
fn advice_without(folder: &Path, extensions: &[&str]) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| extensions.iter().any(|extension| name.ends_with(extension)))
        .collect();
    names.sort();
    match names.first() {
        Some(name) if name.ends_with(".bin") => {
            format!("`{name}` is a PyTorch file: convert the model to safetensors")
        }
        Some(name) => format!("to open `{name}`, name the file itself"),
        None => "download the whole model folder".to_owned(),
    }
}

fn read_text(path: &Path, limit: u64) -> Result<String, CheckpointError> {
    let metadata = std::fs::metadata(path).map_err(|error| CheckpointError::io(path, error))?;
    if !metadata.is_file() {
        return Err(CheckpointError::NotARegularFile { path: path.to_owned() });
    }
    if metadata.len() > limit {
        return Err(CheckpointError::FileTooLarge {
            file: path.display().to_string(),
            limit,
            found: metadata.len(),
        });
    }
    let file = File::open(path).map_err(|error| CheckpointError::io(path, error))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(|error| CheckpointError::io(path, error))?;
    String::from_utf8(bytes).map_err(|error| {
        let problem = format!("{error}");
        CheckpointError::config(&path.display().to_string(), ConfigError::Json { problem })
    })
}

fn add_safetensors(table: &mut TensorTable, path: &Path) -> Result<(), CheckpointError> {
    let bytes = CheckpointBytes::map(path)?;
    let label = path.display().to_string();
    let tensors = safetensors::parse(&label, bytes.as_slice())?;
    table.add_file(label, bytes, tensors)
}

/// Opens the shards that the index names, and takes from each the tensors that the index says.
fn add_shards(table: &mut TensorTable, folder: &Path, index: &Path) -> Result<(), CheckpointError> {
    let label = index.display().to_string();
    let refused = |problem: String| CheckpointError::Index {
        file: label.clone(),
        problem: json::shorten_sentence(&problem),
    };
    let text = read_text(index, MAX_INDEX_BYTES)?;
    let shards = shards_of_index(&text).map_err(refused)?;
    for (shard, names) in shards {
        let path = folder.join(&shard);
        if !path.exists() {
            return Err(refused(format!("its shard `{shard}` is missing")));
        }
        let bytes = CheckpointBytes::map(&path)?;
        let shard_label = path.display().to_string();
        let tensors: Vec<FileTensor> = safetensors::parse(&shard_label, bytes.as_slice())?
            .into_iter()
            .filter(|tensor| names.contains(&tensor.name))
            .collect();
        if tensors.len() < names.len() {
            let found: BTreeSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
            let missing = names.iter().find(|name| !found.contains(name.as_str()));
            return Err(refused(format!(
                "it places tensor `{}` in `{shard}`, which doesn't have it",
                missing.map_or("", String::as_str)
            )));
        }
        table.add_file(shard_label, bytes, tensors)?;
    }
    Ok(())
}

/// The index as shard -> names of its tensors.
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
