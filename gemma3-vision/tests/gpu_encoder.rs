//! The encoder's launches on GPUs against its definition, at the published proportions: rows that fill the tiles of
//! tensor cores (8 heads of 72), and a feed-forward width that does not.

#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;
mod random_encoder;

use gemma3_core::checkpoint::{Checkpoint, TensorFormat};
use gemma3_core::config::VisionConfig;
use gemma3_core::ops::Precision;
use gemma3_core::{CancelHandle, Device, Threads, device};
use gemma3_vision::{
    EncodeOptions, Image, PreprocessorConfig, SoftTokens, VisionError, VisionLoadOptions, VisionModel,
    VisionWeights,
};

const SIDE: usize = 196;

fn checkpoint(format: TensorFormat) -> Checkpoint {
    let vision = VisionConfig {
        hidden_size: 576,
        intermediate_size: 1076,
        num_hidden_layers: 2,
        num_attention_heads: 8,
        image_size: SIDE,
        ..VisionConfig::siglip_so400m_896()
    };
    random_encoder::checkpoint(vision, 49, 320, format)
}

fn load(checkpoint: &Checkpoint, device: &Device, precision: Precision) -> VisionModel {
    load_with(checkpoint, device, VisionLoadOptions { precision, ..VisionLoadOptions::default() })
}

/// On a CPU if there is one: burn may tune its products on a GPU to fewer bits.
fn definition(checkpoint: &Checkpoint, gpu: &Device) -> VisionModel {
    let device = device::open("flex").unwrap_or_else(|_| gpu.clone());
    load_with(checkpoint, &device, VisionLoadOptions { plain: true, ..VisionLoadOptions::default() })
}

fn load_with(checkpoint: &Checkpoint, device: &Device, options: VisionLoadOptions<'_>) -> VisionModel {
    let weights = VisionWeights::in_checkpoint(checkpoint).expect("an encoder");
    let preprocessor = PreprocessorConfig { image_size: SIDE, ..PreprocessorConfig::gemma3() };
    let threads = Threads::new(device, None).expect("threads");
    VisionModel::load(&weights, preprocessor, device, &threads, options).expect("an encoder")
}

fn pixels(images: usize) -> Vec<f32> {
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) % 1999) as f32 / 1000.0 - 1.0;
    (0..images * 3 * SIDE * SIDE).map(value).collect()
}

fn forward(model: &VisionModel, images: usize) -> Vec<f32> {
    let encoded = model.forward(pixels(images), images).expect("a forward pass");
    let values = |image: &SoftTokens| image.to_vec().expect("soft tokens");
    encoded.iter().flat_map(values).collect()
}

fn root_mean_square(values: impl Iterator<Item = f32>, count: usize) -> f32 {
    (values.map(|x| x * x).sum::<f32>() / count as f32).sqrt()
}

fn gpus() -> impl Iterator<Item = (&'static str, Device)> {
    common::devices().into_iter().filter(|(_, device)| !device::is_cpu(device))
}

#[test]
fn launches_give_what_the_definition_gives() {
    for (name, device) in gpus() {
        for format in [TensorFormat::BF16, TensorFormat::F16] {
            let checkpoint = checkpoint(format);
            let expected = forward(&definition(&checkpoint, &device), 1);
            let found = forward(&load(&checkpoint, &device, Precision::Exact), 1);
            // Soft tokens are normalized to about 1, and sums of up to 1,076 terms are made in another order.
            common::assert_close(&format!("{name}, {format}"), &found, &expected, 2e-4);

            let fast = forward(&load(&checkpoint, &device, Precision::Fast), 1);
            let error = fast.iter().zip(&expected).map(|(a, b)| a - b);
            let error = root_mean_square(error, fast.len());
            let size = root_mean_square(expected.iter().copied(), expected.len());
            // 16 roundings to 8 bits, each off by 2^-9 / sqrt(3) of a number in the mean, before six products and
            // twice in attention a layer: sqrt(16) of them add up to 0.5%; the norm of the means enlarges it, since
            // what patches have in common is less than what they differ by.
            println!("{name}, {format}: fast mode is off by {:.2}% in the mean", 100.0 * error / size);
            assert!(error <= 0.02 * size, "{name}, {format}: {error} of {size}");
        }
    }
}

#[test]
fn images_follow_each_other() {
    for (_, device) in gpus() {
        let model = load(&checkpoint(TensorFormat::BF16), &device, Precision::Fast);
        let both = forward(&model, 2);
        let first = forward(&model, 1);
        assert_eq!(both[..first.len()], first);
        assert_ne!(both[first.len()..], first);
    }
}

#[test]
fn encoding_stops_when_it_is_cancelled() {
    for (_, device) in gpus() {
        let model = load(&checkpoint(TensorFormat::BF16), &device, Precision::Fast);
        let image = Image::from_rgb8(8, 8, vec![90; 192]).expect("an image");
        let cancel = CancelHandle::new();
        let options = EncodeOptions { cancel: Some(cancel.clone()), ..EncodeOptions::default() };
        assert_eq!(model.encode_one(&image, &options).expect("soft tokens").soft_token_count(), 49);
        cancel.cancel();
        assert!(matches!(model.encode_one(&image, &options), Err(VisionError::Cancelled)));
    }
}
