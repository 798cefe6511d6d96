//! Checkpoints as people's tools write them: other names of the tensors, the tied matrix once, twice or
//! under the name of the head, flags that contradict the tensors. What is right is what transformers 5.23
//! computes of the same files, in f32.

mod build_gguf;
mod common;

use std::collections::BTreeMap;

use build_gguf::{GgufBuilder, f32_value, gguf_name, u32_value};
use common::{devices, golden};
use gemma3_core::checkpoint::{Checkpoint, CheckpointError, TextTensor, WarningKind};
use gemma3_core::config::TextConfig;
use gemma3_core::formats::Quantization;
use gemma3_core::generate::{ContinueOptions, Session, SessionOptions, generate_batch};
use gemma3_core::model::{LoadOptions, Model};
use gemma3_core::sampling::SamplingOptions;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// "hello world".
const PROMPT: [u32; 12] = [2, 272, 265, 275, 275, 268, 264, 127, 268, 273, 275, 274];
/// What transformers continues it with: with the embedding as head, as the tiny model has it...
const WITH_EMBEDDING: [u32; 8] = [77, 228, 235, 53, 53, 69, 37, 37];
/// ...and with the embedding's rows in reverse order as head.
const WITH_HEAD: [u32; 8] = [242, 315, 301, 64, 315, 78, 196, 19];

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The decoder's prefixes, with the head that belongs to each.
const LAYOUTS: [(&str, &str); 5] = [
    ("model.", HEAD),
    ("", HEAD),
    ("language_model.model.", "language_model.lm_head.weight"),
    ("model.language_model.", HEAD),
    ("language_model.", HEAD),
];

#[derive(Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// A matrix with its rows in reverse order.
    fn reversed(&self) -> Self {
        let rows = self.bytes.chunks_exact(self.bytes.len() / self.shape[0]).rev();
        Self { bytes: rows.flatten().copied().collect(), ..self.clone() }
    }

    /// The numbers of a tensor in bf16.
    fn values(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::BF16);
        self.bytes.chunks_exact(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect()
    }

    fn in_f32(&self) -> Self {
        let bytes = self.values().into_iter().flat_map(f32::to_le_bytes).collect();
        Self { dtype: Dtype::F32, bytes, ..self.clone() }
    }
}

/// The tensors of a safetensors file, to be changed.
#[derive(Clone)]
struct File(BTreeMap<String, Tensor>);

impl File {
    /// The tiny text model's.
    fn tiny() -> Option<Self> {
        let bytes = std::fs::read(golden("tiny-text")?.join("model.safetensors")).expect("the weights");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("a file");
        let tensor = |name: &str| {
            let view = file.tensor(name).expect("a tensor");
            Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() }
        };
        Some(Self(file.names().into_iter().map(|name| (name.to_string(), tensor(name))).collect()))
    }

    fn with(mut self, name: &str, tensor: Tensor) -> Self {
        self.0.insert(name.to_owned(), tensor);
        self
    }

    fn without(mut self, name: &str) -> Self {
        assert!(self.0.remove(name).is_some(), "{name}");
        self
    }

    /// With another prefix of the decoder.
    fn under(self, prefix: &str) -> Self {
        let rename = |name: String| match name.strip_prefix("model.") {
            Some(rest) => format!("{prefix}{rest}"),
            None => name,
        };
        Self(self.0.into_iter().map(|(name, tensor)| (rename(name), tensor)).collect())
    }

    fn embedding(&self) -> Tensor {
        self.0[EMBEDDING].clone()
    }

    /// A file with a head of its own.
    fn with_head(self, name: &str) -> Self {
        let head = self.embedding().reversed();
        self.with(name, head)
    }

    fn open(&self, config: &Value) -> Result<Checkpoint, CheckpointError> {
        let views = self.0.iter().map(|(name, tensor)| {
            (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("a view"))
        });
        let bytes = safetensors::serialize(views, None).expect("a file");
        Checkpoint::from_safetensors_bytes(&config.to_string(), None, [bytes])
    }
}

/// The tiny model's `config.json`, which says nothing of ties.
fn config() -> Value {
    let folder = golden("tiny-text").expect("the folder of the tensors");
    let text = std::fs::read_to_string(folder.join("config.json")).expect("a config");
    serde_json::from_str(&text).expect("JSON")
}

