//! Which tensors an image encoder has, their shapes, and what Hugging Face and GGUF files call them.

use gemma3_core::config::VisionConfig;

/// A tensor of the encoder or the projector, independent of the file it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VisionTensor {
    /// The patch convolution: weight `[hidden, channels, patch, patch]`, bias `[hidden]`.
    PatchEmbedding(Parameter),
    /// `[patches, hidden]`.
    PositionEmbedding,
    /// A tensor of one layer, counted from 0.
    Layer(usize, EncoderTensor, Parameter),
    /// The norm after the last layer, `[hidden]`.
    PostLayernorm(Parameter),
    /// Weight of the projector's norm, `[hidden]`.
    SoftEmbNorm,
    /// The projection, `[hidden, hidden of the decoder]`: in by out, applied as `x @ W`.
    InputProjection,
}

/// A module of one encoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EncoderTensor {
    /// The norm before attention, `[hidden]`.
    LayerNorm1,
    /// Query projection, `[hidden, hidden]`.
    QProj,
    /// Key projection, `[hidden, hidden]`.
    KProj,
    /// Value projection, `[hidden, hidden]`.
    VProj,
    /// Output projection, `[hidden, hidden]`.
    OutProj,
    /// The norm before the feed-forward layer, `[hidden]`.
    LayerNorm2,
    /// The widening half of the feed-forward layer, `[intermediate, hidden]`.
    Fc1,
    /// The narrowing half, `[hidden, intermediate]`.
    Fc2,
}

/// Every module of an encoder layer has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parameter {
    /// Matrix, or multiplier of a norm.
    Weight,
    /// What is added, one number an output.
    Bias,
}

impl Parameter {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Weight, Self::Bias];

    fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
        }
    }
}

impl EncoderTensor {
    /// All modules of a layer, in the order in which the forward pass uses them.
    pub const ALL: [Self; 8] = [
        Self::LayerNorm1,
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OutProj,
        Self::LayerNorm2,
        Self::Fc1,
        Self::Fc2,
    ];

    fn huggingface_name(self) -> &'static str {
        match self {
            Self::LayerNorm1 => "layer_norm1",
            Self::QProj => "self_attn.q_proj",
            Self::KProj => "self_attn.k_proj",
            Self::VProj => "self_attn.v_proj",
            Self::OutProj => "self_attn.out_proj",
            Self::LayerNorm2 => "layer_norm2",
            Self::Fc1 => "mlp.fc1",
            Self::Fc2 => "mlp.fc2",
        }
    }

    fn gguf_name(self, is_ffn_swapped: bool) -> &'static str {
        match (self, is_ffn_swapped) {
            (Self::LayerNorm1, _) => "ln1",
            (Self::QProj, _) => "attn_q",
            (Self::KProj, _) => "attn_k",
            (Self::VProj, _) => "attn_v",
            (Self::OutProj, _) => "attn_out",
            (Self::LayerNorm2, _) => "ln2",
            (Self::Fc1, false) | (Self::Fc2, true) => "ffn_up",
            (Self::Fc2, false) | (Self::Fc1, true) => "ffn_down",
        }
    }
}

impl VisionTensor {
    /// All tensors of an encoder and its projector: 7 and 16 a layer.
    pub fn all(config: &VisionConfig) -> impl Iterator<Item = Self> + use<> {
        let layers = (0..config.num_hidden_layers).flat_map(|layer| {
            EncoderTensor::ALL
                .into_iter()
                .flat_map(move |tensor| Parameter::ALL.map(|parameter| Self::Layer(layer, tensor, parameter)))
        });
        Parameter::ALL
            .map(Self::PatchEmbedding)
            .into_iter()
            .chain([Self::PositionEmbedding])
            .chain(layers)
            .chain(Parameter::ALL.map(Self::PostLayernorm))
            .chain([Self::SoftEmbNorm, Self::InputProjection])
    }

