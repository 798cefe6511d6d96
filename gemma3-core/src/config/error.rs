//! Why a configuration was refused.

use thiserror::Error;

use super::json::shorten;

/// Why a configuration was refused. Every variant names the field, by its path in the file
/// (`text_config.rope_scaling.factor`).
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ConfigError {
    /// The text is not JSON (or names a field twice).
    #[error("not valid JSON: {problem}; check that the file was downloaded completely")]
    Json {
        /// What the parser says, with line and column.
        problem: String,
    },
    /// A field without which the model is not determined is absent.
    #[error("field `{field}` is missing: expected {expected}; {advice}")]
    MissingField {
        /// Path of the field.
        field: String,
        /// What it should hold.
        expected: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A field holds a value of another type or outside its range.
    #[error("field `{field}`: expected {expected}, found {found}; correct the file")]
    InvalidField {
        /// Path of the field.
        field: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The file is well-formed but describes a model that this crate doesn't compute.
    #[error(
        "field `{field}`: {found} is not supported, expected {expected}; use a Gemma 3 text or \
         image-text checkpoint"
    )]
    Unsupported {
        /// Path of the field.
        field: String,
        /// What it holds.
        found: String,
        /// What this crate computes.
        expected: String,
    },
}

impl ConfigError {
    /// An [`ConfigError::InvalidField`] for a value that can be displayed.
    pub(crate) fn invalid(
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Self {
        Self::InvalidField {
            field: field.into(),
            expected: expected.into(),
            found: shorten(&found.to_string()),
        }
    }

    /// An [`ConfigError::Unsupported`] for a value that can be displayed.
    pub(crate) fn unsupported(
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Self {
        Self::Unsupported {
            field: field.into(),
            expected: expected.into(),
            found: shorten(&found.to_string()),
        }
    }
}
