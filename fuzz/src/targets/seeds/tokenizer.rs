//! Tokenizers: the miniatures of Gemma's, and small ones with other steps.

use serde_json::{Value, json};

use super::read;

/// The miniatures, and a tokenizer for each family of steps that the file format has.
pub fn tokenizer() -> Vec<Vec<u8>> {
    let fixture = |folder: &str| -> Value {
        serde_json::from_slice(&read(&format!("tests/fixtures/{folder}/tokenizer.json"))).expect("JSON")
    };
    let replace =
        |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let metaspace =
        json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true });
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    let sequence = |kind: &str, steps: Value| json!({ "type": "Sequence", kind: steps });
    let variants = [
        small(replace(" ", "\u{2581}"), json!(null), json!(null)),
        small(
            sequence(
                "normalizers",
                json!([
                    { "type": "NFKC" },
                    { "type": "Lowercase" },
                    { "type": "Strip", "strip_left": true, "strip_right": true },
                    { "type": "Prepend", "prepend": "\u{2581}" },
                    { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": "b" },
                ]),
            ),
            metaspace.clone(),
            metaspace,
        ),
        small(
            json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                "lowercase": true }),
            sequence(
                "pretokenizers",
                json!([
                    { "type": "Digits", "individual_digits": true },
                    { "type": "Punctuation", "behavior": "Isolated" },
                    { "type": "Split", "pattern": { "Regex": "\\w+|[^\\w\\s]+" }, "behavior": "Removed",
                        "invert": true },
                    byte_level,
                ]),
            ),
            byte_level,
        ),
        small(
            json!({ "type": "NFD" }),
            json!({ "type": "WhitespaceSplit" }),
            sequence(
                "decoders",
                json!([
                    replace("\u{2581}", " "),
                    { "type": "ByteFallback" },
                    { "type": "Fuse" },
                    { "type": "Strip", "content": " ", "start": 1, "stop": 1 },
                ]),
            ),
        ),
    ];
    let miniatures = [fixture("tiny-text"), fixture("tiny-multimodal")];
    miniatures.iter().chain(&variants).map(|tokenizer| tokenizer.to_string().into_bytes()).collect()
}

/// A tokenizer of a few tokens with the given steps.
fn small(normalizer: Value, pre_tokenizer: Value, decoder: Value) -> Value {
    let added = |id: u32, content: &str, special: bool| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": true,
            "normalized": !special, "special": special })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(0, "<bos>", true), added(8, "<tool>", false), added(2, "<unk>", true)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<bos>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<bos>": { "id": "<bos>", "ids": [0], "tokens": ["<bos>"] } } },
        "decoder": decoder,
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
            "vocab": { "<bos>": 0, "a": 1, "<unk>": 2, "t": 3, "h": 4, "th": 5, "\u{2581}": 6, "\u{2581}th": 7, "e": 9 },
            "merges": [["t", "h"], ["\u{2581}", "th"]] }
    })
}
