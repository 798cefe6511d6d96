//! From a checkpoint to a model: damaged weights, progress, threads, weights in memory.

mod common;

use std::path::Path;

use common::{Tensors, devices, golden, golden_json, ids};
use gemma3_core::checkpoint::{Checkpoint, TensorFormat};
use gemma3_core::config::TextConfig;
use gemma3_core::formats::Quantization;
use gemma3_core::generate::{Session, SessionOptions};
use gemma3_core::model::{LoadError, LoadOptions, LoadProgress, Model};

const NAMED: &str = "model.layers.3.mlp.up_proj.weight";

/// The bytes of tiny-text's one file with a value of one tensor replaced, in its dtype (bf16).
fn with_value(folder: &Path, value: [u8; 2], index: usize) -> Checkpoint {
    let mut bytes = std::fs::read(folder.join("model.safetensors")).expect("the weights");
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let info = metadata.info(NAMED).expect("the tensor");
    assert_eq!(info.dtype, safetensors::Dtype::BF16);
    let at = 8 + header + info.data_offsets.0 + 2 * index;
    bytes[at..at + 2].copy_from_slice(&value);
    let config = std::fs::read_to_string(folder.join("config.json")).expect("a config");
    Checkpoint::from_safetensors_bytes(&config, None, vec![bytes]).expect("a checkpoint in memory")
}

#[test]
fn a_weight_that_is_not_finite_is_an_error_that_names_its_layer() {
    let Some(folder) = golden("tiny-text") else { return };
    let (_, device) = devices().swap_remove(0);
    for (bits, is_nan) in [(0x7fc0_u16, true), (0x7f80, false), (0xff80, false)] {
        let checkpoint = with_value(&folder, bits.to_le_bytes(), 17);
        let options = LoadOptions { check_finite: Some(true), ..LoadOptions::default() };
        match Model::load(&checkpoint, &device, options) {
            Err(LoadError::NotFinite { file, tensor, value, index }) => {
                assert_eq!(file, "shard 0 in memory");
                assert_eq!((tensor.as_str(), index, value.is_nan()), (NAMED, 17, is_nan));
            }
            other => panic!("{:?}", other.map(|_| "a model")),
        }
    }
    // The check can be left out, and finds nothing in sound weights.
    let options = LoadOptions { check_finite: Some(false), ..LoadOptions::default() };
    assert!(Model::load(&with_value(&folder, [0xc0, 0x7f], 17), &device, options).is_ok());
    let options = LoadOptions { check_finite: Some(true), ..LoadOptions::default() };
    assert!(Model::load(&with_value(&folder, [0, 0], 17), &device, options).is_ok());
}

#[test]
fn a_model_in_memory_equals_the_one_on_disk() {
    let Some(index) = golden_json("tiny-text.json") else { return };
    let (Some(folder), Some(gguf)) = (golden("tiny-text"), golden("tiny-text.gguf")) else { return };
    let (_, device) = devices().swap_remove(0);
    let config = std::fs::read_to_string(folder.join("config.json")).expect("a config");
    let weights = std::fs::read(folder.join("model.safetensors")).expect("the weights");
    let pairs = [
        (
            Checkpoint::open(&folder).expect("on disk"),
            Checkpoint::from_safetensors_bytes(&config, None, vec![weights]).expect("in memory"),
        ),
        (
            Checkpoint::open(&gguf).expect("on disk"),
            Checkpoint::from_gguf_bytes(std::fs::read(&gguf).expect("the file")).expect("in memory"),
        ),
    ];
    for (on_disk, in_memory) in pairs {
        let logits = |checkpoint: &Checkpoint| {
            let model = Model::load(checkpoint, &device, LoadOptions::default()).expect("a model");
            let mut session = Session::new(&model, &SessionOptions::default()).expect("a session");
            session.append(&ids(&index["cases"]["short"]["input_ids"])).expect("room");
            session.logits().expect("logits").to_vec()
        };
        assert_eq!(logits(&on_disk), logits(&in_memory));
    }
}

#[test]
fn loading_reports_every_byte_once() {
    let Some(folder) = golden("tiny-multimodal") else { return };
    let (_, device) = devices().swap_remove(0);
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    let mut reports: Vec<LoadProgress> = Vec::new();
    let mut progress = |p| reports.push(p);
    let options = LoadOptions { progress: Some(&mut progress), ..LoadOptions::default() };
    Model::load(&checkpoint, &device, options).expect("a model");
    assert!(reports.windows(2).all(|pair| pair[0].loaded_bytes < pair[1].loaded_bytes));
    let last = reports.last().expect("reports");
    assert_eq!((last.loaded_bytes, last.total_bytes), (last.total_bytes, checkpoint.total_weight_bytes()));
}

