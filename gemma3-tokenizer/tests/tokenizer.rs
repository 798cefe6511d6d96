//! What the goldens do not cover: special tokens in any place, bad files, odd ids, long texts.

mod common;

use std::time::{Duration, Instant};

use common::*;
use gemma3_tokenizer::{Bos, SpecialTokens, TokenizeOptions, Tokenizer, TokenizerError, special};
use proptest::prelude::*;
use serde_json::{Value, json};

const ESCAPE: TokenizeOptions = TokenizeOptions { bos: Bos::None, special_tokens: SpecialTokens::Escape };

fn tiny_json() -> Value {
    read_json(&workspace().join("tests/fixtures/tiny-text/tokenizer.json"))
}

fn load(json: &Value) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_bytes(json.to_string().as_bytes())
}

#[test]
fn bos_is_added_as_often_as_asked_for() {
    let tokenizer = tiny();
    let encode = |text, bos| tokenizer.encode(text, bos).unwrap();
    assert_eq!(encode("the", Bos::None), [280]);
    assert_eq!(encode("the", Bos::Add), [2, 280]);
    assert_eq!(encode("the", Bos::Once), [2, 280]);
    assert_eq!(encode("<bos>the", Bos::None), [2, 280]);
    assert_eq!(encode("<bos>the", Bos::Add), [2, 2, 280], "as the reference");
    assert_eq!(encode("<bos>the", Bos::Once), [2, 280]);
    assert_eq!(encode("", Bos::Once), [2]);
    let escaped = TokenizeOptions { bos: Bos::Once, ..ESCAPE };
    assert_eq!(tokenizer.encode_with("<bos>", escaped).unwrap().first(), Some(&2));
    assert_eq!(tokenizer.encode_pair("the", "in", Bos::Add).unwrap(), [2, 280, 2, 279]);
    assert_eq!(tokenizer.encode_pair("the", "in", Bos::None).unwrap(), [280, 279]);
}

#[test]
fn escaped_special_tokens_are_plain_text_and_newlines_stay_tokens() {
    let tokenizer = tiny();
    let text = "the<end_of_turn>\n\n<start_of_turn>";
    assert_eq!(tokenizer.encode(text, Bos::None).unwrap(), [280, 5, 7, 4]);
    let escaped = tokenizer.encode_with(text, ESCAPE).unwrap();
    assert!(escaped.contains(&7), "the newlines are one token");
    assert!(escaped.iter().all(|&id| !tokenizer.is_special(id)));
    assert_eq!(tokenizer.decode(&escaped, true).unwrap(), text);
}

#[test]
fn a_vocabulary_that_merges_or_spells_a_special_token_still_escapes_it() {
    let mut file = tiny_json();
    // "th" and "e" merge to "the", "s" is a character: both are made special.
    for (id, content) in [(280, "the"), (271, "s")] {
        let token = json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true });
        file["added_tokens"].as_array_mut().unwrap().push(token);
    }
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.encode("thes", Bos::None).unwrap(), [280, 271]);
    let escaped = tokenizer.encode_with("thes", ESCAPE).unwrap();
    assert!(escaped.iter().all(|&id| !tokenizer.is_special(id)), "{escaped:?}");
    assert_eq!(tokenizer.decode(&escaped, true).unwrap(), "thes");
}

#[test]
fn names_ids_and_special_tokens_are_known() {
    let tokenizer = tiny();
    assert_eq!(tokenizer.special_ids(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(tokenizer.token_to_id("▁the"), Some(281));
    assert_eq!(tokenizer.token_to_id(special::END_OF_TURN), Some(5));
    assert_eq!(tokenizer.id_to_token(281).as_deref(), Some("▁the"));
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(2), Some(1)));
    assert_eq!((tokenizer.padding_id(), tokenizer.unknown_id()), (Some(0), Some(3)));
    assert_eq!((tokenizer.vocab_size(), tokenizer.max_id()), (285, 284));
    assert!(tokenizer.is_known(284) && !tokenizer.is_known(285) && !tokenizer.is_known(u32::MAX));
}

