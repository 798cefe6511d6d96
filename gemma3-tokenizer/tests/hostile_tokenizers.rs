//! Files that ask for more than a tokenizer: memory without bound, steps that panic, ids that do not exist. Each is an
//! error that says so, and says it in few words.

use gemma3_tokenizer::{
    Bos, ChatError, ChatTemplate, GgufVocabulary, Message, Role, Tokenizer, TokenizerError,
};
use serde_json::{Value, json};

/// A tokenizer.json of five tokens.
fn file() -> Value {
    json!({
        "added_tokens": [{ "id": 0, "content": "<bos>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }],
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<bos>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [],
            "special_tokens": { "<bos>": { "id": "<bos>", "ids": [0], "tokens": ["<bos>"] } } },
        "decoder": null,
        "model": { "type": "BPE", "unk_token": "<unk>",
            "vocab": { "<bos>": 0, "a": 1, " ": 2, "<unk>": 3, "aa": 4 }, "merges": [["a", "a"]] }
    })
}

fn load(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, TokenizerError> {
    let mut file = file();
    change(&mut file);
    Tokenizer::from_bytes(file.to_string().as_bytes())
}

#[track_caller]
fn error(change: impl FnOnce(&mut Value)) -> String {
    let error = load(change).expect_err("an error").to_string();
    assert!(error.len() < 1000, "{} bytes", error.len());
    error
}

#[test]
fn the_file_of_these_tests_is_a_tokenizer() {
    let tokenizer = load(|_| {}).unwrap();
    assert_eq!(tokenizer.encode("aa a", Bos::Add).unwrap(), [0, 4, 2, 1]);
    assert_eq!(tokenizer.ids().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[test]
fn steps_that_multiply_a_text_are_an_error() {
    let double = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" });
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    for (part, steps, step) in [
        ("normalizer", "normalizers", &double),
        ("decoder", "decoders", &double),
        ("pre_tokenizer", "pretokenizers", &byte_level),
    ] {
        let chain = |length| {
            move |file: &mut Value| file[part] = json!({ "type": "Sequence", steps: vec![step; length] })
        };
        assert!(load(chain(8)).is_ok(), "{part}");
        let error = error(chain(9));
        assert!(error.contains(part) && error.contains("256"), "{error}");
    }
    let long = json!({ "type": "Replace", "pattern": { "Regex": "a?" }, "content": "a".repeat(1000) });
    assert!(error(|file| file["normalizer"] = long).contains("normalizer"));
}

#[test]
fn a_step_of_the_tokenizers_crate_that_panics_is_an_error() {
    // It takes a character off the end of a token that has none.
    let strip = json!({ "type": "Strip", "content": "a", "start": 0, "stop": 2 });
    let tokenizer = load(|file| file["decoder"] = strip).unwrap();
    let error = tokenizer.decode(&[1], false).unwrap_err();
    assert!(matches!(error, TokenizerError::Decode { .. }), "{error}");
    let mut stream = tokenizer.stream_decoder(false);
    assert_eq!(stream.push(1), None);
    assert!(stream.finish().is_err());
    // Whole and stream agree on nothing, too.
    assert_eq!(tokenizer.decode(&[], false).unwrap(), "");
    assert_eq!(tokenizer.stream_decoder(false).finish().unwrap(), "");
    // One that panics while it is read: a table of characters that is none.
    let table = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" });
    let _ = load(|file| file["normalizer"] = table).map(|tokenizer| tokenizer.encode("a", Bos::None));
}

#[test]
fn a_template_with_ids_of_no_token_or_without_end_is_an_error() {
    let ids = |ids: Vec<u32>| {
        move |file: &mut Value| file["post_processor"]["special_tokens"]["<bos>"]["ids"] = json!(ids)
    };
    assert_eq!(load(ids(vec![3, 1])).unwrap().encode("a", Bos::Add).unwrap(), [3, 1, 1]);
    assert!(error(ids(vec![0, 5])).contains("id 5"));
    assert!(error(ids(vec![0; 65])).contains("65 ids"));
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    assert!(error(|file| file["post_processor"]["single"] = json!(vec![text; 65])).contains("65 pieces"));
}

#[test]
fn scores_that_ask_for_merges_of_every_part_of_long_tokens_are_an_error() {
    // "a", "aa", "aaa", …: each is a merge of any two whose lengths add up.
    let load = |longest: usize| {
        let mut vocabulary = GgufVocabulary { model: "llama".into(), ..GgufVocabulary::default() };
        vocabulary.tokens.push("<unk>".into());
        vocabulary.tokens.extend((1..=longest).map(|length| "a".repeat(length)));
        vocabulary.scores = vec![0.0; longest + 1];
        vocabulary.token_types = [2].into_iter().chain(std::iter::repeat_n(1, longest)).collect();
        Tokenizer::from_gguf(vocabulary)
    };
    assert!(load(64).is_ok());
    let error = load(200).expect_err("an error");
    assert!(
        matches!(error, TokenizerError::TooManyMerges { found: 2_666_600, limit: 1_286_720 }),
        "{error:?}"
    );
}

#[test]
fn errors_do_not_repeat_what_a_file_says_at_length() {
    let long = "\u{1b}[2J".repeat(2000);
    let errors = [
        error(|file| file["model"]["type"] = json!(long)),
        error(|file| file["normalizer"] = json!({ "type": long })),
        error(|file| file["post_processor"] = json!({ "type": long })),
        error(|file| file["model"]["merges"] = json!([[long, "a"]])),
    ];
    for error in errors {
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
    let message = Message::new(Role::from_name(&"user".repeat(2000)), ["Hi".into()]);
    let error = ChatTemplate::render(&[message], true).expect_err("an error");
    assert!(
        matches!(error, ChatError::RolesMustAlternate { .. }) && error.to_string().len() < 1000,
        "{error}"
    );
}
