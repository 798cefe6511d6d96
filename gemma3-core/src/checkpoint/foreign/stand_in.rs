//! Small files that a download leaves where the weights should be.

use crate::checkpoint::CheckpointError;

/// How every Git LFS pointer begins, up to the number of the specification.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Pointers are shorter than this by their specification.
const MAX_POINTER_BYTES: usize = 1024;

/// Refuses the bytes of a file that is a Git LFS pointer, a web page or a server's refusal; `label` names it.
///
/// # Errors
/// [`CheckpointError::GitLfsPointer`] or [`CheckpointError::NotDownloaded`].
pub(in crate::checkpoint) fn reject(label: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
    let file = || label.to_owned();
    if bytes.starts_with(POINTER) {
        return Err(CheckpointError::GitLfsPointer { file: file(), bytes: size_in_pointer(bytes) });
    }
    let start = bytes.trim_ascii_start();
    let begins_with =
        |text: &str| start.get(..text.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(text.as_bytes()));
    if begins_with("<!doctype html") || begins_with("<html") {
        return Err(CheckpointError::NotDownloaded { file: file(), found: "a web page" });
    }
    // What Hugging Face answers in place of a file.
    if ["{\"error\":", "Entry not found", "Invalid username or password", "Access to model"]
        .into_iter()
        .any(begins_with)
    {
        return Err(CheckpointError::NotDownloaded { file: file(), found: "a server's refusal" });
    }
    Ok(())
}

/// The real file's bytes by a pointer's line `size N`.
fn size_in_pointer(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.get(..MAX_POINTER_BYTES).unwrap_or(bytes);
    let lines = bytes.split(|byte| *byte == b'\n');
    let size = lines.filter_map(|line| line.strip_prefix(b"size ")).next()?;
    std::str::from_utf8(size).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_says_how_long_the_real_file_is() {
        for (rest, expected) in [
            ("v1\noid sha256:4d7a\nsize 253113024\n", Some(253_113_024)),
            ("v1\r\noid sha256:4d7a\r\nsize 7\r\n", Some(7)),
            ("v2\noid sha256:4d7a\n", None),
            ("v1\nsize 99999999999999999999999\n", None),
            ("v1\nsize -1\n", None),
            ("v1\nsize ", None),
        ] {
            let pointer = [POINTER, rest.as_bytes()].concat();
            match reject("model.safetensors", &pointer) {
                Err(CheckpointError::GitLfsPointer { bytes, .. }) => assert_eq!(bytes, expected, "{rest}"),
                other => panic!("{rest}: {other:?}"),
            }
        }
    }

    #[test]
    fn pages_and_refusals_are_no_files() {
        for (text, expected) in [
            ("\n<!DOCTYPE html>\n<html>", "a web page"),
            ("<HTML lang=\"en\">", "a web page"),
            ("Entry not found", "a server's refusal"),
            ("{\"error\":\"Access to model google/gemma-3-1b-it is restricted\"}", "a server's refusal"),
        ] {
            match reject("config.json", text.as_bytes()) {
                Err(CheckpointError::NotDownloaded { found, .. }) => assert_eq!(found, expected, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        for text in ["", "<", "GGUF", "{\"error_rate\": 1}", "version 2"] {
            assert!(reject("config.json", text.as_bytes()).is_ok(), "{text}");
        }
    }
}
