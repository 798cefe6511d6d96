//! The files beside a model's weights: which are read, and what a broken one does.

#[path = "../gemma3-core/tests/build_gguf/mod.rs"]
mod build_gguf;
#[path = "../gemma3-core/tests/common/mod.rs"]
mod common;

use std::path::Path;

use build_gguf::{GgufBuilder, array_value, string_value, strings_value, u32_value};
use gemma3::core::checkpoint::Checkpoint;
use gemma3::{Error, Gemma3, GenerateOptions, WarningKind};
use tempfile::TempDir;

/// Everything that may lie beside a model, of no use to any.
const ALIEN: [(&str, &[u8]); 6] = [
    ("tokenizer.json", b"{"),
    ("tokenizer_config.json", b"{"),
    ("chat_template.json", b"[1]"),
    ("chat_template.jinja", b"\xff\xfe"),
    ("preprocessor_config.json", br#"{"size": {"height": null, "width": 7}}"#),
    ("processor_config.json", b"\0"),
];
const TEMPLATE: &str = r#"{"chat_template": "{{ messages }}"}"#;

/// A copy of a tiny checkpoint's folder.
fn copy_of(name: &str) -> Option<TempDir> {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(common::golden(name)?).expect("a folder") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
    }
    Some(folder)
}

fn write(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(folder.path().join(name), content).expect("a file");
}

fn remove(folder: &TempDir, name: &str) {
    std::fs::remove_file(folder.path().join(name)).expect("removed");
}

fn load(path: &Path) -> Result<Gemma3, Error> {
    let (_, device) = common::devices().swap_remove(0);
    Gemma3::load(path, &device)
}

/// A GGUF file with a vocabulary of its own.
fn with_vocabulary() -> GgufBuilder {
    let tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "a"];
    let scores: Vec<u8> = [0_f32; 5].iter().flat_map(|score| score.to_le_bytes()).collect();
    let types: Vec<u8> = [3_i32, 3, 3, 2, 1].iter().flat_map(|kind| kind.to_le_bytes()).collect();
    build_gguf::model(&build_gguf::tiny_config(1))
        .set("tokenizer.ggml.model", string_value("llama"))
        .set("tokenizer.ggml.tokens", strings_value(&tokens))
        .set("tokenizer.ggml.scores", array_value(6, 5, &scores))
        .set("tokenizer.ggml.token_type", array_value(5, 5, &types))
        .set("tokenizer.ggml.unknown_token_id", u32_value(3))
}

/// The message of loading, whose file is in the folder.
fn refused(folder: &TempDir, name: &str) -> String {
    let error = load(folder.path()).expect_err(name).to_string();
    let file = folder.path().join(name).display().to_string();
    assert!(error.starts_with(&file), "{file} is not named first: {error}");
    error[file.len()..].to_owned()
}

#[test]
fn nothing_beside_a_gguf_file_with_a_vocabulary_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in ALIEN {
        write(&folder, name, content);
    }
    write(&folder, "tiny.gguf", with_vocabulary().build());
    let gemma = load(&folder.path().join("tiny.gguf")).expect("a complete file");
    assert_eq!(gemma.chat_template(), None);
    assert_eq!(gemma.tokenizer().token_to_id("a"), Some(4));
    assert_eq!(gemma.warnings(), []);

    let own = with_vocabulary().set("tokenizer.chat_template", string_value("its own"));
    write(&folder, "tiny.gguf", own.build());
    let gemma = load(&folder.path().join("tiny.gguf")).expect("a complete file");
    assert_eq!(gemma.chat_template(), Some("its own"));
    assert_eq!(gemma.warnings(), []);
}

#[test]
fn a_neighbour_does_not_make_a_chat_model_of_a_gguf_file() {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder, "tiny.gguf", with_vocabulary().build());
    write(&folder, "tokenizer_config.json", TEMPLATE);
    write(&folder, "chat_template.jinja", "{{ messages }}");
    let gemma = load(&folder.path().join("tiny.gguf")).expect("a complete file");
    assert!(!gemma.is_instruction_tuned());
}