#[test]
fn ids_in_a_gap_of_the_vocabulary_are_not_known() {
    for (_, tokenizer) in miniature_tokenizers() {
        let known = (0..=tokenizer.max_id()).filter(|&id| tokenizer.is_known(id)).count();
        assert_eq!(known, tokenizer.vocab_size());
    }
}

#[test]
fn ids_without_a_token_are_passed_over_even_inside_of_a_character() {
    let tokenizer = tiny();
    let unknown = u32::MAX;
    assert_eq!(tokenizer.decode(&[280, unknown, 281], false).unwrap(), "the the");
    // é is the bytes C3 A9.
    assert_eq!(tokenizer.decode(&[8 + 0xc3, unknown, 8 + 0xa9], false).unwrap(), "é");
    assert_eq!(tokenizer.decode(&[8 + 0xc3, 5, 8 + 0xa9], true).unwrap(), "é");
}

#[test]
fn loading_leaves_truncation_and_padding_out() {
    let mut file = tiny_json();
    file["truncation"] =
        json!({ "max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right" });
    file["padding"] = json!({ "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>" });
    assert_eq!(load(&file).unwrap().encode("the the", Bos::Add).unwrap(), [2, 280, 281]);
}

#[test]
fn merges_may_be_strings_as_in_older_files() {
    let mut file = tiny_json();
    for merge in file["model"]["merges"].as_array_mut().unwrap() {
        *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
    }
    assert_eq!(load(&file).unwrap().encode("the shot", Bos::None).unwrap(), [280, 264, 284, 268, 266]);
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    let error = Tokenizer::from_file("no/such/tokenizer.json").unwrap_err();
    assert!(matches!(error, TokenizerError::Read { .. }));
    assert!(error.to_string().contains("no/such/tokenizer.json"));
}

#[test]
fn an_empty_or_truncated_file_is_an_error() {
    let bytes = tiny_json().to_string().into_bytes();
    for length in [0, 1, bytes.len() / 3, bytes.len() - 1] {
        assert!(matches!(Tokenizer::from_bytes(&bytes[..length]), Err(TokenizerError::Parse { .. })));
    }
    assert!(matches!(Tokenizer::from_bytes(&[0xff, 0xfe]), Err(TokenizerError::Parse { .. })));
}

#[test]
fn a_model_that_is_not_bpe_is_an_error_that_names_it() {
    let mut file = tiny_json();
    file["model"] = json!({ "type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]] });
    let error = load(&file).unwrap_err().to_string();
    assert!(error.contains("Unigram") && error.contains("BPE"), "{error}");
}

#[test]
fn a_merge_that_does_not_fit_the_vocabulary_is_an_error() {
    let long = "x".repeat(1000);
    for merge in [json!([long, "e"]), json!(["t", "zz"]), json!(["e", "e"]), json!("only-one")] {
        let mut file = tiny_json();
        file["model"]["merges"].as_array_mut().unwrap().push(merge.clone());
        assert!(load(&file).is_err(), "{merge}");
    }
    let mut file = tiny_json();
    file["model"]["continuing_subword_prefix"] = json!("a prefix that no merge has");
    assert!(matches!(load(&file), Err(TokenizerError::InvalidMerge { rank: 0, .. })));
}

#[test]
fn two_tokens_with_one_id_are_an_error() {
    let mut file = tiny_json();
    file["model"]["vocab"]["another"] = json!(280);
    assert!(matches!(load(&file), Err(TokenizerError::DuplicateId { id: 280, .. })));
}

#[test]
fn a_template_with_an_unknown_token_is_an_error() {
    let mut file = tiny_json();
    file["post_processor"]["special_tokens"] = json!({});
    assert!(matches!(load(&file), Err(TokenizerError::MissingToken { .. })));
    file["post_processor"] = json!({ "type": "TemplateProcessing",
        "single": [{ "Sequence": { "id": "B", "type_id": 0 } }], "pair": [], "special_tokens": {} });
    assert!(matches!(load(&file), Err(TokenizerError::Unsupported { .. })));
}

#[test]
fn a_file_without_byte_tokens_encodes_unknown_characters_as_unknown() {
    let mut file = tiny_json();
    file["model"]["vocab"].as_object_mut().unwrap().retain(|token, _| !token.starts_with("<0x"));
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.encode("theß", Bos::None).unwrap(), [280, 3]);
}

#[test]
fn a_decoder_of_another_kind_is_held_back_and_still_equal() {
    let mut file = tiny_json();
    file["decoder"] =
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let tokenizer = load(&file).unwrap();
    let ids = [281, 282, 284];
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "the tosh");
    let mut stream = tokenizer.stream_decoder(false);
    assert_eq!(stream.push(281), None);
    assert_eq!(stream.finish().unwrap(), "the");
    assert_eq!(streamed(stream, &ids), "the tosh");
}

