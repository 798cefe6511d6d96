//! What is odd and loads: what `Gemma3::warnings` says of it.

use serde_json::json;

use crate::Row;
use crate::build_gguf::{f32_value, u32_value};
use crate::files::GIT_LFS_POINTER;
use crate::ggufs::with_vocabulary;

/// Files that don't keep a model from loading.
pub fn odd() -> Vec<Row> {
    vec![
        Row {
            fault: "generation_config.json as a Git LFS pointer",
            files: |folder| folder.spoiled("generation_config.json", |_| GIT_LFS_POINTER.into()),
            message: "note: {dir}/generation_config.json: this is a Git LFS pointer to a file of 536223056 bytes, not \
                the file itself; run `git lfs pull` in its folder, or download the file from the model's page; its \
                recommendations are left out",
        },
        Row {
            fault: "an empty generation_config.json",
            files: |folder| folder.spoiled("generation_config.json", |_| Vec::new()),
            message: "note: {dir}/generation_config.json: the file is empty; its recommendations are left out",
        },
        Row {
            fault: "a top_k of -1, the servers' spelling of off",
            files: |folder| folder.spoiled("generation_config.json", |_| br#"{"top_k": -1}"#.to_vec()),
            message: "note: {dir}/generation_config.json: field `top_k`: expected a non-negative integer, found -1; \
                it is taken for 0, which keeps all tokens",
        },
        Row {
            fault: "a top_p in percent",
            files: |folder| folder.spoiled("generation_config.json", |_| br#"{"top_p": 100}"#.to_vec()),
            message: "note: {dir}/generation_config.json: field `top_p`: expected a number above 0 and at most 1, \
                found 100; generations that use it fail; set `top_p` yourself",
        },
        Row {
            fault: "a padding token of -1",
            files: |folder| folder.configured("pad_token_id", json!(-1)),
            message: "note: {dir}/config.json: field `pad_token_id`: expected a token id (0 to 2^32-1), found -1; it \
                is passed over",
        },
        Row {
            fault: "an adapter beside a model",
            files: |folder| folder.spoiled("adapter_config.json", |_| b"{}".to_vec()),
            message: "note: {dir}/adapter_config.json: an adapter lies beside the model; the model is loaded without \
                it; merge it first if it is meant",
        },
        Row {
            fault: "the cap of Ollama's files",
            files: |folder| {
                let file = with_vocabulary().set("gemma3.final_logit_softcapping", f32_value(30.0));
                folder.write("model.gguf", file.build()).into()
            },
            message: "note: {dir}/model.gguf: `gemma3.final_logit_softcapping` is 30, a slip of some converters: Gemma 3 \
                was trained without a cap; it is not applied",
        },
        Row {
            fault: "a token beyond the vocabulary of a GGUF file",
            files: |folder| {
                let file = with_vocabulary().set("tokenizer.ggml.bos_token_id", u32_value(7));
                folder.write("model.gguf", file.build()).into()
            },
            message: "note: {dir}/model.gguf: `tokenizer.ggml.bos_token_id` names the id 7, of a model with 5 tokens; \
                it is passed over",
        },
    ]
}
