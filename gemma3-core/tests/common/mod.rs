//! What the tests of this crate share: where the goldens are, which devices to run on, and how to
//! compare.
//!
//! - `GEMMA3_GOLDENS`: folder of the goldens (default: `tests/fixtures` of the workspace). A file that
//!   it lacks is skipped by name.
//! - `GEMMA3_DEVICES`: comma-separated names of the devices to run on (default: all that are built in).
//! - `GEMMA3_REQUIRE`: comma-separated names of devices, `model`, `tokenizer`, `examples`: if one of these is
//!   missing, the test fails instead of skipping it.
#![allow(dead_code)] // Each test file uses a part.

use std::path::{Path, PathBuf};

use gemma3_core::Device;
use gemma3_core::checkpoint::Checkpoint;
use gemma3_core::device;
use gemma3_core::model::{LoadOptions, Model};
use gemma3_core::ops::Precision;
use serde_json::Value;

/// Whether `GEMMA3_REQUIRE` names it.
pub fn is_required(name: &str) -> bool {
    std::env::var("GEMMA3_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item.trim() == name))
}

/// Reports something that is not there: a failure if it is required, a line otherwise.
pub fn skip(name: &str, why: &str) {
    assert!(!is_required(name), "GEMMA3_REQUIRE names `{name}`, but {why}");
    println!("skipped: {name}: {why}");
}

/// Every device to test on, by name.
pub fn devices() -> Vec<(&'static str, Device)> {
    let wanted = std::env::var("GEMMA3_DEVICES").ok();
    let is_wanted =
        |name: &str| wanted.as_ref().is_none_or(|list| list.split(',').any(|item| item.trim() == name));
    let mut found = Vec::new();
    for name in device::NAMES {
        if !is_wanted(name) {
            continue;
        }
        match device::open(name) {
            Ok(device) => found.push((name, device)),
            Err(error) => skip(name, &error.to_string()),
        }
    }
    assert!(!found.is_empty(), "no device to test on");
    found
}

/// The folder of the goldens.
pub fn goldens() -> PathBuf {
    std::env::var_os("GEMMA3_GOLDENS").map_or_else(|| workspace().join("tests/fixtures"), PathBuf::from)
}

/// The root of the workspace, from any of its packages.
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_root = |folder: &&Path| folder.join("gemma3-core").is_dir();
    package.ancestors().find(is_root).unwrap_or(package).to_owned()
}

/// A file or folder of the goldens, or a named skip.
pub fn golden(name: &str) -> Option<PathBuf> {
    let path = goldens().join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {name}: not in {}", goldens().display());
    None
}

/// A JSON file of the goldens.
pub fn golden_json(name: &str) -> Option<Value> {
    let text = std::fs::read_to_string(golden(name)?).expect("a readable golden");
    Some(serde_json::from_str(&text).expect("a golden in JSON"))
}

/// The tensors of a safetensors file of the goldens.
pub struct Tensors {
    bytes: Vec<u8>,
}

impl Tensors {
    pub fn open(name: &str) -> Option<Self> {
        Some(Self { bytes: std::fs::read(golden(name)?).expect("a readable golden") })
    }

    /// Shape and values of a tensor, if the file has it.
    pub fn get(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).expect("a golden in safetensors");
        let view = file.tensor(name).ok()?;
        assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
        let values =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Some((view.shape().to_vec(), values))
    }

    /// Values of a tensor that must be there.
    pub fn values(&self, name: &str) -> Vec<f32> {
        self.get(name).unwrap_or_else(|| panic!("the golden lacks {name}")).1
    }

    pub fn names(&self) -> Vec<String> {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).expect("a golden in safetensors");
        file.names().into_iter().map(|name| name.to_string()).collect()
    }
}

/// A list of token ids in JSON.
pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list of ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// A list of numbers in JSON.
pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list of numbers").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// The largest absolute difference, with NaN counted as infinite.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "compared lengths");
    a.iter().zip(b).fold(0.0, |max, (a, b)| {
        let difference = (a - b).abs();
        if difference.is_nan() && a != b { f32::INFINITY } else { max.max(difference) }
    })
}

/// Fails unless every value is within `tolerance`.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let difference = max_difference(found, expected);
    assert!(difference <= tolerance, "{what}: differs by {difference:e}, more than {tolerance:e}");
}

/// The precision in which the goldens are compared.
pub fn exact() -> LoadOptions<'static> {
    LoadOptions { precision: Precision::Exact, ..LoadOptions::default() }
}

/// Loads a checkpoint of the goldens onto a device, exact.
pub fn load(path: &Path, device: &Device) -> Model {
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Model::load(&checkpoint, device, exact()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
