//! Real-world layouts of `config.json` come down to the right configuration, and everything that
//! this crate doesn't compute is an error that names the field.
//!
//! The files in `tests/configs` have the layouts of the published models and of what later versions
//! of transformers write.

use gemma3_core::config::{ConfigError, ImageTokens, LayerType, ModelConfig, TextConfig, VisionConfig};
use serde_json::{Value, json};

const FILE_270M: &str = include_str!("configs/gemma-3-270m.json");
const FILE_1B: &str = include_str!("configs/gemma-3-1b-it.json");
const FILE_4B: &str = include_str!("configs/gemma-3-4b-it.json");
const FILE_12B: &str = include_str!("configs/gemma-3-12b-it.json");
const FILE_27B: &str = include_str!("configs/gemma-3-27b-it.json");
const FILE_4B_SAVED_BY_4_53: &str = include_str!("configs/gemma-3-4b-transformers-4.53.json");
const FILE_4B_SAVED_BY_5: &str = include_str!("configs/gemma-3-4b-transformers-5.json");

fn text_only(text: TextConfig, eos_token_ids: &[u32]) -> ModelConfig {
    ModelConfig {
        text,
        vision: None,
        image_tokens: None,
        bos_token_id: 2,
        pad_token_id: 0,
        eos_token_ids: eos_token_ids.to_vec(),
    }
}

fn with_images(text: TextConfig) -> ModelConfig {
    ModelConfig {
        vision: Some(VisionConfig::siglip_so400m_896()),
        image_tokens: Some(ImageTokens {
            boi: 255_999,
            eoi: 256_000,
            image: 262_144,
            mm_tokens_per_image: 256,
        }),
        ..text_only(text, &[1, 106])
    }
}

/// The file with one field set; `path` is `/text_config/field` or `/field`.
fn edited(file: &str, path: &str, value: Value) -> String {
    let mut json: Value = serde_json::from_str(file).unwrap();
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    parent.insert(name.to_owned(), value);
    json.to_string()
}

/// The file without some fields of the top level.
fn without(file: &str, names: &[&str]) -> String {
    let mut json: Value = serde_json::from_str(file).unwrap();
    for name in names {
        assert!(json.as_object_mut().unwrap().remove(*name).is_some(), "{name}");
    }
    json.to_string()
}

#[test]
fn the_published_files_give_the_five_sizes() {
    let files = [
        (FILE_270M, text_only(TextConfig::gemma3_270m(), &[1])),
        (FILE_1B, text_only(TextConfig::gemma3_1b(), &[1, 106])),
        (FILE_4B, with_images(TextConfig::gemma3_4b())),
        (FILE_12B, with_images(TextConfig::gemma3_12b())),
        (FILE_27B, with_images(TextConfig::gemma3_27b())),
    ];
    for (file, expected) in files {
        assert_eq!(ModelConfig::from_json(file), Ok(expected));
    }
}

#[test]
fn files_that_transformers_saved_again_give_the_same_model() {
    let expected = with_images(TextConfig::gemma3_4b());
    for file in [FILE_4B_SAVED_BY_4_53, FILE_4B_SAVED_BY_5] {
        assert_eq!(ModelConfig::from_json(file), Ok(expected.clone()));
    }
}

#[test]
fn integers_may_be_written_as_floats_and_floats_as_integers() {
    let file = edited(FILE_270M, "/hidden_size", json!(640.0));
    let file = edited(&file, "/rope_theta", json!(1_000_000));
    let file = edited(&file, "/query_pre_attn_scalar", json!(256.0));
    let file = edited(&file, "/eos_token_id", json!([1.0]));
    let expected = text_only(TextConfig::gemma3_270m(), &[1]);
    assert_eq!(ModelConfig::from_json(&file), Ok(expected));
}