    /// The row-major shape that the configuration asks for.
    pub fn shape(self, config: &VisionConfig, text_hidden_size: usize) -> Vec<usize> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (patch, side) = (config.patch_size, config.patches_per_side());
        match self {
            Self::PatchEmbedding(Parameter::Weight) => vec![hidden, config.num_channels, patch, patch],
            Self::PositionEmbedding => vec![side * side, hidden],
            Self::InputProjection => vec![hidden, text_hidden_size],
            Self::Layer(_, EncoderTensor::Fc1, Parameter::Weight) => vec![intermediate, hidden],
            Self::Layer(_, EncoderTensor::Fc1, Parameter::Bias) => vec![intermediate],
            Self::Layer(_, EncoderTensor::Fc2, Parameter::Weight) => vec![hidden, intermediate],
            Self::Layer(_, tensor, Parameter::Weight) if !tensor.is_norm() => vec![hidden, hidden],
            Self::PatchEmbedding(Parameter::Bias)
            | Self::Layer(..)
            | Self::PostLayernorm(_)
            | Self::SoftEmbNorm => vec![hidden],
        }
    }

    /// Whether this is a bias or belongs to a norm.
    pub fn is_vector(self) -> bool {
        match self {
            Self::PositionEmbedding | Self::InputProjection => false,
            Self::PostLayernorm(_) | Self::SoftEmbNorm => true,
            Self::PatchEmbedding(parameter) => parameter == Parameter::Bias,
            Self::Layer(_, tensor, parameter) => tensor.is_norm() || parameter == Parameter::Bias,
        }
    }
}

impl EncoderTensor {
    fn is_norm(self) -> bool {
        matches!(self, Self::LayerNorm1 | Self::LayerNorm2)
    }
}

/// How one file calls its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VisionNames {
    /// Prefixes of the encoder and of the projector.
    HuggingFace { encoder: &'static str, projector: &'static str },
    /// In files of older converters `ffn_up` and `ffn_down` have each other's names.
    Gguf { is_ffn_swapped: bool },
}

impl VisionNames {
    pub(super) fn of(self, tensor: VisionTensor) -> String {
        match self {
            Self::HuggingFace { encoder, projector } => huggingface_name(tensor, encoder, projector),
            Self::Gguf { is_ffn_swapped } => gguf_name(tensor, is_ffn_swapped),
        }
    }
}

fn huggingface_name(tensor: VisionTensor, encoder: &str, projector: &str) -> String {
    match tensor {
        VisionTensor::PatchEmbedding(p) => format!("{encoder}embeddings.patch_embedding.{}", p.name()),
        VisionTensor::PositionEmbedding => format!("{encoder}embeddings.position_embedding.weight"),
        VisionTensor::Layer(layer, tensor, p) => {
            format!("{encoder}encoder.layers.{layer}.{}.{}", tensor.huggingface_name(), p.name())
        }
        VisionTensor::PostLayernorm(p) => format!("{encoder}post_layernorm.{}", p.name()),
        VisionTensor::SoftEmbNorm => format!("{projector}mm_soft_emb_norm.weight"),
        // An underscore, not a dot: it is a bare parameter.
        VisionTensor::InputProjection => format!("{projector}mm_input_projection_weight"),
    }
}

fn gguf_name(tensor: VisionTensor, is_ffn_swapped: bool) -> String {
    match tensor {
        VisionTensor::PatchEmbedding(p) => format!("v.patch_embd.{}", p.name()),
        VisionTensor::PositionEmbedding => "v.position_embd.weight".to_owned(),
        VisionTensor::Layer(layer, tensor, p) => {
            format!("v.blk.{layer}.{}.{}", tensor.gguf_name(is_ffn_swapped), p.name())
        }
        VisionTensor::PostLayernorm(p) => format!("v.post_ln.{}", p.name()),
        VisionTensor::SoftEmbNorm => "mm.soft_emb_norm.weight".to_owned(),
        VisionTensor::InputProjection => "mm.input_projection.weight".to_owned(),
    }
}
