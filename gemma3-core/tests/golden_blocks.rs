//! Block formats and checkpoints against the goldens: `gguf-blocks.safetensors` bit for bit, and the
//! GGUF of a model against the safetensors it was made from.

use std::path::{Path, PathBuf};

use gemma3_core::checkpoint::{Checkpoint, TensorFormat, TensorView, TextTensor};
use gemma3_core::formats::blocks::dequantize;
use safetensors::SafeTensors;

fn goldens() -> PathBuf {
    match std::env::var_os("GEMMA3_GOLDENS") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures"),
    }
}

/// The path of a golden, unless this set lacks it.
fn golden(name: &str) -> Option<PathBuf> {
    let path = goldens().join(name);
    if !path.exists() {
        println!("skipped: {name} is not in {}", goldens().display());
        return None;
    }
    Some(path)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (words, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

#[test]
fn every_block_format_decodes_to_the_reference_bit_for_bit() {
    let Some(path) = golden("gguf-blocks.safetensors") else {
        return;
    };
    let file = std::fs::read(path).unwrap();
    let goldens = SafeTensors::deserialize(&file).unwrap();
    let mut checked = Vec::new();
    for name in goldens.names() {
        let Some(format_name) = name.strip_suffix(".bytes") else {
            continue;
        };
        let Ok(format) = format_name.parse::<TensorFormat>() else {
            println!("skipped: {format_name} is not a supported format");
            continue;
        };
        let bytes = goldens.tensor(name).unwrap();
        let values = goldens.tensor(&format!("{format_name}.values")).unwrap();
        let expected = floats(values.data());
        let mut found = vec![0.0; expected.len()];
        dequantize(format, bytes.data(), &mut found).unwrap();
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let equal = found.to_bits() == expected.to_bits();
            assert!(equal, "{format} weight {index}: {found} instead of {expected}");
        }
        checked.push(format);
    }
    let blocks = TensorFormat::ALL.into_iter().filter(|f| f.is_block());
    let missing: Vec<_> = blocks.filter(|f| !checked.contains(f)).collect();
    println!("checked {checked:?}, the set has none of {missing:?}");
    assert!(!checked.is_empty());
}

/// The GGUF of a set and the folder that it was made from.
fn pair() -> Option<(Checkpoint, Checkpoint)> {
    let gguf = golden("tiny-text.gguf")?;
    let folder = golden("tiny-text")?;
    Some((Checkpoint::open(gguf).unwrap(), Checkpoint::open(folder).unwrap()))
}

#[test]
fn the_gguf_of_a_model_has_the_configuration_of_its_folder() {
    let Some((gguf, folder)) = pair() else { return };
    let (found, expected) = (&gguf.config().text, &folder.config().text);
    let metadata = gguf.gguf().unwrap();
    let says = |key: &str| metadata.keys().any(|k| k == format!("gemma3.{key}"));
    // What the metadata doesn't say follows there from rules about the released sizes, which a small
    // model needn't keep.
    let mut expected = expected.clone();
    expected.query_pre_attn_scalar = found.query_pre_attn_scalar;
    if !says("rope.freq_base_swa") {
        expected.rope_local_base_freq = found.rope_local_base_freq;
    }
    if !says("rope.scaling.factor") {
        expected.rope_scaling_factor = found.rope_scaling_factor;
    }
    if !says("attention.sliding_window_pattern") {
        expected.layer_types = found.layer_types.clone();
    }
    assert_eq!(*found, expected);
    assert!(gguf.norms_include_one() && !folder.norms_include_one());
    assert!(folder.gguf().is_none());
    // Both are the same weights to the model once the constants are.
    let replaced = gguf.with_text_config(folder.config().text.clone());
    assert_eq!(replaced.unwrap().config().text, folder.config().text);
    assert!(gguf.format_name().starts_with("GGUF "));
    assert!(folder.format_name().starts_with("safetensors "));
}

#[test]
fn the_weights_of_a_gguf_are_those_of_its_folder_within_the_error_of_each_format() {
    let Some((gguf, folder)) = pair() else { return };
    for tensor in TextTensor::all(&folder.config().text) {
        let stored = gguf.tensor(tensor).unwrap();
        let original = folder.tensor(tensor).unwrap();
        assert_eq!(stored.shape, original.shape);
        let (found, mut expected) = (decoded(&stored), decoded(&original));
        if tensor.is_norm() {
            expected.iter_mut().for_each(|weight| *weight += 1.0);
        }
        let block = stored.format.block_len();
        for (found, expected) in found.chunks(block).zip(expected.chunks(block)) {
            let largest = expected.iter().fold(0_f32, |max, x| max.max(x.abs()));
            let tolerance = largest * relative_error(stored.format) + SUBNORMAL_HALF;
            for (found, expected) in found.iter().zip(expected) {
                let difference = (found - expected).abs();
                let name = stored.file_name;
                assert!(difference <= tolerance, "{name} ({}): {found} instead of {expected}", stored.format);
            }
        }
    }
}

#[test]
fn every_golden_checkpoint_opens_with_all_its_tensors() {
    for name in ["tiny-text", "tiny-multimodal", "tiny-text.gguf"] {
        let Some(path) = golden(name) else { continue };
        let checkpoint = Checkpoint::open(path).unwrap();
        for name in checkpoint.names() {
            let view = checkpoint.raw(name).unwrap();
            assert!(decoded(&view).iter().all(|weight| weight.is_finite()), "{name}");
        }
        let config = &checkpoint.config().text;
        let bytes: usize =
            TextTensor::all(config).map(|tensor| checkpoint.tensor(tensor).unwrap().bytes.len()).sum();
        assert_eq!(checkpoint.total_weight_bytes(), bytes as u64);
    }
}

#[test]
fn a_folder_opens_from_memory_as_from_disk() {
    for name in ["tiny-text", "tiny-multimodal"] {
        let Some(path) = golden(name) else { continue };
        let from_disk = Checkpoint::open(&path).unwrap();
        let read = |name: &str| std::fs::read_to_string(path.join(name));
        let mut shards: Vec<PathBuf> = std::fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        shards.sort();
        let shards = shards.iter().map(|shard| std::fs::read(shard).unwrap());
        let from_memory = Checkpoint::from_safetensors_bytes(
            &read("config.json").unwrap(),
            read("generation_config.json").ok().as_deref(),
            shards,
        )
        .unwrap();
        assert_eq!(from_memory.config(), from_disk.config());
        assert_eq!(from_memory.generation_config(), from_disk.generation_config());
        for tensor in TextTensor::all(&from_disk.config().text) {
            let (memory, disk) = (from_memory.tensor(tensor), from_disk.tensor(tensor));
            assert_eq!(memory.unwrap().bytes, disk.unwrap().bytes);
        }
    }
}

fn decoded(view: &TensorView<'_>) -> Vec<f32> {
    let mut weights = vec![0.0; view.shape.iter().product()];
    dequantize(view.format, &view.bytes, &mut weights).unwrap();
    weights
}

/// Half the distance of the smallest halves, whose precision is absolute.
const SUBNORMAL_HALF: f32 = 1.0 / (1 << 25) as f32;

/// The largest error of a well-made file, as a fraction of a block's largest weight.
fn relative_error(format: TensorFormat) -> f32 {
    match format {
        // One rounding of `1 + w`, and the source may have been F32.
        TensorFormat::F32 => f32::EPSILON,
        TensorFormat::F16 => 1.0 / 2048.0,
        TensorFormat::BF16 => 1.0 / 256.0,
        // One-sided scales: the extreme weight sits on -2^(bits-1), a weight of the other sign and
        // the same size a whole step off. 5% for the rounding of the scale to f16.
        TensorFormat::Q4_0 => 1.05 / 8.0,
        TensorFormat::Q5_0 => 1.05 / 16.0,
        // Half a step; the range is at most twice the largest weight. 10% for the f16 roundings of
        // scale and minimum.
        TensorFormat::Q4_1 => 2.0 / 15.0 * 0.55,
        TensorFormat::Q5_1 => 2.0 / 31.0 * 0.55,
        TensorFormat::Q8_0 => 1.0 / 127.0 * 0.55,
        // Half a step of the widest group, and half a step of its 6-bit scale and minimum.
        TensorFormat::Q4_K => 2.0 / 15.0 * 0.55 + 2.0 / 63.0,
        TensorFormat::Q5_K => 2.0 / 31.0 * 0.55 + 2.0 / 63.0,
        TensorFormat::Q6_K => 1.05 / 32.0 + 1.0 / 127.0,
    }
}
