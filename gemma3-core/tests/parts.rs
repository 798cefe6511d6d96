//! Models in several files: numbered safetensors without an index, and GGUF that llama.cpp has split. Every part
//! stands for the whole, and what is missing or doesn't belong is named.

mod build_gguf;

use std::path::{Path, PathBuf};

use build_gguf::{GgufBuilder, gguf_name, string_value, tiny_config, u32_value, value};
use gemma3_core::checkpoint::{Checkpoint, CheckpointError, GgufError, GgufFile, TextTensor};
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

const CONFIG: &str = r#"{"model_type": "gemma3_text", "vocab_size": 5, "hidden_size": 6,
    "intermediate_size": 3, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 2, "query_pre_attn_scalar": 2, "sliding_window": 4,
    "max_position_embeddings": 64}"#;

/// The tensors of a tiny model with values that tell them apart.
fn tensors() -> Vec<(TextTensor, Vec<usize>, Vec<f32>)> {
    let config = tiny_config(2);
    let mut start = 0;
    let with_values = |tensor: TextTensor| {
        let shape = tensor.shape(&config);
        let len: usize = shape.iter().product();
        let values = (start..start + len).map(|value| value as f32).collect();
        start += len;
        (tensor, shape, values)
    };
    TextTensor::all(&config).map(with_values).collect()
}