/// The configuration with a flag, unless it is to say nothing.
fn flagged(flag: Option<bool>) -> Value {
    let mut config = config();
    if let Some(flag) = flag {
        config["tie_word_embeddings"] = json!(flag);
    }
    config
}

/// The same model as the decoder of an image-text model, with a flag in each place.
fn wrapped(top: Option<bool>, text: Option<bool>) -> Value {
    let mut config = json!({"model_type": "gemma3", "text_config": flagged(text)});
    config["text_config"].as_object_mut().expect("an object").remove("architectures");
    if let Some(flag) = top {
        config["tie_word_embeddings"] = json!(flag);
    }
    config
}

fn load(checkpoint: &Checkpoint) -> Model {
    let (_, device) = devices().swap_remove(0);
    Model::load(checkpoint, &device, common::exact()).expect("a model")
}

/// What the checkpoint's model continues the prompt with.
fn continued(checkpoint: &Checkpoint) -> Vec<u32> {
    let mut session = Session::new(&load(checkpoint), &SessionOptions::default()).expect("a session");
    session.append(&PROMPT).expect("room");
    let options = ContinueOptions {
        sampling: SamplingOptions::greedy(),
        max_new_tokens: Some(8),
        ..ContinueOptions::default()
    };
    let stream = session.generate(options).expect("a stream");
    stream.map(|token| token.expect("a token").id).collect()
}

/// The kinds of a checkpoint's warnings.
fn warned(checkpoint: &Checkpoint) -> Vec<WarningKind> {
    checkpoint.warnings().iter().map(|warning| warning.kind).collect()
}

fn bytes_of_matrix(config: &TextConfig) -> u64 {
    (config.vocab_size * config.hidden_size * 2) as u64
}

// ---- The matrix that makes the logits ----

#[test]
fn a_head_that_differs_is_used_whatever_the_configuration_says() {
    let Some(tiny) = File::tiny() else { return };
    let tied_bytes = tiny.open(&config()).expect("the tiny model").total_weight_bytes();
    for flag in [None, Some(true), Some(false)] {
        let checkpoint = tiny.clone().with_head(HEAD).open(&flagged(flag)).expect("a checkpoint");
        assert_eq!(continued(&checkpoint), WITH_HEAD, "{flag:?}");
        let expected = if flag == Some(false) { vec![] } else { vec![WarningKind::OutputMatrix] };
        assert_eq!(warned(&checkpoint), expected, "{flag:?}");
        // Everything that follows from it says the same.
        let text = &checkpoint.config().text;
        assert!(!checkpoint.head_is_tied() && !text.tie_word_embeddings);
        assert_eq!(checkpoint.tensor(TextTensor::Head).expect("a head").file_name, HEAD);
        assert_eq!(checkpoint.total_weight_bytes(), tied_bytes + bytes_of_matrix(text));
        assert_eq!(TextTensor::all(text).filter(|tensor| *tensor == TextTensor::Head).count(), 1);
        let tied = TextConfig { tie_word_embeddings: true, ..text.clone() };
        assert_eq!(text.parameter_count() - tied.parameter_count(), 320 * 96);
        let tied = checkpoint.with_text_config(tied).expect("the tensors of a tied model");
        assert_eq!(continued(&tied), WITH_EMBEDDING);
    }
}

#[test]
fn a_head_that_differs_is_used_behind_every_prefix_and_whatever_the_places_say() {
    let Some(tiny) = File::tiny() else { return };
    for (prefix, head) in LAYOUTS {
        let file = tiny.clone().with_head(head).under(prefix);
        assert_eq!(continued(&file.open(&config()).expect("a checkpoint")), WITH_HEAD, "{prefix}");
        let said = [None, Some(true), Some(false)];
        for (top, text) in said.into_iter().flat_map(|top| said.map(|text| (top, text))) {
            let checkpoint = file.open(&wrapped(top, text)).expect("a checkpoint");
            let head = checkpoint.tensor(TextTensor::Head).expect("a head");
            assert_ne!(head.file_name, EMBEDDING, "{prefix} {top:?} {text:?}");
            assert!(!checkpoint.head_is_tied(), "{prefix} {top:?} {text:?}");
            // Only where nothing contradicts the tensors there is nothing to say.
            let is_said = matches!((top, text), (Some(false), None | Some(false)) | (None, Some(false)));
            assert_eq!(warned(&checkpoint).is_empty(), is_said, "{prefix} {top:?} {text:?}");
        }
    }
}

