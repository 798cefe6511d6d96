//! Weights that other tools have quantized inside of safetensors. Their blocks aren't read; GGUF's are.

use serde_json::Value;

use super::file_kind::shown;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::tensors::TensorTable;
use crate::config::json;

/// Refuses a `config.json` that says that its weights are quantized. Text that isn't JSON is left to whoever
/// reads the rest of it.
pub(in crate::checkpoint) fn reject_config(file: &str, text: &str) -> Result<(), CheckpointError> {
    let Ok(config) = json::parse(text) else { return Ok(()) };
    // mlx-lm writes its field under both names.
    let sign_of_mlx = |field: &str| {
        let settings = config.get(field).filter(|settings| settings.get("quant_method").is_none())?;
        let (bits, group) = (settings.get("bits")?.as_u64()?, settings.get("group_size")?.as_u64()?);
        Some(format!("field `{field}` ({bits} bits in groups of {group})"))
    };
    if let Some(sign) = ["quantization", "quantization_config"].into_iter().find_map(sign_of_mlx) {
        return refuse(file, "MLX", sign);
    }
    let method = config.get("quantization_config").and_then(|settings| settings.get("quant_method"));
    match method.and_then(Value::as_str) {
        Some(method) => refuse(file, &shown(method), "field `quantization_config`".to_owned()),
        None => Ok(()),
    }
}

/// Refuses tensors whose names are those of quantized weights, for configurations that don't say so.
pub(in crate::checkpoint) fn reject_tensors(table: &TensorTable) -> Result<(), CheckpointError> {
    for (name, entry) in &table.entries {
        let Some(method) = method_of(table, name) else { continue };
        return refuse(table.label_of(entry), method, format!("tensor `{}`", shown(name)));
    }
    Ok(())
}

fn method_of(table: &TensorTable, name: &str) -> Option<&'static str> {
    let has = |name: String| table.entries.contains_key(&name);
    if let Some(module) = name.strip_suffix(".scales") {
        // Both have scales; MLX keeps the name of the weight, GPTQ and AWQ don't.
        if has(format!("{module}.biases")) && has(format!("{module}.weight")) {
            return Some("MLX");
        }
    }
    if name.ends_with(".qweight") {
        return Some("GPTQ or AWQ");
    }
    if name.contains(".weight.quant_state.bitsandbytes") || name.ends_with(".SCB") {
        return Some("bitsandbytes");
    }
    let is_compressed = name.ends_with(".weight_packed") || name.ends_with(".weight_scale");
    is_compressed.then_some("compressed-tensors")
}

fn refuse(file: &str, method: &str, sign: String) -> Result<(), CheckpointError> {
    Err(CheckpointError::Quantized { file: file.to_owned(), method: method.to_owned(), sign })
}