/// Such files need a `tokenizer.json`, and nothing else.
#[test]
fn beside_a_gguf_file_without_a_vocabulary_only_the_tokenizer_is_read() {
    let (Some(source), Some(gguf)) = (common::golden("tiny-text"), common::golden("tiny-text.gguf")) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in ALIEN {
        write(&folder, name, content);
    }
    std::fs::copy(source.join("tokenizer.json"), folder.path().join("tokenizer.json")).expect("a copy");
    let path = folder.path().join("tiny.gguf");
    std::fs::copy(gguf, &path).expect("a copy");
    let gemma = load(&path).expect("a file with its tokenizer");
    assert!(!gemma.is_instruction_tuned());
    // Who put a tokenizer there may have meant its template, too.
    let [warning] = gemma.warnings() else { panic!("one warning: {:?}", gemma.warnings()) };
    assert_eq!(warning.kind, WarningKind::IgnoredFile);
    assert_eq!(warning.file, folder.path().join("chat_template.jinja").display().to_string());

    for name in ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"] {
        remove(&folder, name);
    }
    assert_eq!(load(&path).expect("a file with its tokenizer").warnings(), []);

    write(&folder, "tokenizer_config.json", TEMPLATE);
    let config = Checkpoint::open(&path).expect("the file").config().text.clone();
    let own = build_gguf::model(&config).set("tokenizer.chat_template", string_value("its own"));
    std::fs::write(&path, own.build()).expect("a file");
    let gemma = load(&path).expect("a file with its tokenizer");
    assert_eq!((gemma.chat_template(), gemma.warnings()), (Some("its own"), &[][..]));
}

#[test]
fn a_model_that_takes_text_only_needs_no_preprocessor() {
    let Some(folder) = copy_of("tiny-text") else { return };
    for content in [&b""[..], b"{", b"\xff", b"[]", br#"{"size": {"height": null}}"#] {
        write(&folder, "preprocessor_config.json", content);
        write(&folder, "processor_config.json", content);
        let gemma = load(folder.path()).expect("a model of text");
        assert!(gemma.vision().is_none() && gemma.warnings().is_empty());
    }
}

