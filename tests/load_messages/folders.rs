//! Faults of Hugging Face folders: what is missing or damaged in them.

use serde_json::json;

use crate::Row;
use crate::files::{GIT_LFS_POINTER, rename};

/// Folders that lack what a model needs.
pub fn whole() -> Vec<Row> {
    vec![
        Row {
            fault: "nothing at the path",
            files: |folder| folder.path("gemma-3-1b-it").into(),
            message: "{dir}/gemma-3-1b-it: no such file or folder; check the path, or download the model first",
        },
        Row {
            fault: "an empty folder",
            files: |folder| folder.root().into(),
            message: "{dir}: config.json is missing; the folder is empty: download the whole model folder",
        },
        Row {
            fault: "weights without their configuration",
            files: |folder| {
                folder.fill("tiny-text");
                folder.remove("config.json");
                folder.root().into()
            },
            message: "{dir}: config.json is missing; download the whole model folder",
        },
        Row {
            fault: "one of the weights' files without its configuration",
            files: |folder| {
                folder.fill("tiny-text");
                folder.remove("config.json");
                folder.path("model.safetensors").into()
            },
            message: "{dir}: config.json is missing; download the whole model folder",
        },
        Row {
            fault: "a folder of GGUF files",
            files: |folder| {
                folder.copy("tiny-text.gguf", "gemma-Q4_0.gguf");
                folder.copy("tiny-text.gguf", "a-mmproj.gguf");
                folder.root().into()
            },
            message: "{dir}: config.json is missing; to open `gemma-Q4_0.gguf`, name the file itself",
        },
        Row {
            fault: "the folder above the model, as the hub's cache has it",
            files: |folder| {
                folder.write("refs/main", "5f2c");
                folder.write("snapshots/5f2c/config.json", "{}");
                folder.root().into()
            },
            message: "{dir}: config.json is missing; to open the model in `snapshots/5f2c`, name that folder",
        },
        Row {
            fault: "a configuration without weights",
            files: |folder| {
                folder.fill("tiny-text");
                folder.remove("model.safetensors");
                folder.root().into()
            },
            message: "{dir}: model.safetensors is missing; download it, or the model's shards with their index",
        },
        Row {
            fault: "weights of PyTorch",
            files: |folder| {
                folder.fill("tiny-text");
                folder.rename("model.safetensors", "pytorch_model-00001-of-00002.bin");
                folder.root().into()
            },
            message: "{dir}: model.safetensors is missing; `pytorch_model-00001-of-00002.bin` is a PyTorch file: \
                convert the model to safetensors (transformers: `from_pretrained(folder)`, then \
                `save_pretrained(folder)`)",
        },
        Row {
            fault: "weights of ONNX",
            files: |folder| {
                folder.fill("tiny-text");
                folder.rename("model.safetensors", "decoder_model.onnx");
                folder.root().into()
            },
            message: "{dir}: model.safetensors is missing; `decoder_model.onnx` is an ONNX model: take the model's \
                safetensors, or a GGUF file of it",
        },
        Row {
            fault: "weights of another name",
            files: |folder| {
                folder.fill("tiny-text");
                folder.rename("model.safetensors", "gemma.safetensors");
                folder.root().into()
            },
            message: "{dir}: model.safetensors is missing; to open `gemma.safetensors`, name the file itself",
        },
        #[cfg(unix)]
        Row {
            fault: "weights that are a link to nothing, as a cache that was cleaned has them",
            files: |folder| {
                folder.fill("tiny-text");
                folder.remove("model.safetensors");
                std::os::unix::fs::symlink("../../blobs/4d7a", folder.path("model.safetensors"))
                    .expect("a link");
                folder.root().into()
            },
            message: "{dir}: model.safetensors is missing; it is a link to a file that is gone: download it again",
        },
    ]
}

