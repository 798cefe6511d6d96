//! Faults around the weights: adapters, other tools' formats, tokenizers, image encoders.

use serde_json::{Map, Value, json};

use crate::Row;
use crate::build_gguf::{GgufBuilder, array_value, f32_value, string_value, u32_value};
use crate::files::{Folder, GIT_LFS_POINTER, Opened, rename};
use crate::ggufs::{tiny, with_vocabulary};

/// What was trained on top of a model.
pub fn adapters() -> Vec<Row> {
    vec![
        Row {
            fault: "a folder of a LoRA adapter",
            files: |folder| {
                let config =
                    json!({"peft_type": "LORA", "base_model_name_or_path": "google/gemma-3-1b-it\n"});
                folder.write("adapter_config.json", config.to_string());
                folder.write("adapter_model.safetensors", "");
                folder.root().into()
            },
            message: "{dir}/adapter_config.json: this is a LoRA adapter of `google/gemma-3-1b-it\\n`, not a whole \
                model; merge it into its base model first (with peft: `merge_and_unload()`, then `save_pretrained`) \
                and open the result",
        },
        Row {
            fault: "an adapter's weights by their name",
            files: |folder| {
                folder.write("adapter_config.json", r#"{"peft_type": "LOHA"}"#);
                folder.write("adapter_model.safetensors", [0; 16]).into()
            },
            message: "{dir}/adapter_config.json: this is an adapter (`LOHA`), not a whole model; merge it into its \
                base model first (with peft: `merge_and_unload()`, then `save_pretrained`) and open the result",
        },
        Row {
            fault: "an adapter's weights alone",
            files: |folder| {
                folder.write("adapter_model.safetensors", "");
                folder.root().into()
            },
            message: "{dir}/adapter_model.safetensors: this is a LoRA adapter, not a whole model; merge it into its \
                base model first (with peft: `merge_and_unload()`, then `save_pretrained`) and open the result",
        },
        Row {
            fault: "an adapter of prompts beside a configuration",
            files: |folder| {
                folder.fill("tiny-text");
                folder.remove("model.safetensors");
                let config =
                    json!({"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "gemma-3-1b-pt"});
                folder.write("adapter_config.json", config.to_string());
                folder.root().into()
            },
            message: "{dir}/adapter_config.json: this is an adapter (`PROMPT_TUNING`) of `gemma-3-1b-pt`, not a whole \
                model; it works on the prompt and can't be merged into weights; open its base model",
        },
        Row {
            fault: "an adapter of mlx-lm",
            files: |folder| {
                let config = json!({"fine_tune_type": "lora", "model": "mlx-community/gemma-3-1b-it-bf16"});
                folder.write("adapter_config.json", config.to_string());
                folder.write("adapters.safetensors", [0; 16]).into()
            },
            message: "{dir}/adapter_config.json: this is a LoRA adapter of `mlx-community/gemma-3-1b-it-bf16`, not a \
                whole model; merge it into its base model first (`mlx_lm.fuse`) and open the result",
        },
        Row {
            fault: "an adapter's tensors under a model's name",
            files: |folder| {
                folder.with_header(|header| {
                    let names: Vec<String> =
                        header.keys().filter(|name| name.starts_with("model.")).cloned().collect();
                    for name in names {
                        let module = name.trim_end_matches(".weight");
                        rename(header, &name, &format!("base_model.model.{module}.lora_A.weight"));
                    }
                })
            },
            message: "{dir}: this is a LoRA adapter, not a whole model; merge it into its base model first (with \
                peft: `merge_and_unload()`, then `save_pretrained`) and open the result",
        },
        Row {
            fault: "a GGUF adapter",
            files: |folder| {
                let file = GgufBuilder::default()
                    .set("general.architecture", string_value("gemma3"))
                    .set("general.type", string_value("adapter"))
                    .set("adapter.type", string_value("lora"))
                    .set("general.base_model.0.name", string_value("Gemma 3 1b It"))
                    .tensor("blk.0.attn_q.weight.lora_a", &[2, 6]);
                folder.write("adapter.gguf", file.build()).into()
            },
            message: "{dir}/adapter.gguf: this is a LoRA adapter of `Gemma 3 1b It`, not a whole model; merge it into \
                its base model first (`llama-export-lora`) and open the result",
        },
    ]
}

/// [`Folder::with_header`] with two tensors of one module given other names.
fn with_names(folder: &Folder, [first, second]: [&str; 2]) -> Opened {
    folder.with_header(|header: &mut Map<String, Value>| {
        rename(header, "model.layers.6.self_attn.q_norm.weight", first);
        rename(header, "model.layers.6.self_attn.k_norm.weight", second);
    })
}

/// Safetensors of tools that quantize.
pub fn quantized() -> Vec<Row> {
    vec![
        Row {
            fault: "a model of MLX",
            files: |folder| folder.configured("quantization", json!({"group_size": 64, "bits": 4})),
            message: "{dir}/config.json: field `quantization` (4 bits in groups of 64): the weights are quantized by \
                MLX, which isn't read; take the model's unquantized safetensors (`LoadOptions::quantization` makes \
                them small), or a GGUF file of it",
        },
        Row {
            fault: "a model of MLX under the other name",
            files: |folder| folder.configured("quantization_config", json!({"group_size": 32, "bits": 8})),
            message: "{dir}/config.json: field `quantization_config` (8 bits in groups of 32): the weights are \
                quantized by MLX, which isn't read; take the model's unquantized safetensors \
                (`LoadOptions::quantization` makes them small), or a GGUF file of it",
        },
        Row {
            fault: "tensors of MLX under a configuration that doesn't say so",
            files: |folder| {
                with_names(
                    folder,
                    ["model.layers.6.mlp.down_proj.scales", "model.layers.6.mlp.down_proj.biases"],
                )
            },
            message: "{dir}/model.safetensors: tensor `model.layers.6.mlp.down_proj.scales`: the weights are quantized \
                by MLX, which isn't read; take the model's unquantized safetensors (`LoadOptions::quantization` makes \
                them small), or a GGUF file of it",
        },
        Row {
            fault: "a model of bitsandbytes",
            files: |folder| {
                let settings = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
                folder.configured("quantization_config", settings)
            },
            message: "{dir}/config.json: field `quantization_config`: the weights are quantized by bitsandbytes, which \
                isn't read; take the model's unquantized safetensors (`LoadOptions::quantization` makes them small), \
                or a GGUF file of it",
        },
        Row {
            fault: "a model of GPTQ",
            files: |folder| {
                folder.configured(
                    "quantization_config",
                    json!({"quant_method": "gptq", "bits": 4, "group_size": 128}),
                )
            },
            message: "{dir}/config.json: field `quantization_config`: the weights are quantized by gptq, which isn't \
                read; take the model's unquantized safetensors (`LoadOptions::quantization` makes them small), or a \
                GGUF file of it",
        },
        Row {
            fault: "tensors of AWQ",
            files: |folder| {
                with_names(
                    folder,
                    ["model.layers.6.mlp.down_proj.qweight", "model.layers.6.mlp.down_proj.qzeros"],
                )
            },
            message: "{dir}/model.safetensors: tensor `model.layers.6.mlp.down_proj.qweight`: the weights are quantized \
                by GPTQ or AWQ, which isn't read; take the model's unquantized safetensors \
                (`LoadOptions::quantization` makes them small), or a GGUF file of it",
        },
    ]
}

/// Files that were named in place of a model.
pub fn kinds() -> Vec<Row> {
    vec![
        Row {
            fault: "weights of PyTorch",
            files: |folder| folder.write("pytorch_model.bin", "PK\u{3}\u{4}").into(),
            message: "{dir}/pytorch_model.bin: expected a Hugging Face folder, a .safetensors file or a .gguf file, \
                found a PyTorch file; convert the model to safetensors (transformers: `from_pretrained(folder)`, \
                then `save_pretrained(folder)`)",
        },
        Row {
            fault: "a bundle for phones",
            files: |folder| folder.write("gemma3-1b-it-int4.task", "PK\u{3}\u{4}").into(),
            message: "{dir}/gemma3-1b-it-int4.task: expected a Hugging Face folder, a .safetensors file or a .gguf \
                file, found a MediaPipe bundle; take the model's safetensors, or a GGUF file of it",
        },
        Row {
            fault: "a bundle of another name",
            files: |folder| folder.write("gemma3", "LITERTLM\u{1}").into(),
            message: "{dir}/gemma3: expected a Hugging Face folder, a .safetensors file or a .gguf file, found a \
                LiteRT-LM bundle; take the model's safetensors, or a GGUF file of it",
        },
        Row {
            fault: "an archive",
            files: |folder| folder.write("gemma.zip", "PK\u{3}\u{4}").into(),
            message: "{dir}/gemma.zip: expected a Hugging Face folder, a .safetensors file or a .gguf file, found an \
                archive; unpack it and name what is inside",
        },
        Row {
            fault: "one of the folder's small files",
            files: |folder| folder.write("config.json", "{}").into(),
            message: "{dir}/config.json: expected a Hugging Face folder, a .safetensors file or a .gguf file, found a \
                JSON file; name its folder",
        },
        Row {
            fault: "the vocabulary",
            files: |folder| folder.write("tokenizer.model", "\n\u{e}\n\u{5}<pad>").into(),
            message: "{dir}/tokenizer.model: expected a Hugging Face folder, a .safetensors file or a .gguf file, \
                found a SentencePiece vocabulary; name its folder",
        },
        Row {
            fault: "safetensors under a hash",
            files: |folder| folder.write("5f2c", "\u{10}\0\0\0\0\0\0\0{\"a\": {\"dtype\"").into(),
            message: "{dir}/5f2c: expected a Hugging Face folder, a .safetensors file or a .gguf file, found what \
                begins like a safetensors file; rename it to end in .safetensors",
        },
        Row {
            fault: "a text",
            files: |folder| folder.write("README.md", "# Gemma").into(),
            message: "{dir}/README.md: expected a Hugging Face folder, a .safetensors file or a .gguf file, found a \
                .md file; name one of those",
        },
    ]
}

/// Vocabularies, in files of their own and inside of GGUF files.
pub fn tokenizers() -> Vec<Row> {
    vec![
        Row {
            fault: "no tokenizer",
            files: |folder| {
                folder.fill("tiny-text");
                folder.remove("tokenizer.json");
                folder.root().into()
            },
            message: "{dir}: no tokenizer: expected tokenizer.json in the folder, or a vocabulary in the GGUF file; \
                take it from the model's page, or give a tokenizer with `Gemma3::loader_of`",
        },
        Row {
            fault: "tokenizer.model alone",
            files: |folder| {
                folder.fill("tiny-text");
                folder.rename("tokenizer.json", "tokenizer.model");
                folder.root().into()
            },
            message: "{dir}: no tokenizer: expected tokenizer.json in the folder, or a vocabulary in the GGUF file; \
                `tokenizer.model` is the SentencePiece form of it, which isn't read: take tokenizer.json from the \
                model's page, or write it with transformers (`AutoTokenizer.from_pretrained(folder)`, then \
                `save_pretrained(folder)`)",
        },
        Row {
            fault: "a GGUF file without a vocabulary",
            files: |folder| folder.copy("tiny-text.gguf", "model.gguf").into(),
            message: "{dir}/model.gguf: no tokenizer: expected tokenizer.json in the folder, or a vocabulary in the \
                GGUF file; take it from the model's page, or give a tokenizer with `Gemma3::loader_of`",
        },
        Row {
            fault: "tokenizer.json as a Git LFS pointer",
            files: |folder| folder.spoiled("tokenizer.json", |_| GIT_LFS_POINTER.into()),
            message: "{dir}/tokenizer.json: this is a Git LFS pointer to a file of 536223056 bytes, not the file \
                itself; run `git lfs pull` in its folder, or download the file from the model's page",
        },
        Row {
            fault: "tokenizer.json cut short",
            files: |folder| folder.spoiled("tokenizer.json", |_| br#"{"model": {"type": "BPE""#.to_vec()),
            message: "{dir}/tokenizer.json: not a tokenizer.json: EOF while parsing an object at line 1 column 24; fetch the file \
                again, or convert it with Hugging Face's tokenizers",
        },
        Row {
            fault: "another model's tokenizer.json",
            files: |folder| {
                let other = json!({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}});
                folder.spoiled("tokenizer.json", |_| other.to_string().into_bytes())
            },
            message: "{dir}/tokenizer.json: unsupported model type \"Unigram\": expected BPE; take the tokenizer of a Gemma 3",
        },
        Row {
            fault: "merges that don't belong to the tokens",
            files: |folder| {
                let file =
                    json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}});
                folder.spoiled("tokenizer.json", |_| file.to_string().into_bytes())
            },
            message: "{dir}/tokenizer.json: merge 0 of \"a\" and \"b\" is not possible: expected both and their \
                concatenation in the vocabulary; take the file from the model's page again",
        },
        Row {
            fault: "another kind of vocabulary in a GGUF file",
            files: |folder| {
                let file = with_vocabulary().set("tokenizer.ggml.model", string_value("gpt2"));
                folder.write("model.gguf", file.build()).into()
            },
            message: "{dir}/model.gguf: unsupported tokenizer.ggml.model \"gpt2\": expected llama (SentencePiece), as \
                in every Gemma 3 file; take the tokenizer of a Gemma 3",
        },
        Row {
            fault: "a vocabulary of another type in a GGUF file",
            files: |folder| {
                let file = with_vocabulary().set("tokenizer.ggml.scores", string_value("none"));
                folder.write("model.gguf", file.build()).into()
            },
            message: "{dir}/model.gguf: field `tokenizer.ggml.scores`: expected an array of f32, found a string; \
                correct the file",
        },
        Row {
            fault: "scores of another number than tokens in a GGUF file",
            files: |folder| {
                let file = with_vocabulary().set("tokenizer.ggml.scores", array_value(6, 1, &[0; 4]));
                folder.write("model.gguf", file.build()).into()
            },
            message: "{dir}/model.gguf: the vocabulary has 5 tokens, 1 scores and 5 token types: expected one of each \
                per token; convert the model anew",
        },
    ]
}

