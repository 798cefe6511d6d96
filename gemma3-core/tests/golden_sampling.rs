//! Sampling against Hugging Face's processors: which tokens survive, exactly, and with which
//! probabilities.

use std::collections::BTreeSet;
use std::path::PathBuf;

use gemma3_core::sampling::{RandomKey, Sampler, SamplingOptions, TokenHistory};
use serde_json::Value;

const FILE: &str = "sampling.json";

/// The tolerance that the goldens' README states; probabilities there are f64, ours f32.
const PROBABILITY_TOLERANCE: f64 = 1e-6;

fn goldens() -> PathBuf {
    std::env::var_os("GEMMA3_GOLDENS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures"), PathBuf::from)
}

/// The golden file, or `None` (and a line that says so) if the set lacks it.
fn golden_file() -> Option<Value> {
    let path = goldens().join(FILE);
    if !path.is_file() {
        eprintln!("skipped: {} is not in this set of goldens", path.display());
        return None;
    }
    let text = std::fs::read_to_string(&path).expect("the golden file can be read");
    Some(serde_json::from_str(&text).expect("the golden file is JSON"))
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list of numbers");
    list.iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().expect("a list of ids");
    let id = |v: &Value| u32::try_from(v.as_u64().expect("an id")).expect("an id of 32 bits");
    list.iter().map(id).collect()
}

/// Options as a case names them; what it does not name changes nothing.
fn options(case: &Value) -> SamplingOptions {
    let mut options = SamplingOptions::default();
    for (name, value) in case.as_object().expect("options by name") {
        let number = value.as_f64().expect("every option is a number");
        match name.as_str() {
            "temperature" => options.temperature = number as f32,
            "top_k" => options.top_k = number as usize,
            "top_p" => options.top_p = number as f32,
            "min_p" => options.min_p = number as f32,
            "repetition_penalty" => options.repetition_penalty = number as f32,
            other => panic!("the goldens use the option `{other}`, which this test does not know"),
        }
    }
    options
}

#[test]
fn the_surviving_ids_and_their_probabilities_equal_hugging_face() {
    let Some(golden) = golden_file() else { return };
    let logits: Vec<f32> = numbers(&golden["logits"]).iter().map(|&l| l as f32).collect();
    let history = TokenHistory::from_tokens(&ids(&golden["history"]), &[]);
    let cases = golden["cases"].as_array().expect("a list of cases");
    assert!(!cases.is_empty());

    for case in cases {
        let name = &case["options"];
        let sampler = Sampler::new(options(name)).expect("the goldens' options are valid");
        let ours =
            sampler.distribution(&mut logits.clone(), &history).expect("the goldens' logits are finite");
        let kept: Vec<u32> = ours.iter().map(|&(id, _)| id).collect();
        assert_eq!(kept, ids(&case["kept"]), "surviving ids with {name}");
        for ((id, ours), theirs) in ours.into_iter().zip(numbers(&case["probs"])) {
            let difference = (f64::from(ours) - theirs).abs();
            assert!(
                difference <= PROBABILITY_TOLERANCE,
                "probability of {id} with {name}: {ours}, expected {theirs}"
            );
        }
    }
}

#[test]
fn only_surviving_ids_are_drawn() {
    let Some(golden) = golden_file() else { return };
    let logits: Vec<f32> = numbers(&golden["logits"]).iter().map(|&l| l as f32).collect();
    let history = TokenHistory::from_tokens(&ids(&golden["history"]), &[]);

    for case in golden["cases"].as_array().expect("a list of cases") {
        let name = &case["options"];
        let sampler = Sampler::new(options(name)).expect("the goldens' options are valid");
        let kept = BTreeSet::from_iter(ids(&case["kept"]));
        for position in 0..2_000 {
            let key = RandomKey { seed: 3, sequence: 1, position };
            let id =
                sampler.sample(&mut logits.clone(), &history, key).expect("the goldens' logits are finite");
            assert!(kept.contains(&id), "token {id} was drawn with {name}");
        }
    }
}
