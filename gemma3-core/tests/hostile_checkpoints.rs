//! Damaged and hostile files end in an error value: no panic, no hang, and no allocation driven by a
//! number in the file. Every test that opens bytes counts what that allocates.

mod build_gguf;
mod count_allocations;

use std::path::{Path, PathBuf};

use build_gguf::{
    GgufBuilder, array_value, f32_value, string, string_value, strings_value, tiny_config, u32_value,
    u64_value, value,
};
use count_allocations::peak_bytes;
use gemma3_core::checkpoint::{
    Checkpoint, CheckpointError, GgufError, GgufFile, TensorFormat, TextTensor, WarningKind,
};
use gemma3_core::config::{ConfigError, GenerationConfig, TextConfig};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Opens a GGUF and reads all its tensors, with the memory for it bounded by the file's size.
fn open_gguf(bytes: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    let size = bytes.len();
    within(size, || {
        let checkpoint = Checkpoint::from_gguf_bytes(bytes)?;
        read_all(&checkpoint);
        Ok(checkpoint)
    })
}

fn open_safetensors(config: &str, shards: Vec<Vec<u8>>) -> Result<Checkpoint, CheckpointError> {
    let size = config.len() + shards.iter().map(Vec::len).sum::<usize>();
    within(size, || {
        let checkpoint = Checkpoint::from_safetensors_bytes(config, None, shards)?;
        read_all(&checkpoint);
        Ok(checkpoint)
    })
}

/// Runs `open` and checks that it holds at most a small multiple of the file's size at any time:
/// the names and shapes of a header as values take several times their bytes in the file.
fn within<T>(file_bytes: usize, open: impl FnOnce() -> T) -> T {
    let limit = 64 * file_bytes + (64 << 10);
    let (peak, result) = peak_bytes(open);
    assert!(peak <= limit, "{peak} bytes held for a file of {file_bytes}");
    result
}

/// Reads every tensor; errors are fine, panics are not.
fn read_all(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let _ = checkpoint.raw(name);
    }
    for tensor in TextTensor::all(&checkpoint.config().text) {
        let _ = checkpoint.tensor(tensor);
    }
    if let Some(metadata) = checkpoint.gguf() {
        for key in metadata.keys() {
            if let Ok(Some(strings)) = metadata.strings(key) {
                assert_eq!(strings.len(), strings.count());
            }
        }
    }
}

fn tiny() -> GgufBuilder {
    build_gguf::model(&tiny_config(2))
}

#[track_caller]
fn gguf_error(file: &GgufBuilder) -> GgufError {
    match open_gguf(file.build()) {
        Err(CheckpointError::Gguf { source, .. }) => source,
        other => panic!("expected a damaged file, found {other:?}"),
    }
}

#[track_caller]
fn config_error(file: &GgufBuilder) -> ConfigError {
    match open_gguf(file.build()) {
        Err(CheckpointError::Config { source, .. }) => source,
        other => panic!("expected a refused configuration, found {other:?}"),
    }
}

/// A folder of the goldens, unless this set lacks it.
fn golden(name: &str) -> Option<PathBuf> {
    let goldens = match std::env::var_os("GEMMA3_GOLDENS") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures"),
    };
    let path = goldens.join(name);
    if !path.exists() {
        println!("skipped: {name} is not in {}", goldens.display());
        return None;
    }
    Some(path)
}

// ---- GGUF: the file as a whole ----

#[test]
fn the_builder_of_these_tests_builds_a_model() {
    let checkpoint = open_gguf(tiny().build()).unwrap();
    assert_eq!(checkpoint.config().text, tiny_config(2));
}

#[test]
fn a_gguf_of_any_shorter_length_is_an_error() {
    let file = tiny().build();
    // The last tensor has six weights in F32; what follows them is padding that nothing needs.
    let needed = file.len() - 32 + 6 * 4;
    for len in 0..needed {
        let result = open_gguf(file[..len].to_vec());
        assert!(result.is_err(), "{len} of {} bytes", file.len());
    }
}

#[test]
fn the_golden_gguf_cut_anywhere_is_an_error() {
    let Some(path) = golden("tiny-text.gguf") else {
        return;
    };
    let file = std::fs::read(path).unwrap();
    for len in (0..file.len()).step_by(997) {
        assert!(open_gguf(file[..len].to_vec()).is_err(), "{len} bytes");
    }
}

#[test]
fn an_empty_file_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["model.gguf", "model.safetensors", "model"] {
        let path = folder.path().join(name);
        std::fs::write(&path, b"").unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(matches!(error, CheckpointError::EmptyFile { .. }), "{error:?}");
    }
}

#[test]
fn a_wrong_magic_is_an_error() {
    let file = GgufBuilder { magic: *b"GGML", ..tiny() };
    assert_eq!(gguf_error(&file), GgufError::WrongMagic { found: b"GGML".to_vec() });
}

#[test]
fn other_versions_are_an_error_and_version_2_is_read() {
    for version in [0, 1, 4, 1000, u32::MAX] {
        let file = GgufBuilder { version, ..tiny() };
        assert_eq!(gguf_error(&file), GgufError::WrongVersion { found: version });
    }
    let big_endian = GgufBuilder { version: 3_u32.swap_bytes(), ..tiny() };
    assert_eq!(gguf_error(&big_endian), GgufError::BigEndian);
    assert!(open_gguf(GgufBuilder { version: 2, ..tiny() }.build()).is_ok());
}

#[test]
fn counts_near_the_largest_number_are_errors() {
    for count in [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 40, 1000] {
        let tensors = GgufBuilder { tensor_count: Some(count), ..tiny() };
        let entries = GgufBuilder { metadata_count: Some(count), ..tiny() };
        open_gguf(tensors.build()).unwrap_err();
        open_gguf(entries.build()).unwrap_err();
    }
}

