//! `generation_config.json`: what a model's authors recommend for sampling.

use serde_json::Value;

use super::json::{self, Fields, brief};
use super::{ConfigError, Note, Topic};

/// A model's own sampling defaults. `None` means that the file doesn't say (as does an absent
/// file); what then holds is decided where text is generated.
///
/// The numbers are those of the file, also outside of the range in which they mean something: a
/// recommendation doesn't keep a model from loading, and whoever doesn't follow it isn't concerned.
/// [`SamplingOptions::validate`](crate::sampling::SamplingOptions::validate) refuses them where
/// they are used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Sample (`true`) or take the most likely token.
    pub do_sample: Option<bool>,
    /// Divides the logits. Should be at least 0.
    pub temperature: Option<f64>,
    /// Sample among this many most likely tokens; 0 is all, which the file may also write as -1.
    pub top_k: Option<usize>,
    /// Sample among the fewest tokens whose probabilities reach this sum. Should be above 0 and at most 1.
    pub top_p: Option<f64>,
    /// Sample among tokens at least this fraction as likely as the likeliest. Should be from 0 to 1.
    pub min_p: Option<f64>,
    /// Divides (or multiplies, when negative) the logits of tokens already seen. Should be above 0.
    pub repetition_penalty: Option<f64>,
    /// Most tokens to generate.
    pub max_new_tokens: Option<usize>,
    /// Ids that end a text, in addition to those of the model's configuration.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads the text of a `generation_config.json`. Fields that this crate doesn't know are ignored, as
    /// are values of another type than their field's; a checkpoint has warnings of the latter.
    ///
    /// # Errors
    /// [`ConfigError::Json`], or [`ConfigError::InvalidField`] if the file isn't an object.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        Ok(Self::read(text)?.0)
    }

    /// [`GenerationConfig::from_json`] with what is odd about the file.
    pub(crate) fn read(text: &str) -> Result<(Self, Vec<Note>), ConfigError> {
        let value = json::parse(text)?;
        let fields = Fields::new(&value, "")?;
        let mut reader = Reader { fields, notes: Vec::new() };
        let config = Self {
            do_sample: reader.typed("do_sample", "true or false", Value::as_bool),
            temperature: reader.number("temperature", "a number of at least 0", |t| t >= 0.0),
            top_k: reader.top_k(),
            top_p: reader.number("top_p", "a number above 0 and at most 1", |p| p > 0.0 && p <= 1.0),
            min_p: reader.number("min_p", "a number from 0 to 1", |p| (0.0..=1.0).contains(&p)),
            repetition_penalty: reader.number("repetition_penalty", "a number above 0", |p| p > 0.0),
            max_new_tokens: reader.typed("max_new_tokens", "a non-negative integer", json::size),
            eos_token_ids: reader.fields.special_tokens(
                "eos_token_id",
                Topic::Recommendation,
                &mut reader.notes,
            ),
        };
        Ok((config, reader.notes))
    }
}

/// Reads fields one by one and notes what is odd about them.
struct Reader<'a> {
    fields: Fields<'a>,
    notes: Vec<Note>,
}