/// `config.json` and `generation_config.json`.
pub fn configurations() -> Vec<Row> {
    vec![
        Row {
            fault: "a folder in place of config.json",
            files: |folder| {
                folder.write("config.json/config.json", "{}");
                folder.root().into()
            },
            message: "{dir}/config.json: expected a regular file, found a folder, a device or a pipe; put the \
                model's file there",
        },
        Row {
            fault: "config.json of more bytes than any",
            files: |folder| folder.spoiled("config.json", |_| vec![b' '; (4 << 20) + 1]),
            message: "{dir}/config.json: expected at most 4194304 bytes, found 4194305; this is not a model's file",
        },
        Row {
            fault: "config.json cut short",
            files: |folder| folder.spoiled("config.json", |_| b"{\"model_type\":".to_vec()),
            message: "{dir}/config.json: not valid JSON: EOF while parsing a value at line 1 column 14; check that \
                the file was downloaded completely",
        },
        Row {
            fault: "config.json that isn't text",
            files: |folder| folder.spoiled("config.json", |_| b"{\xff}".to_vec()),
            message: "{dir}/config.json: expected UTF-8 text, found other bytes at byte 1; download it again, or save \
                it as UTF-8",
        },
        Row {
            fault: "a web page in place of config.json",
            files: |folder| folder.spoiled("config.json", |_| b"<!doctype html><html>".to_vec()),
            message: "{dir}/config.json: expected a model's file, found a web page; accept the license on the \
                model's page, log in, and download it again",
        },
        Row {
            fault: "config.json as a Git LFS pointer",
            files: |folder| folder.spoiled("config.json", |_| GIT_LFS_POINTER.into()),
            message: "{dir}/config.json: this is a Git LFS pointer to a file of 536223056 bytes, not the file \
                itself; run `git lfs pull` in its folder, or download the file from the model's page",
        },
        Row {
            fault: "another model",
            files: |folder| folder.spoiled("config.json", |_| b"{\"model_type\": \"gemma2\"}".to_vec()),
            message: "{dir}/config.json: field `model_type`: gemma2 is not supported, expected \"gemma3_text\" or \
                \"gemma3\"; use a Gemma 3 text or image-text checkpoint",
        },
        Row {
            fault: "config.json of another tool",
            files: |folder| folder.spoiled("config.json", |_| b"{\"d_model\": 96}".to_vec()),
            message: "{dir}/config.json: field `model_type` is missing: expected \"gemma3_text\" or \"gemma3\"; take \
                the config.json that belongs to the weights",
        },
        Row {
            fault: "a size that is none",
            files: |folder| folder.configured("hidden_size", json!(-96)),
            message: "{dir}/config.json: field `hidden_size`: expected a non-negative integer, found -96; correct \
                the file",
        },
    ]
}

/// `model.safetensors`.
pub fn weights() -> Vec<Row> {
    vec![
        Row {
            fault: "weights as a Git LFS pointer",
            files: |folder| folder.spoiled("model.safetensors", |_| GIT_LFS_POINTER.into()),
            message: "{dir}/model.safetensors: this is a Git LFS pointer to a file of 536223056 bytes, not the file \
                itself; run `git lfs pull` in its folder, or download the file from the model's page",
        },
        Row {
            fault: "a refusal in place of the weights",
            files: |folder| folder.spoiled("model.safetensors", |_| b"Entry not found".to_vec()),
            message: "{dir}/model.safetensors: expected a model's file, found a server's refusal; accept the \
                license on the model's page, log in, and download it again",
        },
        Row {
            fault: "weights without a byte",
            files: |folder| folder.spoiled("model.safetensors", |_| Vec::new()),
            message: "{dir}/model.safetensors: the file is empty; download it again",
        },
        Row {
            fault: "weights cut within the header",
            files: |folder| folder.spoiled("model.safetensors", |_| 4_u64.to_le_bytes().to_vec()),
            message: "{dir}/model.safetensors: not a valid safetensors file: its header should have 4 bytes, the file \
                has 8; download it again",
        },
        Row {
            fault: "weights cut within the data",
            files: |folder| folder.spoiled("model.safetensors", |bytes| bytes[..bytes.len() - 2].to_vec()),
            message: "{dir}/model.safetensors: not a valid safetensors file: tensor `model.norm.weight` should end within the 970622 \
                bytes of data, it ends at 970624; download it again",
        },
        Row {
            fault: "a tensor under another name",
            files: |folder| {
                folder.with_header(|header| {
                    rename(header, "model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up.weight")
                })
            },
            message: "{dir}: tensor `model.layers.3.mlp.up_proj.weight` of shape [160, 96] is missing; the \
                checkpoint is incomplete, or its configuration belongs to another model",
        },
        Row {
            fault: "weights of another size than the configuration's",
            files: |folder| folder.configured("intermediate_size", json!(192)),
            message: "{dir}/model.safetensors: tensor `model.layers.0.mlp.gate_proj.weight`: expected shape [192, 96] \
                by the configuration, found [160, 96]; weights and configuration don't belong together",
        },
        Row {
            fault: "a tensor of integers",
            files: |folder| folder.with_header(|header| header["model.norm.weight"]["dtype"] = json!("I16")),
            message: "{dir}/model.safetensors: tensor `model.norm.weight`: expected one of the formats f32, f16, \
                bf16, found I16; convert the file to one of them",
        },
        Row {
            fault: "a weight that is no number",
            files: |folder| {
                folder.spoiled("model.safetensors", |mut bytes| {
                    // The last tensor's last weight; its format is BF16.
                    let last = bytes.len() - 2;
                    bytes[last..].copy_from_slice(&0x7FC0_u16.to_le_bytes());
                    bytes
                })
            },
            message: "{dir}/model.safetensors: tensor `model.norm.weight`: expected finite weights, found NaN at \
                index 95; the file is damaged or was converted with an overflow, take another one",
        },
    ]
}

