//! How a file names the decoder's tensors.
//!
//! A Hugging Face file has one of several prefixes, by the class that was saved and the version of
//! transformers that saved it. Prefixes of other programs' wrappers (peft, `torch.compile`) are not taken
//! off: such a file may hold something else than the model, and transformers doesn't load it either. The
//! error names them.

use std::collections::BTreeMap;

use super::tensors::{Entry, TensorTable};
use super::{CheckpointError, TextTensor};
use crate::config::TextConfig;

/// How the decoder's tensors are called.
pub(super) enum Names {
    HuggingFace {
        prefix: &'static str,
        /// The head's name, where there is one, tied or not.
        head: Option<&'static str>,
        /// The tied matrix was saved under the head's name.
        embedding_is_head: bool,
    },
    Gguf,
}

impl Names {
    pub(super) fn of(&self, tensor: TextTensor) -> String {
        match self {
            Self::Gguf => tensor.gguf_name(),
            Self::HuggingFace { prefix, head, embedding_is_head } => match (tensor, head) {
                (TextTensor::Head, Some(head)) => (*head).to_owned(),
                (TextTensor::Embedding, Some(head)) if *embedding_is_head => (*head).to_owned(),
                _ => tensor.huggingface_name(prefix),
            },
        }
    }
}

/// Prefixes of the decoder's tensors, most specific first, each with the class that saves them so.
const PREFIXES: [&str; 5] = [
    // Gemma3ForConditionalGeneration in transformers' memory since 4.52.
    "model.language_model.",
    // The published image-text files, and what later versions of transformers save.
    "language_model.model.",
    // Gemma3Model.
    "language_model.",
    // Gemma3ForCausalLM.
    "model.",
    // Gemma3TextModel.
    "",
];

/// Names of a head of its own, most specific first.
const HEADS: [&str; 4] = [
    "model.language_model.lm_head.weight",
    "language_model.lm_head.weight",
    "model.lm_head.weight",
    "lm_head.weight",
];

/// What wrappers put in front of a model's names, and how to get rid of them.
const WRAPPERS: [(&str, &str); 4] = [
    (
        "base_model.model.",
        "it is peft's: merge the adapter with `merge_and_unload()` and save the model that this gives",
    ),
    ("_orig_mod.", "it is that of torch.compile: save the model before it is compiled, or `model._orig_mod`"),
    ("_fsdp_wrapped_module.", "it is that of FSDP: save the full state of the model inside"),
    ("module.", "it is that of DataParallel: save `model.module`"),
];

/// The layout of a file, and whether it has the embedding under its own name.
pub(super) struct Layout {
    pub(super) prefix: &'static str,
    pub(super) head: Option<&'static str>,
    pub(super) has_embedding: bool,
}

impl Layout {
    /// Finds the layout that names most of the decoder's tensors; of two that name as many, the more
    /// specific.
    ///
    /// # Errors
    /// [`CheckpointError::UnknownNames`] if no layout names a layer of the decoder but the file holds one;
    /// [`CheckpointError::MissingTensor`] if the file holds no decoder.
    pub(super) fn find(
        table: &TensorTable,
        source: &str,
        config: &TextConfig,
    ) -> Result<Self, CheckpointError> {
        let entries = &table.entries;
        let mut best: Option<(&'static str, usize)> = None;
        for prefix in PREFIXES {
            let count = count_decoder_tensors(entries, prefix);
            if count > best.map_or(0, |(_, most)| most) {
                best = Some((prefix, count));
            }
        }
        let head = HEADS.into_iter().find(|head| entries.contains_key(*head));
        let Some((prefix, _)) = best else {
            return Err(unknown_names(entries, source).unwrap_or_else(|| CheckpointError::MissingTensor {
                file: source.to_owned(),
                tensor: TextTensor::Embedding.huggingface_name("model."),
                expected: Some(TextTensor::Embedding.shape(config)),
            }));
        };
        let has_embedding = entries.contains_key(&TextTensor::Embedding.huggingface_name(prefix));
        Ok(Self { prefix, head, has_embedding })
    }
}

/// Tensors of the decoder under a prefix: its embedding, its norm and everything in its layers.
fn count_decoder_tensors(entries: &BTreeMap<String, Entry>, prefix: &str) -> usize {
    let is_decoder = |name: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| {
            rest.starts_with("layers.") || ["embed_tokens.weight", "norm.weight"].contains(&rest)
        })
    };
    entries.keys().filter(|name| is_decoder(name)).count()
}

/// A decoder under a prefix that isn't known.
fn unknown_names(entries: &BTreeMap<String, Entry>, source: &str) -> Option<CheckpointError> {
    // Parts of names that are in every layout, and in the encoder's (`encoder.layers.0.self_attn`) not.
    const MARKS: [&str; 3] = ["layers.0.input_layernorm.", "layers.0.mlp.gate_proj.", "embed_tokens."];
    let marked = |name: &&String| MARKS.iter().any(|mark| name.contains(mark));
    let tensor = entries.keys().find(marked)?;
    let at = MARKS.iter().filter_map(|mark| tensor.find(mark)).min()?;
    let prefix = tensor.get(..at)?;
    let wrapper = WRAPPERS.into_iter().find(|(wrapper, _)| prefix.contains(wrapper));
    let (prefix, advice) = wrapper
        .unwrap_or((prefix, "rename the tensors, or save the model with `save_pretrained` of transformers"));
    Some(CheckpointError::UnknownNames {
        file: source.to_owned(),
        tensor: tensor.clone(),
        prefix: prefix.to_owned(),
        advice,
    })
}
