//! Encoder and projector against Hugging Face transformers, stage by stage, on every device.

#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;
mod tiny;

use std::ops::ControlFlow;

use common::{assert_close, devices, ids};
use gemma3_core::device;
use gemma3_core::ops::Precision;
use gemma3_vision::{SoftTokens, Stage, VisionError, VisionLoadOptions, VisionModel, VisionWeights};
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

/// What every stage shows, all images one after the other, in the order in which they were first seen.
fn stages(
    vision: &VisionModel,
    pixels: Vec<f32>,
    images: usize,
) -> (Vec<(Stage, Vec<f32>)>, Vec<SoftTokens>) {
    let mut seen: Vec<(Stage, Vec<f32>)> = Vec::new();
    let mut look = |stage, shape: &[usize; 2], x: &[f32]| {
        assert_eq!(shape[0] * shape[1], x.len(), "{stage:?}");
        match seen.iter_mut().find(|(known, _)| *known == stage) {
            Some((_, values)) => values.extend_from_slice(x),
            None => seen.push((stage, x.to_vec())),
        }
        ControlFlow::Continue(())
    };
    let output = vision.forward_observed(pixels, images, &mut look).expect("a forward pass");
    (seen, output)
}

#[test]
fn every_stage_equals_the_reference() {
    let Some(tiny) = Tiny::open() else { return };
    for (device_name, device) in devices() {
        let vision = tiny.vision(&device);
        for (case, golden) in tiny.cases() {
            let images = ids(&golden["images"]);
            if images.is_empty() {
                continue;
            }
            let (seen, output) = stages(&vision, tiny.pixel_values(&images), images.len());
            let mut compared = 0;
            for (stage, x) in seen {
                let name = format!("{case}.{}", golden_name(stage));
                if let Some((_, expected)) = tiny.tensors.get(&name) {
                    assert_close(&format!("{name} on {device_name}"), &x, &expected, TOLERANCE);
                    compared += 1;
                }
            }
            let sizes = [vision.tokens_per_image(), vision.text_hidden_size()];
            assert_eq!(output.len(), images.len());
            assert!(output.iter().all(|image| [image.len(), image.width()] == sizes));
            let expected = match case.as_str() {
                "one_image" => vision.config().num_hidden_layers + 5,
                "two_images" => 1,
                _ => 0,
            };
            assert!(compared >= expected, "{case}: only {compared} stages compared");
        }
    }
}

/// The definition against the same reference. Not on GPUs, on which burn may tune its products to fewer bits.
#[test]
fn the_definition_equals_the_reference() {
    let Some(tiny) = Tiny::open() else { return };
    let (_, expected) = tiny.tensors.get("two_images.projector.output").expect("a golden");
    let images = ids(&tiny.index["cases"]["two_images"]["images"]);
    for (device_name, device) in devices().into_iter().filter(|(_, device)| device::is_cpu(device)) {
        let weights = VisionWeights::in_checkpoint(&tiny.checkpoint).expect("an encoder");
        let options = VisionLoadOptions { plain: true, ..VisionLoadOptions::default() };
        let vision = tiny::load_with(&weights, &device, options);
        let output = vision.forward(tiny.pixel_values(&images), images.len()).expect("a forward pass");
        assert_close(device_name, &to_vec(&output), &expected, TOLERANCE);
    }
}

/// What [`VisionModel::forward`] gives is what its stages end in, though devices divide the products of several images
/// otherwise: in exact mode up to the order of sums.
#[test]
fn a_pass_equals_its_last_stage() {
    let Some(tiny) = Tiny::open() else { return };
    for (device_name, device) in devices() {
        let vision = tiny.vision(&device);
        let (seen, observed) = stages(&vision, tiny.pixel_values(&[0, 1]), 2);
        let output = vision.forward(tiny.pixel_values(&[0, 1]), 2).expect("a forward pass");
        assert_eq!((output.len(), observed.len()), (2, 2));
        assert_close(device_name, &to_vec(&output), &to_vec(&observed), TOLERANCE);
        let (last, values) = seen.last().expect("stages");
        assert_eq!((*last, values), (Stage::Output, &to_vec(&observed)));
    }
}

/// Fast mode rounds both factors of each product to bf16, or less to f16, where it uses tensor cores. Transformers in bf16, which
/// rounds everything, differs from itself in f32 by 0.038 (the README of the goldens).
#[test]
fn fast_mode_stays_within_what_bf16_costs() {
    let Some(tiny) = Tiny::open() else { return };
    for (device_name, device) in devices() {
        let [exact, fast] = [Precision::Exact, Precision::Fast].map(|precision| {
            let vision = tiny.vision_in(&device, precision);
            to_vec(&vision.forward(tiny.pixel_values(&[0, 1]), 2).expect("a forward pass"))
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
        let together = to_vec(&vision.forward(tiny.pixel_values(&[0, 1, 2]), 3).expect("three images"));
        let alone: Vec<f32> = [0, 1, 2]
            .into_iter()
            .flat_map(|image| to_vec(&vision.forward(tiny.pixel_values(&[image]), 1).expect("one image")))
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
    let mut stop = |stage, _: &[usize; 2], _: &[f32]| {
        seen.push(stage);
        if stage == Stage::Layer(1) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let result = vision.forward_observed(tiny.pixel_values(&[0]), 1, &mut stop);
    assert!(matches!(result, Err(VisionError::Cancelled)));
    assert_eq!(seen, [Stage::Embeddings, Stage::Layer(0), Stage::Layer(1)]);
}

#[test]
fn pixels_of_another_number_are_refused() {
    let Some(tiny) = Tiny::open() else { return };
    let (_, device) = devices().swap_remove(0);
    let vision = tiny.vision(&device);
    let side = vision.config().image_size;
    let image = 3 * side * side;
    for (found, images) in [(4 * side * side, 1), (side * side, 1), (image - side, 1), (0, 0), (image, 2)] {
        let expected = [images.max(1), 3, side, side];
        match vision.forward(vec![0.0; found], images) {
            Err(VisionError::WrongPixels { expected: e, found: f }) => assert_eq!((e, f), (expected, found)),
            other => panic!("{found} values of {images} images: {other:?}"),
        }
    }
}
