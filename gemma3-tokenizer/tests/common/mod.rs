//! Where the tests find goldens and tokenizers, and the checks that hold for a tokenizer of any origin.
//!
//! Other crates can include this file by `#[path]` to check a vocabulary from elsewhere (a GGUF file) against the
//! same goldens: [`check_tokenizer_goldens`], [`check_chat_goldens`].
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use gemma3_tokenizer::{
    Bos, ChatTemplate, NullKeys, SpecialTokens, StreamDecoder, TokenizeOptions, Tokenizer, UserText,
    conversation_from_json, special,
};
use serde_json::Value;

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    match crate_root.join("tests/fixtures").exists() {
        true => crate_root.into(),
        false => crate_root.parent().expect("the crate lies in the workspace").into(),
    }
}

/// The path in an environment variable; a relative one starts at the root of the workspace.
fn path_from(variable: &str, default: &str) -> PathBuf {
    workspace().join(std::env::var_os(variable).unwrap_or_else(|| default.into()))
}

/// The folder of the goldens.
pub fn goldens() -> PathBuf {
    path_from("GEMMA3_GOLDENS", "tests/fixtures")
}

/// Whether a missing `what` is a failure.
pub fn is_required(what: &str) -> bool {
    std::env::var("GEMMA3_REQUIRE").is_ok_and(|list| list.split(',').any(|name| name.trim() == what))
}

/// A JSON file of the goldens; a set without it is skipped by name.
pub fn golden_json(name: &str) -> Option<Value> {
    let path = goldens().join(name);
    if !path.exists() {
        println!("skipped: {} is not in this set", path.display());
        return None;
    }
    Some(read_json(&path))
}

pub fn read_json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Gemma's own tokenizer.json; see [`real_tokenizer_path`].
pub fn real_tokenizer() -> Option<Tokenizer> {
    real_tokenizer_path().map(|path| Tokenizer::from_file(path).expect("the real tokenizer loads"))
}

/// The file of Gemma's own tokenizer, from `GEMMA3_TOKENIZER` or the cache that `tests/fetch_tokenizer.sh` fills.
pub fn real_tokenizer_path() -> Option<PathBuf> {
    let path = path_from("GEMMA3_TOKENIZER", ".cache/gemma3/tokenizer.json");
    if !path.exists() {
        assert!(
            !is_required("tokenizer"),
            "the tokenizer is required, but {} does not exist: run tests/fetch_tokenizer.sh",
            path.display()
        );
        println!("skipped: the real tokenizer, since {} does not exist", path.display());
        return None;
    }
    Some(path)
}

/// The folders of the goldens that hold a tokenizer.json, with their names.
pub fn miniature_tokenizers() -> Vec<(String, Tokenizer)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(goldens()).expect("the goldens' folder can be read") {
        let folder = entry.expect("the goldens' folder can be read").path();
        let file = folder.join("tokenizer.json");
        if file.exists() {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push((name, Tokenizer::from_file(&file).expect("a miniature tokenizer loads")));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The miniature tokenizer that the tests of behaviour use.
pub fn tiny() -> Tokenizer {
    Tokenizer::from_file(workspace().join("tests/fixtures/tiny-text/tokenizer.json")).expect("it loads")
}

pub fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("a list of ids")
}

pub fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_else(|| panic!("{key} is not a string in {case}"))
}

pub fn list<'a>(golden: &'a Value, key: &str) -> &'a [Value] {
    golden[key].as_array().unwrap_or_else(|| panic!("{key} is not a list")).as_slice()
}

/// The text that a stream gives for ids.
pub fn streamed(mut stream: StreamDecoder, ids: &[u32]) -> String {
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    text.push_str(&stream.finish().expect("finishing succeeds"));
    text
}

