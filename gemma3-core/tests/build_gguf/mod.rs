//! Builds GGUF files for tests, valid ones and ones with any single fault.

#![allow(dead_code, reason = "each test binary uses a part")]

use gemma3_core::checkpoint::{LayerTensor, TextTensor};
use gemma3_core::config::TextConfig;

/// A GGUF file under construction. The fields are public so that a test can spoil one.
#[derive(Clone)]
pub struct GgufBuilder {
    pub magic: [u8; 4],
    pub version: u32,
    pub alignment: usize,
    /// Overrides the number of tensors in the header.
    pub tensor_count: Option<u64>,
    /// Overrides the number of metadata entries in the header.
    pub metadata_count: Option<u64>,
    /// Encoded metadata entries.
    pub metadata: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<GgufTensor>,
    pub data: Vec<u8>,
}

/// A tensor's description in the header.
#[derive(Clone)]
pub struct GgufTensor {
    pub name: Vec<u8>,
    /// Fastest dimension first, as in the file.
    pub dimensions: Vec<u64>,
    pub type_id: u32,
    pub offset: u64,
    /// Overrides the number of dimensions.
    pub dimension_count: Option<u32>,
}

impl Default for GgufBuilder {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            tensor_count: None,
            metadata_count: None,
            metadata: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
        }
    }
}

pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// A metadata value: its type and bytes.
pub fn value(type_id: u32, bytes: &[u8]) -> Vec<u8> {
    [&type_id.to_le_bytes()[..], bytes].concat()
}

pub fn u32_value(number: u32) -> Vec<u8> {
    value(4, &number.to_le_bytes())
}

pub fn u64_value(number: u64) -> Vec<u8> {
    value(10, &number.to_le_bytes())
}

pub fn f32_value(number: f32) -> Vec<u8> {
    value(6, &number.to_le_bytes())
}

pub fn string_value(text: &str) -> Vec<u8> {
    value(8, &string(text.as_bytes()))
}

/// An array of `len` elements of a type, with their bytes.
pub fn array_value(element: u32, len: u64, bytes: &[u8]) -> Vec<u8> {
    let header = [&element.to_le_bytes()[..], &len.to_le_bytes()].concat();
    value(9, &[&header, bytes].concat())
}

pub fn strings_value(texts: &[&str]) -> Vec<u8> {
    let bytes: Vec<u8> = texts.iter().flat_map(|t| string(t.as_bytes())).collect();
    array_value(8, texts.len() as u64, &bytes)
}

