//! From text to text on the tiny checkpoints: prompt ids, greedy ids and decoded text of the reference.

#[path = "../gemma3-core/tests/common/mod.rs"]
mod common;

use common::{devices, golden, golden_json, ids};
use gemma3::tokenizer::Bos;
use gemma3::{Gemma3, GenerateOptions};

#[test]
fn texts_continue_as_in_the_reference() {
    for name in ["tiny-text", "tiny-multimodal"] {
        let (Some(folder), Some(index)) = (golden(name), golden_json(&format!("{name}.json"))) else {
            continue;
        };
        let Some(cases) = index["text"].as_array() else {
            println!("skipped: {name}.json holds no texts");
            continue;
        };
        for (device_name, device) in devices() {
            println!("{name} on {device_name}");
            let gemma = Gemma3::loader(&folder)
                .device(&device)
                .options(common::exact())
                .load()
                .expect("the checkpoint");
            for case in cases {
                let text = case["text"].as_str().expect("a text");
                let prompt = gemma.tokenizer().encode(text, Bos::Add).expect("ids");
                assert_eq!(prompt, ids(&case["input_ids"]), "{text:?}");
                let expected = ids(&case["output_ids"]);
                let options = GenerateOptions {
                    max_new_tokens: Some(expected.len()),
                    ignore_eos: true,
                    ..GenerateOptions::greedy()
                };
                let generation = gemma.generate(text, &options).expect("a text");
                let found: Vec<u32> = generation.tokens.iter().map(|token| token.id).collect();
                assert_eq!(found, expected, "{text:?}");
                let decoded = gemma.tokenizer().decode(&found, true).expect("text");
                assert_eq!(generation.text, decoded);
                if let Some(expected) = case["output_text"].as_str() {
                    assert_eq!(decoded, expected, "{text:?}");
                }
            }
        }
    }
}