#[test]
fn the_broken_preprocessor_of_a_model_that_sees_is_named() {
    let Some(folder) = copy_of("tiny-multimodal") else { return };
    for (content, expected) in [
        (&b""[..], ": not valid JSON: EOF"),
        (b"{\"size\":", ": not valid JSON: EOF"),
        (b"{}\xff", ": expected UTF-8 text, found other bytes at byte 2;"),
        (b"[]", ": field `(the file)`: expected an object, found a list of 0 values;"),
        (
            br#"{"size": {"height": null, "width": 56}}"#,
            ": field `size.height`: expected a number of pixels,",
        ),
        (br#"{"resample": 3}"#, ": field `resample`: 3 is not supported,"),
        (
            br#"{"size": {"height": 224, "width": 224}}"#,
            ": field `size`: expected 56x56 pixels, for which the image encoder is made, found 224x224;",
        ),
    ] {
        write(&folder, "preprocessor_config.json", content);
        let message = refused(&folder, "preprocessor_config.json");
        assert!(message.starts_with(expected), "{message}");
    }
    write(&folder, "preprocessor_config.json", br#"{"size": {"height": 56, "width": 56}}"#);
    for (content, expected) in [
        (&b"{"[..], ": not valid JSON: EOF"),
        (b"null", ": field `(the file)`: expected an object, found null;"),
        (br#"{"image_processor": 3}"#, ": field `image_processor`: expected an object, found a number;"),
        (br#"{"image_processor": {"do_pad": true}}"#, ": field `do_pad`: true is not supported,"),
    ] {
        write(&folder, "processor_config.json", content);
        let message = refused(&folder, "processor_config.json");
        assert!(message.starts_with(expected), "{message}");
    }
}

/// As transformers 5, which writes one file and reads older models' two.
#[test]
fn settings_in_the_processor_s_file_are_those_that_count() {
    let Some(folder) = copy_of("tiny-multimodal") else { return };
    let mean = |folder: &TempDir| {
        let gemma = load(folder.path()).expect("a model that sees");
        gemma.vision().expect("an encoder").preprocessor().config().image_mean
    };
    assert_eq!(mean(&folder), [0.5; 3]);
    let settings = r#"{"size": {"height": 56, "width": 56}, "image_mean": [0.25, 0.25, 0.25]}"#;
    write(&folder, "processor_config.json", format!(r#"{{"image_processor": {settings}}}"#));
    assert_eq!(mean(&folder), [0.25; 3]);
    write(&folder, "preprocessor_config.json", "{");
    assert_eq!(mean(&folder), [0.25; 3]);
    // Neither is needed: the published models' settings, at the encoder's size.
    remove(&folder, "processor_config.json");
    remove(&folder, "preprocessor_config.json");
    assert_eq!(mean(&folder), [0.5; 3]);
}

#[test]
fn a_broken_file_that_may_hold_the_chat_template_is_named() {
    let Some(folder) = copy_of("tiny-text") else { return };
    for name in ["tokenizer_config.json", "chat_template.json"] {
        // Without one there, the other one is looked at.
        write(&folder, "tokenizer_config.json", "{}");
        for (content, expected) in [
            (&b"oops\n"[..], ": not valid JSON: expected value at line 1 column 1;"),
            (b"", ": not valid JSON: EOF"),
            (b"{\"a\": \"\xe4\"}", ": expected UTF-8 text, found other bytes at byte 7; download it again"),
            (b"[]", ": field `(the file)`: expected an object, found a list;"),
            (br#"{"chat_template": 3}"#, ": field `chat_template`: expected "),
        ] {
            write(&folder, name, content);
            let message = refused(&folder, name);
            assert!(message.starts_with(expected), "{message}");
        }
        std::fs::File::create(folder.path().join(name))
            .and_then(|file| file.set_len(1 << 40))
            .expect("a file");
        let message = refused(&folder, name);
        assert!(message.starts_with(": expected at most 16777216 bytes, found 1099511627776;"), "{message}");
        remove(&folder, name);
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
        let message = refused(&folder, name);
        assert!(message.starts_with(": expected a regular file, found a folder"), "{message}");
        std::fs::remove_dir(folder.path().join(name)).expect("removed");
    }
    write(&folder, "chat_template.jinja", b"{{ \xff }}");
    let message = refused(&folder, "chat_template.jinja");
    assert!(message.starts_with(": expected UTF-8 text, found other bytes at byte 3;"), "{message}");
}

/// What an interrupted download leaves in a cache of links.
#[cfg(unix)]
#[test]
fn an_adapter_beside_a_whole_model_is_warned_of() {
    let Some(folder) = copy_of("tiny-text") else { return };
    let ids = |gemma: &Gemma3| {
        gemma.generate("hello", &GenerateOptions { max_new_tokens: Some(4), ..GenerateOptions::greedy() })
    };
    let alone = load(folder.path()).expect("a model");
    assert_eq!(alone.warnings(), []);
    write(&folder, "adapter_config.json", r#"{"peft_type": "LORA", "base_model_name_or_path": "base"}"#);
    let beside = load(folder.path()).expect("the model without the adapter");
    assert_eq!(
        beside.warnings().iter().map(|warning| warning.kind).collect::<Vec<_>>(),
        [WarningKind::IgnoredFile]
    );
    let text = beside.warnings()[0].to_string();
    assert!(text.contains("adapter_config.json: an adapter lies beside the model"), "{text}");
    assert_eq!(ids(&beside).expect("a text"), ids(&alone).expect("a text"));
}

#[test]
fn a_link_to_nowhere_is_not_an_absent_file() {
    let Some(folder) = copy_of("tiny-text") else { return };
    remove(&folder, "tokenizer_config.json");
    let link = folder.path().join("tokenizer_config.json");
    std::os::unix::fs::symlink(folder.path().join("blob"), link).expect("a link");
    let message = refused(&folder, "tokenizer_config.json");
    assert!(message.starts_with(": no such file or folder;"), "{message}");
}

#[test]
fn the_first_of_the_places_of_a_chat_template_counts() {
    let Some(folder) = copy_of("tiny-text") else { return };
    let template =
        |folder: &TempDir| load(folder.path()).expect("a model").chat_template().map(str::to_owned);
    remove(&folder, "tokenizer_config.json");
    assert_eq!(template(&folder), None);
    write(&folder, "chat_template.json", r#"{"chat_template": "third"}"#);
    assert_eq!(template(&folder).as_deref(), Some("third"));
    // Other fields may be anything.
    write(&folder, "tokenizer_config.json", r#"{"chat_template": null, "bos_token": {"odd": [1]}}"#);
    assert_eq!(template(&folder).as_deref(), Some("third"));
    write(&folder, "tokenizer_config.json", r#"{"chat_template": "second"}"#);
    assert_eq!(template(&folder).as_deref(), Some("second"));
    write(&folder, "chat_template.jinja", "first");
    assert_eq!(template(&folder).as_deref(), Some("first"));
    // What is not needed is not read.
    write(&folder, "tokenizer_config.json", "{");
    assert_eq!(template(&folder).as_deref(), Some("first"));
}

#[test]
fn a_tokenizer_larger_than_any_is_not_read() {
    let Some(folder) = copy_of("tiny-text") else { return };
    let file = std::fs::File::create(folder.path().join("tokenizer.json")).expect("a file");
    file.set_len(1 << 40).expect("a size");
    let message = refused(&folder, "tokenizer.json");
    assert!(message.starts_with(": expected at most 536870912 bytes, found 1099511627776;"), "{message}");
}