#[test]
fn string_lengths_past_the_end_are_errors() {
    for len in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 40, 1 << 20] {
        let file = tiny().set("general.name", value(8, &len.to_le_bytes()));
        assert!(matches!(gguf_error(&file), GgufError::Truncated { expected, .. } if expected == len));
        // The same as the length of the first key.
        let mut bytes = tiny().build();
        bytes[24..32].copy_from_slice(&len.to_le_bytes());
        open_gguf(bytes).unwrap_err();
    }
}

#[test]
fn array_lengths_past_the_end_are_errors() {
    // Elements of 1, 4 and 8 bytes, and strings.
    for element in [0, 7, 4, 6, 10, 12, 8] {
        for len in [u64::MAX, u64::MAX / 4 + 1, u64::MAX / 8 + 1, 1 << 61, 1 << 30] {
            let file = tiny().set("some.array", array_value(element, len, &[]));
            open_gguf(file.build()).unwrap_err();
        }
    }
}

#[test]
fn nested_arrays_are_an_error_however_deep() {
    let mut nested = array_value(4, 0, &[]);
    for _ in 0..100_000 {
        // The inner value without its type, which the outer array names.
        nested = array_value(9, 1, &nested[4..]);
        if nested.len() > 1 << 20 {
            break;
        }
    }
    let file = tiny().set("some.array", nested);
    let expected = GgufError::NestedArray { key: "some.array".to_owned() };
    assert_eq!(gguf_error(&file), expected);
}

#[test]
fn unknown_value_types_are_an_error() {
    for id in [13, 255, u32::MAX] {
        for value in [value(id, &[0; 8]), array_value(id, 1, &[0; 8])] {
            let file = tiny().set("some.key", value);
            let expected = GgufError::UnknownValueType { key: "some.key".to_owned(), found: id };
            assert_eq!(gguf_error(&file), expected);
        }
    }
}

#[test]
fn booleans_other_than_0_and_1_are_an_error() {
    for value in [value(7, &[2]), array_value(7, 3, &[0, 1, 2])] {
        let file = tiny().set("some.flag", value);
        assert!(matches!(gguf_error(&file), GgufError::InvalidBool { found: 2, .. }));
    }
}

#[test]
fn strings_that_are_not_utf_8_are_an_error() {
    let bad = string(&[b'a', 0xFF]);
    for value in [value(8, &bad), array_value(8, 1, &bad)] {
        let file = tiny().set("some.text", value);
        assert!(matches!(gguf_error(&file), GgufError::NotUtf8 { .. }));
    }
    let mut file = tiny();
    file.tensor_mut("token_embd.weight").name = vec![0xC3, 0x28];
    assert!(matches!(gguf_error(&file), GgufError::NotUtf8 { .. }));
}

#[test]
fn a_key_that_occurs_twice_is_an_error() {
    let mut file = tiny();
    file.metadata.push(("gemma3.block_count".to_owned(), u32_value(1)));
    let expected = GgufError::DuplicateKey { key: "gemma3.block_count".to_owned() };
    assert_eq!(gguf_error(&file), expected);
}

#[test]
fn a_part_of_a_split_file_in_memory_is_an_error() {
    let file = tiny()
        .set("split.count", value(2, &3_u16.to_le_bytes()))
        .set("split.no", value(2, &1_u16.to_le_bytes()));
    assert_eq!(gguf_error(&file), GgufError::Split { part: 2, parts: 3 });
    let absurd = tiny().set("split.count", u64_value(u64::MAX)).set("split.no", u64_value(u64::MAX));
    assert_eq!(gguf_error(&absurd), GgufError::Split { part: u64::MAX, parts: u64::MAX });
}

// ---- GGUF: tensors ----

#[test]
fn an_alignment_that_is_no_power_of_two_is_an_error() {
    for alignment in [0, 3, 33, u32::MAX] {
        let file = tiny().set("general.alignment", u32_value(alignment));
        let found = u64::from(alignment);
        assert_eq!(gguf_error(&file), GgufError::InvalidAlignment { found });
    }
    let text = tiny().set("general.alignment", string_value("32"));
    assert_eq!(gguf_error(&text), GgufError::InvalidAlignment { found: 0 });
}

#[test]
fn an_alignment_beyond_the_file_is_an_error() {
    for shift in [20, 31, 62, 63] {
        let file = tiny().set("general.alignment", u64_value(1 << shift));
        let error = gguf_error(&file);
        let expected =
            matches!(error, GgufError::MisalignedTensor { .. } | GgufError::TensorOutOfFile { .. });
        assert!(expected, "{error:?}");
    }
}

#[test]
fn another_alignment_is_read() {
    let file = GgufBuilder { alignment: 64, ..GgufBuilder::default() };
    let tiny = tiny();
    let mut file = GgufBuilder { metadata: tiny.metadata, ..file };
    for tensor in TextTensor::all(&tiny_config(2)) {
        file = file.tensor(&build_gguf::gguf_name(tensor), &tensor.shape(&tiny_config(2)));
    }
    open_gguf(file.set("general.alignment", u32_value(64)).build()).unwrap();
}

#[test]
fn offsets_past_the_end_are_errors() {
    for offset in [u64::MAX - 31, 1 << 63, 1 << 40, 1 << 20] {
        let mut file = tiny();
        file.tensor_mut("output_norm.weight").offset = offset;
        let error = gguf_error(&file);
        assert!(matches!(error, GgufError::TensorOutOfFile { .. }), "{error:?}");
    }
}

#[test]
fn a_misaligned_offset_is_an_error() {
    let mut file = tiny();
    file.tensor_mut("output_norm.weight").offset += 4;
    assert!(matches!(gguf_error(&file), GgufError::MisalignedTensor { alignment: 32, .. }));
}

#[test]
fn overlapping_tensors_are_an_error() {
    let mut file = tiny();
    let offset = file.tensor_mut("blk.0.attn_q.weight").offset;
    file.tensor_mut("blk.1.attn_q.weight").offset = offset;
    assert!(matches!(gguf_error(&file), GgufError::OverlappingTensors { .. }));
}