#[test]
fn a_warning_of_a_head_names_the_file_the_flags_and_what_to_do() {
    let Some(tiny) = File::tiny() else { return };
    let checkpoint = tiny.with_head(HEAD).open(&wrapped(Some(true), Some(false))).expect("a checkpoint");
    let text = checkpoint.warnings()[0].to_string();
    for part in [
        "config.json",
        "`tie_word_embeddings` is true",
        "`text_config.tie_word_embeddings` is false",
        "`lm_head.weight` differs",
        "set `tie_word_embeddings` to false",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn two_equal_matrices_are_one() {
    let Some(tiny) = File::tiny() else { return };
    let expected = tiny.open(&config()).expect("the tiny model").total_weight_bytes();
    // In the embedding's format, and saved in another that holds the same numbers.
    for head in [tiny.embedding(), tiny.embedding().in_f32()] {
        for flag in [None, Some(true), Some(false)] {
            let file = tiny.clone().with(HEAD, head.clone());
            let checkpoint = file.open(&flagged(flag)).expect("a checkpoint");
            assert!(checkpoint.head_is_tied() && checkpoint.config().text.tie_word_embeddings, "{flag:?}");
            assert_eq!(checkpoint.tensor(TextTensor::Head).expect("a head").file_name, EMBEDDING);
            assert_eq!(checkpoint.total_weight_bytes(), expected);
            assert_eq!(warned(&checkpoint), []);
            assert_eq!(continued(&checkpoint), WITH_EMBEDDING);
        }
    }
    // One number that differs is enough.
    for mut head in [tiny.embedding(), tiny.embedding().in_f32()] {
        let last = head.bytes.len() - 1;
        head.bytes[last] ^= 1;
        let checkpoint = tiny.clone().with(HEAD, head).open(&config()).expect("a checkpoint");
        assert!(!checkpoint.head_is_tied());
    }
}

#[test]
fn a_tied_matrix_under_the_heads_name_is_the_embedding() {
    let Some(tiny) = File::tiny() else { return };
    let expected = tiny.open(&config()).expect("the tiny model").total_weight_bytes();
    for (prefix, head) in LAYOUTS {
        let matrix = tiny.embedding();
        let file = tiny.clone().without(EMBEDDING).with(head, matrix).under(prefix);
        for flag in [None, Some(true)] {
            let checkpoint = file.open(&flagged(flag)).expect("a checkpoint");
            assert!(checkpoint.head_is_tied(), "{prefix}");
            assert_eq!(checkpoint.total_weight_bytes(), expected, "{prefix}");
            assert_eq!(warned(&checkpoint), [], "{prefix}");
            assert_eq!(continued(&checkpoint), WITH_EMBEDDING, "{prefix}");
        }
        // Where the configuration asks for two matrices, one of them is lost.
        let error = file.open(&flagged(Some(false))).unwrap_err();
        assert!(matches!(error, CheckpointError::MissingTensor { .. }), "{prefix}: {error:?}");
        assert!(error.to_string().contains("embed_tokens.weight"), "{prefix}: {error}");
    }
}

#[test]
fn a_head_that_the_configuration_asks_for_and_that_is_not_there_is_an_error_that_says_so() {
    let Some(tiny) = File::tiny() else { return };
    for config in [flagged(Some(false)), wrapped(Some(false), None), wrapped(Some(false), Some(true))] {
        let error = tiny.open(&config).unwrap_err();
        assert!(matches!(error, CheckpointError::MissingHead { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("`lm_head.weight` is missing"), "{text}");
        assert!(text.contains("`tie_word_embeddings` is false"), "{text}");
    }
    // transformers follows the top level, which is tied where it says nothing.
    for top in [None, Some(true)] {
        let checkpoint = tiny.open(&wrapped(top, Some(false))).expect("a checkpoint");
        assert_eq!(continued(&checkpoint), WITH_EMBEDDING);
        assert_eq!(warned(&checkpoint), [WarningKind::OutputMatrix]);
    }
}

#[test]
fn a_head_of_another_shape_or_type_is_an_error_that_names_it() {
    let Some(tiny) = File::tiny() else { return };
    let mut shorter = tiny.embedding();
    shorter.shape[0] -= 1;
    shorter.bytes.truncate(319 * 96 * 2);
    let error = tiny.clone().with(HEAD, shorter).open(&config()).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::WrongShape { tensor, found, .. } if tensor == HEAD && *found == [319, 96]),
        "{error:?}"
    );
    let integers = Tensor { dtype: Dtype::I16, ..tiny.embedding() };
    let error = tiny.clone().with(HEAD, integers).open(&config()).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::UnsupportedFormat { tensor, .. } if tensor == HEAD),
        "{error:?}"
    );
}