impl Reader<'_> {
    /// A value of the field's type; another is noted and left out.
    fn typed<T>(&mut self, name: &str, expected: &str, convert: fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.fields.get(name)?;
        let converted = convert(value);
        if converted.is_none() {
            self.note(name, expected, &brief(value), "the recommendation is left out");
        }
        converted
    }

    /// A number, kept as it is also where it means nothing.
    fn number(&mut self, name: &str, expected: &str, is_meant: fn(f64) -> bool) -> Option<f64> {
        let number = self.typed(name, expected, Value::as_f64)?;
        // What counts is the number that is used, which is an f32.
        let used = f64::from(number as f32);
        if !(used.is_finite() && is_meant(used)) {
            let effect = format!("generations that use it fail; set `{name}` yourself");
            let found = self.fields.get(name).map(brief).unwrap_or_default();
            self.note(name, expected, &found, &effect);
        }
        Some(number)
    }

    /// Servers write "off" as -1, where Hugging Face has 0.
    fn top_k(&mut self) -> Option<usize> {
        const EXPECTED: &str = "a non-negative integer";
        if self.fields.get("top_k").and_then(Value::as_f64) == Some(-1.0) {
            self.note("top_k", EXPECTED, "-1", "it is taken for 0, which keeps all tokens");
            return Some(0);
        }
        self.typed("top_k", EXPECTED, json::size)
    }

    fn note(&mut self, name: &str, expected: &str, found: &str, effect: &str) {
        let field = self.fields.field(name);
        self.notes.push(Note::on(Topic::Recommendation, &field, expected, found, effect));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_an_instruction_tuned_model_is_read() {
        let json = r#"{"bos_token_id": 2, "cache_implementation": "hybrid", "do_sample": true,
            "eos_token_id": [1, 106], "pad_token_id": 0, "top_k": 64, "top_p": 0.95}"#;
        let expected = GenerationConfig {
            do_sample: Some(true),
            top_k: Some(64),
            top_p: Some(0.95),
            eos_token_ids: vec![1, 106],
            ..GenerationConfig::default()
        };
        assert_eq!(GenerationConfig::read(json), Ok((expected, Vec::new())));
    }

    #[test]
    fn a_single_end_id_and_null_fields_are_read() {
        let json = r#"{"eos_token_id": 1, "temperature": null, "top_k": 20.0}"#;
        let (config, notes) = GenerationConfig::read(json).unwrap();
        assert_eq!(config.eos_token_ids, [1]);
        assert_eq!((config.temperature, config.top_k), (None, Some(20)));
        assert_eq!(notes, []);
    }

    #[test]
    fn numbers_without_a_meaning_are_kept_and_noted() {
        let config = |json: &str| {
            let (config, notes) = GenerationConfig::read(json).unwrap();
            assert_eq!(notes.len(), 1, "{json}: {notes:?}");
            assert_eq!(notes[0].topic, Topic::Recommendation);
            let field = json.split('"').nth(1).unwrap();
            assert!(notes[0].problem.contains(field), "{notes:?}");
            config
        };
        assert_eq!(config(r#"{"top_p": 100}"#).top_p, Some(100.0));
        assert_eq!(config(r#"{"top_p": 0}"#).top_p, Some(0.0));
        assert_eq!(config(r#"{"temperature": -1}"#).temperature, Some(-1.0));
        assert_eq!(config(r#"{"temperature": 1e300}"#).temperature, Some(1e300));
        assert_eq!(config(r#"{"min_p": 1.5}"#).min_p, Some(1.5));
        assert_eq!(config(r#"{"repetition_penalty": 0}"#).repetition_penalty, Some(0.0));
        assert_eq!(config(r#"{"top_k": -1}"#).top_k, Some(0));
    }

    #[test]
    fn values_of_another_type_are_left_out_and_noted() {
        for json in [
            r#"{"do_sample": "yes"}"#,
            r#"{"temperature": "hot"}"#,
            r#"{"top_k": -4}"#,
            r#"{"top_k": "64"}"#,
            r#"{"top_k": 1.5}"#,
            r#"{"top_p": [0.95]}"#,
            r#"{"min_p": {}}"#,
            r#"{"repetition_penalty": true}"#,
            r#"{"max_new_tokens": -1}"#,
            r#"{"max_new_tokens": 1.5}"#,
            r#"{"eos_token_id": "</s>"}"#,
            r#"{"eos_token_id": -1}"#,
        ] {
            let (config, notes) = GenerationConfig::read(json).unwrap();
            assert_eq!(config, GenerationConfig::default(), "{json}");
            assert_eq!(notes.len(), 1, "{json}: {notes:?}");
        }
        let (config, notes) = GenerationConfig::read(r#"{"eos_token_id": [1, -1, "2", 106]}"#).unwrap();
        assert_eq!((config.eos_token_ids, notes.len()), (vec![1, 106], 1));
    }
}
