//! The encoder's weights under every name that they have had, and what is wrong with them when something
//! is.

#[path = "../../gemma3-core/tests/build_gguf/mod.rs"]
mod build_gguf;
#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;
mod tiny;

use std::collections::BTreeMap;

use build_gguf::{GgufBuilder, array_value, f32_value, string_value, u32_value};
use common::{assert_close, devices, golden};
use gemma3_core::Device;
use gemma3_core::checkpoint::{Checkpoint, CheckpointError, TensorFormat, TextTensor};
use gemma3_core::config::{ImageTokens, ModelConfig, TextConfig, VisionConfig};
use gemma3_core::model::LoadError;
use gemma3_core::ops::Precision;
use gemma3_vision::weights::{EncoderTensor, Parameter, VisionTensor, random_tensors};
use gemma3_vision::{
    Mmproj, MmprojError, PreprocessorConfig, VisionError, VisionLoadOptions, VisionModel, VisionWeights,
};
use safetensors::tensor::TensorView;
use tiny::{Tiny, load, to_vec};

fn cpu() -> Device {
    devices().swap_remove(0).1
}

/// Soft tokens of the golden's first image.
fn soft_tokens(tiny: &Tiny, weights: &VisionWeights<'_>) -> Vec<f32> {
    let model = load(weights, &cpu(), Precision::Exact);
    to_vec(&model.forward(tiny.pixel_values(&[0]), 1).expect("a forward pass"))
}

/// The tiny checkpoint as one safetensors file in memory, with other names.
fn renamed(tiny: &Tiny, rename: impl Fn(&str) -> String) -> Checkpoint {
    let views: Vec<_> = tiny
        .checkpoint
        .names()
        .map(|name| (rename(name), tiny.checkpoint.raw(name).expect("a tensor")))
        .collect();
    let tensors: BTreeMap<&String, TensorView<'_>> = views
        .iter()
        .map(|(name, view)| {
            let dtype = safetensors::Dtype::F32;
            assert_eq!(view.format, TensorFormat::F32);
            (name, TensorView::new(dtype, view.shape.clone(), &view.bytes).expect("a view"))
        })
        .collect();
    let bytes = safetensors::serialize(tensors, None).expect("a file");
    let config = std::fs::read_to_string(golden("tiny-multimodal").expect("the folder").join("config.json"));
    Checkpoint::from_safetensors_bytes(&config.expect("config.json"), None, [bytes]).expect("a checkpoint")
}

#[test]
fn every_family_of_names_gives_the_same_soft_tokens() {
    let Some(tiny) = Tiny::open() else { return };
    let published = VisionWeights::in_checkpoint(&tiny.checkpoint).expect("an encoder");
    let expected = soft_tokens(&tiny, &published);
    // Of Gemma3ForConditionalGeneration, and of Gemma3Model.
    let families: [(&str, &str, &str); 6] = [
        ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."),
        ("model.language_model.", "model.vision_tower.vision_model.", "model.multi_modal_projector."),
        ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector."),
        ("language_model.model.", "vision_tower.", "multi_modal_projector."),
        ("language_model.", "vision_tower.vision_model.", "multi_modal_projector."),
        ("language_model.", "vision_tower.", "multi_modal_projector."),
    ];
    for (decoder, encoder, projector) in families {
        let checkpoint = renamed(&tiny, |name| {
            let name = name.replace("language_model.model.", decoder);
            let name = name.replace("vision_tower.vision_model.", encoder);
            name.replace("multi_modal_projector.", projector)
        });
        let embedding = checkpoint.tensor(TextTensor::Embedding).expect("a decoder");
        assert_eq!(embedding.file_name, format!("{decoder}embed_tokens.weight"));
        let weights = VisionWeights::in_checkpoint(&checkpoint).expect("an encoder");
        assert_eq!(soft_tokens(&tiny, &weights), expected, "{decoder} {encoder}");
    }
}