#[test]
fn a_tensor_name_that_occurs_twice_is_an_error() {
    let mut file = tiny();
    file.tensor_mut("blk.1.attn_q.weight").name = b"blk.0.attn_q.weight".to_vec();
    let expected = GgufError::DuplicateTensor { tensor: "blk.0.attn_q.weight".to_owned() };
    assert_eq!(gguf_error(&file), expected);
}

#[test]
fn more_than_four_dimensions_are_an_error() {
    for count in [5, 1000, u32::MAX] {
        let mut file = tiny();
        file.tensor_mut("output_norm.weight").dimension_count = Some(count);
        let error = gguf_error(&file);
        assert!(matches!(error, GgufError::TooManyDimensions { found, .. } if found == count));
    }
}

#[test]
fn shapes_that_overflow_are_an_error() {
    for dimensions in [
        vec![u64::MAX, 1],
        vec![1 << 32, 1 << 32],
        vec![1 << 62, 4],
        vec![2, 1 << 62],
        vec![1 << 16, 1 << 16, 1 << 16, 1 << 16],
    ] {
        let mut file = tiny();
        file.tensor_mut("token_embd.weight").dimensions = dimensions;
        let error = gguf_error(&file);
        assert!(matches!(error, GgufError::InvalidShape { .. }), "{error:?}");
    }
}

#[test]
fn a_block_format_whose_blocks_do_not_divide_a_row_is_an_error() {
    // Q4_0 and Q4_K.
    for type_id in [2, 12] {
        let mut file = tiny();
        file.tensor_mut("token_embd.weight").type_id = type_id;
        assert!(matches!(gguf_error(&file), GgufError::InvalidShape { .. }));
    }
}

#[test]
fn a_tensor_in_a_format_that_is_not_read_is_an_error_that_names_it() {
    for (type_id, expected) in [(10, "Q2_K"), (20, "IQ4_NL"), (77, "ggml type 77")] {
        let mut file = tiny();
        file.tensor_mut("blk.1.ffn_up.weight").type_id = type_id;
        match open_gguf(file.build()) {
            Err(CheckpointError::UnsupportedFormat { tensor, found, .. }) => {
                assert_eq!((tensor.as_str(), found.as_str()), ("blk.1.ffn_up.weight", expected));
            }
            other => panic!("expected an unsupported format, found {other:?}"),
        }
    }
}

#[test]
fn an_unknown_format_among_tensors_that_are_not_needed_is_no_error() {
    let mut file = tiny().tensor("extra.weight", &[8]);
    file.tensor_mut("extra.weight").type_id = 10;
    let checkpoint = open_gguf(file.build()).unwrap();
    let error = checkpoint.raw("extra.weight").unwrap_err();
    assert!(matches!(error, CheckpointError::UnsupportedFormat { .. }), "{error:?}");
}

#[test]
fn a_norm_in_a_block_format_is_an_error() {
    let config = TextConfig { hidden_size: 32, ..tiny_config(1) };
    let mut file = build_gguf::model(&config);
    file.tensor_mut("blk.0.ffn_norm.weight").type_id = 8;
    let error = open_gguf(file.build()).unwrap_err();
    assert!(matches!(error, CheckpointError::UnsupportedFormat { .. }), "{error:?}");
}

#[test]
fn a_missing_tensor_is_an_error_that_names_it_and_its_shape() {
    for name in ["output_norm.weight", "blk.1.attn_k_norm.weight", "blk.0.ffn_down.weight"] {
        let mut file = tiny();
        file.tensors.retain(|tensor| tensor.name != name.as_bytes());
        match open_gguf(file.build()) {
            Err(CheckpointError::MissingTensor { tensor, expected, .. }) => {
                assert_eq!(tensor, name);
                assert!(expected.is_some());
            }
            other => panic!("expected a missing tensor, found {other:?}"),
        }
    }
    let mut file = tiny();
    file.tensors.retain(|tensor| tensor.name != b"token_embd.weight");
    assert!(matches!(config_error(&file), ConfigError::MissingField { .. }));
}

#[test]
fn a_tensor_of_another_shape_is_an_error_with_both_shapes() {
    let mut file = tiny();
    file.tensor_mut("blk.1.attn_output.weight").dimensions = vec![6, 4];
    match open_gguf(file.build()) {
        Err(CheckpointError::WrongShape { tensor, expected, found, .. }) => {
            assert_eq!(tensor, "blk.1.attn_output.weight");
            assert_eq!((expected, found), (vec![6, 4], vec![4, 6]));
        }
        other => panic!("expected a wrong shape, found {other:?}"),
    }
}

// ---- GGUF: metadata that contradicts itself ----

#[test]
fn sizes_in_the_metadata_that_make_no_sense_are_errors() {
    for (key, value) in [
        ("gemma3.block_count", u64_value(u64::MAX)),
        ("gemma3.block_count", u32_value(u32::MAX)),
        ("gemma3.block_count", u32_value(0)),
        ("gemma3.embedding_length", u64_value(1 << 62)),
        ("gemma3.embedding_length", u32_value(0)),
        ("gemma3.feed_forward_length", u64_value(u64::MAX)),
        ("gemma3.attention.head_count", u32_value(0)),
        ("gemma3.attention.head_count", u32_value(3_000_000_000)),
        ("gemma3.attention.head_count", value(5, &(-4_i32).to_le_bytes())),
        ("gemma3.attention.head_count_kv", u32_value(0)),
        ("gemma3.attention.head_count_kv", u32_value(3)),
        ("gemma3.attention.key_length", string_value("256")),
        ("gemma3.attention.sliding_window", u32_value(0)),
        ("gemma3.attention.sliding_window", f32_value(512.0)),
        ("gemma3.context_length", u64_value(u64::MAX)),
        ("gemma3.attention.layer_norm_rms_epsilon", f32_value(f32::NAN)),
        ("gemma3.attention.layer_norm_rms_epsilon", f32_value(0.0)),
        ("gemma3.rope.freq_base", f32_value(f32::INFINITY)),
        ("gemma3.rope.freq_base", u32_value(1_000_000)),
        ("gemma3.rope.scaling.factor", f32_value(-8.0)),
        ("gemma3.attention.sliding_window_pattern", u32_value(0)),
        ("gemma3.attention.sliding_window_pattern", array_value(7, 3, &[1, 1, 0])),
        ("tokenizer.ggml.tokens", u32_value(1)),
        ("gemma3.final_logit_softcapping", string_value("30")),
    ] {
        let error = config_error(&tiny().set(key, value));
        assert!(matches!(error, ConfigError::InvalidField { .. }), "{key}: {error:?}");
    }
}