/// The head is the embedding in reverse order, so its logits are the tied model's in reverse order: in
/// whatever format both are kept.
#[test]
fn a_head_of_its_own_is_quantized_as_the_embedding_is() {
    let Some(tiny) = File::tiny() else { return };
    let tied = tiny.open(&config()).expect("a checkpoint");
    let untied = tiny.with_head(HEAD).open(&config()).expect("a checkpoint");
    for (name, device) in devices() {
        let run = |checkpoint: &Checkpoint, quantization| {
            let options = LoadOptions { quantization, ..common::exact() };
            let model = Model::load(checkpoint, &device, options).expect("a model");
            let mut session = Session::new(&model, &SessionOptions::default()).expect("a session");
            session.append(&PROMPT).expect("room");
            (session.logits().expect("logits").to_vec(), model.weight_bytes())
        };
        let (whole, _) = run(&untied, Quantization::None);
        for quantization in [Quantization::None, Quantization::EightBit, Quantization::FourBit] {
            let (mut expected, tied_bytes) = run(&tied, quantization);
            let (found, bytes) = run(&untied, quantization);
            expected.reverse();
            common::assert_close(&format!("{name}, {quantization:?}"), &found, &expected, 2e-4);
            let is_quantized = common::max_difference(&found, &whole) > 0.01;
            assert_eq!(is_quantized, quantization != Quantization::None, "{name}, {quantization:?}");
            if name == "flex" {
                // The head in bf16, or in 34 bytes for 32 numbers.
                let expected = if is_quantized { 320 * 96 * 34 / 32 } else { 320 * 96 * 2 };
                assert_eq!(bytes - tied_bytes, expected, "{quantization:?}");
            }
        }
    }
}

