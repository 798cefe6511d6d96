//! What is true of every checkpoint that opened.

use std::error::Error;

use gemma3::core::checkpoint::{Checkpoint, CheckpointError, TensorView, TextTensor};
use gemma3::core::model::expand_checked;
use gemma3::vision::VisionWeights;
use gemma3::vision::weights::VisionTensor;

use super::super::bounds::check_error;

/// Weights of more bytes than that are not converted: small ones have the same faults.
const MOST_CONVERTED_BYTES: usize = 1 << 16;

/// Checks a checkpoint of `file_bytes` bytes, or the error instead of it.
pub fn check(opened: Result<Checkpoint, CheckpointError>, file_bytes: usize) {
    let checkpoint = match opened {
        Ok(checkpoint) => checkpoint,
        Err(error) => return check_error(&error),
    };
    let config = checkpoint.config();
    config.validate().expect("a configuration that was accepted is valid");
    for tensor in TextTensor::all(&config.text) {
        let view = checkpoint.tensor(tensor).expect("the decoder's tensors are there");
        assert_eq!(view.shape, tensor.shape(&config.text), "{tensor:?}");
        check_tensor(&view);
    }
    for name in checkpoint.names() {
        check_view(checkpoint.raw(name));
    }
    assert!(checkpoint.total_weight_bytes() <= file_bytes as u64, "tensors do not share bytes");
    for warning in checkpoint.warnings() {
        assert!(!warning.to_string().is_empty());
    }
    if let Some(weights) = VisionWeights::in_checkpoint(&checkpoint) {
        check_vision(&weights, file_bytes);
    }
}

/// Checks the tensors of an image encoder in a file of `file_bytes` bytes.
pub fn check_vision(weights: &VisionWeights<'_>, file_bytes: usize) {
    weights.config().validate().expect("a configuration that was accepted is valid");
    assert!(weights.total_bytes() <= file_bytes as u64, "tensors do not share bytes");
    for tensor in VisionTensor::all(weights.config()) {
        check_view(weights.tensor(tensor));
    }
}

/// Checks a tensor, or the error instead of it.
fn check_view<E: Error>(view: Result<TensorView<'_>, E>) {
    match view {
        Ok(view) => check_tensor(&view),
        Err(error) => check_error(&error),
    }
}

/// A tensor has as many bytes as shape and format ask for, whatever they are worth.
fn check_tensor(view: &TensorView<'_>) {
    let expected = view.format.tensor_bytes(&view.shape).expect("a shape that fits its format");
    assert_eq!(view.bytes.len(), expected, "{}", view.file_name);
    if expected <= MOST_CONVERTED_BYTES {
        let values = expand_checked(view, false).expect("every bit pattern is a number");
        assert_eq!(values.len(), view.shape.iter().product::<usize>(), "{}", view.file_name);
    }
}
