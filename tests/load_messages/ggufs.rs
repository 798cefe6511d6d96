//! Faults of GGUF files.

use crate::Row;
use crate::build_gguf::{
    self, GgufBuilder, array_value, string_value, strings_value, tiny_config, u32_value, value,
};
use crate::files::{Folder, GIT_LFS_POINTER, Opened};

/// A sound file of the smallest model.
pub fn tiny() -> GgufBuilder {
    build_gguf::model(&tiny_config(2))
}

/// Writes a file after a change of it.
fn spoiled(folder: &Folder, change: impl FnOnce(GgufBuilder) -> GgufBuilder) -> Opened {
    folder.write("model.gguf", change(tiny()).build()).into()
}

/// The same for one that is spoiled in place.
fn spoiled_in_place(folder: &Folder, change: impl FnOnce(&mut GgufBuilder)) -> Opened {
    spoiled(folder, |mut file| {
        change(&mut file);
        file
    })
}

/// What isn't a GGUF file, or isn't Gemma 3's language model.
pub fn stand_ins() -> Vec<Row> {
    vec![
        Row {
            fault: "a Git LFS pointer",
            files: |folder| folder.write("model.gguf", GIT_LFS_POINTER).into(),
            message: "{dir}/model.gguf: this is a Git LFS pointer to a file of 536223056 bytes, not the file itself; \
                run `git lfs pull` in its folder, or download the file from the model's page",
        },
        Row {
            fault: "a web page",
            files: |folder| folder.write("model.gguf", "<html>").into(),
            message: "{dir}/model.gguf: expected a model's file, found a web page; accept the license on the model's \
                page, log in, and download it again",
        },
        Row {
            fault: "other bytes",
            files: |folder| folder.write("model.gguf", "\u{1}BIN").into(),
            message: "{dir}/model.gguf: expected a Hugging Face folder, a .safetensors file or a .gguf file, found a \
                .gguf file that begins with \"\\x01BIN\" instead of \"GGUF\"; download it again",
        },
        Row {
            fault: "no bytes",
            files: |folder| folder.write("model.gguf", "").into(),
            message: "{dir}/model.gguf: the file is empty; download it again",
        },
        Row {
            fault: "another version",
            files: |folder| spoiled(folder, |file| GgufBuilder { version: 1, ..file }),
            message: "{dir}/model.gguf: expected GGUF version 2 or 3, found 1; convert the model anew",
        },
        Row {
            fault: "big endian",
            files: |folder| spoiled(folder, |file| GgufBuilder { version: 3_u32.swap_bytes(), ..file }),
            message: "{dir}/model.gguf: expected a little-endian file, found a big-endian one; convert the model \
                anew",
        },
        Row {
            fault: "the image encoder in place of the language model",
            files: |folder| spoiled(folder, |file| file.set("general.architecture", string_value("clip"))),
            message: "{dir}/model.gguf: field `general.architecture`: \"clip\" (the image encoder's file: open the \
                language model's) is not supported, expected \"gemma3\"; use a Gemma 3 text or image-text checkpoint",
        },
        Row {
            fault: "another model",
            files: |folder| spoiled(folder, |file| file.set("general.architecture", string_value("llama"))),
            message: "{dir}/model.gguf: field `general.architecture`: \"llama\" is not supported, expected \
                \"gemma3\"; use a Gemma 3 text or image-text checkpoint",
        },
        Row {
            fault: "metadata without a size",
            files: |folder| spoiled(folder, |file| file.without("gemma3.embedding_length")),
            message: "{dir}/model.gguf: field `gemma3.embedding_length` is missing: expected a positive integer; convert the model \
                anew",
        },
        Row {
            fault: "metadata of another type",
            files: |folder| spoiled(folder, |file| file.set("gemma3.embedding_length", string_value("6"))),
            message: "{dir}/model.gguf: field `gemma3.embedding_length`: expected a non-negative integer, found a \
                string; correct the file",
        },
        Row {
            fault: "a missing tensor",
            files: |folder| {
                spoiled_in_place(folder, |file| {
                    file.tensor_mut("blk.1.ffn_up.weight").name = b"other".to_vec()
                })
            },
            message: "{dir}/model.gguf: tensor `blk.1.ffn_up.weight` of shape [3, 6] is missing; the checkpoint is \
                incomplete, or its configuration belongs to another model",
        },
        Row {
            fault: "a format that isn't read",
            files: |folder| {
                spoiled_in_place(folder, |file| file.tensor_mut("blk.1.ffn_up.weight").type_id = 20)
            },
            message: "{dir}/model.gguf: tensor `blk.1.ffn_up.weight`: expected one of the formats f32, f16, bf16, \
                q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, found IQ4_NL; convert the file to one of them",
        },
    ]
}

