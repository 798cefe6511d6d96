//! Safetensors files beside a fixed configuration; text that begins like JSON is the index of a folder.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use gemma3::core::checkpoint::Checkpoint;
use tempfile::TempDir;

use super::super::bounds::within;
use super::super::seeds::{TINY_CONFIG, tiny_shards};
use super::checkpoint;

/// The header is parsed twice, and its names and shapes kept.
const BYTES_PER_BYTE: usize = 64;

/// Reads one file.
pub fn run(file: &[u8]) {
    if file.first() == Some(&b'{') {
        return index(file);
    }
    within(BYTES_PER_BYTE * file.len(), || {
        let opened = Checkpoint::from_safetensors_bytes(TINY_CONFIG, None, [file.to_vec()]);
        checkpoint::check(opened, file.len());
    });
}

/// A folder with a model of two shards, which the index under test is put into.
struct Folder {
    folder: TempDir,
    shard_bytes: usize,
}

fn index(file: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).expect("a file");
        write("config.json", TINY_CONFIG.as_bytes());
        let shards = tiny_shards();
        for (name, bytes) in &shards {
            write(name, bytes);
        }
        Folder { shard_bytes: shards.iter().map(|(_, bytes)| bytes.len()).sum(), folder }
    });
    let Folder { folder, shard_bytes } = &*FOLDER;
    let path: &Path = folder.path();
    fs::write(path.join("model.safetensors.index.json"), file).expect("a file");
    within(BYTES_PER_BYTE * (file.len() + shard_bytes), || {
        checkpoint::check(Checkpoint::open(path), *shard_bytes);
    });
}
