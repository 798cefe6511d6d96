//! Adapters (LoRA and other methods of peft, mlx-lm and llama.cpp): what was trained on top of a model, without
//! the model.

use std::path::Path;

use serde_json::Value;

use super::file_kind::shown;
use crate::checkpoint::folder::{MAX_CONFIG_BYTES, read_text};
use crate::checkpoint::tensors::TensorTable;
use crate::checkpoint::{CheckpointError, GgufFile, Warning, WarningKind};
use crate::config::json;

const CONFIG: &str = "adapter_config.json";
/// What peft and mlx-lm call the weights, before the extension.
const WEIGHTS: [&str; 2] = ["adapter_model", "adapters"];

const MERGE: &str = "merge it into its base model first (with peft: `merge_and_unload()`, then \
    `save_pretrained`) and open the result";
const MERGE_MLX: &str = "merge it into its base model first (`mlx_lm.fuse`) and open the result";
const MERGE_GGUF: &str = "merge it into its base model first (`llama-export-lora`) and open the result";
const UNMERGEABLE: &str = "it works on the prompt and can't be merged into weights; open its base model";

/// The error for a folder that holds an adapter; `None` if it doesn't. To be asked where the files of a model
/// are missing: a folder of a whole model may have an adapter beside it.
pub(in crate::checkpoint) fn in_folder(folder: &Path) -> Option<CheckpointError> {
    let config = folder.join(CONFIG);
    if config.is_file() {
        return Some(described_by(&config));
    }
    let weights = WEIGHTS
        .into_iter()
        .flat_map(|name| ["safetensors", "bin"].map(|extension| folder.join(format!("{name}.{extension}"))));
    weights.into_iter().find(|path| path.is_file()).map(|path| unnamed(&path.display().to_string()))
}

/// The warning for an adapter beside a whole model, which transformers would put on it.
pub(in crate::checkpoint) fn beside(folder: &Path) -> Option<Warning> {
    let config = folder.join(CONFIG);
    config.is_file().then(|| {
        let problem = "an adapter lies beside the model";
        let effect = "the model is loaded without it; merge it first if it is meant";
        Warning::new(WarningKind::IgnoredFile, config.display().to_string(), problem, effect)
    })
}

/// The error for a file that is called as adapters are; `None` for another name.
pub(in crate::checkpoint) fn in_file(path: &Path) -> Option<CheckpointError> {
    let stem = path.file_stem()?.to_str()?;
    if !WEIGHTS.contains(&stem) {
        return None;
    }
    let config = path.with_file_name(CONFIG);
    Some(match config.is_file() {
        true => described_by(&config),
        false => unnamed(&path.display().to_string()),
    })
}

/// Refuses tensors of which some are an adapter's and none is the model's embedding.
pub(in crate::checkpoint) fn reject_tensors(
    source: &str,
    table: &TensorTable,
) -> Result<(), CheckpointError> {
    let mut names = table.entries.keys();
    let is_adapter = names.any(|name| name.contains(".lora_A.") || name.ends_with(".lora_a"));
    let has_model = || table.entries.keys().any(|name| name.ends_with("embed_tokens.weight"));
    match is_adapter && !has_model() {
        true => Err(unnamed(source)),
        false => Ok(()),
    }
}

/// Refuses a GGUF file that says that it is an adapter.
pub(in crate::checkpoint) fn reject_gguf(file: &GgufFile, source: &str) -> Result<(), CheckpointError> {
    let text = |key: &str| file.metadata().str(key).ok().flatten();
    if text("general.type") != Some("adapter") {
        return Ok(());
    }
    let base = text("general.base_model.0.repo_url").or_else(|| text("general.base_model.0.name"));
    Err(CheckpointError::Adapter {
        file: source.to_owned(),
        adapter: named(text("adapter.type").unwrap_or("lora")),
        base_model: base.map(shown),
        advice: MERGE_GGUF,
    })
}

/// What `adapter_config.json` says; one that can't be read says nothing.
fn described_by(config: &Path) -> CheckpointError {
    let text = read_text(config, MAX_CONFIG_BYTES).unwrap_or_default();
    let value = json::parse(&text).unwrap_or(Value::Null);
    let field = |name: &str| value.get(name).and_then(Value::as_str);
    // mlx-lm has names of its own for the same fields.
    let is_mlx = field("fine_tune_type").is_some();
    let method = field("peft_type").or_else(|| field("fine_tune_type"));
    CheckpointError::Adapter {
        file: config.display().to_string(),
        adapter: method.map_or("an adapter".to_owned(), named),
        base_model: field("base_model_name_or_path").or_else(|| field("model")).map(shown),
        advice: match method {
            Some(method) if is_of_prompts(method) => UNMERGEABLE,
            _ if is_mlx => MERGE_MLX,
            _ => MERGE,
        },
    }
}

fn unnamed(source: &str) -> CheckpointError {
    CheckpointError::Adapter {
        file: source.to_owned(),
        adapter: named("lora"),
        base_model: None,
        advice: MERGE,
    }
}

fn named(method: &str) -> String {
    match method.to_ascii_lowercase().as_str() {
        "lora" => "a LoRA adapter".to_owned(),
        _ => format!("an adapter (`{}`)", shown(method)),
    }
}

/// peft's methods that learn embeddings in front of the prompt.
fn is_of_prompts(method: &str) -> bool {
    const METHODS: [&str; 6] =
        ["ADAPTION_PROMPT", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"];
    METHODS.contains(&method)
}
