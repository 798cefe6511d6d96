//! The five released sizes, as plain constructors (Gemma 3 Technical Report, table 1, and the
//! published `config.json` files).

use super::TextConfig;
use super::text::layer_types_from_pattern;

/// One layer in six sees the whole context, in every size.
const PATTERN: usize = 6;

impl TextConfig {
    /// Gemma 3 270M: text only, 268 million weights of which 168 million are the embedding.
    pub fn gemma3_270m() -> Self {
        Self {
            hidden_size: 640,
            intermediate_size: 2048,
            num_hidden_layers: 18,
            layer_types: layer_types_from_pattern(18, PATTERN),
            ..Self::gemma3_1b()
        }
    }

    /// Gemma 3 1B: text only.
    pub fn gemma3_1b() -> Self {
        Self {
            vocab_size: 262_144,
            hidden_size: 1152,
            intermediate_size: 6912,
            num_hidden_layers: 26,
            num_attention_heads: 4,
            num_key_value_heads: 1,
            head_dim: 256,
            query_pre_attn_scalar: 256.0,
            rms_norm_eps: 1e-6,
            sliding_window: 512,
            max_position_embeddings: 32_768,
            rope_theta: 1e6,
            rope_local_base_freq: 1e4,
            rope_scaling_factor: 1.0,
            layer_types: layer_types_from_pattern(26, PATTERN),
            tie_word_embeddings: true,
        }
    }

    /// Gemma 3 4B: text and images.
    pub fn gemma3_4b() -> Self {
        Self {
            vocab_size: 262_208,
            hidden_size: 2560,
            intermediate_size: 10_240,
            num_hidden_layers: 34,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            sliding_window: 1024,
            max_position_embeddings: 131_072,
            rope_scaling_factor: 8.0,
            layer_types: layer_types_from_pattern(34, PATTERN),
            ..Self::gemma3_1b()
        }
    }

    /// Gemma 3 12B: text and images.
    pub fn gemma3_12b() -> Self {
        Self {
            hidden_size: 3840,
            intermediate_size: 15_360,
            num_hidden_layers: 48,
            num_attention_heads: 16,
            num_key_value_heads: 8,
            layer_types: layer_types_from_pattern(48, PATTERN),
            ..Self::gemma3_4b()
        }
    }

    /// Gemma 3 27B: text and images. The only size whose attention scale does not follow from the
    /// head width.
    pub fn gemma3_27b() -> Self {
        Self {
            hidden_size: 5376,
            intermediate_size: 21_504,
            num_hidden_layers: 62,
            num_attention_heads: 32,
            num_key_value_heads: 16,
            head_dim: 128,
            query_pre_attn_scalar: 168.0,
            layer_types: layer_types_from_pattern(62, PATTERN),
            ..Self::gemma3_4b()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_have_the_published_weight_counts() {
        let counts = [
            (TextConfig::gemma3_270m(), 268_098_176),
            (TextConfig::gemma3_1b(), 999_885_952),
            (TextConfig::gemma3_4b(), 3_880_263_168),
            (TextConfig::gemma3_12b(), 11_766_034_176),
            (TextConfig::gemma3_27b(), 27_009_346_304),
        ];
        for (config, expected) in counts {
            assert_eq!(config.parameter_count(), expected);
            assert_eq!(config.validate(), Ok(()));
        }
    }

    #[test]
    fn a_trailing_partial_group_of_layers_is_all_local() {
        let local_and_global = |config: TextConfig| {
            let full = config.full_attention_layers();
            (config.num_hidden_layers - full, full)
        };
        assert_eq!(local_and_global(TextConfig::gemma3_270m()), (15, 3));
        assert_eq!(local_and_global(TextConfig::gemma3_1b()), (22, 4));
        assert_eq!(local_and_global(TextConfig::gemma3_4b()), (29, 5));
        assert_eq!(local_and_global(TextConfig::gemma3_12b()), (40, 8));
        assert_eq!(local_and_global(TextConfig::gemma3_27b()), (52, 10));
    }
}