#[test]
fn missing_metadata_is_an_error_that_names_the_key() {
    for name in [
        "general.architecture",
        "gemma3.context_length",
        "gemma3.embedding_length",
        "gemma3.block_count",
        "gemma3.feed_forward_length",
        "gemma3.attention.head_count",
        "gemma3.attention.head_count_kv",
        "gemma3.attention.key_length",
        "gemma3.attention.sliding_window",
    ] {
        let error = config_error(&tiny().without(name));
        assert!(matches!(&error, ConfigError::MissingField { field, .. } if field == name));
    }
}

#[test]
fn models_that_would_silently_be_wrong_are_refused_by_key() {
    for (key, value) in [
        ("general.architecture", string_value("gemma2")),
        ("general.architecture", string_value("clip")),
        ("general.architecture", string_value("gemma-embedding")),
        ("gemma3.attention.value_length", u32_value(4)),
        ("gemma3.rope.dimension_count", u32_value(1)),
        ("gemma3.rope.scaling.type", string_value("yarn")),
        ("gemma3.attention.head_count_kv", array_value(4, 2, &[1, 0, 0, 0, 2, 0, 0, 0])),
    ] {
        let error = config_error(&tiny().set(key, value));
        assert!(matches!(error, ConfigError::Unsupported { .. }), "{key}: {error:?}");
        assert!(error.to_string().contains(key), "{error}");
    }
}

// ---- GGUF: what its metadata leaves to rules ----

fn text_config(file: &GgufBuilder) -> TextConfig {
    open_gguf(file.build()).unwrap().config().text.clone()
}

#[test]
fn files_of_the_larger_sizes_without_rope_scaling_are_scaled_by_8() {
    for (layers, expected) in [(1, 1.0), (18, 1.0), (26, 1.0), (34, 8.0), (48, 8.0), (62, 8.0)] {
        let file = build_gguf::model(&tiny_config(layers));
        assert_eq!(text_config(&file).rope_scaling_factor, expected, "{layers} layers");
    }
    let file = build_gguf::model(&tiny_config(34));
    let linear = file.clone().set("gemma3.rope.scaling.factor", f32_value(4.0));
    assert_eq!(text_config(&linear).rope_scaling_factor, 4.0);
    let none = file.set("gemma3.rope.scaling.type", string_value("none"));
    assert_eq!(text_config(&none).rope_scaling_factor, 1.0);
}

#[test]
fn only_the_27b_scales_attention_by_its_embedding_width() {
    let scalar = |layers| {
        let file = build_gguf::model(&tiny_config(layers));
        text_config(&file).query_pre_attn_scalar
    };
    // The width is 6 over 2 heads of width 2.
    assert_eq!((scalar(62), scalar(48), scalar(26)), (3.0, 2.0, 2.0));
}

#[test]
fn a_file_with_its_own_head_has_an_untied_one() {
    let tied = open_gguf(tiny().build()).unwrap();
    assert!(tied.head_is_tied());
    let head = tied.tensor(TextTensor::Head).unwrap();
    assert_eq!(head.file_name, "token_embd.weight");

    let untied = open_gguf(tiny().tensor_of("output.weight", &[5, 6], &[1.0; 30]).build()).unwrap();
    assert!(!untied.head_is_tied());
    assert_eq!(untied.tensor(TextTensor::Head).unwrap().file_name, "output.weight");
    let more = untied.total_weight_bytes() - tied.total_weight_bytes();
    assert_eq!(more, 5 * 6 * 4);
}

/// An array of i32 or, with `element` 4, of u32.
fn ids_value(element: u32, ids: &[i32]) -> Vec<u8> {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    array_value(element, ids.len() as u64, &bytes)
}

#[test]
fn end_ids_are_those_of_the_file_and_of_the_vocabulary() {
    let ids = |file: &GgufBuilder| open_gguf(file.build()).unwrap().config().eos_token_ids.clone();
    assert_eq!(ids(&tiny()), [1]);
    // Also without a chat template.
    let tokens = strings_value(&["<pad>", "<eos>", "<bos>", "<end_of_turn>", "a"]);
    assert_eq!(ids(&tiny().set("tokenizer.ggml.tokens", tokens)), [1, 3]);
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        let key = format!("tokenizer.ggml.{name}");
        assert_eq!(ids(&tiny().set(&key, u32_value(4))), [4]);
        assert_eq!(ids(&tiny().set(&key, value(5, &2_i32.to_le_bytes()))), [2], "an i32");
        assert_eq!(ids(&tiny().set(&key, ids_value(4, &[2, 4]))), [2, 4], "a list");
    }
    for element in [4, 5] {
        let list = tiny().set("tokenizer.ggml.eos_token_ids", ids_value(element, &[4, 1, 4]));
        assert_eq!(ids(&list), [1, 4]);
        let all = list
            .set("tokenizer.ggml.eos_token_id", u32_value(0))
            .set("tokenizer.ggml.eot_token_id", u32_value(2))
            .set("tokenizer.ggml.eom_token_id", u64_value(3));
        assert_eq!(ids(&all), [0, 1, 2, 3, 4]);
    }
}