/// Every tensor has the values of [`tensors`].
fn assert_whole(checkpoint: &Checkpoint) {
    for (tensor, shape, values) in tensors() {
        let view = checkpoint.tensor(tensor).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!((view.shape, view.bytes.as_ref()), (shape, bytes.as_slice()), "{tensor:?}");
    }
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn error_of(path: &Path) -> CheckpointError {
    Checkpoint::open(path).expect_err("an error")
}

// ---- safetensors ----

/// The safetensors of every `parts`-th tensor, beginning with one of them.
fn shard(part: usize, parts: usize) -> Vec<u8> {
    let tensors = tensors().into_iter().skip(part - 1).step_by(parts);
    let named: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .map(|(tensor, shape, values)| {
            (huggingface_name(tensor), shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = named.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// By way of a checkpoint of random weights, whose tensors have Hugging Face's names.
fn huggingface_name(tensor: TextTensor) -> String {
    let format = gemma3_core::checkpoint::TensorFormat::F32;
    let checkpoint = Checkpoint::random(tiny_config(2), format, 0).unwrap();
    checkpoint.tensor(tensor).unwrap().file_name.to_owned()
}

/// A folder with `config.json` and the given parts of a set of `parts`.
fn sharded(prefix: &str, present: &[usize], parts: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "config.json", CONFIG.as_bytes());
    for &part in present {
        write(&folder, &format!("{prefix}-{part:05}-of-{parts:05}.safetensors"), &shard(part, parts));
    }
    folder
}

#[test]
fn shards_without_an_index_are_a_model() {
    assert_whole(&Checkpoint::open(sharded("model", &[1, 2, 3], 3).path()).unwrap());
    assert_whole(&Checkpoint::open(sharded("model", &[1], 1).path()).unwrap());
}

#[test]
fn every_shard_stands_for_its_set_whatever_the_set_is_called() {
    for prefix in ["model", "gemma-of-mine"] {
        let folder = sharded(prefix, &[1, 2], 2);
        for part in [1, 2] {
            let path = folder.path().join(format!("{prefix}-{part:05}-of-00002.safetensors"));
            assert_whole(&Checkpoint::open(path).unwrap());
        }
    }
}

#[test]
fn a_missing_shard_is_named() {
    let folder = sharded("model", &[1, 3], 3);
    let third = folder.path().join("model-00003-of-00003.safetensors");
    for opened in [folder.path(), &third] {
        match error_of(opened) {
            CheckpointError::MissingPart { path, parts: 3 } => {
                assert_eq!(path, folder.path().join("model-00002-of-00003.safetensors"));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_count_that_no_folder_has_is_an_error_at_the_first_missing_shard() {
    let folder = sharded("model", &[1], 99_999);
    match error_of(folder.path()) {
        CheckpointError::MissingPart { path, parts: 99_999 } => {
            assert_eq!(path, folder.path().join("model-00002-of-99999.safetensors"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_sets_in_one_folder_are_an_error_that_names_both() {
    let folder = sharded("model", &[1, 2], 2);
    write(&folder, "model-00003-of-00003.safetensors", &shard(3, 3));
    match error_of(folder.path()) {
        CheckpointError::SeveralSets { first, second, .. } => {
            assert_eq!(first, "model-00001-of-00002.safetensors");
            assert_eq!(second, "model-00003-of-00003.safetensors");
        }
        other => panic!("{other:?}"),
    }
    // Naming a file says which set is meant.
    let named = folder.path().join("model-00002-of-00002.safetensors");
    assert_whole(&Checkpoint::open(named).unwrap());
}

#[test]
fn one_file_comes_before_shards_and_an_index_before_numbers() {
    let folder = sharded("model", &[1, 2], 2);
    write(&folder, "model-00003-of-00003.safetensors", b"of another model");
    let names = (1..=2).flat_map(|part| {
        let names = tensors().into_iter().skip(part - 1).step_by(2).map(|(name, ..)| huggingface_name(name));
        names.map(move |name| (name, format!("model-{part:05}-of-00002.safetensors")))
    });
    let map: serde_json::Map<String, serde_json::Value> =
        names.map(|(name, shard)| (name, shard.into())).collect();
    let index = serde_json::json!({ "weight_map": map });
    write(&folder, "model.safetensors.index.json", index.to_string().as_bytes());
    assert_whole(&Checkpoint::open(folder.path()).unwrap());
    assert_whole(&Checkpoint::open(folder.path().join("model-00001-of-00002.safetensors")).unwrap());
    // The index is the authority on what belongs to the model.
    match error_of(&folder.path().join("model-00003-of-00003.safetensors")) {
        CheckpointError::Index { problem, .. } => {
            assert!(problem.contains("model-00003-of-00003.safetensors"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
    write(&folder, "model.safetensors", &shard(1, 1));
    write(&folder, "model.safetensors.index.json", b"{}");
    assert_whole(&Checkpoint::open(folder.path()).unwrap());
}

#[test]
fn a_tensor_in_two_shards_is_an_error_that_names_both() {
    let folder = sharded("model", &[1], 2);
    write(&folder, "model-00002-of-00002.safetensors", &shard(1, 2));
    match error_of(folder.path()) {
        CheckpointError::TensorInTwoFiles { first, second, .. } => {
            assert!(first.ends_with("model-00001-of-00002.safetensors"), "{first}");
            assert!(second.ends_with("model-00002-of-00002.safetensors"), "{second}");
        }
        other => panic!("{other:?}"),
    }
}

// ---- GGUF ----

/// The parts of a model as `llama-gguf-split` writes them: all metadata and `split.*` in the first, `split.*` alone
/// in the others. `tensors_in_first` is false for its option `--no-tensor-first-split`.
fn gguf_parts(parts: u16, tensors_in_first: bool) -> Vec<GgufBuilder> {
    let all = tensors();
    let count = all.len();
    let mut files: Vec<GgufBuilder> = (0..parts)
        .map(|number| {
            let file = match number {
                0 => GgufBuilder {
                    metadata: build_gguf::model(&tiny_config(2)).metadata,
                    ..Default::default()
                },
                _ => GgufBuilder::default(),
            };
            // The types that the tool writes: u16, u16 and i32.
            file.set("split.no", value(2, &number.to_le_bytes()))
                .set("split.count", value(2, &parts.to_le_bytes()))
                .set("split.tensors.count", value(5, &(count as i32).to_le_bytes()))
        })
        .collect();
    let first = usize::from(!tensors_in_first);
    let with_tensors = files.len() - first;
    for (index, (tensor, shape, values)) in all.into_iter().enumerate() {
        let file = &mut files[first + index * with_tensors / count];
        *file = std::mem::take(file).tensor_of(&gguf_name(tensor), &shape, &values);
    }
    files
}

fn part_name(part: usize, parts: usize) -> String {
    format!("gemma-3-tiny-{part:05}-of-{parts:05}.gguf")
}

fn write_parts(files: &[GgufBuilder]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (index, file) in files.iter().enumerate() {
        write(&folder, &part_name(index + 1, files.len()), &file.build());
    }
    folder
}

#[track_caller]
fn gguf_error(path: &Path) -> (String, GgufError) {
    match error_of(path) {
        CheckpointError::Gguf { file, source } => (file, source),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_part_of_a_split_gguf_opens_the_whole() {
    for (parts, tensors_in_first) in [(2, true), (3, true), (3, false)] {
        let folder = write_parts(&gguf_parts(parts, tensors_in_first));
        for part in 1..=usize::from(parts) {
            let path = folder.path().join(part_name(part, parts.into()));
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert_whole(&checkpoint);
            assert_eq!(checkpoint.source(), path.display().to_string());
            assert_eq!(checkpoint.gguf().unwrap().str("general.architecture"), Ok(Some("gemma3")));
        }
    }
}

#[test]
fn a_gguf_of_one_part_is_whole() {
    let file = gguf_parts(1, true).remove(0);
    let folder = tempfile::tempdir().unwrap();
    assert_whole(&Checkpoint::open(write(&folder, "any-name.gguf", &file.build())).unwrap());
    assert_whole(&Checkpoint::from_gguf_bytes(file.build()).unwrap());
}

#[test]
fn a_missing_part_of_a_gguf_is_named() {
    let folder = write_parts(&gguf_parts(3, true));
    std::fs::remove_file(folder.path().join(part_name(2, 3))).unwrap();
    for part in [1, 3] {
        match error_of(&folder.path().join(part_name(part, 3))) {
            CheckpointError::MissingPart { path, parts: 3 } => {
                assert_eq!(path, folder.path().join(part_name(2, 3)));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_part_in_memory_is_an_error_that_says_which_it_is() {
    let parts = gguf_parts(3, true);
    let error = Checkpoint::from_gguf_bytes(parts[1].build()).unwrap_err();
    assert!(
        matches!(error, CheckpointError::Gguf { source: GgufError::Split { part: 2, parts: 3 }, .. }),
        "{error:?}"
    );
    assert!(GgufFile::from_bytes(parts[0].build()).is_err());
}

#[test]
fn a_part_whose_name_says_something_else_is_an_error() {
    let folder = write_parts(&gguf_parts(2, true));
    for name in ["renamed.gguf", "gemma-3-tiny-00002-of-00002.gguf", "gemma-3-tiny-00001-of-00004.gguf"] {
        let path = folder.path().join(name);
        std::fs::copy(folder.path().join(part_name(1, 2)), &path).unwrap();
        let (file, error) = gguf_error(&path);
        assert_eq!((file, error), (path.display().to_string(), GgufError::SplitName { part: 1, parts: 2 }));
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn parts_that_disagree_are_errors_that_name_the_part_and_the_key() {
    for (key, spoiled, expected, found) in [
        ("split.no", Some(u32_value(0)), Some(1), Some(0)),
        ("split.count", Some(u32_value(3)), Some(2), Some(3)),
        ("split.tensors.count", Some(u32_value(7)), Some(28), Some(7)),
        ("split.count", Some(string_value("2")), Some(2), None),
        ("split.tensors.count", None, Some(28), None),
    ] {
        let mut files = gguf_parts(2, true);
        let second = std::mem::take(&mut files[1]);
        files[1] = match spoiled {
            Some(value) => second.set(key, value),
            None => second.without(key),
        };
        let folder = write_parts(&files);
        let (file, error) = gguf_error(&folder.path().join(part_name(1, 2)));
        assert_eq!(file, folder.path().join(part_name(2, 2)).display().to_string());
        assert_eq!(error, GgufError::SplitDisagrees { key, expected, found });
    }
}

#[test]
fn parts_with_another_number_of_tensors_than_they_say_are_an_error() {
    let mut files = gguf_parts(2, true);
    let last = files[1].tensors.pop().expect("a tensor");
    assert_eq!(last.name, b"output_norm.weight");
    let folder = write_parts(&files);
    let (_, error) = gguf_error(&folder.path().join(part_name(1, 2)));
    assert_eq!(error, GgufError::SplitTensorCount { expected: 28, found: 27 });
}

#[test]
fn a_tensor_in_two_parts_is_an_error() {
    let mut files = gguf_parts(2, true);
    files[1].tensors[0].name = files[0].tensors[0].name.clone();
    let folder = write_parts(&files);
    let error = error_of(&folder.path().join(part_name(2, 2)));
    assert!(matches!(error, CheckpointError::TensorInTwoFiles { .. }), "{error:?}");
}
