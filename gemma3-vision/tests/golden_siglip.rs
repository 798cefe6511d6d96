//! Encoder and projector against Hugging Face transformers, stage by stage, on every device.

#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;
mod tiny;

use std::ops::ControlFlow;

use common::{assert_close, devices, ids};
use gemma3_core::ops::Precision;
use gemma3_vision::{Stage, VisionError};
use tiny::{Tiny, to_vec};

/// Vision features in f32, from the README of the goldens: bf16 would differ by 0.04 to 0.06.
const TOLERANCE: f32 = 2e-4;

fn golden_name(stage: Stage) -> String {
    match stage {
        Stage::Embeddings => "vision.embeddings".to_owned(),
        Stage::Layer(index) => format!("vision.layer_{index}"),
        Stage::PostLayernorm => "vision.post_layernorm".to_owned(),
        Stage::Pooled => "projector.pooled".to_owned(),
        Stage::Normed => "projector.normed".to_owned(),
        Stage::Output => "projector.output".to_owned(),
    }
}

#[test]
fn every_stage_equals_the_reference() {
    let Some(tiny) = Tiny::open() else { return };
    for (device_name, device) in devices() {
        let vision = tiny.vision(&device);
        for (case, golden) in tiny.cases() {
            let images = ids(&golden["images"]);
            let mut compared = 0;
            let mut compare = |stage, x: &burn::tensor::Tensor<2>| {
                let name = format!("{case}.{}", golden_name(stage));
                if let Some((_, expected)) = tiny.tensors.get(&name) {
                    assert_close(
                        &format!("{name} on {device_name}"),
                        &to_vec(x.clone()),
                        &expected,
                        TOLERANCE,
                    );
                    compared += 1;
                }
                ControlFlow::Continue(())
            };
            if images.is_empty() {
                continue;
            }
            let pixel_values = tiny.pixel_values(&images, &device);
            let output = vision.forward_observed(pixel_values, &mut compare).expect("a forward pass");
            let (tokens, hidden) = (vision.tokens_per_image(), vision.text_hidden_size());
            assert_eq!(output.dims(), [images.len(), tokens, hidden]);
            let expected = match case.as_str() {
                "one_image" => vision.config().num_hidden_layers + 5,
                "two_images" => 1,
                _ => 0,
            };
            assert!(compared >= expected, "{case}: only {compared} stages compared");
        }
    }
}

/// What [`VisionModel::forward`](gemma3_vision::VisionModel::forward) gives is what its stages end in, though GPUs
/// compute it with other kernels: in exact mode up to the order of sums.
#[test]
fn a_pass_equals_its_last_stage() {
    let Some(tiny) = Tiny::open() else { return };
    for (device_name, device) in devices() {
        let vision = tiny.vision(&device);
        let pixels = || tiny.pixel_values(&[0, 1], &device);
        let mut go_on = |_, _: &burn::tensor::Tensor<2>| ControlFlow::Continue(());
        let observed = vision.forward_observed(pixels(), &mut go_on).expect("a forward pass");
        let output = vision.forward(pixels()).expect("a forward pass");
        assert_eq!(output.dims(), observed.dims());
        assert_close(device_name, &to_vec(output), &to_vec(observed), TOLERANCE);
    }
}

/// Fast mode rounds both factors of each product to bf16 where it uses tensor cores. Transformers in bf16, which
/// rounds everything, differs from itself in f32 by 0.038 (the README of the goldens).
#[test]
fn fast_mode_stays_within_what_bf16_costs() {
    let Some(tiny) = Tiny::open() else { return };
    for (device_name, device) in devices() {
        let [exact, fast] = [Precision::Exact, Precision::Fast].map(|precision| {
            let vision = tiny.vision_in(&device, precision);
            to_vec(vision.forward(tiny.pixel_values(&[0, 1], &device)).expect("a forward pass"))
        });
        assert_close(device_name, &fast, &exact, 0.038);
    }
}

/// An image's soft tokens do not depend on what else goes through the encoder.
#[test]
fn images_together_equal_images_alone() {
    let Some(tiny) = Tiny::open() else { return };
    for (_, device) in devices() {
        let vision = tiny.vision(&device);
        let together = to_vec(vision.forward(tiny.pixel_values(&[0, 1, 2], &device)).expect("three images"));
        let alone: Vec<f32> = [0, 1, 2]
            .into_iter()
            .flat_map(|image| {
                to_vec(vision.forward(tiny.pixel_values(&[image], &device)).expect("one image"))
            })
            .collect();
        // Sums in another order where a product's blocking depends on the rows.
        assert_close("together", &together, &alone, 2e-5);
    }
}

#[test]
fn an_observer_can_stop_the_encoder() {
    let Some(tiny) = Tiny::open() else { return };
    let (_, device) = devices().swap_remove(0);
    let vision = tiny.vision(&device);
    let mut seen = Vec::new();
    let mut stop = |stage, _: &burn::tensor::Tensor<2>| {
        seen.push(stage);
        if stage == Stage::Layer(1) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let result = vision.forward_observed(tiny.pixel_values(&[0], &device), &mut stop);
    assert!(matches!(result, Err(VisionError::Cancelled)));
    assert_eq!(seen, [Stage::Embeddings, Stage::Layer(0), Stage::Layer(1)]);
}

#[test]
fn pixels_of_another_shape_are_refused() {
    let Some(tiny) = Tiny::open() else { return };
    let (_, device) = devices().swap_remove(0);
    let vision = tiny.vision(&device);
    let side = vision.config().image_size;
    for found in [[1, 4, side, side], [1, 1, side, side], [1, 3, side, side - 1], [0, 3, side, side]] {
        let pixels = burn::tensor::Tensor::<4>::zeros(found, &device);
        let expected = [found[0].max(1), 3, side, side];
        match vision.forward(pixels) {
            Err(VisionError::WrongPixels { expected: e, found: f }) => assert_eq!((e, f), (expected, found)),
            other => panic!("{found:?}: {other:?}"),
        }
    }
}