#[test]
fn ids_that_are_no_tokens_are_warnings_and_the_others_count() {
    let opened = |key: &str, value: Vec<u8>| {
        let key = format!("tokenizer.ggml.{key}");
        let checkpoint = open_gguf(tiny().set(&key, value).build()).unwrap();
        let warnings = checkpoint.warnings();
        assert_eq!(warnings.len(), 1, "{key}: {warnings:?}");
        assert_eq!(warnings[0].kind, WarningKind::SpecialToken);
        assert!(warnings[0].to_string().contains(&key), "{}", warnings[0]);
        checkpoint.config().clone()
    };
    // The tiny model has five tokens.
    for name in ["eos_token_id", "eos_token_ids", "eot_token_id", "eom_token_id"] {
        assert_eq!(opened(name, u32_value(5)).eos_token_ids, [1]);
        assert_eq!(opened(name, u64_value(u64::MAX)).eos_token_ids, [1]);
        assert_eq!(opened(name, value(5, &(-1_i32).to_le_bytes())).eos_token_ids, [1]);
        assert_eq!(opened(name, string_value("<eos>")).eos_token_ids, [1]);
        assert_eq!(opened(name, strings_value(&["<eos>"])).eos_token_ids, [1]);
        assert_eq!(opened(name, ids_value(5, &[-1, 4, 7])).eos_token_ids, [4]);
    }
    assert_eq!(opened("bos_token_id", value(5, &(-1_i32).to_le_bytes())).bos_token_id, 2);
    assert_eq!(opened("padding_token_id", u32_value(u32::MAX)).pad_token_id, 0);
}

#[test]
fn a_cap_is_a_slip_where_layers_slide_and_the_models_where_none_does() {
    for name in ["final_logit_softcapping", "attn_logit_softcapping"] {
        let key = format!("gemma3.{name}");
        let capped = tiny().set(&key, f32_value(30.0));
        let checkpoint = open_gguf(capped.build()).unwrap();
        assert_eq!(checkpoint.config().text, tiny_config(2));
        let [warning] = checkpoint.warnings() else { panic!("{:?}", checkpoint.warnings()) };
        assert_eq!(warning.kind, WarningKind::IgnoredField);
        assert!(warning.to_string().contains(&key) && warning.to_string().contains("30"), "{warning}");
        let zero = tiny().set(&key, f32_value(0.0));
        assert_eq!(open_gguf(zero.build()).unwrap().warnings(), []);
        // A model that isn't Google's: every layer sees everything.
        let wide = capped.clone().set("gemma3.attention.sliding_window", u32_value(64));
        let full = capped.set("gemma3.attention.sliding_window_pattern", u32_value(1));
        for file in [wide, full] {
            let error = config_error(&file);
            assert!(matches!(&error, ConfigError::Unsupported { field, .. } if *field == key), "{error:?}");
        }
    }
}

#[test]
fn the_rope_bases_of_the_ollama_library_are_read() {
    let file = tiny()
        .without("gemma3.rope.freq_base")
        .set("gemma3.rope.global.freq_base", f32_value(5e5))
        .set("gemma3.rope.local.freq_base", f32_value(2e4));
    let text = text_config(&file);
    assert_eq!((text.rope_theta, text.rope_local_base_freq), (5e5, 2e4));
    let both =
        file.set("gemma3.rope.freq_base", f32_value(1e6)).set("gemma3.rope.freq_base_swa", f32_value(1e4));
    assert_eq!(text_config(&both), tiny_config(2));
}

#[test]
fn an_embedding_model_under_the_name_of_gemma_3_is_refused() {
    let error = config_error(&tiny().tensor("dense.0.weight", &[6, 6]));
    assert!(error.to_string().contains("EmbeddingGemma"), "{error}");
}

#[test]
fn a_layer_pattern_in_the_metadata_is_read_as_period_or_list() {
    let key = "gemma3.attention.sliding_window_pattern";
    let period = tiny().set(key, u32_value(2));
    assert_eq!(text_config(&period).full_attention_layers(), 1);
    let list = tiny().set(key, array_value(7, 2, &[0, 0]));
    assert_eq!(text_config(&list).full_attention_layers(), 2);
}

#[test]
fn a_list_of_equal_head_counts_is_one_count() {
    let counts = array_value(5, 2, &[1, 0, 0, 0, 1, 0, 0, 0]);
    let file = tiny().set("gemma3.attention.head_count_kv", counts);
    assert_eq!(text_config(&file), tiny_config(2));
}

#[test]
fn metadata_getters_tell_absent_from_wrong() {
    let file = tiny()
        .set("some.strings", strings_value(&["a", "", "ä"]))
        .set("some.floats", array_value(6, 1, &1.5_f32.to_le_bytes()))
        .set("some.ints", array_value(5, 1, &(-2_i32).to_le_bytes()));
    let file = GgufFile::from_bytes(file.build()).unwrap();
    let metadata = file.metadata();
    let strings = metadata.strings("some.strings").unwrap().unwrap();
    assert_eq!(strings.len(), 3);
    assert_eq!(strings.collect::<Vec<_>>(), ["a", "", "ä"]);
    assert_eq!(metadata.f32s("some.floats"), Ok(Some(vec![1.5])));
    assert_eq!(metadata.i32s("some.ints"), Ok(Some(vec![-2])));
    assert!(metadata.u32s("some.ints").is_err());
    assert!(metadata.strings("some.floats").is_err());
    assert!(metadata.str("some.strings").is_err());
    assert_eq!(metadata.f32s("another.key"), Ok(None));
    assert_eq!(metadata.f64("gemma3.attention.layer_norm_rms_epsilon"), Ok(Some(1e-6)));
}

// ---- safetensors ----

const TINY_CONFIG: &str = r#"{"model_type": "gemma3_text", "vocab_size": 5, "hidden_size": 6,
    "intermediate_size": 3, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 2, "query_pre_attn_scalar": 2, "sliding_window": 4,
    "max_position_embeddings": 64}"#;