#[test]
fn end_ids_are_an_integer_or_a_list_and_lose_their_duplicates() {
    for (eos, expected) in
        [(json!(106), vec![106]), (json!([106, 1, 106]), vec![106, 1]), (Value::Null, vec![1])]
    {
        let file = edited(FILE_270M, "/eos_token_id", eos);
        let config = ModelConfig::from_json(&file).unwrap();
        assert_eq!(config.eos_token_ids, expected);
    }
}

#[test]
fn a_layer_pattern_is_read_under_both_of_its_names() {
    for name in ["/sliding_window_pattern", "/_sliding_window_pattern"] {
        let file = without(FILE_1B, &["sliding_window_pattern"]);
        let config = ModelConfig::from_json(&edited(&file, name, json!(2))).unwrap();
        let (sliding, full) = (LayerType::SlidingAttention, LayerType::FullAttention);
        assert_eq!(config.text.layer_types[..4], [sliding, full, sliding, full]);
    }
}

#[test]
fn a_list_of_layer_types_wins_over_a_pattern() {
    let mut types = vec!["full_attention"; 26];
    types[3] = "sliding_attention";
    let config = ModelConfig::from_json(&edited(FILE_1B, "/layer_types", json!(types))).unwrap();
    assert_eq!(config.text.full_attention_layers(), 25);
    assert_eq!(config.text.layer_types[3], LayerType::SlidingAttention);
}

#[test]
fn absent_fields_take_the_defaults_of_transformers() {
    let config = ModelConfig::from_json(r#"{"model_type": "gemma3_text"}"#).unwrap();
    let text = config.text;
    assert_eq!((text.vocab_size, text.hidden_size, text.intermediate_size), (262_208, 2304, 9216));
    assert_eq!((text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads), (26, 8, 4));
    assert_eq!((text.head_dim, text.sliding_window), (256, 4096));
    assert_eq!(text.max_position_embeddings, 131_072);
    assert_eq!((text.query_pre_attn_scalar, text.rms_norm_eps), (256.0, 1e-6));
    assert_eq!((text.rope_theta, text.rope_local_base_freq), (1e6, 1e4));
    assert_eq!(text.rope_scaling_factor, 1.0);
    assert!(text.tie_word_embeddings);
    assert_eq!(text.full_attention_layers(), 4);
}

#[test]
fn rope_scaling_is_read_in_every_spelling() {
    for (scaling, expected) in [
        (json!({"rope_type": "linear", "factor": 8.0}), 8.0),
        (json!({"type": "linear", "factor": 4}), 4.0),
        (json!({"type": "linear", "rope_type": "linear", "factor": 2.5}), 2.5),
        (json!({"rope_type": "default"}), 1.0),
        (json!({}), 1.0),
        (Value::Null, 1.0),
    ] {
        let file = edited(FILE_270M, "/rope_scaling", scaling.clone());
        let config = ModelConfig::from_json(&file).unwrap();
        assert_eq!(config.text.rope_scaling_factor, expected, "{scaling}");
    }
}

#[test]
fn rope_parameters_win_over_the_older_fields() {
    let parameters = json!({
        "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
    });
    let file = edited(FILE_4B_SAVED_BY_4_53, "/text_config/rope_parameters", parameters);
    let text = ModelConfig::from_json(&file).unwrap().text;
    assert_eq!(text.rope_scaling_factor, 3.0);
    assert_eq!((text.rope_theta, text.rope_local_base_freq), (5000.0, 70.0));
}

#[test]
fn rope_parameters_of_the_default_type_leave_the_older_scaling() {
    let parameters = json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6}});
    let file = edited(FILE_4B_SAVED_BY_4_53, "/text_config/rope_parameters", parameters);
    let text = ModelConfig::from_json(&file).unwrap().text;
    assert_eq!(text.rope_scaling_factor, 8.0);
}