/// Files that were cut or whose numbers contradict each other.
pub fn damaged() -> Vec<Row> {
    vec![
        Row {
            fault: "a file cut within the header",
            files: |folder| folder.write("model.gguf", &tiny().build()[..20]).into(),
            message: "{dir}/model.gguf: expected 8 more bytes for the number of metadata entries at byte 16, found 4; \
                the file was cut short or is damaged, download it again",
        },
        Row {
            fault: "a file cut within the data",
            files: |folder| {
                let file = tiny().build();
                folder.write("model.gguf", &file[..file.len() - 32]).into()
            },
            message: "{dir}/model.gguf: tensor `output_norm.weight`: expected 24 bytes at offset 1728 of the data, which has 1728; \
                the file was cut short, download it again",
        },
        Row {
            fault: "a text that isn't UTF-8",
            files: |folder| {
                spoiled(folder, |file| file.set("some.text", value(8, b"\x01\0\0\0\0\0\0\0\xff")))
            },
            message: "{dir}/model.gguf: some.text at byte 567 isn't valid UTF-8; the file is damaged",
        },
        Row {
            fault: "an unknown type of value",
            files: |folder| spoiled(folder, |file| file.set("some.key", value(13, &[]))),
            message: "{dir}/model.gguf: metadata `some.key`: expected a value type from 0 to 12, found 13; file is \
                damaged",
        },
        Row {
            fault: "arrays in an array",
            files: |folder| spoiled(folder, |file| file.set("some.key", array_value(9, 1, &[]))),
            message: "{dir}/model.gguf: metadata `some.key`: arrays inside arrays aren't read; convert the model anew",
        },
        Row {
            fault: "a boolean that is none",
            files: |folder| spoiled(folder, |file| file.set("some.key", value(7, &[2]))),
            message: "{dir}/model.gguf: metadata `some.key`: expected a boolean of 0 or 1, found 2; the file is \
                damaged",
        },
        Row {
            fault: "a key twice",
            files: |folder| {
                spoiled_in_place(folder, |file| {
                    file.metadata.push(("gemma3.block_count".into(), u32_value(1)))
                })
            },
            message: "{dir}/model.gguf: metadata `gemma3.block_count` occurs twice; the file is damaged",
        },
        Row {
            fault: "an alignment that is none",
            files: |folder| spoiled(folder, |file| file.set("general.alignment", u32_value(33))),
            message: "{dir}/model.gguf: metadata `general.alignment`: expected a power of two, found 33; file is \
                damaged",
        },
        Row {
            fault: "a tensor twice",
            files: |folder| {
                spoiled_in_place(folder, |file| {
                    file.tensor_mut("blk.1.attn_q.weight").name = b"blk.0.attn_q.weight".to_vec();
                })
            },
            message: "{dir}/model.gguf: tensor `blk.0.attn_q.weight` occurs twice; the file is damaged",
        },
        Row {
            fault: "a tensor of too many dimensions",
            files: |folder| {
                spoiled_in_place(folder, |file| {
                    file.tensor_mut("output_norm.weight").dimension_count = Some(5)
                })
            },
            message: "{dir}/model.gguf: tensor `output_norm.weight`: expected at most 4 dimensions, found 5; the file \
                is damaged",
        },
        Row {
            fault: "a shape beyond all memory",
            files: |folder| {
                spoiled_in_place(folder, |file| {
                    file.tensor_mut("token_embd.weight").dimensions = vec![1 << 32, 1 << 32];
                })
            },
            message: "{dir}/model.gguf: tensor `token_embd.weight`: a f32 tensor of shape [4294967296, 4294967296] has more bytes \
                than an address can hold; the file is damaged",
        },
        Row {
            fault: "a tensor between two places",
            files: |folder| spoiled_in_place(folder, |file| file.tensor_mut("token_embd.weight").offset = 4),
            message: "{dir}/model.gguf: tensor `token_embd.weight`: expected an offset that is a multiple of 32, \
                found 4; the file is damaged",
        },
        Row {
            fault: "tensors in one place",
            files: |folder| {
                spoiled_in_place(folder, |file| {
                    file.tensor_mut("blk.1.attn_q.weight").offset =
                        file.tensor_mut("blk.0.attn_q.weight").offset;
                })
            },
            message: "{dir}/model.gguf: tensors `blk.0.attn_q.weight` and `blk.1.attn_q.weight` overlap; the file is \
                damaged",
        },
    ]
}