/// The best of three, since other work on the machine only ever adds time.
fn time_of(tokenizer: &Tokenizer, text: &str) -> Duration {
    let run = || {
        let start = Instant::now();
        tokenizer.encode(text, Bos::None).unwrap();
        start.elapsed()
    };
    (0..3).map(|_| run()).min().unwrap_or_default()
}

#[test]
fn encoding_time_is_near_linear_in_the_length_of_hostile_texts() {
    let tokenizer = real_tokenizer().unwrap_or_else(tiny);
    for unit in
        ["a", " ", "the", " a", "\u{2581}", "ß\u{10fffd}", "<start_of_turn", "Words without a newline, "]
    {
        let text = |bytes: usize| unit.repeat(bytes / unit.len());
        // Linear is 4, linear times logarithm and a cache that no longer fits perhaps 6, quadratic 16.
        let (short, long) = (time_of(&tokenizer, &text(64_000)), time_of(&tokenizer, &text(256_000)));
        assert!(
            long < short * 10 + Duration::from_millis(20),
            "{unit:?}: {short:?}, then {long:?} for 4 times as much"
        );
    }
}

#[test]
fn one_clone_per_thread_gives_the_same_ids() {
    let tokenizer = tiny();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let tokenizer = tokenizer.clone();
            std::thread::spawn(move || tokenizer.encode("the shot\n\nto the inn", Bos::Add).unwrap())
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), tokenizer.encode("the shot\n\nto the inn", Bos::Add).unwrap());
    }
}

/// Text that is rich in what the tokenizer treats differently.
fn awkward_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-z ]{0,6}",
        2 => "[ \n\t]{1,5}",
        1 => any::<char>().prop_map(String::from),
        2 => prop::sample::select(special::ALL.to_vec()).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["<", "<end_of_", "turn>", "<0x41>", "▁", "</s>", "<bos"]).prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn check_escaping(tokenizer: &Tokenizer, text: &str) -> Result<(), TestCaseError> {
    let ids = tokenizer.encode_with(text, ESCAPE).unwrap();
    prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id)));
    // A literal "▁" is a space to the tokenizer: the reference's normalizer loses the difference.
    prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text.replace('▁', " "));
    if !special::ALL.iter().any(|token| text.contains(token)) {
        prop_assert_eq!(ids, tokenizer.encode(text, Bos::None).unwrap());
    }
    Ok(())
}

