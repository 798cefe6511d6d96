//! Which matrix makes the logits: the embedding (a tied head) or a head of its own.
//!
//! The tensors decide, as in transformers 5: where both matrices are there and differ, the head is used,
//! whatever the configuration says of `tie_word_embeddings`; where they are equal, or only one is there,
//! that one is both. Files of every kind contradict their configuration here: trainers untie a model and
//! leave the flag, others write the tied matrix twice, or once under the name of the head.
//!
//! # Cost
//! Only a file with both matrices is compared: up to the first difference, which in a head that was
//! trained is in the first page; to the end where they are equal. The embedding is about to be read
//! anyway, so that equal ones cost the reading of the head: 2.8 GB of the 27B's, whose pages are given
//! back.

use half::{bf16, f16};

use super::configs::Configs;
use super::layout::Layout;
use super::tensors::{TensorTable, TensorView};
use super::{CheckpointError, TensorFormat, TextTensor, Warning, WarningKind};
use crate::config::TieFlags;

/// Where the logits of a Hugging Face checkpoint come from.
pub(super) struct OutputMatrix {
    /// One matrix is the embedding and makes the logits.
    pub(super) tied: bool,
    /// It is stored under the head's name only.
    pub(super) embedding_is_head: bool,
    pub(super) warning: Option<Warning>,
}

impl OutputMatrix {
    /// Decides by the tensors of a file; `configs` has the flags, for where they leave a matrix out.
    ///
    /// # Errors
    /// [`CheckpointError::MissingHead`] or [`CheckpointError::MissingTensor`] where the configuration asks
    /// for two matrices and there is one: transformers would fill the other with random numbers.
    pub(super) fn decide(
        table: &TensorTable,
        source: &str,
        configs: &Configs,
        layout: &Layout,
    ) -> Result<Self, CheckpointError> {
        let embedding = TextTensor::Embedding.huggingface_name(layout.prefix);
        // transformers looks at the top level only, and takes silence for a tie.
        let is_tie_said = configs.ties.top != Some(false);
        match (layout.has_embedding, layout.head) {
            (true, Some(head)) => {
                let tied = same_numbers(table, &embedding, head);
                let warning = if tied { None } else { head_warning(&configs.label, configs.ties, head) };
                Ok(Self { tied, embedding_is_head: false, warning })
            }
            (true, None) | (false, Some(_)) if is_tie_said => Ok(Self {
                tied: true,
                embedding_is_head: !layout.has_embedding,
                warning: tie_warning(&configs.label, configs.ties),
            }),
            (true, None) => Err(CheckpointError::MissingHead {
                file: source.to_owned(),
                tensor: TextTensor::Head.huggingface_name(layout.prefix),
            }),
            (false, _) => Err(CheckpointError::MissingTensor {
                file: source.to_owned(),
                tensor: embedding,
                expected: Some(TextTensor::Embedding.shape(&configs.model.text)),
            }),
        }
    }
}

/// Whether two tensors of a checkpoint hold the same numbers. Tensors that can't be read are not: using
/// them is what says why.
pub(super) fn same_numbers(table: &TensorTable, embedding: &str, head: &str) -> bool {
    let view = |name| table.view(name, "").ok();
    let (Some(embedding), Some(head)) = (view(embedding), view(head)) else {
        return false;
    };
    let same = embedding.shape == head.shape && same_elements(&embedding, &head);
    if let Some((bytes, range)) = head.place.filter(|_| same) {
        bytes.release(range);
    }
    same
}

/// Bytes of one format; numbers of two float formats, since a cast may have kept them. Blocks of two
/// formats are never the same matrix.
fn same_elements(a: &TensorView<'_>, b: &TensorView<'_>) -> bool {
    if a.format == b.format {
        return a.bytes == b.bytes;
    }
    let (Some(read_a), Some(read_b)) = (float_reader(a.format), float_reader(b.format)) else {
        return false;
    };
    let numbers_a = a.bytes.chunks_exact(a.format.block_bytes()).map(read_a);
    let numbers_b = b.bytes.chunks_exact(b.format.block_bytes()).map(read_b);
    numbers_a.eq(numbers_b)
}

/// How an element of a float format is read; `None` for block formats.
fn float_reader(format: TensorFormat) -> Option<fn(&[u8]) -> f32> {
    fn bytes<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.first_chunk().copied().unwrap_or([0; N])
    }
    match format {
        TensorFormat::F32 => Some(|element| f32::from_le_bytes(bytes(element))),
        TensorFormat::F16 => Some(|element| f16::from_le_bytes(bytes(element)).to_f32()),
        TensorFormat::BF16 => Some(|element| bf16::from_le_bytes(bytes(element)).to_f32()),
        _ => None,
    }
}

/// What there is to say where a head that differs from the embedding is used, unless the configuration
/// asks for that and nothing else.
fn head_warning(label: &str, ties: TieFlags, head: &str) -> Option<Warning> {
    if ties.stated() == Some(false) && !ties.disagree() {
        return None;
    }
    Some(Warning::new(
        WarningKind::OutputMatrix,
        label,
        format!("{}, but tensor `{head}` differs from the embedding", describe(ties)),
        "the logits are made with it; set `tie_word_embeddings` to false to say so",
    ))
}

/// What there is to say where one matrix is both and `text_config` asks for two. (At the top level that
/// is an error: transformers would make up the other.)
fn tie_warning(label: &str, ties: TieFlags) -> Option<Warning> {
    (ties.text == Some(false)).then(|| {
        Warning::new(
            WarningKind::OutputMatrix,
            label,
            format!("{}, but there is no head of its own", describe(ties)),
            "the logits are made with the embedding; set `tie_word_embeddings` to true to say so",
        )
    })
}

fn describe(ties: TieFlags) -> String {
    let said = |flag: Option<bool>| flag.map_or("absent".to_owned(), |flag| flag.to_string());
    let top = format!("`tie_word_embeddings` is {}", said(ties.top));
    match ties.text {
        None => top,
        text => format!("{top} and `text_config.tie_word_embeddings` is {}", said(text)),
    }
}
