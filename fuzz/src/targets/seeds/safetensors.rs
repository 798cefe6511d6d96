//! Safetensors files of a few kilobytes, and the index of two shards.

use gemma3::core::checkpoint::{Checkpoint, TensorFormat, TensorView};
use gemma3::core::config::ModelConfig;
use serde_json::{Map, Value, json};

use super::super::mutate::safetensors_file;

/// The configuration beside the weights.
pub const TINY_CONFIG: &str = r#"{
    "model_type": "gemma3_text", "vocab_size": 5, "hidden_size": 6, "intermediate_size": 4, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "query_pre_attn_scalar": 2,
    "sliding_window": 4, "max_position_embeddings": 64
}"#;

/// The weights in one file, as F32 and as BF16 with a foreign tensor; the index of two files, whole and wrong.
pub fn safetensors() -> Vec<Vec<u8>> {
    let tensors = tensors(TensorFormat::F32);
    let mut foreign = self::tensors(TensorFormat::BF16);
    foreign.push(("step".to_owned(), "I64", vec![], vec![0; 8]));
    let shards = shards();
    let place =
        |shard: usize| shards[shard].iter().map(move |tensor| (tensor.0.clone(), json!(SHARDS[shard])));
    let weight_map: Map<String, Value> = place(0).chain(place(1)).collect();
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": weight_map });
    let outside = json!({ "weight_map": { "model.norm.weight": "../config.json" } });
    vec![file(&tensors), file(&foreign), index.to_string().into_bytes(), outside.to_string().into_bytes()]
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// Name and content of the two files that the index names.
pub fn tiny_shards() -> Vec<(&'static str, Vec<u8>)> {
    SHARDS.into_iter().zip(shards().iter().map(|tensors| file(tensors))).collect()
}

/// Name, type, shape and bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

fn shards() -> [Vec<Tensor>; 2] {
    let mut first = tensors(TensorFormat::F32);
    let second = first.split_off(first.len() / 2);
    [first, second]
}

fn tensors(format: TensorFormat) -> Vec<Tensor> {
    let config = ModelConfig::from_json(TINY_CONFIG).expect("a valid configuration");
    let checkpoint = Checkpoint::random(config.text, format, 0).expect("random weights");
    let tensor = |view: TensorView<'_>| {
        let kind = if view.format == TensorFormat::F32 { "F32" } else { "BF16" };
        (view.file_name.to_owned(), kind, view.shape.clone(), view.bytes.to_vec())
    };
    checkpoint.names().map(|name| tensor(checkpoint.raw(name).expect("a tensor"))).collect()
}

fn file(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    for (name, kind, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        let entry = json!({ "dtype": kind, "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name.clone(), entry);
    }
    safetensors_file(&Value::Object(header), &data)
}
