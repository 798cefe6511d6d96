//! The vocabulary inside the real GGUF against the goldens of `tokenizer.json`: the same ids.

#[path = "../gemma3-tokenizer/tests/common/mod.rs"]
mod common;

use std::path::PathBuf;

use gemma3::core::checkpoint::Checkpoint;
use gemma3::tokenizer::Tokenizer;

/// The tokenizer of the real model's file, or a named skip.
fn real_vocabulary() -> Option<Tokenizer> {
    let named = std::env::var_os("GEMMA3_MODEL").map(PathBuf::from);
    let found = named.or_else(|| gemma3::hub::cached_default_model(&Default::default()));
    let Some(path) = found.filter(|path| path.is_file()) else {
        assert!(
            !common::is_required("model"),
            "GEMMA3_REQUIRE names `model`, but the real 270M is not there"
        );
        println!("skipped: model: the real 270M is not cached; run the example `generate`");
        return None;
    };
    let checkpoint = Checkpoint::open(path).expect("the real model");
    let vocabulary = gemma3::gguf_vocabulary(checkpoint.gguf()?).expect("metadata").expect("a vocabulary");
    Some(Tokenizer::from_gguf(vocabulary).expect("a tokenizer"))
}

#[test]
fn the_vocabulary_of_the_gguf_gives_the_ids_of_tokenizer_json() {
    let Some(goldens) = common::golden_json("tokenizer.json") else { return };
    let Some(tokenizer) = real_vocabulary() else { return };
    let (checked, left_out) = common::check_tokenizer_goldens(&tokenizer, &goldens);
    println!(
        "{checked} cases equal, {left_out} left out (they hold <image_soft_token>, which the file lacks)"
    );
    assert!(checked > 20 * left_out, "most cases were checked");
}

#[test]
fn conversations_with_the_vocabulary_of_the_gguf_have_the_ids_of_the_template() {
    let Some(goldens) = common::golden_json("chat.json") else { return };
    let Some(tokenizer) = real_vocabulary() else { return };
    let cases = common::check_chat_goldens(&tokenizer, &goldens);
    assert!(cases > 0, "chat.json holds cases with ids");
}
