//! GGUF files of a few kilobytes.

#[path = "../../../../gemma3-core/tests/build_gguf/mod.rs"]
mod build_gguf;

use build_gguf::{
    GgufBuilder, array_value, f32_value, model, string_value, strings_value, tiny_config, u32_value, value,
};
use gemma3::core::config::VisionConfig;
use gemma3::vision::weights::{EncoderTensor, Parameter, VisionTensor};

/// A language model without and with a vocabulary, one with every type of metadata, an image encoder.
pub fn gguf() -> Vec<Vec<u8>> {
    let model = || model(&tiny_config(2));
    let files = [model(), with_vocabulary(model()), with_all_types(model()), image_encoder()];
    files.iter().map(GgufBuilder::build).collect()
}

fn with_vocabulary(file: GgufBuilder) -> GgufBuilder {
    let tokens =
        ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "ab", "\u{2581}", "\u{2581}ab", "<0x41>", "  "];
    let types: [i32; 11] = [3, 3, 3, 2, 1, 1, 1, 1, 1, 6, 4];
    let scores: Vec<f32> = (0..11).map(|id| -(id as f32)).collect();
    let count = tokens.len() as u64;
    file.set("tokenizer.ggml.model", string_value("llama"))
        .set("tokenizer.ggml.tokens", strings_value(&tokens))
        .set("tokenizer.ggml.scores", array_value(6, count, &words(scores.iter().map(|s| s.to_le_bytes()))))
        .set(
            "tokenizer.ggml.token_type",
            array_value(5, count, &words(types.iter().map(|t| t.to_le_bytes()))),
        )
        .set("tokenizer.ggml.bos_token_id", u32_value(2))
        .set("tokenizer.ggml.eos_token_id", u32_value(1))
        .set("tokenizer.ggml.unknown_token_id", u32_value(3))
        .set("tokenizer.ggml.add_bos_token", value(7, &[1]))
        .set("tokenizer.chat_template", string_value("{{ bos_token }}"))
}

fn words(words: impl Iterator<Item = [u8; 4]>) -> Vec<u8> {
    words.flatten().collect()
}

fn with_all_types(mut file: GgufBuilder) -> GgufBuilder {
    // Types 0 to 12 but for strings and arrays, alone and in arrays.
    for (kind, width) in
        [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8), (12, 8)]
    {
        file = file.set(&format!("test.{kind}"), value(kind, &vec![1; width]));
        file = file.set(&format!("test.list.{kind}"), array_value(kind, 3, &vec![0; 3 * width]));
    }
    file.set("gemma3.attention.sliding_window_pattern", array_value(7, 2, &[1, 0]))
        .set("gemma3.rope.scaling.type", string_value("linear"))
        .set("gemma3.rope.scaling.factor", f32_value(8.0))
        .set("general.alignment", u32_value(32))
        .set("general.file_type", u32_value(0))
}

fn image_encoder() -> GgufBuilder {
    let config = VisionConfig {
        hidden_size: 4,
        intermediate_size: 6,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_channels: 3,
        image_size: 8,
        patch_size: 2,
        layer_norm_eps: 1e-6,
    };
    let number = |number: usize| u32_value(number as u32);
    let mut file = GgufBuilder::default()
        .set("general.architecture", string_value("clip"))
        .set("clip.vision.projector_type", string_value("gemma3"))
        .set("clip.vision.embedding_length", number(config.hidden_size))
        .set("clip.vision.feed_forward_length", number(config.intermediate_size))
        .set("clip.vision.block_count", number(config.num_hidden_layers))
        .set("clip.vision.attention.head_count", number(config.num_attention_heads))
        .set("clip.vision.attention.layer_norm_epsilon", f32_value(1e-6))
        .set("clip.vision.image_size", number(config.image_size))
        .set("clip.vision.patch_size", number(config.patch_size))
        .set("clip.vision.projector.scale_factor", u32_value(2));
    for tensor in VisionTensor::all(&config) {
        file = file.tensor(&name(tensor), &tensor.shape(&config, 6));
    }
    file
}

fn name(tensor: VisionTensor) -> String {
    let parameter = |parameter| if parameter == Parameter::Weight { "weight" } else { "bias" };
    match tensor {
        VisionTensor::PatchEmbedding(p) => format!("v.patch_embd.{}", parameter(p)),
        VisionTensor::PositionEmbedding => "v.position_embd.weight".to_owned(),
        VisionTensor::PostLayernorm(p) => format!("v.post_ln.{}", parameter(p)),
        VisionTensor::SoftEmbNorm => "mm.soft_emb_norm.weight".to_owned(),
        VisionTensor::InputProjection => "mm.input_projection.weight".to_owned(),
        VisionTensor::Layer(layer, tensor, p) => {
            let module = match tensor {
                EncoderTensor::LayerNorm1 => "ln1",
                EncoderTensor::LayerNorm2 => "ln2",
                EncoderTensor::QProj => "attn_q",
                EncoderTensor::KProj => "attn_k",
                EncoderTensor::VProj => "attn_v",
                EncoderTensor::OutProj => "attn_out",
                EncoderTensor::Fc1 => "ffn_up",
                EncoderTensor::Fc2 => "ffn_down",
            };
            format!("v.blk.{layer}.{module}.{}", parameter(p))
        }
    }
}