#[test]
fn rope_parameters_without_layer_types_concern_the_full_layers() {
    let parameters = json!({"rope_type": "linear", "factor": 8, "rope_theta": 1e6});
    let file = edited(FILE_270M, "/rope_parameters", parameters);
    let text = ModelConfig::from_json(&file).unwrap().text;
    assert_eq!((text.rope_scaling_factor, text.rope_local_base_freq), (8.0, 1e4));
}

#[test]
fn an_untied_head_is_read_from_either_level() {
    for path in ["/tie_word_embeddings", "/text_config/tie_word_embeddings"] {
        let config = ModelConfig::from_json(&edited(FILE_4B, path, json!(false))).unwrap();
        assert!(!config.text.tie_word_embeddings, "{path}");
    }
}

#[test]
fn a_wrapper_without_an_encoder_is_a_text_model() {
    let config = ModelConfig::from_json(&without(FILE_4B, &["vision_config"])).unwrap();
    assert_eq!((config.vision, config.image_tokens), (None, None));
}

#[test]
fn token_ids_inside_the_text_config_are_found() {
    let file = edited(FILE_4B, "/text_config/bos_token_id", json!(7));
    assert_eq!(ModelConfig::from_json(&file).unwrap().bos_token_id, 7);
}

#[test]
fn models_that_would_silently_be_wrong_are_refused_by_field() {
    let sliding = |extra: Value| json!({"sliding_attention": extra});
    for (file, path, value) in [
        (FILE_270M, "/model_type", json!("gemma2")),
        (FILE_270M, "/model_type", json!("gemma3n")),
        (FILE_270M, "/architectures", json!(["Gemma2ForCausalLM"])),
        (FILE_270M, "/architectures", json!(["Gemma3ForSequenceClassification"])),
        (FILE_270M, "/final_logit_softcapping", json!(30.0)),
        (FILE_270M, "/attn_logit_softcapping", json!(50)),
        (FILE_270M, "/attention_bias", json!(true)),
        (FILE_270M, "/use_bidirectional_attention", json!(true)),
        (FILE_270M, "/hidden_activation", json!("gelu")),
        (FILE_270M, "/hidden_activation", json!("silu")),
        (FILE_270M, "/rope_scaling", json!({"rope_type": "yarn", "factor": 8})),
        (FILE_270M, "/rope_scaling", json!({"type": "dynamic", "factor": 2})),
        (FILE_270M, "/rope_scaling", json!({"rope_type": "linear", "type": "yarn", "factor": 2})),
        (FILE_270M, "/rope_scaling", json!({"partial_rotary_factor": 0.5})),
        (FILE_270M, "/rope_parameters", sliding(json!({"rope_type": "linear", "factor": 8}))),
        (FILE_270M, "/layer_types", json!(vec!["chunked_attention"; 18])),
        (FILE_270M, "/quantization_config", json!({"quant_method": "bitsandbytes"})),
        (FILE_4B, "/text_config/attention_bias", json!(true)),
        (FILE_4B, "/text_config/model_type", json!("gemma2")),
        (FILE_4B, "/vision_config/hidden_act", json!("relu")),
        (FILE_4B, "/vision_config/model_type", json!("clip_vision_model")),
    ] {
        let error = ModelConfig::from_json(&edited(file, path, value)).unwrap_err();
        assert!(matches!(error, ConfigError::Unsupported { .. }), "{path}: {error:?}");
        let field = path.trim_start_matches('/').replace('/', ".");
        assert!(error.to_string().contains(&field), "{path}: {error}");
    }
}

