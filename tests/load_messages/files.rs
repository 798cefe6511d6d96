//! Makes the files of a fault out of the tiny checkpoints.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tempfile::TempDir;

/// What is opened.
pub struct Opened {
    pub model: PathBuf,
    pub mmproj: Option<PathBuf>,
}

impl From<PathBuf> for Opened {
    fn from(model: PathBuf) -> Self {
        Self { model, mmproj: None }
    }
}

/// A folder that is gone at the end of a test.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// A copy of a fixture's folder.
    pub fn with(fixture: &str) -> Self {
        let folder = Self::new();
        folder.fill(fixture);
        folder
    }

    /// Copies the files of a fixture's folder; gives its own path.
    pub fn fill(&self, fixture: &str) -> PathBuf {
        for entry in std::fs::read_dir(fixtures().join(fixture)).expect("the fixture") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), self.path(entry.file_name())).expect("a copy");
        }
        self.root()
    }

    /// [`fill`](Self::fill), then a change of one file.
    pub fn spoiled(&self, name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Opened {
        self.fill("tiny-text");
        self.write(name, change(std::fs::read(self.path(name)).unwrap_or_default()));
        self.root().into()
    }

    /// [`fill`](Self::fill) with a field of `config.json` set.
    pub fn configured(&self, field: &str, value: Value) -> Opened {
        self.spoiled("config.json", |bytes| {
            let mut config: Value = serde_json::from_slice(&bytes).expect("JSON");
            config[field] = value;
            config.to_string().into_bytes()
        })
    }

    /// [`fill`](Self::fill) with a change of the header of its weights.
    pub fn with_header(&self, change: impl FnOnce(&mut Map<String, Value>)) -> Opened {
        self.spoiled("model.safetensors", |bytes| with_header(&bytes, change))
    }

    pub fn root(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, bytes).expect("a file");
        path
    }

    /// Copies a fixture's file.
    pub fn copy(&self, fixture: &str, name: &str) -> PathBuf {
        self.write(name, std::fs::read(fixtures().join(fixture)).expect("the fixture"))
    }

    pub fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.path(from), self.path(to)).expect("a file");
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).expect("a file");
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Safetensors with another header; the data stay where they are.
fn with_header(bytes: &[u8], change: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
    let (length, rest) = bytes.split_first_chunk().expect("a length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: Map<String, Value> = serde_json::from_slice(header).expect("a header");
    change(&mut header);
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Gives a tensor of a header another name.
pub fn rename(header: &mut Map<String, Value>, from: &str, to: &str) {
    let tensor = header.remove(from).expect("the tensor");
    header.insert(to.to_owned(), tensor);
}

/// What Git leaves in place of a large file.
pub const GIT_LFS_POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 536223056\n";
