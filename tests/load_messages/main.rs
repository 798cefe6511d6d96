//! The table of what users read when a model doesn't load, or loads with something odd about it: one row a fault, with
//! the whole message. A message names the file, says what was expected and found, and what to do or what follows.

#[path = "../../gemma3-core/tests/build_gguf/mod.rs"]
mod build_gguf;
#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;
mod files;
mod folders;
mod ggufs;
mod odd;
mod others;

use files::{Folder, Opened};
use gemma3::{Device, Gemma3, LoadOptions};

/// A fault and what is said about it.
struct Row {
    fault: &'static str,
    /// Makes the files in an empty folder and says which is opened.
    files: fn(&Folder) -> Opened,
    /// The whole message, `{dir}` standing for the folder.
    message: &'static str,
}

/// Loads what a row makes; its message with the placeholder for the folder.
fn message_of(row: &Row, device: &Device) -> String {
    let folder = Folder::new();
    let Opened { model, mmproj } = (row.files)(&folder);
    let options = LoadOptions { check_finite: Some(true), ..LoadOptions::default() };
    let loaded = match mmproj {
        Some(mmproj) => Gemma3::loader(model).mmproj(mmproj).device(device).options(options).load(),
        None => Gemma3::loader(model).device(device).options(options).load(),
    };
    let said = match loaded {
        Ok(gemma) if gemma.warnings().is_empty() => "(it loads)".to_owned(),
        Ok(gemma) => {
            gemma.warnings().iter().map(|warning| format!("note: {warning}")).collect::<Vec<_>>().join("\n")
        }
        Err(error) => error.to_string(),
    };
    said.replace(&folder.root().display().to_string(), "{dir}")
}

#[track_caller]
fn check(rows: &[Row]) {
    let (_, device) = common::devices().swap_remove(0);
    let mut wrong = Vec::new();
    for row in rows {
        let found = message_of(row, &device);
        let names_a_file = row.message.contains("{dir}");
        if !names_a_file || found != row.message {
            wrong.push(format!("{}\n  expected: {}\n  found:    {found}", row.fault, row.message));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn folders_that_lack_a_file() {
    check(&folders::whole());
}

#[test]
fn configurations() {
    check(&folders::configurations());
}

#[test]
fn weights() {
    check(&folders::weights());
}

#[test]
fn shards() {
    check(&folders::shards());
}

#[test]
fn files_that_are_no_gguf_of_gemma_3() {
    check(&ggufs::stand_ins());
}

#[test]
fn damaged_ggufs() {
    check(&ggufs::damaged());
}

#[test]
fn split_ggufs() {
    check(&ggufs::parts());
}

#[test]
fn adapters() {
    check(&others::adapters());
}

#[test]
fn quantized_models() {
    check(&others::quantized());
}

#[test]
fn files_of_other_kinds() {
    check(&others::kinds());
}

#[test]
fn tokenizers() {
    check(&others::tokenizers());
}

#[test]
fn image_encoders() {
    check(&others::image_encoders());
}

#[test]
fn what_is_odd_and_loads() {
    check(&odd::odd());
}

/// A GGUF file whose id of `<bos>` is none has one all the same.
#[test]
fn texts_begin_with_bos_whatever_the_file_says() {
    let (_, device) = common::devices().swap_remove(0);
    let folder = Folder::new();
    let file = ggufs::with_vocabulary().set("tokenizer.ggml.bos_token_id", build_gguf::u32_value(7));
    let gemma = Gemma3::load(folder.write("model.gguf", file.build()), &device).expect("a model");
    let ids = gemma.tokenizer().encode("a", gemma3::tokenizer::Bos::Add).expect("ids");
    assert_eq!(ids.first().copied(), gemma.tokenizer().token_to_id("<bos>"), "{ids:?}");
    assert_eq!(gemma.tokenizer().bos_id(), Some(2));
}

/// The files that the rows spoil are sound.
#[test]
fn the_files_of_the_table_load_unspoiled() {
    let (_, device) = common::devices().swap_remove(0);
    for fixture in ["tiny-text", "tiny-multimodal"] {
        let folder = Folder::with(fixture);
        Gemma3::load(folder.root(), &device).unwrap_or_else(|error| panic!("{fixture}: {error}"));
    }
    let folder = Folder::with("tiny-text");
    let gguf = folder.copy("tiny-text.gguf", "model.gguf");
    Gemma3::load(gguf, &device).expect("a GGUF file beside a tokenizer.json");
}

/// The set without its index is the model with it.
#[test]
fn shards_without_an_index_load() {
    let (_, device) = common::devices().swap_remove(0);
    let folder = Folder::with("tiny-multimodal");
    let text = |path| {
        let gemma = Gemma3::loader(path).device(&device).options(common::exact()).load().expect("a model");
        let options =
            gemma3::GenerateOptions { max_new_tokens: Some(8), ..gemma3::GenerateOptions::greedy() };
        gemma.generate("the inn", &options).expect("a text").text
    };
    let expected = text(folder.root());
    folder.remove("model.safetensors.index.json");
    assert_eq!(text(folder.root()), expected);
    assert_eq!(text(folder.path("model-00002-of-00002.safetensors")), expected);
}