#[test]
fn values_of_the_wrong_type_or_range_are_errors_that_name_the_field() {
    for (file, path, value) in [
        (FILE_270M, "/hidden_size", json!("640")),
        (FILE_270M, "/hidden_size", json!(640.5)),
        (FILE_270M, "/hidden_size", json!(-1)),
        (FILE_270M, "/hidden_size", json!(0)),
        (FILE_270M, "/hidden_size", json!(u64::MAX)),
        (FILE_270M, "/vocab_size", json!(1_u64 << 60)),
        (FILE_1B, "/num_hidden_layers", json!(0)),
        (FILE_1B, "/num_hidden_layers", json!(1_u64 << 40)),
        (FILE_1B, "/sliding_window_pattern", json!(0)),
        (FILE_270M, "/layer_types", json!(["full_attention"])),
        (FILE_270M, "/layer_types", json!("full_attention")),
        (FILE_270M, "/head_dim", json!(255)),
        (FILE_270M, "/head_dim", json!(0)),
        (FILE_270M, "/num_key_value_heads", json!(0)),
        (FILE_270M, "/num_attention_heads", json!(1 << 23)),
        (FILE_270M, "/sliding_window", json!(0)),
        (FILE_270M, "/max_position_embeddings", json!(u64::MAX)),
        (FILE_270M, "/rms_norm_eps", json!(0)),
        (FILE_270M, "/rms_norm_eps", json!(1e-60)),
        (FILE_270M, "/rope_theta", json!(-1e6)),
        (FILE_270M, "/rope_theta", json!(1e300)),
        (FILE_270M, "/query_pre_attn_scalar", json!(0)),
        (FILE_270M, "/attention_bias", json!("false")),
        (FILE_270M, "/quantization_config", json!("bnb")),
        (FILE_4B, "/text_config", json!([])),
        (FILE_4B, "/vision_config", json!(3)),
        (FILE_4B, "/vision_config/patch_size", json!(0)),
        (FILE_4B, "/vision_config/patch_size", json!(13)),
        (FILE_4B, "/vision_config/num_attention_heads", json!(7)),
        (FILE_4B, "/vision_config/layer_norm_eps", json!(0)),
        (FILE_4B, "/mm_tokens_per_image", json!(255)),
        (FILE_4B, "/mm_tokens_per_image", json!(0)),
        (FILE_4B, "/image_token_index", json!(-1)),
    ] {
        let error = ModelConfig::from_json(&edited(file, path, value.clone())).unwrap_err();
        let invalid = matches!(error, ConfigError::InvalidField { .. });
        assert!(invalid, "{path} = {value}: {error:?}");
        // Sizes that only fail together name one of the fields concerned.
        let field = path.rsplit('/').next().unwrap();
        let related = error.to_string();
        assert!(related.contains(field), "{path} = {value}: {error}");
    }
}

/// transformers has a default for what is absent. What is null it takes as it is.
#[test]
fn null_is_no_way_to_leave_out_a_size_or_constant() {
    let text = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_activation",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "sliding_window",
        "max_position_embeddings",
    ];
    let vision = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_channels",
        "image_size",
        "patch_size",
        "layer_norm_eps",
        "hidden_act",
    ];
    let paths = text
        .iter()
        .flat_map(|name| [(FILE_270M, format!("/{name}")), (FILE_4B, format!("/text_config/{name}"))])
        .chain(vision.iter().map(|name| (FILE_4B, format!("/vision_config/{name}"))))
        .chain([
            (FILE_4B, "/mm_tokens_per_image".to_owned()),
            (FILE_1B, "/sliding_window_pattern".to_owned()),
            (FILE_1B, "/rope_theta".to_owned()),
            (FILE_1B, "/rope_local_base_freq".to_owned()),
            (FILE_4B_SAVED_BY_5, "/text_config/rope_parameters/full_attention/rope_theta".to_owned()),
        ]);
    for (file, path) in paths {
        let error = ModelConfig::from_json(&edited(file, &path, Value::Null)).unwrap_err();
        let field = path.trim_start_matches('/').replace('/', ".");
        assert!(
            matches!(&error, ConfigError::InvalidField { field: f, .. } if *f == field),
            "{path}: {error:?}"
        );
        assert!(error.to_string().contains("found null"), "{error}");
    }
    let error = ModelConfig::from_json(&edited(FILE_270M, "/sliding_window", Value::Null)).unwrap_err();
    assert!(error.to_string().contains("512 in the 270M"), "{error}");
}

