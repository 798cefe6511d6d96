//! Random weights of a true shape, for measurements and tests without a file.

use gemma3_core::checkpoint::{RandomTensor, TensorFormat};
use gemma3_core::config::VisionConfig;

use super::names::{Parameter, VisionNames, VisionTensor};

/// The tensors of an encoder under their published names, for
/// [`Checkpoint::random_with`](gemma3_core::checkpoint::Checkpoint::random_with). Products keep the variance of
/// their input; norms scatter around 1 (the projector's around 0, to which 1 is added).
pub fn random_tensors(
    config: &VisionConfig,
    text_hidden_size: usize,
    format: TensorFormat,
) -> Vec<RandomTensor> {
    let names = VisionNames::HuggingFace {
        encoder: "vision_tower.vision_model.",
        projector: "multi_modal_projector.",
    };
    let tensor = |tensor: VisionTensor| {
        let shape = tensor.shape(config, text_hidden_size);
        let (mean, deviation) = distribution(tensor, &shape);
        let format = if tensor.is_vector() { TensorFormat::F32 } else { format };
        RandomTensor { name: names.of(tensor), shape, format, mean, deviation }
    };
    VisionTensor::all(config).map(tensor).collect()
}

fn distribution(tensor: VisionTensor, shape: &[usize]) -> (f32, f32) {
    let inputs = match tensor {
        VisionTensor::PositionEmbedding => return (0.0, 0.3),
        VisionTensor::SoftEmbNorm => return (0.0, 0.05),
        VisionTensor::Layer(_, _, Parameter::Bias)
        | VisionTensor::PostLayernorm(Parameter::Bias)
        | VisionTensor::PatchEmbedding(Parameter::Bias) => return (0.0, 0.02),
        norm if norm.is_vector() => return (1.0, 0.05),
        // Stored in by out.
        VisionTensor::InputProjection => shape.first().copied().unwrap_or(1),
        _ => shape.iter().skip(1).product(),
    };
    (0.0, 1.0 / (inputs as f32).sqrt())
}