/// A header with all tensors of [`TINY_CONFIG`] in F32, and the length of its data.
fn tiny_header() -> (serde_json::Map<String, Value>, usize) {
    let checkpoint = Checkpoint::random(tiny_config(2), TensorFormat::F32, 0).unwrap();
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for name in checkpoint.names() {
        let shape = checkpoint.raw(name).unwrap().shape;
        let start = end;
        end += shape.iter().product::<usize>() * 4;
        let tensor = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.to_owned(), tensor);
    }
    (header, end)
}

fn safetensors_file(header: &str, data_len: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data_len, 0);
    file
}

fn tiny_safetensors() -> Vec<u8> {
    let (header, len) = tiny_header();
    safetensors_file(&Value::Object(header).to_string(), len)
}

/// The tiny file with one tensor's description changed.
fn spoiled(name: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let (mut header, len) = tiny_header();
    change(header.get_mut(name).unwrap());
    safetensors_file(&Value::Object(header).to_string(), len)
}

#[track_caller]
fn safetensors_problem(file: Vec<u8>) -> String {
    match open_safetensors(TINY_CONFIG, vec![file]) {
        Err(CheckpointError::Safetensors { problem, .. }) => problem,
        other => panic!("expected a damaged file, found {other:?}"),
    }
}

#[test]
fn the_safetensors_of_these_tests_are_a_model() {
    let checkpoint = open_safetensors(TINY_CONFIG, vec![tiny_safetensors()]).unwrap();
    assert_eq!(checkpoint.config().text, tiny_config(2));
}

#[test]
fn safetensors_of_any_shorter_length_are_an_error() {
    let file = tiny_safetensors();
    for len in 0..file.len() {
        let result = open_safetensors(TINY_CONFIG, vec![file[..len].to_vec()]);
        assert!(result.is_err(), "{len} of {} bytes", file.len());
    }
}

#[test]
fn a_longer_file_than_its_header_says_is_an_error() {
    let mut file = tiny_safetensors();
    file.push(0);
    safetensors_problem(file);
}

#[test]
fn header_lengths_past_the_end_are_errors() {
    for len in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 40, 100_000_001, 1 << 20] {
        let mut file = tiny_safetensors();
        file[..8].copy_from_slice(&len.to_le_bytes());
        let problem = safetensors_problem(file);
        assert!(problem.contains(&len.to_string()), "{problem}");
    }
}

#[test]
fn headers_that_are_no_object_of_tensors_are_errors() {
    for header in ["", "{", "[]", "null", "{} {}", "{\"a\": 1}", "{\"a\": {\"dtype\": \"F32\"}}"] {
        safetensors_problem(safetensors_file(header, 0));
    }
    safetensors_problem(safetensors_file(&"[".repeat(1 << 20), 0));
    safetensors_problem(safetensors_file(&"{\"a\":".repeat(1 << 18), 0));
    let mut not_utf_8 = safetensors_file("{\"a\": 1}", 0);
    not_utf_8[10] = 0xFF;
    assert!(safetensors_problem(not_utf_8).contains("UTF-8"));
}

#[test]
fn a_tensor_name_that_occurs_twice_in_a_header_is_an_error() {
    // Both descriptions alike, so that nothing else is wrong.
    let (header, len) = tiny_header();
    let norm = &header["model.norm.weight"];
    let text = Value::Object(header.clone()).to_string();
    let text = text.replacen('{', &format!("{{\"model.norm.weight\": {norm},"), 1);
    let problem = safetensors_problem(safetensors_file(&text, len));
    assert!(problem.contains("model.norm.weight"), "{problem}");
}

#[test]
fn offsets_past_the_end_or_reversed_are_errors() {
    for offsets in [
        json!([0, u64::MAX]),
        json!([u64::MAX, u64::MAX]),
        json!([u64::MAX - 24, u64::MAX]),
        json!([1_u64 << 40, (1_u64 << 40) + 24]),
        json!([24, 0]),
        json!([-24, 0]),
        json!([0.5, 24]),
        json!([0]),
        json!("0, 24"),
    ] {
        let file = spoiled("model.norm.weight", |tensor| tensor["data_offsets"] = offsets);
        safetensors_problem(file);
    }
}

#[test]
fn offsets_whose_sum_with_the_header_wraps_around_are_an_error() {
    // Eight tensors of nearly 2^61 bytes each end just below 2^64: adding the header's length to
    // that comes round to the length of this file.
    let mut header = serde_json::Map::new();
    let (mut start, piece) = (0_u64, (1_u64 << 61) - 1);
    for index in 0..8 {
        let end = start + piece;
        let tensor = json!({"dtype": "U8", "shape": [piece], "data_offsets": [start, end]});
        header.insert(format!("t{index}"), tensor);
        start = end;
    }
    let rest = u64::MAX - start;
    let tensor = json!({"dtype": "U8", "shape": [rest], "data_offsets": [start, u64::MAX]});
    header.insert("t8".to_owned(), tensor);
    let header = Value::Object(header).to_string();
    for data_len in 0..16 {
        safetensors_problem(safetensors_file(&header, data_len));
    }
}

#[test]
fn overlapping_tensors_and_gaps_are_errors() {
    let shifted = |by: i64| {
        spoiled("model.norm.weight", |tensor| {
            for index in 0..2 {
                let offset = tensor["data_offsets"][index].as_i64().unwrap();
                tensor["data_offsets"][index] = json!(offset + by);
            }
        })
    };
    safetensors_problem(shifted(-8));
    safetensors_problem(shifted(-24));
    safetensors_problem(shifted(8));
}

