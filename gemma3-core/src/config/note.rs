//! What is odd about a configuration and doesn't keep the model from running.

/// A remark on a field. [`crate::checkpoint`] makes a warning of it, with the name of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) topic: Topic,
    /// The field and what it holds.
    pub(crate) problem: String,
    /// What follows from it.
    pub(crate) effect: String,
}

/// What a [`Note`] concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topic {
    /// A recommended setting of sampling.
    Recommendation,
    /// A field that Gemma 3 doesn't use.
    IgnoredField,
    /// The id of a token with a meaning.
    SpecialToken,
}

impl Note {
    /// A remark on the field at a path, which was expected to hold one thing and holds another.
    pub(crate) fn on(
        topic: Topic,
        field: &str,
        expected: &str,
        found: &str,
        effect: impl Into<String>,
    ) -> Self {
        let problem = format!("field `{field}`: expected {expected}, found {found}");
        Self { topic, problem, effect: effect.into() }
    }
}