#[test]
fn null_counts_as_absent_where_nothing_depends_on_it() {
    let full = vec!["full_attention"; 18];
    let file = edited(FILE_270M, "/layer_types", json!(full));
    assert!(ModelConfig::from_json(&edited(&file, "/sliding_window", Value::Null)).is_ok());
    for (path, of) in [
        ("/rope_scaling", FILE_270M),
        ("/rope_parameters", FILE_270M),
        ("/final_logit_softcapping", FILE_270M),
        ("/attn_logit_softcapping", FILE_270M),
        ("/use_bidirectional_attention", FILE_270M),
        ("/attention_bias", FILE_270M),
        ("/tie_word_embeddings", FILE_270M),
        ("/quantization_config", FILE_270M),
        ("/architectures", FILE_270M),
        ("/pad_token_id", FILE_270M),
        ("/bos_token_id", FILE_270M),
    ] {
        let expected = ModelConfig::from_json(of);
        assert_eq!(ModelConfig::from_json(&edited(of, path, Value::Null)), expected, "{path}");
    }
}

#[test]
fn fields_that_gemma_3_does_not_use_may_hold_anything() {
    let odd = [Value::Null, json!(-1), json!(1e300), json!("x"), json!([]), json!({"a": 1}), json!(true)];
    let text = [
        "initializer_range",
        "attention_dropout",
        "use_cache",
        "cache_implementation",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "hidden_act",
        "_name_or_path",
        "num_labels",
        "max_length",
        "something_new",
    ];
    let vision = ["attention_dropout", "vision_use_head", "initializer_factor", "num_image_tokens"];
    let paths = text
        .iter()
        .flat_map(|name| [(FILE_270M, format!("/{name}")), (FILE_4B, format!("/text_config/{name}"))])
        .chain(vision.iter().map(|name| (FILE_4B, format!("/vision_config/{name}"))))
        .chain([(FILE_4B, "/initializer_range".to_owned()), (FILE_4B, "/vocab_size".to_owned())]);
    for (file, path) in paths {
        let expected = ModelConfig::from_json(file);
        for value in &odd {
            let found = ModelConfig::from_json(&edited(file, &path, value.clone()));
            assert_eq!(found, expected, "{path} = {value}");
        }
    }
}

#[test]
fn ids_of_special_tokens_that_are_no_ids_are_passed_over() {
    let odd = [json!(-1), json!(1_u64 << 32), json!(0.5), json!("<pad>"), json!({}), json!(true)];
    for (file, parent) in [(FILE_270M, ""), (FILE_4B, ""), (FILE_4B, "/text_config")] {
        for value in &odd {
            let with = |name: &str| {
                ModelConfig::from_json(&edited(file, &format!("{parent}/{name}"), value.clone())).unwrap()
            };
            assert_eq!(with("pad_token_id").pad_token_id, 0, "{value}");
            assert_eq!(with("bos_token_id").bos_token_id, 2, "{value}");
            assert!(with("eos_token_id").eos_token_ids.contains(&1), "{value}");
        }
    }
    let file = edited(FILE_270M, "/eos_token_id", json!([106, "2", -1, 5]));
    assert_eq!(ModelConfig::from_json(&file).unwrap().eos_token_ids, [106, 5]);
    let none = edited(FILE_270M, "/eos_token_id", json!([]));
    assert_eq!(ModelConfig::from_json(&none).unwrap().eos_token_ids, [1]);
}

#[test]
fn end_ids_of_both_places_count() {
    let file = edited(FILE_4B, "/text_config/eos_token_id", json!([107, 1]));
    assert_eq!(ModelConfig::from_json(&file).unwrap().eos_token_ids, [1, 106, 107]);
    let file = edited(&file, "/eos_token_id", json!(106));
    assert_eq!(ModelConfig::from_json(&file).unwrap().eos_token_ids, [106, 107, 1]);
}

