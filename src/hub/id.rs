//! The names of models on the hub.

use std::fmt;
use std::str::FromStr;

use super::HubError;

/// A model on the hub: `owner/name[@revision]` for a repository in the format of transformers, or
/// `owner/name/file.gguf[@revision]` for one file.
///
/// Every part is checked, since the parts become paths on this machine and in addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId {
    /// `owner/name`.
    pub repository: String,
    /// Path of a GGUF file inside the repository.
    pub file: Option<String>,
    /// Branch, tag or commit.
    pub revision: Option<String>,
}

impl FromStr for ModelId {
    type Err = HubError;

    fn from_str(id: &str) -> Result<Self, HubError> {
        let invalid = |reason| HubError::InvalidId { id: id.chars().take(200).collect(), reason };
        let (path, revision) = match id.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (id, None),
        };
        if let Some(revision) = revision
            && !is_safe_path(revision)
        {
            return Err(invalid("the revision after `@` is empty or has characters that no branch has"));
        }
        if !is_safe_path(path) {
            return Err(invalid(
                "a part is empty, starts with a dot, or has other characters than A-Z a-z 0-9 . _ -",
            ));
        }
        let mut parts = path.splitn(3, '/');
        let (Some(owner), Some(name)) = (parts.next(), parts.next()) else {
            return Err(invalid("the owner before `/` is missing"));
        };
        let file = parts.next();
        if file.is_some_and(|file| !is_gguf(file)) {
            return Err(invalid("only a file that ends in .gguf can be named after `owner/name/`"));
        }
        Ok(Self {
            repository: format!("{owner}/{name}"),
            file: file.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

pub(super) fn is_gguf(file: &str) -> bool {
    file.len() > 5 && file.is_char_boundary(file.len() - 5) && {
        file[file.len() - 5..].eq_ignore_ascii_case(".gguf")
    }
}

/// Whether a text is a relative path that cannot leave its folder nor mean anything else in an
/// address: parts of plain characters, none of which begins with a dot.
pub(super) fn is_safe_path(path: &str) -> bool {
    path.len() <= 512 && path.split('/').all(is_safe_name)
}

pub(super) fn is_safe_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Whether a text is a commit: 40 or 64 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(id: &str) -> (String, Option<String>, Option<String>) {
        let id: ModelId = id.parse().unwrap();
        (id.repository, id.file, id.revision)
    }

    #[test]
    fn an_id_is_owner_and_name_with_file_and_revision_if_given() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts("google/gemma-3-1b-it"), ("google/gemma-3-1b-it".into(), None, None));
        assert_eq!(
            parts("google/gemma-3-1b-it@refs/pr/2"),
            ("google/gemma-3-1b-it".into(), None, some("refs/pr/2"))
        );
        assert_eq!(
            parts("o/n/q4/model-Q4_0.GGUF@main"),
            ("o/n".into(), some("q4/model-Q4_0.GGUF"), some("main"))
        );
        let id: ModelId = "o/n/a.gguf@v1".parse().unwrap();
        assert_eq!(id.to_string(), "o/n/a.gguf@v1");
    }

    #[test]
    fn ids_that_could_leave_their_folder_or_change_an_address_are_errors() {
        for id in [
            "",
            "gemma",
            "/",
            "a/",
            "/b",
            "a//b",
            "../b",
            "a/..",
            "a/.hidden",
            "a/b/../c.gguf",
            "a/b/c.bin",
            "a/b/.gguf",
            "a/b@",
            "a/b@../x",
            "a/b@x@y",
            "a/b?c",
            "a/b#c",
            "a\\b/c",
            "a/b c",
            "http://a/b",
            "C:/b",
            "a/b\u{0}",
            "ä/b",
        ] {
            let result = id.parse::<ModelId>();
            assert!(matches!(result, Err(HubError::InvalidId { .. })), "{id:?} gave {result:?}");
        }
        assert!("a/".repeat(600).parse::<ModelId>().is_err());
    }
}