/// An mmproj file with the weights of the tiny checkpoint, as llama.cpp's converter writes it.
fn mmproj(tiny: &Tiny, is_old: bool) -> GgufBuilder {
    let weights = VisionWeights::in_checkpoint(&tiny.checkpoint).expect("an encoder");
    let config = weights.config().clone();
    let number = |n: usize| u32_value(n as u32);
    let kind = if is_old { "clip.projector_type" } else { "clip.vision.projector_type" };
    let mut file = GgufBuilder::default()
        .set("general.architecture", string_value("clip"))
        .set(kind, string_value("gemma3"))
        .set("clip.vision.embedding_length", number(config.hidden_size))
        .set("clip.vision.feed_forward_length", number(config.intermediate_size))
        .set("clip.vision.block_count", number(config.num_hidden_layers))
        .set("clip.vision.attention.head_count", number(config.num_attention_heads))
        .set("clip.vision.attention.layer_norm_epsilon", f32_value(1e-6))
        .set("clip.vision.image_size", number(config.image_size))
        .set("clip.vision.patch_size", number(config.patch_size))
        .set("clip.vision.projector.scale_factor", u32_value(2));
    for tensor in VisionTensor::all(&config) {
        let view = weights.tensor(tensor).expect("a tensor");
        let mut values: Vec<f32> =
            view.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if tensor == VisionTensor::SoftEmbNorm {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        file = file.tensor_of(&gguf_name(tensor, is_old), &view.shape, &values);
    }
    file
}

/// Written out here once more, so that a slip in the library's table is seen.
fn gguf_name(tensor: VisionTensor, is_old: bool) -> String {
    let parameter = |p| if p == Parameter::Weight { "weight" } else { "bias" };
    match tensor {
        VisionTensor::PatchEmbedding(p) => format!("v.patch_embd.{}", parameter(p)),
        VisionTensor::PositionEmbedding => "v.position_embd.weight".to_owned(),
        VisionTensor::PostLayernorm(p) => format!("v.post_ln.{}", parameter(p)),
        VisionTensor::SoftEmbNorm => "mm.soft_emb_norm.weight".to_owned(),
        VisionTensor::InputProjection => "mm.input_projection.weight".to_owned(),
        VisionTensor::Layer(layer, tensor, p) => {
            let name = match tensor {
                EncoderTensor::LayerNorm1 => "ln1",
                EncoderTensor::LayerNorm2 => "ln2",
                EncoderTensor::QProj => "attn_q",
                EncoderTensor::KProj => "attn_k",
                EncoderTensor::VProj => "attn_v",
                EncoderTensor::OutProj => "attn_out",
                EncoderTensor::Fc1 => ["ffn_up", "ffn_down"][usize::from(is_old)],
                EncoderTensor::Fc2 => ["ffn_down", "ffn_up"][usize::from(is_old)],
            };
            format!("v.blk.{layer}.{name}.{}", parameter(p))
        }
    }
}

#[test]
fn mmproj_files_of_both_ages_give_the_same_soft_tokens() {
    let Some(tiny) = Tiny::open() else { return };
    let published = VisionWeights::in_checkpoint(&tiny.checkpoint).expect("an encoder");
    let expected = soft_tokens(&tiny, &published);
    for is_old in [false, true] {
        let mmproj = Mmproj::from_bytes(mmproj(&tiny, is_old).build()).expect("an mmproj file");
        assert_eq!(mmproj.tokens_per_image(), 4);
        let weights = VisionWeights::in_mmproj(&mmproj, published.text_hidden_size());
        // The norm's 1 + w went through the file: one rounding.
        assert_close("soft tokens", &soft_tokens(&tiny, &weights), &expected, 1e-6);
    }
}

#[test]
fn files_that_are_no_image_encoder_of_gemma_say_so() {
    let Some(tiny) = Tiny::open() else { return };
    let open = |file: GgufBuilder| Mmproj::from_bytes(file.build()).expect_err("an error").to_string();
    let language_model = open(mmproj(&tiny, false).set("general.architecture", string_value("gemma3")));
    assert!(
        language_model.contains("general.architecture") && language_model.contains("clip"),
        "{language_model}"
    );
    let other = open(mmproj(&tiny, false).set("clip.vision.projector_type", string_value("llava")));
    assert!(other.contains("projector_type") && other.contains("llava"), "{other}");
    let missing = open(mmproj(&tiny, false).without("clip.vision.block_count"));
    assert!(missing.contains("clip.vision.block_count"), "{missing}");
    for absurd in [0, u32::MAX] {
        let error = open(mmproj(&tiny, false).set("clip.vision.block_count", u32_value(absurd)));
        assert!(error.contains("num_hidden_layers"), "{error}");
    }
    for absurd in [0, 3, u32::MAX] {
        let error = open(mmproj(&tiny, false).set("clip.vision.projector.scale_factor", u32_value(absurd)));
        assert!(error.contains("scale_factor"), "{error}");
    }
    assert!(matches!(Mmproj::from_bytes(vec![1, 2, 3]), Err(MmprojError::Checkpoint(_))));
}

#[test]
fn the_preprocessing_of_an_mmproj_file_is_the_one_it_states() {
    let Some(tiny) = Tiny::open() else { return };
    let numbers = |values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        array_value(6, values.len() as u64, &bytes)
    };
    let open = |builder: GgufBuilder| Mmproj::from_bytes(builder.build());
    let silent = open(mmproj(&tiny, false)).expect("an mmproj file");
    let published = PreprocessorConfig { image_size: 56, ..PreprocessorConfig::gemma3() };
    assert_eq!(*silent.preprocessor(), published);
    let stated = mmproj(&tiny, false)
        .set("clip.vision.image_mean", numbers(&[0.25, 0.5, 0.75]))
        .set("clip.vision.image_std", numbers(&[0.5, 1.0, 2.0]));
    let (image_mean, image_std) = ([0.25, 0.5, 0.75], [0.5, 1.0, 2.0]);
    let expected = PreprocessorConfig { image_mean, image_std, ..published };
    assert_eq!(*open(stated).expect("an mmproj file").preprocessor(), expected);
    for (field, values) in [
        ("clip.vision.image_mean", &[0.5, 0.5][..]),
        ("clip.vision.image_std", &[0.5, 0.0, 0.5]),
        ("clip.vision.image_mean", &[f32::NAN, 0.5, 0.5]),
    ] {
        let error = open(mmproj(&tiny, false).set(field, numbers(values))).expect_err(field).to_string();
        let name = field.trim_start_matches("clip.vision.");
        assert!(error.starts_with("GGUF in memory: ") && error.contains(name), "{error}");
    }
}

