//! The three JSON files of settings. Each text is read as each of them.

use gemma3::core::checkpoint::{Checkpoint, TensorFormat, TextTensor};
use gemma3::core::config::{GenerationConfig, ModelConfig};
use gemma3::core::generate::ContinueOptions;
use gemma3::vision::weights::VisionTensor;
use gemma3::vision::{Image, Preprocessor, PreprocessorConfig};

use super::super::bounds::{check_error, within};

/// JSON as values takes many times its text: `[[],[],[]]`.
const BYTES_PER_BYTE: usize = 128;
/// A layer's tensors as entries of a table, for at most 1024 layers.
const LAYER_BYTES: usize = 8 << 10;
/// Images that are prepared for an encoder of another size.
const MOST_IMAGE_SIZE: usize = 64;

/// Reads one text.
pub fn run(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    within(BYTES_PER_BYTE * text.len(), || generation(text));
    within(BYTES_PER_BYTE * text.len(), || preprocessor(text));
    let config = within(BYTES_PER_BYTE * text.len(), || ModelConfig::from_json(text));
    match config {
        Ok(config) => within(LAYER_BYTES * config.text.num_hidden_layers, || model(config)),
        Err(error) => check_error(&error),
    }
}

fn model(config: ModelConfig) {
    config.validate().expect("a configuration that was accepted is valid");
    assert_eq!(config.text.layer_types.len(), config.text.num_hidden_layers);
    assert_eq!(config.vision.is_some(), config.image_tokens.is_some());
    for tensor in TextTensor::all(&config.text) {
        let shape = tensor.shape(&config.text);
        TensorFormat::F32.tensor_bytes(&shape).expect("every matrix fits the address space");
    }
    if let Some(vision) = &config.vision {
        let hidden = config.text.hidden_size;
        assert!(VisionTensor::all(vision).all(|tensor| !tensor.shape(vision, hidden).is_empty()));
    }
    // Of the true sizes, without their weights.
    let checkpoint = Checkpoint::random(config.text, TensorFormat::F32, 0).expect("a valid configuration");
    assert!(checkpoint.total_weight_bytes() > 0);
}

fn generation(text: &str) {
    match GenerationConfig::from_json(text) {
        Ok(config) => {
            let model = ModelConfig::from_text(gemma3::core::config::TextConfig::gemma3_270m());
            let options = ContinueOptions::for_model(&model, &config);
            assert!(config.eos_token_ids.iter().all(|id| options.stop_token_ids.contains(id)));
            // What the sampler can't follow is an error when it is used.
            if let Err(error) = options.sampling.validate() {
                check_error(&error);
            }
        }
        Err(error) => check_error(&error),
    }
}

fn preprocessor(text: &str) {
    let config = match PreprocessorConfig::from_json(text) {
        Ok(config) => config,
        Err(error) => return check_error(&error),
    };
    let preprocessor = Preprocessor::new(config).expect("settings that were accepted are valid");
    if config.image_size <= MOST_IMAGE_SIZE {
        let image = Image::from_rgb8(2, 1, vec![0, 1, 127, 128, 254, 255]).expect("an image");
        let values = preprocessor.pixel_values(&image);
        assert_eq!(values.len(), 3 * config.image_size * config.image_size);
        assert!(values.iter().all(|value| value.is_finite()), "{config:?}");
    }
}