#[test]
fn shapes_that_overflow_or_disagree_with_the_bytes_are_errors() {
    for shape in [
        json!([u64::MAX]),
        json!([1_u64 << 32, 1_u64 << 32]),
        json!([1_u64 << 63, 2]),
        json!([7]),
        json!([]),
        json!([-6]),
        json!([6.5]),
        json!("6"),
    ] {
        let file = spoiled("model.norm.weight", |tensor| tensor["shape"] = shape);
        safetensors_problem(file);
    }
}

#[test]
fn a_type_that_is_not_read_is_an_error_that_names_it() {
    let file = spoiled("model.norm.weight", |tensor| tensor["dtype"] = json!("I32"));
    match open_safetensors(TINY_CONFIG, vec![file]) {
        Err(CheckpointError::UnsupportedFormat { tensor, found, .. }) => {
            assert_eq!((tensor.as_str(), found.as_str()), ("model.norm.weight", "I32"));
        }
        other => panic!("expected an unsupported format, found {other:?}"),
    }
    let unknown = spoiled("model.norm.weight", |tensor| tensor["dtype"] = json!("Q9"));
    safetensors_problem(unknown);
}

#[test]
fn missing_tensors_and_other_shapes_are_errors_that_name_them() {
    let config = TINY_CONFIG.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    match open_safetensors(&config, vec![tiny_safetensors()]) {
        Err(CheckpointError::MissingTensor { tensor, .. }) => {
            assert_eq!(tensor, "model.layers.2.input_layernorm.weight");
        }
        other => panic!("expected a missing tensor, found {other:?}"),
    }
    let config = TINY_CONFIG.replace("\"intermediate_size\": 3", "\"intermediate_size\": 4");
    match open_safetensors(&config, vec![tiny_safetensors()]) {
        Err(CheckpointError::WrongShape { tensor, expected, found, .. }) => {
            assert_eq!(tensor, "model.layers.0.mlp.gate_proj.weight");
            assert_eq!((expected, found), (vec![4, 6], vec![3, 6]));
        }
        other => panic!("expected a wrong shape, found {other:?}"),
    }
    let nothing = open_safetensors(TINY_CONFIG, vec![]).unwrap_err();
    assert!(nothing.to_string().contains("embed_tokens"), "{nothing}");
}

#[test]
fn a_tensor_in_two_shards_is_an_error() {
    let shards = vec![tiny_safetensors(), tiny_safetensors()];
    let error = open_safetensors(TINY_CONFIG, shards).unwrap_err();
    assert!(matches!(error, CheckpointError::TensorInTwoFiles { .. }), "{error:?}");
}

#[test]
fn a_layer_that_the_model_does_not_have_is_an_error() {
    use gemma3_core::checkpoint::LayerTensor;
    let checkpoint = open_gguf(tiny().build()).unwrap();
    for layer in [2, usize::MAX] {
        let error = checkpoint.tensor(TextTensor::Layer(layer, LayerTensor::QProj));
        let layers = 2;
        assert!(matches!(error, Err(CheckpointError::NoSuchLayer { layers: l, .. }) if l == layers));
    }
}

// ---- folders ----

/// A folder with [`TINY_CONFIG`] and an index with this weight map; one shard is there.
fn sharded(weight_map: Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("config.json", TINY_CONFIG.as_bytes());
    write("one.safetensors", &tiny_safetensors());
    let index = json!({"metadata": {}, "weight_map": weight_map});
    write("model.safetensors.index.json", index.to_string().as_bytes());
    folder
}

fn whole_weight_map(shard: &str) -> Value {
    let (header, _) = tiny_header();
    header.keys().map(|name| (name.clone(), json!(shard))).collect()
}

#[track_caller]
fn index_problem(folder: &tempfile::TempDir) -> String {
    match Checkpoint::open(folder.path()) {
        Err(CheckpointError::Index { problem, .. }) => problem,
        other => panic!("expected a refused index, found {other:?}"),
    }
}

#[test]
fn an_index_with_its_shard_opens() {
    let folder = sharded(whole_weight_map("one.safetensors"));
    Checkpoint::open(folder.path()).unwrap();
}

#[test]
fn shard_names_that_leave_the_folder_are_errors() {
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("one.safetensors");
    std::fs::write(&file, tiny_safetensors()).unwrap();
    for name in [
        file.to_str().unwrap(),
        "../one.safetensors",
        "sub/../one.safetensors",
        "./one.safetensors",
        "sub/one.safetensors",
        "..",
        ".",
        "",
        "/",
        "..\\one.safetensors",
        "C:one.safetensors",
        "one.safetensors\0",
    ] {
        let problem = index_problem(&sharded(whole_weight_map(name)));
        assert!(problem.contains("plain file name"), "{name}: {problem}");
    }
}

#[test]
fn an_index_that_names_a_missing_shard_or_tensor_is_an_error() {
    let problem = index_problem(&sharded(whole_weight_map("two.safetensors")));
    assert!(problem.contains("two.safetensors"), "{problem}");
    let mut map = whole_weight_map("one.safetensors");
    map["model.extra.weight"] = json!("one.safetensors");
    let problem = index_problem(&sharded(map));
    assert!(problem.contains("model.extra.weight"), "{problem}");
}

#[test]
fn a_tensor_that_the_index_lacks_is_missing() {
    let mut map = whole_weight_map("one.safetensors");
    map.as_object_mut().unwrap().remove("model.norm.weight");
    let error = Checkpoint::open(sharded(map).path()).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingTensor { tensor, .. } if tensor == "model.norm.weight"));
}

#[test]
fn an_index_that_is_no_map_of_names_is_an_error() {
    for map in [json!(null), json!([]), json!({"a": 1}), json!("one.safetensors")] {
        index_problem(&sharded(map));
    }
    let folder = sharded(json!({}));
    let index = folder.path().join("model.safetensors.index.json");
    for text in ["", "{", "[]", r#"{"weight_map": {"a": "x", "a": "y"}}"#] {
        std::fs::write(&index, text).unwrap();
        index_problem(&folder);
    }
}