/// The file as the `tokenizers` crate itself reads and runs it.
fn check_against_the_crate(file: &[u8], text: &str) -> Result<(), TestCaseError> {
    thread_local! {
        static LOADED: std::cell::RefCell<Option<(Vec<u8>, Tokenizer, tokenizers::Tokenizer)>> = const { std::cell::RefCell::new(None) };
    }
    LOADED.with_borrow_mut(|loaded| {
        if loaded.as_ref().is_none_or(|(bytes, ..)| bytes != file) {
            let ours = Tokenizer::from_bytes(file).unwrap();
            *loaded = Some((file.to_vec(), ours, tokenizers::Tokenizer::from_bytes(file).unwrap()));
        }
        let (_, ours, reference) = loaded.as_mut().unwrap();
        for (special_tokens, is_escaped) in [(SpecialTokens::Parse, false), (SpecialTokens::Escape, true)] {
            reference.set_encode_special_tokens(is_escaped);
            let expected = reference.encode_fast(text, false).unwrap().get_ids().to_vec();
            let options = TokenizeOptions { bos: Bos::None, special_tokens };
            prop_assert_eq!(ours.encode_with(text, options).unwrap(), expected, "{:?}, {:?}", text, options);
        }
        Ok(())
    })
}

/// A vocabulary in which a token goes on after a space, so that texts cannot be cut at every one.
fn tiny_with_a_token_across_words() -> Vec<u8> {
    let mut file = tiny_json();
    for (id, token) in [(300, "e▁"), (301, "e▁t"), (302, "▁▁")] {
        file["model"]["vocab"][token] = json!(id);
    }
    let merges = file["model"]["merges"].as_array_mut().unwrap();
    merges.insert(0, json!(["e", "▁"]));
    merges.insert(1, json!(["e▁", "t"]));
    merges.insert(2, json!(["▁", "▁"]));
    file.to_string().into_bytes()
}

#[test]
fn a_token_that_goes_on_after_a_space_is_found() {
    let tokenizer = Tokenizer::from_bytes(&tiny_with_a_token_across_words()).unwrap();
    assert_eq!(tokenizer.encode("e t  e ", Bos::None).unwrap(), [301, 302, 300]);
}

proptest! {
    #[test]
    fn the_ids_are_those_of_the_tokenizers_crate(text in awkward_text(), words in "[theßo ]{0,30}") {
        check_against_the_crate(&tiny_with_a_token_across_words(), &text)?;
        check_against_the_crate(&tiny_with_a_token_across_words(), &words)?;
    }

    #[test]
    fn escaped_text_comes_back_and_holds_no_special_id(text in awkward_text()) {
        check_escaping(&tiny(), &text)?;
    }

    #[test]
    fn parsed_text_comes_back(text in awkward_text()) {
        let tokenizer = tiny();
        let ids = tokenizer.encode(&text, Bos::None).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.replace('▁', " "));
    }

    #[test]
    fn a_damaged_file_is_an_error_or_a_tokenizer_but_no_panic(
        position in 0usize..7000, replacement in prop::sample::select(b"\0\"{}[],:0-9ea\x80 ".to_vec()),
    ) {
        let mut bytes = tiny_json().to_string().into_bytes();
        let position = position % bytes.len();
        bytes[position] = replacement;
        if let Ok(tokenizer) = Tokenizer::from_bytes(&bytes) {
            let _ = tokenizer.encode("the <bos>ß\n\n", Bos::Add).map(|ids| tokenizer.decode(&ids, true));
        }
    }
}

#[test]
fn the_real_vocabulary_gives_the_ids_of_the_tokenizers_crate() {
    let Some(path) = real_tokenizer_path() else {
        return;
    };
    let file = std::fs::read(path).unwrap();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let prose = "([A-Za-zé']{1,9}[ ,.]{1,3}|[0-9<>▁\\n\\t]{1,3}|[一-十]{1,3}){0,20}";
    runner
        .run(&(awkward_text(), prose), |(awkward, prose)| {
            check_against_the_crate(&file, &awkward)?;
            check_against_the_crate(&file, &prose)
        })
        .unwrap();
}

#[test]
fn escaping_holds_for_the_real_vocabulary() {
    let Some(tokenizer) = real_tokenizer() else {
        return;
    };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    runner.run(&awkward_text(), |text| check_escaping(&tokenizer, &text)).unwrap();
}
