//! Well-formed inputs to begin with: built here, or read from the test fixtures.

mod gguf;
mod image;
mod safetensors;
mod template;
mod tokenizer;

pub use gguf::gguf;
pub use image::image;
pub use safetensors::{TINY_CONFIG, safetensors, tiny_shards};
pub use template::chat_template;
pub use tokenizer::tokenizer;

use std::path::{Path, PathBuf};

/// The repository: this package's folder, or the one around it.
fn repository() -> PathBuf {
    let is_root = |folder: &&Path| folder.join("tests/fixtures").is_dir();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(is_root);
    root.expect("a folder with tests/fixtures").to_owned()
}

fn read(path: &str) -> Vec<u8> {
    let path = repository().join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files of a folder, in the order of their names.
fn read_folder(folder: &str) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(repository().join(folder)).expect("a folder of fixtures");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a fixture")).collect()
}

/// Configurations of all published sizes and of the tiny models, and their other settings.
pub fn config() -> Vec<Vec<u8>> {
    let mut seeds = read_folder("gemma3-core/tests/configs");
    for folder in ["tiny-text", "tiny-multimodal"] {
        for name in ["config.json", "generation_config.json"] {
            seeds.push(read(&format!("tests/fixtures/{folder}/{name}")));
        }
    }
    seeds.push(read("tests/fixtures/tiny-multimodal/preprocessor_config.json"));
    seeds
}