/// Weights in several files.
pub fn shards() -> Vec<Row> {
    vec![
        Row {
            fault: "a set without index that lacks a shard",
            files: |folder| {
                folder.fill("tiny-multimodal");
                folder.remove("model.safetensors.index.json");
                folder.remove("model-00001-of-00002.safetensors");
                folder.root().into()
            },
            message: "{dir}/model-00001-of-00002.safetensors: this file is missing, one of 2 that hold the model \
                together; put it beside the others, or download the model again",
        },
        Row {
            fault: "shards of two sets",
            files: |folder| {
                folder.fill("tiny-multimodal");
                folder.remove("model.safetensors.index.json");
                folder.write("model-00004-of-00005.safetensors", "");
                folder.root().into()
            },
            message: "{dir}: `model-00001-of-00002.safetensors` and `model-00004-of-00005.safetensors` belong to \
                different sets of shards; keep one set in the folder, or name a file of the one that is meant",
        },
        Row {
            fault: "a shard twice",
            files: |folder| {
                folder.fill("tiny-multimodal");
                folder.remove("model.safetensors.index.json");
                std::fs::copy(
                    folder.path("model-00001-of-00002.safetensors"),
                    folder.path("model-00002-of-00002.safetensors"),
                )
                .expect("a copy");
                folder.root().into()
            },
            message: "tensor `language_model.model.embed_tokens.weight` is in both {dir}/model-00001-of-00002.safetensors and \
                {dir}/model-00002-of-00002.safetensors; give each file of the model once, and none of another",
        },
        Row {
            fault: "a shard as a Git LFS pointer",
            files: |folder| {
                folder.fill("tiny-multimodal");
                folder.write("model-00002-of-00002.safetensors", GIT_LFS_POINTER);
                folder.root().into()
            },
            message: "{dir}/model-00002-of-00002.safetensors: this is a Git LFS pointer to a file of 536223056 bytes, \
                not the file itself; run `git lfs pull` in its folder, or download the file from the model's page",
        },
        Row {
            fault: "an index that names a shard that isn't there",
            files: |folder| {
                folder.fill("tiny-multimodal");
                folder.remove("model-00002-of-00002.safetensors");
                folder.root().into()
            },
            message: "{dir}/model.safetensors.index.json: its shard `model-00002-of-00002.safetensors` is missing; \
                download the index and its shards again",
        },
        Row {
            fault: "an index that doesn't name the shard that is opened",
            files: |folder| {
                folder.fill("tiny-multimodal");
                folder.write("model-00003-of-00003.safetensors", [0; 16]);
                folder.path("model-00003-of-00003.safetensors").into()
            },
            message: "{dir}/model.safetensors.index.json: it doesn't name `model-00003-of-00003.safetensors`, which lies beside it; \
                download the index and its shards again",
        },
        Row {
            fault: "an index that leaves the folder",
            files: |folder| {
                folder.fill("tiny-multimodal");
                folder.write("model.safetensors.index.json", r#"{"weight_map": {"a": "../b\n"}}"#);
                folder.root().into()
            },
            message: "{dir}/model.safetensors.index.json: shard name `../b\\n` must be a plain file name in the same \
                folder; download the index and its shards again",
        },
        Row {
            fault: "an index that places a tensor elsewhere",
            files: |folder| {
                folder.fill("tiny-multimodal");
                let map = json!({"weight_map": {"model.a": "model-00001-of-00002.safetensors"}});
                folder.write("model.safetensors.index.json", map.to_string());
                folder.root().into()
            },
            message: "{dir}/model.safetensors.index.json: it places tensor `model.a` in \
                `model-00001-of-00002.safetensors`, which doesn't have it; download the index and its shards again",
        },
        Row {
            fault: "an index without its map",
            files: |folder| {
                folder.fill("tiny-multimodal");
                folder.write("model.safetensors.index.json", "{}");
                folder.root().into()
            },
            message: "{dir}/model.safetensors.index.json: field `weight_map` is missing or isn't an object; download \
                the index and its shards again",
        },
    ]
}