#[test]
fn a_thread_count_binds() {
    let (_, device) = devices().swap_remove(0);
    if !gemma3_core::device::is_cpu(&device) {
        return;
    }
    let config = TextConfig {
        num_hidden_layers: 1,
        layer_types: TextConfig::gemma3_270m().layer_types[..1].to_vec(),
        ..TextConfig::gemma3_270m()
    };
    let checkpoint = Checkpoint::random(config, TensorFormat::BF16, 0).expect("random weights");
    for threads in [1, 2, 3] {
        let options = LoadOptions { threads: Some(threads), ..LoadOptions::default() };
        let model = Model::load(&checkpoint, &device, options).expect("a model");
        assert_eq!(model.threads().count(), threads);
        let inside = model.threads().run(rayon::current_num_threads);
        assert_eq!(inside, threads, "operations run on the model's pool");
    }
}

#[test]
fn random_weights_of_every_format_give_finite_logits() {
    let (_, device) = devices().swap_remove(0);
    let config = TextConfig {
        num_hidden_layers: 2,
        layer_types: TextConfig::gemma3_270m().layer_types[4..6].to_vec(),
        vocab_size: 512,
        ..TextConfig::gemma3_270m()
    };
    for format in TensorFormat::ALL {
        let checkpoint = Checkpoint::random(config.clone(), format, 1).expect("random weights");
        let model = Model::load(&checkpoint, &device, LoadOptions::default()).expect("a model");
        let mut session = Session::new(&model, &SessionOptions::default()).expect("a session");
        session.append(&[2, 100, 200, 300]).expect("room");
        assert!(session.logits().expect("logits").iter().all(|logit| logit.is_finite()), "{format}");
    }
}

/// 8 bits move the logits a little, 4 bits more, and both of them the memory: on every device the same numbers.
#[test]
fn a_float_checkpoint_is_quantized_when_it_is_loaded() {
    let (Some(folder), Some(index), Some(tensors)) = (
        golden("tiny-multimodal"),
        golden_json("tiny-multimodal.json"),
        Tensors::open("tiny-multimodal.safetensors"),
    ) else {
        return;
    };
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    let input = ids(&index["cases"]["text_only"]["input_ids"]);
    let reference = tensors.values("text_only.logits");
    let last = &reference[reference.len() - 400..];
    let mut of_first: Vec<Vec<f32>> = Vec::new();
    for (name, device) in devices() {
        let mut all = Vec::new();
        let mut bytes = Vec::new();
        for quantization in [Quantization::None, Quantization::EightBit, Quantization::FourBit] {
            let options = LoadOptions { quantization, ..common::exact() };
            let model = Model::load(&checkpoint, &device, options).expect("a model");
            let mut session = Session::new(&model, &SessionOptions::default()).expect("a session");
            session.append(&input).expect("room");
            all.push(session.logits().expect("logits").to_vec());
            bytes.push(model.weight_bytes() as f64);
        }
        let differences: Vec<f32> =
            all.iter().map(|logits| common::max_difference(&logits[..], last)).collect();
        assert!(differences[0] <= 2e-4, "{name}: {differences:?}");
        // Half a step of 8 bits is 0.4% of a block's largest weight, of 4 bits 6%; the logits have a deviation
        // of 2, and 7 layers add up.
        assert!(differences[1] > 2e-4 && differences[1] < 0.3, "{name}: {differences:?}");
        assert!(differences[2] > differences[1] && differences[2] < 6.0, "{name}: {differences:?}");
        if name == "flex" {
            assert!((bytes[1] / bytes[0] - 34.0 / 128.0).abs() < 0.02, "{bytes:?}");
            // The matrices of the layers in 18/128, the embedding in 34/128.
            assert!(bytes[2] < 0.85 * bytes[1], "{bytes:?}");
        }
        if of_first.is_empty() {
            of_first = all;
        } else {
            for (logits, first) in all.iter().zip(&of_first) {
                assert!(common::max_difference(logits, first) <= 2e-4, "{name}");
            }
        }
    }
}
