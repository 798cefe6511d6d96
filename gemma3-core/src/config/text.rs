//! The decoder's sizes and constants: what each field is, and which values make sense together.

use super::ConfigError;

/// Which keys a layer's attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerType {
    /// The last [`TextConfig::sliding_window`] keys, the query's own included; local rope.
    SlidingAttention,
    /// All keys up to the query's own; global rope.
    FullAttention,
}

impl LayerType {
    /// The name that `config.json` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlidingAttention => "sliding_attention",
            Self::FullAttention => "full_attention",
        }
    }
}

/// The decoder's sizes and constants, with the names of Hugging Face's `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding, which are also the columns of the logits. Files of the 4B and larger
    /// have more rows (262208) than the tokenizer has tokens.
    pub vocab_size: usize,
    /// Width of the residual stream (`H`).
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head. Not `hidden_size / num_attention_heads` in any released size.
    pub head_dim: usize,
    /// Attention scores are multiplied by `query_pre_attn_scalar ^ -0.5`. Equals `head_dim` but in
    /// the 27B (168).
    pub query_pre_attn_scalar: f64,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f64,
    /// Keys that a sliding layer sees, the query's own included.
    pub sliding_window: usize,
    /// Longest context, in tokens, that the model was trained for.
    pub max_position_embeddings: usize,
    /// Base of the rotary embedding on full-attention layers.
    pub rope_theta: f64,
    /// Base of the rotary embedding on sliding layers.
    pub rope_local_base_freq: f64,
    /// Linear rope scaling of the full-attention layers: their inverse frequencies are divided by
    /// it. 1.0 is none. Sliding layers are never scaled.
    pub rope_scaling_factor: f64,
    /// The attention of each layer; as many as [`TextConfig::num_hidden_layers`].
    pub layer_types: Vec<LayerType>,
    /// Whether the head that makes the logits is the embedding itself.
    pub tie_word_embeddings: bool,
}

/// More layers than any model that fits a computer: a file that says more is damaged, and its
/// number must not decide how much is allocated here.
pub(crate) const MAX_LAYERS: usize = 1024;
/// The largest width, vocabulary or head count taken seriously (about 64 times the largest
/// released). Products of three of these stay below 2^63 in f32 bytes only after
/// [`TextConfig::validate`] checked them too.
const MAX_SIZE: usize = 1 << 24;
/// The longest context taken seriously: positions are counted in 32-bit integers on devices.
const MAX_POSITIONS: usize = 1 << 30;

impl TextConfig {
    /// Checks that every size is positive and plausible and that the fields fit together: query
    /// heads are a multiple of key-value heads, the head width is even (rope rotates pairs), there
    /// is one layer type a layer, and no matrix has more bytes in f32 than an address can hold.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] naming the first field that doesn't fit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_SIZE),
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_SIZE),
            ("num_key_value_heads", self.num_key_value_heads, MAX_SIZE),
            ("head_dim", self.head_dim, MAX_SIZE),
            ("sliding_window", self.sliding_window, MAX_POSITIONS),
            ("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS),
        ];
        for (field, value, max) in sizes {
            if value == 0 || value > max {
                return Err(ConfigError::invalid(field, format!("a number from 1 to {max}"), value));
            }
        }
        let positives = [
            ("query_pre_attn_scalar", self.query_pre_attn_scalar),
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("rope_local_base_freq", self.rope_local_base_freq),
            ("rope_scaling_factor", self.rope_scaling_factor),
        ];
        for (field, value) in positives {
            // The mathematics runs in f32: a value that is zero or infinite there is no value.
            let single = value as f32;
            if !(single.is_finite() && single > 0.0) {
                return Err(ConfigError::invalid(field, "a positive number within the range of f32", value));
            }
        }
        self.validate_heads()?;
        if self.layer_types.len() != self.num_hidden_layers {
            return Err(ConfigError::invalid(
                "layer_types",
                format!("one entry for each of {} layers", self.num_hidden_layers),
                format!("{} entries", self.layer_types.len()),
            ));
        }
        self.validate_matrix_bytes()
    }

    fn validate_heads(&self) -> Result<(), ConfigError> {
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(ConfigError::invalid(
                "num_attention_heads",
                format!("a multiple of num_key_value_heads ({})", self.num_key_value_heads),
                self.num_attention_heads,
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::invalid(
                "head_dim",
                "an even number (rope rotates pairs)",
                self.head_dim,
            ));
        }
        let query_width = self.num_attention_heads.checked_mul(self.head_dim);
        if query_width.is_none_or(|width| width > MAX_SIZE) {
            return Err(ConfigError::invalid(
                "num_attention_heads",
                format!("num_attention_heads * head_dim of at most {MAX_SIZE}"),
                format!("{} * {}", self.num_attention_heads, self.head_dim),
            ));
        }
        Ok(())
    }

    fn validate_matrix_bytes(&self) -> Result<(), ConfigError> {
        let widest = [
            ("vocab_size", self.vocab_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads.saturating_mul(self.head_dim)),
        ];
        for (field, width) in widest {
            let bytes = width
                .checked_mul(self.hidden_size)
                .and_then(|elements| elements.checked_mul(size_of::<f32>()));
            if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
                return Err(ConfigError::invalid(
                    field,
                    "a matrix whose f32 bytes fit the address space",
                    format!("{width} x {} elements", self.hidden_size),
                ));
            }
        }
        Ok(())
    }

    /// Width of all query heads together; the input width of `o_proj`.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.head_dim)
    }

    /// Width of all key (or value) heads together.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads.saturating_mul(self.head_dim)
    }

    /// Number of layers whose attention sees the whole context.
    pub fn full_attention_layers(&self) -> usize {
        let full = |layer: &&LayerType| **layer == LayerType::FullAttention;
        self.layer_types.iter().filter(full).count()
    }

    /// Number of weights: embedding, layers, norms, and the head where it is not the embedding.
    /// Saturates for a configuration that [`TextConfig::validate`] refuses.
    pub fn parameter_count(&self) -> u64 {
        let size = |value: usize| value as u64;
        let hidden = size(self.hidden_size);
        let attention = (size(self.query_width()).saturating_mul(2))
            .saturating_add(size(self.key_value_width()).saturating_mul(2))
            .saturating_mul(hidden);
        let feed_forward = size(self.intermediate_size).saturating_mul(3).saturating_mul(hidden);
        let norms = hidden.saturating_mul(4).saturating_add(size(self.head_dim).saturating_mul(2));
        let layer = attention.saturating_add(feed_forward).saturating_add(norms);
        let embedding = size(self.vocab_size).saturating_mul(hidden);
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        embedding
            .saturating_mul(tables)
            .saturating_add(layer.saturating_mul(size(self.num_hidden_layers)))
            .saturating_add(hidden)
    }
}

/// Every `pattern`-th layer sees everything, the others are local; a trailing partial group is all
/// local. The caller has checked both numbers.
pub(crate) fn layer_types_from_pattern(layers: usize, pattern: usize) -> Vec<LayerType> {
    (1..=layers)
        .map(|layer| match layer.is_multiple_of(pattern) {
            true => LayerType::FullAttention,
            false => LayerType::SlidingAttention,
        })
        .collect()
}
