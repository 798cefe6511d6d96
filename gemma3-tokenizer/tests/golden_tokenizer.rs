//! The reference's ids and texts, for the real tokenizer.json and for the miniature ones.

mod common;

use common::*;
use gemma3_tokenizer::Bos;

#[test]
fn the_real_tokenizer_encodes_and_decodes_as_the_reference() {
    let (Some(golden), Some(tokenizer)) = (golden_json("tokenizer.json"), real_tokenizer()) else {
        return;
    };
    let (checked, left_out) = check_tokenizer_goldens(&tokenizer, &golden);
    assert_eq!(left_out, 0, "the real tokenizer has every id");
    println!("{checked} cases checked");
}

#[test]
fn the_miniature_tokenizers_encode_and_decode_as_the_reference() {
    for (name, tokenizer) in miniature_tokenizers() {
        let Some(golden) = golden_json(&format!("{name}.json")) else {
            continue;
        };
        let Some(cases) = golden["text"].as_array() else {
            println!("skipped: {name}.json has no text cases");
            continue;
        };
        for case in cases {
            let input = text(case, "text");
            let expected = ids(&case["input_ids"]);
            assert_eq!(
                tokenizer.encode(input, Bos::Add).expect("encoding succeeds"),
                expected,
                "{name}: {input:?}"
            );
            assert_eq!(tokenizer.decode(&expected, true).expect("decoding succeeds"), input);
            let output = tokenizer.decode(&ids(&case["output_ids"]), true).expect("decoding succeeds");
            assert_eq!(output, text(case, "output_text"), "{name}: text of {case}");
        }
    }
}
