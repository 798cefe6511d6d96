//! Prompts whose images are given as the reference's soft tokens: placed by this crate, computed by the
//! decoder, compared with Hugging Face transformers.

#[path = "../../gemma3-core/tests/common/mod.rs"]
mod common;

use burn::tensor::{Tensor, TensorData};
use common::{Tensors, assert_close, devices, golden, golden_json, ids};
use gemma3_core::Device;
use gemma3_core::cache::CacheOptions;
use gemma3_core::model::{Segment, SegmentInput};
use gemma3_vision::{SoftTokens, SoftTokensError, place};

/// The soft tokens of a case, one entry an image: the golden is [images, tokens, hidden].
fn soft_tokens(tensors: &Tensors, case: &str, device: &Device) -> Option<Vec<SoftTokens>> {
    let (shape, values) = tensors.get(&format!("{case}.projector.output"))?;
    let [tokens, hidden] = [shape[1], shape[2]];
    let image =
        |values: &[f32]| Tensor::from_data(TensorData::new(values.to_vec(), [tokens, hidden]), device);
    Some(values.chunks_exact(tokens * hidden).map(|values| SoftTokens::new(image(values))).collect())
}

/// Tolerance 2e-4 on logits, as for the text goldens. Another mask inside the images moves them by far more.
#[test]
fn given_the_soft_tokens_a_prompt_with_images_equals_the_reference() {
    let (Some(folder), Some(index), Some(tensors)) = (
        golden("tiny-multimodal"),
        golden_json("tiny-multimodal.json"),
        Tensors::open("tiny-multimodal.safetensors"),
    ) else {
        return;
    };
    let placeholder = index["ids"]["image"].as_u64().expect("the image id") as u32;
    for (name, device) in devices() {
        println!("on {name}");
        let model = common::load(&folder, &device);
        for (case, golden) in index["cases"].as_object().expect("cases") {
            let Some(images) = soft_tokens(&tensors, case, &device) else { continue };
            let input = ids(&golden["input_ids"]);
            let embeddings = model.decoder().embed(&input).expect("embeddings");
            let prompt = place(embeddings, &input, placeholder, &images).expect("a prompt");
            assert_eq!(prompt.images.len(), images.len(), "{case}");
            let options = CacheOptions { capacity: Some(input.len()), chunk: input.len() };
            let mut cache = model.new_cache(&options).expect("a cache");
            let input = SegmentInput::Embeddings { vectors: prompt.vectors, images: prompt.images };
            let rows =
                model.forward_all(&mut [Segment { input, cache: &mut cache }]).expect("a forward pass");
            let expected = tensors.values(&format!("{case}.logits"));
            assert_close(&format!("{case}.logits"), &rows.concat(), &expected, 2e-4);
        }
    }
}

#[test]
fn images_that_do_not_fit_their_places_are_errors() {
    let (_, device) = devices().swap_remove(0);
    let vectors = |rows: usize, width: usize| Tensor::<2>::zeros([rows, width], &device);
    let image = |tokens| SoftTokens::new(vectors(tokens, 3));
    let prompt = [1, 9, 9, 2, 9, 9];
    let place = |images: &[SoftTokens]| place(vectors(6, 3), &prompt, 9, images).map(|placed| placed.images);
    assert_eq!(place(&[image(2), image(2)]), Ok(vec![1..3, 4..6]));
    assert_eq!(place(&[image(4)]), Err(SoftTokensError::CountMismatch { placeholders: 4, soft_tokens: 4 }));
    assert_eq!(place(&[]), Err(SoftTokensError::CountMismatch { placeholders: 4, soft_tokens: 0 }));
    let mismatch = SoftTokensError::RunMismatch { image: 1, soft_tokens: 1, placeholders: 2 };
    assert_eq!(place(&[image(2), image(1)]), Err(mismatch));
    let wide = SoftTokens::new(vectors(2, 4));
    let mismatch = SoftTokensError::ShapeMismatch { expected: [6, 4], found: [6, 3] };
    assert_eq!(place(&[image(2), wide]), Err(mismatch));
    let unfilled = gemma3_vision::place(vectors(2, 3), &[1, 2], 9, &[]).expect("text alone");
    assert_eq!(unfilled.vectors.dims(), [2, 3]);
}