impl GgufBuilder {
    /// Sets a metadata entry, replacing one of the same key.
    pub fn set(mut self, key: &str, value: Vec<u8>) -> Self {
        self.metadata.retain(|(name, _)| name != key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.metadata.retain(|(name, _)| name != key);
        self
    }

    /// Adds a tensor of zeros with a row-major shape in F32.
    pub fn tensor(mut self, name: &str, shape: &[usize]) -> Self {
        let bytes = shape.iter().product::<usize>() * 4;
        self.tensors.push(GgufTensor {
            name: name.as_bytes().to_vec(),
            dimensions: shape.iter().rev().map(|d| *d as u64).collect(),
            type_id: 0,
            offset: self.data.len() as u64,
            dimension_count: None,
        });
        let end = (self.data.len() + bytes).next_multiple_of(self.alignment);
        self.data.resize(end, 0);
        self
    }

    /// Adds a tensor in F32 with the given values.
    pub fn tensor_of(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let start = self.data.len();
        let mut file = self.tensor(name, shape);
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        for (bytes, value) in file.data[start..].chunks_exact_mut(4).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        file
    }

    /// The description of a tensor that was added.
    pub fn tensor_mut(&mut self, name: &str) -> &mut GgufTensor {
        let by_name = |tensor: &&mut GgufTensor| tensor.name == name.as_bytes();
        self.tensors.iter_mut().find(by_name).unwrap()
    }

    pub fn build(&self) -> Vec<u8> {
        let mut file = self.magic.to_vec();
        file.extend(self.version.to_le_bytes());
        let tensors = self.tensor_count.unwrap_or(self.tensors.len() as u64);
        file.extend(tensors.to_le_bytes());
        let entries = self.metadata_count.unwrap_or(self.metadata.len() as u64);
        file.extend(entries.to_le_bytes());
        for (key, value) in &self.metadata {
            file.extend(string(key.as_bytes()));
            file.extend(value);
        }
        for tensor in &self.tensors {
            file.extend(string(&tensor.name));
            let count = tensor.dimension_count;
            file.extend(count.unwrap_or(tensor.dimensions.len() as u32).to_le_bytes());
            tensor.dimensions.iter().for_each(|d| file.extend(d.to_le_bytes()));
            file.extend(tensor.type_id.to_le_bytes());
            file.extend(tensor.offset.to_le_bytes());
        }
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(&self.data);
        file
    }
}

/// A whole model with the given sizes: all metadata that converters write, all tensors, zeros.
pub fn model(config: &TextConfig) -> GgufBuilder {
    let number = |value: usize| u32_value(value as u32);
    let mut file = GgufBuilder::default()
        .set("general.architecture", string_value("gemma3"))
        .set("gemma3.context_length", number(config.max_position_embeddings))
        .set("gemma3.embedding_length", number(config.hidden_size))
        .set("gemma3.block_count", number(config.num_hidden_layers))
        .set("gemma3.feed_forward_length", number(config.intermediate_size))
        .set("gemma3.attention.head_count", number(config.num_attention_heads))
        .set("gemma3.attention.head_count_kv", number(config.num_key_value_heads))
        .set("gemma3.attention.key_length", number(config.head_dim))
        .set("gemma3.attention.value_length", number(config.head_dim))
        .set("gemma3.attention.sliding_window", number(config.sliding_window))
        .set("gemma3.attention.layer_norm_rms_epsilon", f32_value(1e-6))
        .set("gemma3.rope.freq_base", f32_value(1e6));
    for tensor in TextTensor::all(config) {
        file = file.tensor(&gguf_name(tensor), &tensor.shape(config));
    }
    file
}

/// A model of a few hundred bytes a layer.
pub fn tiny_config(layers: usize) -> TextConfig {
    TextConfig {
        vocab_size: 5,
        hidden_size: 6,
        intermediate_size: 3,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 2,
        query_pre_attn_scalar: 2.0,
        sliding_window: 4,
        max_position_embeddings: 64,
        num_hidden_layers: layers,
        layer_types: TextConfig::gemma3_27b().layer_types[..layers].to_vec(),
        ..TextConfig::gemma3_1b()
    }
}

/// The names of the format's specification, written a second time.
pub fn gguf_name(tensor: TextTensor) -> String {
    let (layer, tensor) = match tensor {
        TextTensor::Embedding => return "token_embd.weight".to_owned(),
        TextTensor::FinalNorm => return "output_norm.weight".to_owned(),
        TextTensor::Head => return "output.weight".to_owned(),
        TextTensor::Layer(layer, tensor) => (layer, tensor),
    };
    let name = match tensor {
        LayerTensor::InputLayernorm => "attn_norm",
        LayerTensor::QProj => "attn_q",
        LayerTensor::KProj => "attn_k",
        LayerTensor::VProj => "attn_v",
        LayerTensor::OProj => "attn_output",
        LayerTensor::QNorm => "attn_q_norm",
        LayerTensor::KNorm => "attn_k_norm",
        LayerTensor::PostAttentionLayernorm => "post_attention_norm",
        LayerTensor::PreFeedforwardLayernorm => "ffn_norm",
        LayerTensor::GateProj => "ffn_gate",
        LayerTensor::UpProj => "ffn_up",
        LayerTensor::DownProj => "ffn_down",
        LayerTensor::PostFeedforwardLayernorm => "post_ffw_norm",
    };
    format!("blk.{layer}.{name}.weight")
}
