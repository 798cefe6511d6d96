//! Which tensors a decoder has, their shapes, and what Hugging Face and GGUF files call them.

use crate::config::TextConfig;

/// A tensor of the decoder, independent of the file it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TextTensor {
    /// Token embedding, `[vocab_size, hidden_size]`.
    Embedding,
    /// Weight of the norm before the head, `[hidden_size]`.
    FinalNorm,
    /// The head, `[vocab_size, hidden_size]`; the embedding itself where it is tied.
    Head,
    /// A tensor of one layer, counted from 0.
    Layer(usize, LayerTensor),
}

/// A tensor of one decoder layer. Matrices are row-major `[out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// Weight of the norm before attention, `[hidden_size]`.
    InputLayernorm,
    /// Query projection, `[num_attention_heads * head_dim, hidden_size]`.
    QProj,
    /// Key projection, `[num_key_value_heads * head_dim, hidden_size]`.
    KProj,
    /// Value projection, `[num_key_value_heads * head_dim, hidden_size]`.
    VProj,
    /// Weight of the norm over each query head, `[head_dim]`.
    QNorm,
    /// Weight of the norm over each key head, `[head_dim]`.
    KNorm,
    /// Output projection, `[hidden_size, num_attention_heads * head_dim]`.
    OProj,
    /// Weight of the norm after attention, `[hidden_size]`.
    PostAttentionLayernorm,
    /// Weight of the norm before the feed-forward layer, `[hidden_size]`.
    PreFeedforwardLayernorm,
    /// Gate projection, `[intermediate_size, hidden_size]`.
    GateProj,
    /// Up projection, `[intermediate_size, hidden_size]`.
    UpProj,
    /// Down projection, `[hidden_size, intermediate_size]`.
    DownProj,
    /// Weight of the norm after the feed-forward layer, `[hidden_size]`.
    PostFeedforwardLayernorm,
}

impl LayerTensor {
    /// All tensors of a layer, in the order in which the forward pass uses them.
    pub const ALL: [Self; 13] = [
        Self::InputLayernorm,
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::QNorm,
        Self::KNorm,
        Self::OProj,
        Self::PostAttentionLayernorm,
        Self::PreFeedforwardLayernorm,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
        Self::PostFeedforwardLayernorm,
    ];

    /// The name within a layer in Hugging Face files.
    fn huggingface_name(self) -> &'static str {
        match self {
            Self::InputLayernorm => "input_layernorm",
            Self::QProj => "self_attn.q_proj",
            Self::KProj => "self_attn.k_proj",
            Self::VProj => "self_attn.v_proj",
            Self::QNorm => "self_attn.q_norm",
            Self::KNorm => "self_attn.k_norm",
            Self::OProj => "self_attn.o_proj",
            Self::PostAttentionLayernorm => "post_attention_layernorm",
            Self::PreFeedforwardLayernorm => "pre_feedforward_layernorm",
            Self::GateProj => "mlp.gate_proj",
            Self::UpProj => "mlp.up_proj",
            Self::DownProj => "mlp.down_proj",
            Self::PostFeedforwardLayernorm => "post_feedforward_layernorm",
        }
    }

    /// The name within a block in GGUF files.
    fn gguf_name(self) -> &'static str {
        match self {
            Self::InputLayernorm => "attn_norm",
            Self::QProj => "attn_q",
            Self::KProj => "attn_k",
            Self::VProj => "attn_v",
            Self::QNorm => "attn_q_norm",
            Self::KNorm => "attn_k_norm",
            Self::OProj => "attn_output",
            Self::PostAttentionLayernorm => "post_attention_norm",
            // The plain name is taken by the norm *before* the feed-forward layer.
            Self::PreFeedforwardLayernorm => "ffn_norm",
            Self::GateProj => "ffn_gate",
            Self::UpProj => "ffn_up",
            Self::DownProj => "ffn_down",
            Self::PostFeedforwardLayernorm => "post_ffw_norm",
        }
    }
}

impl TextTensor {
    /// All tensors of a decoder: 2 or 3 and 13 a layer.
    pub fn all(config: &TextConfig) -> impl Iterator<Item = Self> + use<> {
        let head = (!config.tie_word_embeddings).then_some(Self::Head);
        let layers = (0..config.num_hidden_layers)
            .flat_map(|layer| LayerTensor::ALL.map(|tensor| Self::Layer(layer, tensor)));
        [Self::Embedding].into_iter().chain(layers).chain([Self::FinalNorm]).chain(head)
    }

    /// The shape that the configuration asks for, row-major `[out, in]`.
    pub fn shape(self, config: &TextConfig) -> Vec<usize> {
        let hidden = config.hidden_size;
        let (queries, keys) = (config.query_width(), config.key_value_width());
        let tensor = match self {
            Self::Embedding | Self::Head => return vec![config.vocab_size, hidden],
            Self::FinalNorm => return vec![hidden],
            Self::Layer(_, tensor) => tensor,
        };
        match tensor {
            LayerTensor::QProj => vec![queries, hidden],
            LayerTensor::KProj | LayerTensor::VProj => vec![keys, hidden],
            LayerTensor::OProj => vec![hidden, queries],
            LayerTensor::GateProj | LayerTensor::UpProj => vec![config.intermediate_size, hidden],
            LayerTensor::DownProj => vec![hidden, config.intermediate_size],
            LayerTensor::QNorm | LayerTensor::KNorm => vec![config.head_dim],
            LayerTensor::InputLayernorm
            | LayerTensor::PostAttentionLayernorm
            | LayerTensor::PreFeedforwardLayernorm
            | LayerTensor::PostFeedforwardLayernorm => vec![hidden],
        }
    }

    /// Whether this is the weight of a norm.
    pub fn is_norm(self) -> bool {
        match self {
            Self::Embedding | Self::Head => false,
            Self::FinalNorm => true,
            Self::Layer(_, tensor) => matches!(
                tensor,
                LayerTensor::InputLayernorm
                    | LayerTensor::QNorm
                    | LayerTensor::KNorm
                    | LayerTensor::PostAttentionLayernorm
                    | LayerTensor::PreFeedforwardLayernorm
                    | LayerTensor::PostFeedforwardLayernorm
            ),
        }
    }

    /// The name in a Hugging Face file whose decoder has the given prefix (`"model."`). The head's
    /// name doesn't follow from the prefix; this is its name in text-only files.
    pub(super) fn huggingface_name(self, prefix: &str) -> String {
        match self {
            Self::Embedding => format!("{prefix}embed_tokens.weight"),
            Self::FinalNorm => format!("{prefix}norm.weight"),
            Self::Head => "lm_head.weight".to_owned(),
            Self::Layer(layer, tensor) => {
                format!("{prefix}layers.{layer}.{}.weight", tensor.huggingface_name())
            }
        }
    }

    /// The name in a GGUF file.
    pub(super) fn gguf_name(self) -> String {
        match self {
            Self::Embedding => "token_embd.weight".to_owned(),
            Self::FinalNorm => "output_norm.weight".to_owned(),
            Self::Head => "output.weight".to_owned(),
            Self::Layer(layer, tensor) => format!("blk.{layer}.{}.weight", tensor.gguf_name()),
        }
    }
}
