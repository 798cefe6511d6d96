//! What a Hugging Face checkpoint calls its image encoder.

use gemma3_core::checkpoint::Checkpoint;

use super::names::{Parameter, VisionNames, VisionTensor};

/// Prefixes of the encoder: the published files, then what transformers has called it in memory.
const ENCODERS: [&str; 4] = [
    "vision_tower.vision_model.",
    "model.vision_tower.vision_model.",
    "vision_tower.",
    "model.vision_tower.",
];
/// Prefixes of the projector.
const PROJECTORS: [&str; 2] = ["multi_modal_projector.", "model.multi_modal_projector."];

/// The names in use, or `None` if there is no encoder.
pub(super) fn names(checkpoint: &Checkpoint) -> Option<VisionNames> {
    let has = |names: VisionNames, tensor| {
        let name = names.of(tensor);
        checkpoint.names().any(|other| other == name)
    };
    let of = |encoder, projector| VisionNames::HuggingFace { encoder, projector };
    let encoder = ENCODERS
        .into_iter()
        .find(|encoder| has(of(encoder, PROJECTORS[0]), VisionTensor::PatchEmbedding(Parameter::Weight)))?;
    // Without a projector the published name is the one that is reported as missing.
    let projector =
        PROJECTORS.into_iter().find(|projector| has(of(encoder, projector), VisionTensor::InputProjection));
    Some(of(encoder, projector.unwrap_or(PROJECTORS[0])))
}