/// Runs tokenizer.json of the goldens. Cases with ids that the vocabulary lacks (that of a text-only GGUF ends
/// before `<image_soft_token>`) are left out; returns how many cases were checked and left out.
pub fn check_tokenizer_goldens(tokenizer: &Tokenizer, golden: &Value) -> (usize, usize) {
    let (mut checked, mut left_out) = (0, 0);
    let mut is_covered = |ids: &[u32]| {
        let is_covered = ids.iter().all(|&id| tokenizer.is_known(id));
        *(if is_covered { &mut checked } else { &mut left_out }) += 1;
        is_covered
    };

    for case in list(golden, "encode") {
        let (input, expected) = (text(case, "text"), ids(&case["ids"]));
        if !is_covered(&expected) {
            continue;
        }
        let encode = |bos| tokenizer.encode(input, bos).expect("encoding succeeds");
        assert_eq!(encode(Bos::None), expected, "ids of {input:?}");
        let bos = tokenizer.bos_id().expect("Gemma has <bos>");
        assert_eq!(encode(Bos::Add), [vec![bos], expected.clone()].concat(), "ids of {input:?} with BOS");

        let decoded = case["decoded"].as_str().unwrap_or(input);
        check_decoding(
            tokenizer,
            &expected,
            decoded,
            case["decoded_skip_special"].as_str().unwrap_or(decoded),
        );

        let escape = TokenizeOptions { bos: Bos::None, special_tokens: SpecialTokens::Escape };
        let escaped = tokenizer.encode_with(input, escape).expect("encoding succeeds");
        assert!(!escaped.iter().any(|&id| tokenizer.is_special(id)), "a special id out of {input:?}");
        assert_eq!(
            tokenizer.decode(&escaped, true).expect("decoding succeeds"),
            input.replace('\u{2581}', " ")
        );
        if !expected.iter().any(|&id| tokenizer.is_special(id)) {
            assert_eq!(escaped, expected, "escaped ids of {input:?}");
        }
    }
    for case in list(golden, "decode") {
        let input = ids(&case["ids"]);
        if is_covered(&input) {
            check_decoding(tokenizer, &input, text(case, "decoded"), text(case, "decoded_skip_special"));
        }
    }
    for case in list(golden, "pairs") {
        let expected = ids(&case["ids"]);
        if is_covered(&expected) {
            let pair = tokenizer.encode_pair(text(case, "a"), text(case, "b"), Bos::Add);
            assert_eq!(pair.expect("encoding succeeds"), expected, "ids of {case}");
        }
    }
    (checked, left_out)
}

fn check_decoding(tokenizer: &Tokenizer, ids: &[u32], decoded: &str, decoded_skip_special: &str) {
    for (skip_special, expected) in [(false, decoded), (true, decoded_skip_special)] {
        let whole = tokenizer.decode(ids, skip_special).expect("decoding succeeds");
        assert_eq!(whole, expected, "text of {ids:?}, skip_special {skip_special}");
        assert_eq!(streamed(tokenizer.stream_decoder(skip_special), ids), expected, "stream of {ids:?}");
    }
}

/// Checks the ids of chat.json: verbatim as the reference, and escaped the same where nothing is to be escaped.
/// Returns how many cases have ids.
pub fn check_chat_goldens(tokenizer: &Tokenizer, golden: &Value) -> usize {
    let cases = golden.as_array().expect("chat.json is a list");
    let with_ids = cases.iter().filter(|case| case.get("ids").is_some());
    with_ids
        .map(|case| {
            let expected = ids(&case["ids"]);
            let messages = conversation_from_json(&case["messages"], NullKeys::Keep).expect("a valid case");
            let prompt = case["add_generation_prompt"].as_bool().unwrap_or(false);
            let encode = |user_text| {
                ChatTemplate::encode(tokenizer, &messages, prompt, user_text).expect("a valid case")
            };
            assert_eq!(encode(UserText::Verbatim), expected, "ids of {case}");
            let escaped = encode(UserText::Escape);
            let source = case["messages"].to_string();
            if special::ALL.iter().any(|token| source.contains(token)) {
                assert_ne!(escaped, expected, "nothing was escaped in {case}");
                let count =
                    |ids: &[u32]| ids.iter().filter(|&&id| Some(id) == tokenizer.end_of_turn_id()).count();
                assert_eq!(count(&escaped), messages.len(), "a turn was closed in {case}");
                let text = ChatTemplate::render(&messages, prompt).expect("a valid case");
                assert_eq!(tokenizer.decode(&escaped, false).expect("decoding succeeds"), text);
            } else {
                assert_eq!(escaped, expected, "escaped ids of {case}");
            }
        })
        .count()
}