/// A language model with the given second file.
fn with_mmproj(folder: &Folder, bytes: impl AsRef<[u8]>) -> Opened {
    folder.fill("tiny-text");
    let model = folder.copy("tiny-text.gguf", "model.gguf");
    Opened { model, mmproj: Some(folder.write("mmproj.gguf", bytes)) }
}

/// The metadata of an image encoder, without tensors.
fn encoder() -> GgufBuilder {
    GgufBuilder::default()
        .set("general.architecture", string_value("clip"))
        .set("clip.vision.projector_type", string_value("gemma3"))
        .set("clip.vision.embedding_length", u32_value(48))
        .set("clip.vision.feed_forward_length", u32_value(80))
        .set("clip.vision.block_count", u32_value(1))
        .set("clip.vision.attention.head_count", u32_value(3))
        .set("clip.vision.attention.layer_norm_epsilon", f32_value(1e-6))
        .set("clip.vision.image_size", u32_value(56))
        .set("clip.vision.patch_size", u32_value(14))
}

/// Image encoders, beside a GGUF file and in a folder.
pub fn image_encoders() -> Vec<Row> {
    vec![
        Row {
            fault: "no mmproj file",
            files: |folder| {
                let opened = with_mmproj(folder, "");
                folder.remove("mmproj.gguf");
                opened
            },
            message: "{dir}/mmproj.gguf: no such file or folder; check the path, or download the model first",
        },
        Row {
            fault: "mmproj as a Git LFS pointer",
            files: |folder| with_mmproj(folder, GIT_LFS_POINTER),
            message: "{dir}/mmproj.gguf: this is a Git LFS pointer to a file of 536223056 bytes, not the file itself; \
                run `git lfs pull` in its folder, or download the file from the model's page",
        },
        Row {
            fault: "another file in place of mmproj",
            files: |folder| with_mmproj(folder, "PK\u{3}\u{4}"),
            message: "{dir}/mmproj.gguf: expected the magic bytes \"GGUF\", found \"PK\\x03\\x04\"; this is not a GGUF file, name \
                another or download it again",
        },
        Row {
            fault: "the language model in place of mmproj",
            files: |folder| with_mmproj(folder, tiny().build()),
            message: "{dir}/mmproj.gguf: expected an image encoder (`general.architecture` \"clip\"), found a language model \
                (\"gemma3\"); its image encoder is in another file, usually called mmproj-….gguf",
        },
        Row {
            fault: "another model's image encoder",
            files: |folder| {
                with_mmproj(
                    folder,
                    encoder().set("clip.vision.projector_type", string_value("llava")).build(),
                )
            },
            message: "{dir}/mmproj.gguf: field `clip.vision.projector_type`: \"llava\" is not supported, expected \
                \"gemma3\"; use a Gemma 3 text or image-text checkpoint",
        },
        Row {
            fault: "an image encoder without a size",
            files: |folder| with_mmproj(folder, encoder().without("clip.vision.block_count").build()),
            message: "{dir}/mmproj.gguf: field `clip.vision.block_count` is missing: expected the metadata of Gemma 3's \
                image encoder; convert the model anew",
        },
        Row {
            fault: "an image encoder without its tensors",
            files: |folder| with_mmproj(folder, encoder().build()),
            message: "{dir}/mmproj.gguf: tensor `v.patch_embd.weight` of shape [48, 3, 14, 14] is missing; the \
                checkpoint is incomplete, or its configuration belongs to another model",
        },
        Row {
            fault: "an image encoder for gray images",
            files: |folder| {
                folder.fill("tiny-multimodal");
                let text = std::fs::read_to_string(folder.path("config.json")).expect("a configuration");
                let mut config: Value = serde_json::from_str(&text).expect("JSON");
                config["vision_config"]["num_channels"] = json!(1);
                folder.write("config.json", config.to_string());
                folder.root().into()
            },
            message: "{dir}: the image encoder takes 1 channels, expected 3 (red, green, blue); take the files of a \
                Gemma 3",
        },
        Row {
            fault: "preprocessing of another size than the encoder's",
            files: |folder| {
                folder.fill("tiny-multimodal");
                let settings = json!({"size": {"height": 28, "width": 28}});
                folder.write("preprocessor_config.json", settings.to_string());
                folder.root().into()
            },
            message: "{dir}/preprocessor_config.json: field `size`: expected 56x56 pixels, for which the image \
                encoder is made, found 28x28; correct the file",
        },
    ]
}