/// Two parts of a split model, changed, without the parts that are not wanted.
fn split(folder: &Folder, change: impl FnOnce(&mut [GgufBuilder; 2])) {
    let number = |number: u16| value(2, &number.to_le_bytes());
    let whole = tiny();
    let count = value(5, &(whole.tensors.len() as i32).to_le_bytes());
    let with_keys = |file: GgufBuilder, part| {
        file.set("split.no", number(part))
            .set("split.count", number(2))
            .set("split.tensors.count", count.clone())
    };
    // All tensors in the second part.
    let first = GgufBuilder { metadata: whole.metadata, ..GgufBuilder::default() };
    let second = GgufBuilder { tensors: whole.tensors, data: whole.data, ..GgufBuilder::default() };
    let mut parts = [with_keys(first, 0), with_keys(second, 1)];
    change(&mut parts);
    for (part, file) in (1..).zip(&parts) {
        folder.write(&format!("gemma-{part:05}-of-00002.gguf"), file.build());
    }
}

/// Models in several files.
pub fn parts() -> Vec<Row> {
    vec![
        Row {
            fault: "a missing part",
            files: |folder| {
                split(folder, |_| ());
                folder.remove("gemma-00002-of-00002.gguf");
                folder.path("gemma-00001-of-00002.gguf").into()
            },
            message: "{dir}/gemma-00002-of-00002.gguf: this file is missing, one of 2 that hold the model together; \
                put it beside the others, or download the model again",
        },
        Row {
            fault: "a part as a Git LFS pointer",
            files: |folder| {
                split(folder, |_| ());
                folder.write("gemma-00002-of-00002.gguf", GIT_LFS_POINTER);
                folder.path("gemma-00001-of-00002.gguf").into()
            },
            message: "{dir}/gemma-00002-of-00002.gguf: this is a Git LFS pointer to a file of 536223056 bytes, not \
                the file itself; run `git lfs pull` in its folder, or download the file from the model's page",
        },
        Row {
            fault: "a part of another name",
            files: |folder| {
                split(folder, |_| ());
                folder.rename("gemma-00002-of-00002.gguf", "second.gguf");
                folder.path("second.gguf").into()
            },
            message: "{dir}/second.gguf: the file is part 2 of 2: expected a name that ends in -00002-of-00002.gguf, \
                by which the others are found; rename the parts, or merge them (with `llama-gguf-split --merge`)",
        },
        Row {
            fault: "parts of two models",
            files: |folder| {
                split(folder, |[_, second]| {
                    *second = second.clone().set("split.tensors.count", u32_value(7));
                });
                folder.path("gemma-00002-of-00002.gguf").into()
            },
            message: "{dir}/gemma-00002-of-00002.gguf: metadata `split.tensors.count`: expected 28 by the name and \
                the first part, found 7; the parts belong to different models, download them again",
        },
        Row {
            fault: "a tensor less than the parts say",
            files: |folder| {
                split(folder, |[_, second]| {
                    second.tensors.pop();
                });
                folder.path("gemma-00001-of-00002.gguf").into()
            },
            message: "{dir}/gemma-00001-of-00002.gguf: metadata `split.tensors.count`: expected 28 tensors in all \
                parts together, found 27; download the parts again",
        },
        Row {
            fault: "a tensor in two parts",
            files: |folder| {
                split(folder, |[first, _]| *first = first.clone().tensor("output_norm.weight", &[6]));
                folder.path("gemma-00001-of-00002.gguf").into()
            },
            message: "tensor `output_norm.weight` is in both {dir}/gemma-00001-of-00002.gguf and \
                {dir}/gemma-00002-of-00002.gguf; give each file of the model once, \
                and none of another",
        },
        Row {
            fault: "a missing tensor, in no part",
            files: |folder| {
                split(folder, |[_, second]| {
                    second.tensor_mut("output_norm.weight").name = b"other".to_vec();
                });
                folder.path("gemma-00002-of-00002.gguf").into()
            },
            message: "{dir}/gemma-00002-of-00002.gguf: tensor `output_norm.weight` of shape [6] is missing; the \
                checkpoint is incomplete, or its configuration belongs to another model",
        },
    ]
}

/// [`tiny`] with a vocabulary of its five rows.
pub fn with_vocabulary() -> GgufBuilder {
    let numbers = |numbers: [i32; 5]| numbers.map(i32::to_le_bytes).concat();
    tiny()
        .set("tokenizer.ggml.model", string_value("llama"))
        .set("tokenizer.ggml.tokens", strings_value(&["<pad>", "<eos>", "<bos>", "<unk>", "a"]))
        .set("tokenizer.ggml.scores", array_value(6, 5, &[0; 20]))
        .set("tokenizer.ggml.token_type", array_value(5, 5, &numbers([3, 3, 3, 2, 1])))
}
