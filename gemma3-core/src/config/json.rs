//! JSON with errors that name the field: parsing that refuses repeated keys, and typed access by
//! path.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{ConfigError, Note, Topic};

/// Parses JSON, refusing an object that names a key twice: readers disagree on which one counts,
/// so such a file means different models to different programs.
pub(crate) fn parse(text: &str) -> Result<Value, ConfigError> {
    let refused =
        |error: serde_json::Error| ConfigError::Json { problem: shorten_sentence(&error.to_string()) };
    serde_json::from_str::<UniqueKeys>(text).map_err(refused)?;
    serde_json::from_str(text).map_err(refused)
}

/// JSON in which no object repeats a key; holds nothing. Nesting is bounded by `serde_json` (128).
///
/// A pass of its own, because how numbers reach a visitor depends on features of `serde_json` that
/// the host application chooses.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = Self;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self, A::Error> {
        while sequence.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            entries.next_value::<Self>()?;
            if let Some(key) = keys.replace(key) {
                return Err(A::Error::custom(format!("key `{}` appears twice", shorten(&key))));
            }
        }
        Ok(self)
    }
}

/// An object of the file together with its path, so that errors can name fields. A field that is
/// `null` counts as absent, but for [`Fields::refuse_null`].
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    /// The fields of `value`, which lies at `path` (empty for the file itself).
    pub(crate) fn new(value: &'a Value, path: &'a str) -> Result<Self, ConfigError> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(ConfigError::invalid(
                if path.is_empty() { "(the file)" } else { path },
                "an object",
                brief(other),
            )),
        }
    }

    /// The path of `name`, for errors.
    pub(crate) fn field(&self, name: &str) -> String {
        match self.path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// The raw value, unless absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Fails if a field is there and null. transformers has a default for a field that is absent; one
    /// that is null it takes as it is, and computes something else than with the default, or fails.
    pub(crate) fn refuse_null(&self, name: &str, expected: &str) -> Result<(), ConfigError> {
        match self.map.get(name) {
            Some(Value::Null) => Err(ConfigError::invalid(self.field(name), expected, "null")),
            _ => Ok(()),
        }
    }

    /// A non-negative integer, or the default where it is absent; null is an error.
    pub(crate) fn size_or(&self, name: &str, default: usize) -> Result<usize, ConfigError> {
        self.refuse_null(name, "a non-negative integer")?;
        Ok(self.size(name)?.unwrap_or(default))
    }

    /// A number, or the default where it is absent; null is an error.
    pub(crate) fn number_or(&self, name: &str, default: f64) -> Result<f64, ConfigError> {
        self.refuse_null(name, "a number")?;
        Ok(self.number(name)?.unwrap_or(default))
    }

    /// The first of several names of one field that is present.
    pub(crate) fn first<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &'a Value)> {
        names.iter().find_map(|name| self.get(name).map(|value| (*name, value)))
    }

    /// A non-negative integer; `640.0` counts as one.
    pub(crate) fn size(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        self.get(name)
            .map(|value| size(value).ok_or_else(|| self.invalid(name, "a non-negative integer", value)))
            .transpose()
    }

    /// A token id.
    pub(crate) fn token(&self, name: &str) -> Result<Option<u32>, ConfigError> {
        self.get(name)
            .map(|value| token(value).ok_or_else(|| self.invalid(name, "a token id (0 to 2^32-1)", value)))
            .transpose()
    }

    /// A token id that the model's numbers don't depend on: what is no id is noted and passed over.
    pub(crate) fn special_token(&self, name: &str, notes: &mut Vec<Note>) -> Option<u32> {
        let value = self.get(name)?;
        let id = token(value);
        if id.is_none() {
            notes.push(Note::on(
                Topic::SpecialToken,
                &self.field(name),
                "a token id (0 to 2^32-1)",
                &brief(value),
                "it is passed over",
            ));
        }
        id
    }

    /// One token id or a list of them, without duplicates, in order. What is no id is noted and passed
    /// over, the others count.
    pub(crate) fn special_tokens(&self, name: &str, topic: Topic, notes: &mut Vec<Note>) -> Vec<u32> {
        let Some(value) = self.get(name) else {
            return Vec::new();
        };
        let values = match value {
            Value::Array(values) => values.as_slice(),
            single => std::slice::from_ref(single),
        };
        if let Some(other) = values.iter().find(|value| token(value).is_none()) {
            notes.push(Note::on(
                topic,
                &self.field(name),
                "a token id or a list of token ids",
                &brief(other),
                "what is no token id is passed over",
            ));
        }
        let mut seen = HashSet::new();
        values.iter().filter_map(token).filter(|id| seen.insert(*id)).collect()
    }

    /// A number, integer or not.
    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        self.get(name)
            .map(|value| value.as_f64().ok_or_else(|| self.invalid(name, "a number", value)))
            .transpose()
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        self.get(name)
            .map(|value| value.as_bool().ok_or_else(|| self.invalid(name, "true or false", value)))
            .transpose()
    }

    /// A string.
    pub(crate) fn string(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        self.get(name)
            .map(|value| value.as_str().ok_or_else(|| self.invalid(name, "a string", value)))
            .transpose()
    }

    fn invalid(&self, name: &str, expected: &str, found: &Value) -> ConfigError {
        ConfigError::invalid(self.field(name), expected, brief(found))
    }
}

/// A value as text for an error, cut where a hostile file would make it long.
pub(crate) fn brief(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("a list of {} values", values.len()),
        Value::Object(map) => format!("an object of {} fields", map.len()),
        other => shorten(&other.to_string()),
    }
}

/// A word of a file for an error: cut where a hostile file would make it long, and without characters that a
/// terminal obeys.
pub(crate) fn shorten(word: &str) -> String {
    shorten_to(word, 80)
}

/// [`shorten`] for a sentence that may contain words of a file.
pub(crate) fn shorten_sentence(sentence: &str) -> String {
    shorten_to(sentence, 400)
}

fn shorten_to(text: &str, longest: usize) -> String {
    let mut shortened = String::new();
    for character in text.chars().take(longest) {
        match character.is_control() {
            true => shortened.extend(character.escape_default()),
            false => shortened.push(character),
        }
    }
    if text.chars().nth(longest).is_some() {
        shortened.push_str("...");
    }
    shortened
}

/// A non-negative integer; `640.0` counts as one.
pub(super) fn size(value: &Value) -> Option<usize> {
    integer(value).and_then(|number| usize::try_from(number).ok())
}

fn token(value: &Value) -> Option<u32> {
    integer(value).and_then(|number| u32::try_from(number).ok())
}

fn integer(value: &Value) -> Option<u64> {
    /// The largest f64 below which every integer is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && (0.0..=EXACT).contains(&number)).then_some(number as u64)
    })
}
