//! Rope tables of the released shapes against the reference.
//!
//! The tensors of `rope.safetensors` are named by what they are: `d256_x8.global.cos` is a head of 256,
//! linear factor 8, a global layer. Local layers are never scaled.

mod common;

use common::{Tensors, golden_json};
use gemma3_core::model::RotaryEmbedding;

#[test]
fn frequencies_cosines_and_sines_equal_the_reference() {
    let (Some(index), Some(tensors)) = (golden_json("rope.json"), Tensors::open("rope.safetensors")) else {
        return;
    };
    let positions: Vec<usize> = common::ids(&index["positions"]).into_iter().map(|p| p as usize).collect();
    let mut cases = 0;
    for name in tensors.names() {
        let Some(case) = name.strip_suffix(".inv_freq") else {
            continue;
        };
        check(case, &rope_of(case), &positions, &tensors);
        cases += 1;
    }
    assert!(cases > 0, "rope.safetensors holds no case");
}

/// The embedding that a case's name describes.
fn rope_of(case: &str) -> RotaryEmbedding {
    let (shape, layers) = case.split_once('.').expect("`shape.layers`");
    let shape = shape.strip_prefix('d').expect("`d` and the head's width");
    let (head_dim, factor) = shape.split_once("_x").unwrap_or((shape, "1"));
    let head_dim = head_dim.parse().expect("a width");
    match layers {
        "global" => RotaryEmbedding::new(head_dim, 1e6, factor.parse().expect("a factor")),
        "local" => RotaryEmbedding::new(head_dim, 1e4, 1.0),
        other => panic!("layers `{other}`"),
    }
}

fn check(case: &str, rope: &RotaryEmbedding, positions: &[usize], tensors: &Tensors) {
    let inv_freq = tensors.values(&format!("{case}.inv_freq"));
    assert_eq!(rope.inv_freq().len(), inv_freq.len(), "{case}");
    for (found, expected) in rope.inv_freq().iter().zip(&inv_freq) {
        // 2 ulp of pow.
        assert!((found - expected).abs() <= 2.4e-7 * expected, "{case}: {found} for {expected}");
    }
    let half = inv_freq.len();
    let (cos, sin) = (tensors.values(&format!("{case}.cos")), tensors.values(&format!("{case}.sin")));
    for (row, position) in positions.iter().enumerate() {
        let (found_cos, found_sin) = rope.cos_sin(*position);
        // An ulp of inv_freq moves the angle by an ulp of the position.
        let tolerance = 1e-6 + 1.2e-7 * *position as f32;
        let row = row * half..(row + 1) * half;
        common::assert_close(&format!("{case}.cos at {position}"), &found_cos, &cos[row.clone()], tolerance);
        common::assert_close(&format!("{case}.sin at {position}"), &found_sin, &sin[row], tolerance);
    }
}