/// The tiny model as GGUF in f32, with an output matrix if there is one.
fn as_gguf(tiny: &File, head: Option<Tensor>) -> Checkpoint {
    let config = tiny.open(&config()).expect("the tiny model").config().text.clone();
    let metadata = build_gguf::model(&config)
        .set("gemma3.rope.freq_base", f32_value(1e6))
        .set("gemma3.attention.sliding_window", u32_value(8))
        .metadata;
    let mut file = GgufBuilder { metadata, ..GgufBuilder::default() };
    let hugging_face = tiny.open(&self::config()).expect("the tiny model");
    for tensor in TextTensor::all(&config) {
        let name = hugging_face.tensor(tensor).expect("a tensor").file_name.to_owned();
        let stored = &tiny.0[&name];
        let mut values = stored.values();
        if tensor.is_norm() {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        file = file.tensor_of(&gguf_name(tensor), &stored.shape, &values);
    }
    if let Some(head) = head {
        file = file.tensor_of("output.weight", &head.shape, &head.values());
    }
    let checkpoint = Checkpoint::from_gguf_bytes(file.build()).expect("a checkpoint");
    // What a GGUF can't say.
    let text = TextConfig { query_pre_attn_scalar: 24.0, ..checkpoint.config().text.clone() };
    checkpoint.with_text_config(text).expect("the same tensors")
}

#[test]
fn the_output_matrix_of_a_gguf_is_used_where_it_differs() {
    let Some(tiny) = File::tiny() else { return };
    let tied = as_gguf(&tiny, None);
    assert!(tied.head_is_tied());
    assert_eq!(continued(&tied), WITH_EMBEDDING);

    let equal = as_gguf(&tiny, Some(tiny.embedding()));
    assert!(equal.head_is_tied());
    assert_eq!(equal.total_weight_bytes(), tied.total_weight_bytes());
    assert_eq!(continued(&equal), WITH_EMBEDDING);

    let other = as_gguf(&tiny, Some(tiny.embedding().reversed()));
    assert!(!other.head_is_tied());
    assert_eq!(continued(&other), WITH_HEAD);
    // A GGUF has no flag that could contradict it.
    assert_eq!(warned(&other), []);
}

// ---- Names ----

#[test]
fn every_layout_of_transformers_loads() {
    let Some(tiny) = File::tiny() else { return };
    for (prefix, _) in LAYOUTS {
        let file = tiny.clone().under(prefix);
        for config in [config(), wrapped(None, None)] {
            let checkpoint = file.open(&config).expect("a checkpoint");
            assert_eq!(warned(&checkpoint), [], "{prefix}");
            assert_eq!(continued(&checkpoint), WITH_EMBEDDING, "{prefix}");
        }
    }
    for architecture in ["Gemma3TextModel", "Gemma3ForCausalLM"] {
        let mut config = config();
        config["architectures"] = json!([architecture]);
        let checkpoint = tiny.clone().under("").open(&config).expect("a checkpoint");
        assert_eq!(continued(&checkpoint), WITH_EMBEDDING, "{architecture}");
    }
}

#[test]
fn of_two_layouts_the_complete_one_counts_and_then_the_more_specific() {
    let Some(tiny) = File::tiny() else { return };
    let embedding = |checkpoint: &Checkpoint| {
        checkpoint.tensor(TextTensor::Embedding).expect("an embedding").file_name.to_owned()
    };
    let mut both = tiny.clone();
    both.0.extend(tiny.clone().under("language_model.model.").0);
    let checkpoint = both.open(&config()).expect("a checkpoint");
    assert_eq!(embedding(&checkpoint), "language_model.model.embed_tokens.weight");
    // A leftover of another layout doesn't hide the model.
    let leftover = tiny.clone().with("model.language_model.embed_tokens.weight", tiny.embedding());
    let checkpoint = leftover.open(&config()).expect("a checkpoint");
    assert_eq!(embedding(&checkpoint), EMBEDDING);
    assert_eq!(continued(&checkpoint), WITH_EMBEDDING);
}

#[test]
fn prefixes_of_wrappers_are_named_with_what_to_do() {
    let Some(tiny) = File::tiny() else { return };
    for (prefix, named, advice) in [
        ("base_model.model.model.", "base_model.model.", "merge_and_unload"),
        ("base_model.model.model.language_model.", "base_model.model.", "merge_and_unload"),
        ("_orig_mod.model.", "_orig_mod.", "torch.compile"),
        ("model._orig_mod.", "_orig_mod.", "torch.compile"),
        ("module.model.", "module.", "DataParallel"),
        ("_fsdp_wrapped_module.model.", "_fsdp_wrapped_module.", "FSDP"),
        ("my.model.", "my.model.", "save_pretrained"),
    ] {
        let error = tiny.clone().under(prefix).open(&config()).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::UnknownNames { prefix, .. } if prefix == named),
            "{prefix}: {error:?}"
        );
        let text = error.to_string();
        assert!(text.contains(&format!("`{named}`")) && text.contains(advice), "{text}");
    }
}

// ---- Tokens that the embedding has no row for ----

#[test]
fn an_id_without_a_row_is_an_error_wherever_ids_come_in() {
    let Some(tiny) = File::tiny() else { return };
    let model = load(&tiny.open(&config()).expect("the tiny model"));
    let session = || Session::new(&model, &SessionOptions::default()).expect("a session");
    let named = |error: &dyn std::error::Error| {
        let text = error.to_string();
        assert!(text.contains("320"), "{text}");
    };
    named(&session().append(&[2, 320]).unwrap_err());
    named(&session().append_with(&[2, 320], &[]).unwrap_err());
    named(&session().prefill(&[2, 320]).unwrap_err());
    named(&session().prefill_scored(&[2, 320], 0).unwrap_err());
    let mut begun = session();
    begun.append(&PROMPT).expect("room");
    named(&begun.prefill_scored(&[320], 0).unwrap_err());
    named(&begun.append(&[320]).unwrap_err());
    // The session is as it was, and goes on, alone and in a batch.
    assert_eq!(begun.ids(), PROMPT);
    let options = ContinueOptions {
        sampling: SamplingOptions::greedy(),
        max_new_tokens: Some(8),
        stop_token_ids: vec![320, u32::MAX],
        ..ContinueOptions::default()
    };
    let completions = generate_batch(&mut [&mut begun], &[options], &Default::default()).expect("tokens");
    let ids: Vec<u32> = completions[0].tokens.iter().map(|token| token.id).collect();
    assert_eq!(ids, WITH_EMBEDDING);
}