#[test]
fn folders_that_lack_a_file_say_which_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let open = || Checkpoint::open(path).unwrap_err().to_string();
    assert!(open().contains("config.json"));
    std::fs::write(path.join("model.gguf"), tiny().build()).unwrap();
    assert!(open().contains("`model.gguf`"), "{}", open());
    std::fs::write(path.join("config.json"), TINY_CONFIG).unwrap();
    assert!(open().contains("model.safetensors is missing"), "{}", open());
    Checkpoint::open(path.join("model.gguf")).unwrap();
    std::fs::write(path.join("lone.safetensors"), tiny_safetensors()).unwrap();
    Checkpoint::open(path.join("lone.safetensors")).unwrap();
}

#[test]
fn paths_that_hold_no_checkpoint_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Checkpoint::open(folder.path().join("nothing")).unwrap_err();
    assert!(matches!(missing, CheckpointError::NotFound { .. }), "{missing:?}");
    for (name, contents) in
        [("model.bin", "PK\u{3}\u{4}"), ("model.gguf", "hello"), ("notes", "hello"), ("config.json", "{}")]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(matches!(error, CheckpointError::UnknownFileType { .. }), "{error:?}");
    }
    for name in ["model.gguf", "model.safetensors", "notes"] {
        let path = folder.path().join(name);
        std::fs::write(&path, "<html>").unwrap();
        let page = Checkpoint::open(&path).unwrap_err();
        assert!(matches!(page, CheckpointError::NotDownloaded { .. }), "{page:?}");
    }
    #[cfg(unix)]
    {
        let device = Checkpoint::open("/dev/zero").unwrap_err();
        assert!(matches!(device, CheckpointError::NotARegularFile { .. }), "{device:?}");
    }
}

#[test]
fn a_damaged_configuration_names_its_file() {
    let folder = sharded(whole_weight_map("one.safetensors"));
    for contents in [&b"{\"model_type\": \"gemma2\"}"[..], b""] {
        std::fs::write(folder.path().join("config.json"), contents).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(matches!(error, CheckpointError::Config { .. }), "{error:?}");
        assert!(error.to_string().contains("config.json"), "{error}");
    }
    std::fs::write(folder.path().join("config.json"), b"{}\xFF\xFE").unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::NotText { valid_up_to: 2, .. }), "{error:?}");
    assert!(error.to_string().contains("config.json: expected UTF-8 text"), "{error}");
}

#[test]
fn a_damaged_recommendation_is_a_warning_that_names_its_file() {
    let folder = sharded(whole_weight_map("one.safetensors"));
    let path = folder.path().join("generation_config.json");
    let warnings = || {
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let warnings = checkpoint.warnings().to_vec();
        for warning in &warnings {
            assert_eq!(warning.kind, WarningKind::Recommendation);
            assert!(warning.file.ends_with("generation_config.json"), "{warning}");
        }
        (checkpoint.generation_config().clone(), warnings)
    };
    for contents in [&b""[..], b" \n", b"\xFF\xFE", b"{", b"[]", b"{\"top_p\": NaN}", b"{\"a\": 1, \"a\": 2}"]
    {
        std::fs::write(&path, contents).unwrap();
        let (config, warnings) = warnings();
        assert_eq!(config, GenerationConfig::default());
        assert_eq!(warnings.len(), 1, "{contents:?}: {warnings:?}");
    }
    std::fs::write(&path, r#"{"top_k": -1, "top_p": 100, "temperature": "hot", "eos_token_id": [1, "2"]}"#)
        .unwrap();
    let (config, found) = warnings();
    assert_eq!((config.top_k, config.top_p, config.temperature), (Some(0), Some(100.0), None));
    assert_eq!(config.eos_token_ids, [1]);
    let fields: Vec<bool> = ["temperature", "top_k", "top_p", "eos_token_id"]
        .iter()
        .zip(&found)
        .map(|(field, warning)| warning.problem.contains(field))
        .collect();
    assert_eq!(fields, [true; 4], "{found:?}");
    // Not even what isn't a file.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(warnings().1.len(), 1);
    std::fs::remove_dir(&path).unwrap();
    // Sparse: takes no space.
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(within(1 << 16, warnings).1.len(), 1);
}

#[test]
fn text_files_of_absurd_size_are_not_read() {
    let folder = sharded(json!({}));
    let config = std::fs::File::create(folder.path().join("config.json")).unwrap();
    // Sparse: takes no space.
    config.set_len(1 << 40).unwrap();
    let error = within(0, || Checkpoint::open(folder.path())).unwrap_err();
    assert!(matches!(error, CheckpointError::FileTooLarge { .. }), "{error:?}");
}

// ---- bytes that changed by chance ----

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_gguf_with_random_bytes_flipped_opens_or_is_an_error(
        flips in prop::collection::vec((0_usize..4096, any::<u8>()), 1..6),
    ) {
        // Weights are not looked at: only the header and what follows it closely.
        let mut file = tiny().set("tokenizer.ggml.tokens", strings_value(&["<pad>", "<eos>"])).build();
        for (position, byte) in flips {
            let len = file.len();
            file[position % len] ^= byte;
        }
        let _ = open_gguf(file);
    }

    #[test]
    fn safetensors_with_random_bytes_flipped_open_or_are_an_error(
        flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let mut file = tiny_safetensors();
        for (position, byte) in flips {
            let len = file.len();
            file[position % len] ^= byte;
        }
        let _ = open_safetensors(TINY_CONFIG, vec![file]);
    }

    #[test]
    fn a_configuration_with_random_bytes_flipped_is_read_or_is_an_error(
        flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let mut text = TINY_CONFIG.as_bytes().to_vec();
        for (position, byte) in flips {
            let len = text.len();
            text[position % len] = byte;
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let _ = open_safetensors(&text, vec![tiny_safetensors()]);
    }

    #[test]
    fn arbitrary_bytes_after_the_magic_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(bytes);
        let _ = open_gguf(file);
    }
}