#[test]
fn heads_that_are_no_multiple_of_the_key_value_heads_are_an_error() {
    let file = edited(FILE_4B_SAVED_BY_5, "/text_config/num_key_value_heads", json!(3));
    let error = ModelConfig::from_json(&file).unwrap_err();
    assert!(error.to_string().contains("num_key_value_heads (3)"), "{error}");
}

#[test]
fn a_scaling_factor_must_come_with_its_type_and_the_type_with_its_factor() {
    for scaling in [json!({"factor": 8.0}), json!({"rope_type": "linear"})] {
        let file = edited(FILE_270M, "/rope_scaling", scaling);
        let error = ModelConfig::from_json(&file).unwrap_err();
        assert!(matches!(error, ConfigError::MissingField { .. }), "{error:?}");
        assert!(error.to_string().contains("rope_scaling."), "{error}");
    }
}

#[test]
fn two_rope_types_that_disagree_are_an_error() {
    let scaling = json!({"rope_type": "linear", "type": "default", "factor": 8.0});
    let error = ModelConfig::from_json(&edited(FILE_270M, "/rope_scaling", scaling)).unwrap_err();
    assert!(error.to_string().contains("rope_scaling.type"), "{error}");
}

#[test]
fn a_scaling_factor_of_zero_is_an_error() {
    let scaling = json!({"rope_type": "linear", "factor": 0});
    let error = ModelConfig::from_json(&edited(FILE_270M, "/rope_scaling", scaling)).unwrap_err();
    assert!(error.to_string().contains("rope_scaling_factor"), "{error}");
}

#[test]
fn a_file_without_model_type_or_text_config_says_what_is_missing() {
    for (file, field) in [
        (without(FILE_270M, &["model_type"]), "model_type"),
        (without(FILE_4B, &["text_config"]), "text_config"),
    ] {
        let error = ModelConfig::from_json(&file).unwrap_err();
        assert!(matches!(&error, ConfigError::MissingField { field: f, .. } if f == field));
    }
}

#[test]
fn text_that_is_not_a_json_object_is_an_error() {
    for text in ["", "{", "nonsense", "{\"model_type\": \"gemma3_text\"} {}", "\u{0}"] {
        let error = ModelConfig::from_json(text).unwrap_err();
        assert!(matches!(error, ConfigError::Json { .. }), "{text:?}: {error:?}");
    }
    for text in ["[]", "3", "null", "\"gemma3\""] {
        let error = ModelConfig::from_json(text).unwrap_err();
        assert!(matches!(error, ConfigError::InvalidField { .. }), "{text:?}: {error:?}");
    }
}

#[test]
fn a_field_that_occurs_twice_is_an_error() {
    let text = FILE_270M.replacen('{', "{\"hidden_size\": 1,", 1);
    let error = ModelConfig::from_json(&text).unwrap_err();
    assert!(error.to_string().contains("hidden_size"), "{error}");
    let nested = FILE_4B.replacen("\"hidden_size\"", "\"hidden_size\": 1, \"hidden_size\"", 1);
    assert!(matches!(ModelConfig::from_json(&nested), Err(ConfigError::Json { .. })));
}

#[test]
fn deeply_nested_json_is_an_error_and_no_stack_overflow() {
    for text in ["[".repeat(1_000_000), "{\"a\":".repeat(1_000_000)] {
        let error = ModelConfig::from_json(&text).unwrap_err();
        assert!(matches!(error, ConfigError::Json { .. }), "{error:?}");
    }
}

#[test]
fn long_values_are_cut_in_errors() {
    let file = edited(FILE_270M, "/hidden_size", json!("9".repeat(1_000_000)));
    let error = ModelConfig::from_json(&file).unwrap_err();
    assert!(error.to_string().len() < 400);
}
