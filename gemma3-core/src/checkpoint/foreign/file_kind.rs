//! Files that are neither safetensors nor GGUF, by their first bytes and their extension.

use std::path::Path;

/// What a file is, and how to come from it to one that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::checkpoint) struct FileKind {
    /// With its article: "a PyTorch file".
    pub(in crate::checkpoint) found: String,
    /// What to do.
    pub(in crate::checkpoint) advice: &'static str,
}

const CONVERT: &str = "convert the model to safetensors (transformers: `from_pretrained(folder)`, then \
    `save_pretrained(folder)`)";
const TAKE_ORIGINAL: &str = "take the model's safetensors, or a GGUF file of it";
const UNPACK: &str = "unpack it and name what is inside";
const NAME_ITS_FOLDER: &str = "name its folder";
const DOWNLOAD_AGAIN: &str = "download it again";
const RENAME: &str = "rename it to end in .safetensors";
const OTHER: &str = "name one of those";

/// How some files begin, with their kind.
const BY_CONTENTS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"LITERTLM", "a LiteRT-LM bundle", TAKE_ORIGINAL),
    (4, b"TFL3", "a TensorFlow Lite model", TAKE_ORIGINAL),
    (0, b"\x89HDF", "a Keras file", TAKE_ORIGINAL),
    (0, b"tjgg", "a GGML file of before GGUF", TAKE_ORIGINAL),
    (0, b"fmgg", "a GGML file of before GGUF", TAKE_ORIGINAL),
    (0, b"lmgg", "a GGML file of before GGUF", TAKE_ORIGINAL),
    (0, b"\x1F\x8B", "a compressed archive", UNPACK),
];

/// Extensions in lower case, with their kind.
const BY_EXTENSION: &[(&[&str], &str, &str)] = &[
    (&["bin", "pt", "pth", "ckpt"], "a PyTorch file", CONVERT),
    (&["onnx", "onnx_data"], "an ONNX model", TAKE_ORIGINAL),
    (&["task"], "a MediaPipe bundle", TAKE_ORIGINAL),
    (&["litertlm"], "a LiteRT-LM bundle", TAKE_ORIGINAL),
    (&["tflite"], "a TensorFlow Lite model", TAKE_ORIGINAL),
    (&["h5", "keras"], "a Keras file", TAKE_ORIGINAL),
    (&["msgpack"], "a Flax file", TAKE_ORIGINAL),
    (&["npz", "npy"], "a NumPy file", TAKE_ORIGINAL),
    (&["zip", "gz", "tgz", "tar", "7z", "zst"], "an archive", UNPACK),
    (&["json"], "a JSON file", NAME_ITS_FOLDER),
    (&["model"], "a SentencePiece vocabulary", NAME_ITS_FOLDER),
];

impl FileKind {
    /// The kind of a file that was opened as a model and is none.
    pub(in crate::checkpoint) fn of(path: &Path, bytes: &[u8]) -> Self {
        let extension = extension_of(path);
        if extension.as_deref() == Some("gguf") {
            let begin = bytes.get(..4).unwrap_or(bytes).escape_ascii();
            let found = format!("a .gguf file that begins with \"{begin}\" instead of \"GGUF\"");
            return Self { found, advice: DOWNLOAD_AGAIN };
        }
        if let Some(kind) = Self::by_contents(bytes).or_else(|| Self::by_name(path)) {
            return kind;
        }
        if bytes.starts_with(b"PK\x03\x04") {
            return Self { found: "a zip archive".to_owned(), advice: UNPACK };
        }
        if bytes.get(8) == Some(&b'{') {
            // Eight bytes of length, then JSON: weights under a name such as a download's hash.
            return Self { found: "what begins like a safetensors file".to_owned(), advice: RENAME };
        }
        let found = match extension {
            Some(extension) => format!("a .{} file", shown(&extension)),
            None => "a file without extension".to_owned(),
        };
        Self { found, advice: OTHER }
    }

    /// The kind of a file by its name alone; `None` for a name that says nothing.
    pub(in crate::checkpoint) fn by_name(path: &Path) -> Option<Self> {
        let extension = extension_of(path)?;
        let has = |extensions: &[&str]| extensions.contains(&extension.as_str());
        let (_, found, advice) = BY_EXTENSION.iter().find(|(extensions, ..)| has(extensions))?;
        Some(Self { found: (*found).to_owned(), advice })
    }

    /// Whether the file may be what a folder has in place of weights that are read.
    pub(in crate::checkpoint) fn holds_weights(&self) -> bool {
        self.advice != NAME_ITS_FOLDER
    }

    fn by_contents(bytes: &[u8]) -> Option<Self> {
        let begins = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
        let (.., found, advice) = BY_CONTENTS.iter().find(|(at, magic, ..)| begins(*at, magic))?;
        Some(Self { found: (*found).to_owned(), advice })
    }
}

fn extension_of(path: &Path) -> Option<String> {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase())
}

/// A name out of a file or folder for a message: escaped, and cut where it would be long.
pub(in crate::checkpoint) fn shown(name: &str) -> String {
    const LONGEST: usize = 120;
    match name.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}...", name.get(..cut).unwrap_or_default().escape_debug()),
        None => name.escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_by_contents_then_by_extension() {
        for (name, bytes, expected) in [
            ("weights.bin", &b"PK\x03\x04"[..], "a PyTorch file"),
            ("weights.bin", b"LITERTLM\0", "a LiteRT-LM bundle"),
            ("gemma.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
            ("gemma.task", b"PK\x03\x04", "a MediaPipe bundle"),
            ("model.ONNX", b"\x08\x07", "an ONNX model"),
            ("model", b"PK\x03\x04", "a zip archive"),
            ("5f2c", b"\x10\0\0\0\0\0\0\0{\"a\"", "what begins like a safetensors file"),
            ("notes.txt", b"hello", "a .txt file"),
            ("notes", b"", "a file without extension"),
            ("cut.gguf", b"GG", "a .gguf file that begins with \"GG\" instead of \"GGUF\""),
        ] {
            assert_eq!(FileKind::of(Path::new(name), bytes).found, expected, "{name}");
        }
    }

    #[test]
    fn names_are_escaped_and_cut() {
        assert_eq!(shown("a\nb"), "a\\nb");
        assert_eq!(shown(&"ä".repeat(200)), format!("{}...", "ä".repeat(120)));
    }
}
