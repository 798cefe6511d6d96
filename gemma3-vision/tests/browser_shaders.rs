//! Browsers take every shader of the image encoder, on its way through an image.
#![cfg(feature = "wgpu")]

#[path = "../../gemma3-core/tests/browser/mod.rs"]
mod browser;
mod random_encoder;

use gemma3_core::checkpoint::{Checkpoint, TensorFormat};
use gemma3_core::config::VisionConfig;
use gemma3_core::ops::Precision;
use gemma3_core::{CancelHandle, Threads};
use gemma3_vision::{
    EncodeOptions, Image, PreprocessorConfig, VisionLoadOptions, VisionModel, VisionWeights,
};

const SIDE: usize = 56;

fn checkpoint(format: TensorFormat) -> Checkpoint {
    let vision = VisionConfig {
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        image_size: SIDE,
        ..VisionConfig::siglip_so400m_896()
    };
    random_encoder::checkpoint(vision, 4, 64, format)
}

#[test]
fn browsers_take_every_shader_of_the_encoder() {
    let Some(device) = browser::device() else { return };
    browser::collect();
    let image = Image::from_rgb8(8, 8, vec![90; 192]).expect("an image");
    for format in [TensorFormat::BF16, TensorFormat::F16, TensorFormat::F32] {
        for precision in [Precision::Exact, Precision::Fast] {
            let checkpoint = checkpoint(format);
            let weights = VisionWeights::in_checkpoint(&checkpoint).expect("an encoder");
            let preprocessor = PreprocessorConfig { image_size: SIDE, ..PreprocessorConfig::gemma3() };
            let threads = Threads::new(&device, None).expect("threads");
            let options = VisionLoadOptions { precision, ..VisionLoadOptions::default() };
            let model =
                VisionModel::load(&weights, preprocessor, &device, &threads, options).expect("it loads");
            let options = EncodeOptions { cancel: Some(CancelHandle::new()), ..EncodeOptions::default() };
            let encoded = model.encode_one(&image, &options).expect("WebGPU's limits are enough");
            assert_eq!(encoded.soft_token_count(), 4);
        }
    }
    let shaders = browser::check_all();
    assert!(shaders >= 7, "{shaders} shaders were collected");
}