fn load_error(weights: &VisionWeights<'_>, preprocessor: PreprocessorConfig) -> VisionError {
    let device = cpu();
    let threads = gemma3_core::Threads::new(&device, Some(1)).expect("threads");
    VisionModel::load(weights, preprocessor, &device, &threads, VisionLoadOptions::default())
        .expect_err("an error")
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let Some(tiny) = Tiny::open() else { return };
    let preprocessor = || PreprocessorConfig { image_size: 56, ..PreprocessorConfig::gemma3() };
    let cut = renamed(&tiny, |name| name.replace("layers.1.mlp.fc2.bias", "layers.1.mlp.other"));
    let weights = VisionWeights::in_checkpoint(&cut).expect("an encoder");
    match load_error(&weights, preprocessor()) {
        VisionError::Load(LoadError::Checkpoint(CheckpointError::MissingTensor {
            tensor, expected, ..
        })) => {
            assert!(tensor.ends_with("layers.1.mlp.fc2.bias"), "{tensor}");
            assert_eq!(expected, Some(vec![48]));
        }
        other => panic!("{other:?}"),
    }
    // The encoder of another decoder.
    let file = Mmproj::from_bytes(mmproj(&tiny, false).build()).expect("an mmproj file");
    let weights = VisionWeights::in_mmproj(&file, 65);
    match load_error(&weights, preprocessor()) {
        VisionError::Load(LoadError::Checkpoint(CheckpointError::WrongShape {
            tensor,
            expected,
            found,
            ..
        })) => {
            assert_eq!(
                (tensor.as_str(), expected, found),
                ("mm.input_projection.weight", vec![48, 65], vec![48, 64])
            );
        }
        other => panic!("{other:?}"),
    }
    let weights = VisionWeights::in_checkpoint(&tiny.checkpoint).expect("an encoder");
    let error = load_error(&weights, PreprocessorConfig::gemma3());
    assert!(matches!(error, VisionError::WrongImageSize { expected: 56, preprocessed: 896, .. }), "{error}");
}

#[test]
fn a_text_only_model_has_no_encoder() {
    let Some(folder) = golden("tiny-text") else { return };
    assert!(VisionWeights::in_checkpoint(&Checkpoint::open(folder).expect("a checkpoint")).is_none());
    let Some(tiny) = Tiny::open() else { return };
    let text = tiny.checkpoint.with_vision(None).expect("text alone");
    assert!(VisionWeights::in_checkpoint(&text).is_none());
    // The configuration of a model that sees, with the weights of one that does not.
    let blind = renamed(&tiny, |name| name.replace("vision_tower.", "other."));
    assert!(VisionWeights::in_checkpoint(&blind).is_none());
}

#[test]
fn random_weights_give_finite_and_varied_soft_tokens() {
    let vision = VisionConfig { num_hidden_layers: 3, image_size: 224, ..VisionConfig::siglip_so400m_896() };
    let text = TextConfig {
        num_hidden_layers: 1,
        layer_types: TextConfig::gemma3_270m().layer_types[..1].to_vec(),
        vocab_size: 512,
        ..TextConfig::gemma3_270m()
    };
    let image_tokens = ImageTokens { boi: 500, eoi: 501, image: 502, mm_tokens_per_image: 16 };
    let tensors = random_tensors(&vision, text.hidden_size, TensorFormat::BF16);
    let config = ModelConfig {
        vision: Some(vision),
        image_tokens: Some(image_tokens),
        ..ModelConfig::from_text(text)
    };
    let checkpoint = Checkpoint::random_with(config, TensorFormat::BF16, tensors, 7).expect("random weights");
    let weights = VisionWeights::in_checkpoint(&checkpoint).expect("an encoder");
    let model = load(&weights, &cpu(), Precision::Exact);
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) % 1999) as f32 / 1000.0 - 1.0;
    let output = model.forward((0..3 * 224 * 224).map(value).collect(), 1).expect("a forward pass");
    assert_eq!((output.len(), output[0].len(), output[0].width()), (1, 16, 640));
    let values = to_vec(&output);
    let mean_square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
    assert!(values.iter().all(|x| x.is_finite()) && (0.1..10.0).contains(&mean_square), "{mean_square}");
}
