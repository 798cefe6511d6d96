//! `generation_config.json`: what a model's authors recommend for sampling.

use super::ConfigError;
use super::json::{self, Fields};

/// A model's own sampling defaults. `None` means that the file doesn't say (as does an absent
/// file); what then holds is decided where text is generated.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Sample (`true`) or take the most likely token.
    pub do_sample: Option<bool>,
    /// Divides the logits. At least 0.
    pub temperature: Option<f64>,
    /// Sample among this many most likely tokens; 0 is all.
    pub top_k: Option<usize>,
    /// Sample among the fewest tokens whose probabilities reach this sum, from 0 to 1.
    pub top_p: Option<f64>,
    /// Sample among tokens at least this fraction as likely as the likeliest, from 0 to 1.
    pub min_p: Option<f64>,
    /// Divides (or multiplies, when negative) the logits of tokens already seen. Above 0.
    pub repetition_penalty: Option<f64>,
    /// Most tokens to generate.
    pub max_new_tokens: Option<usize>,
    /// Ids that end a text, in addition to those of the model's configuration.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads the text of a `generation_config.json`; fields that this crate doesn't know are
    /// ignored.
    ///
    /// # Errors
    /// [`ConfigError::Json`] or [`ConfigError::InvalidField`].
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let value = json::parse(text)?;
        let fields = Fields::new(&value, "")?;
        Ok(Self {
            do_sample: fields.flag("do_sample")?,
            temperature: in_range(&fields, "temperature", 0.0, f64::from(f32::MAX))?,
            top_k: fields.size("top_k")?,
            top_p: in_range(&fields, "top_p", 0.0, 1.0)?,
            min_p: in_range(&fields, "min_p", 0.0, 1.0)?,
            repetition_penalty: in_range(
                &fields,
                "repetition_penalty",
                f64::from(f32::MIN_POSITIVE),
                f64::from(f32::MAX),
            )?,
            max_new_tokens: fields.size("max_new_tokens")?,
            eos_token_ids: fields.tokens("eos_token_id")?.unwrap_or_default(),
        })
    }
}

fn in_range(fields: &Fields<'_>, name: &str, low: f64, high: f64) -> Result<Option<f64>, ConfigError> {
    let value = fields.number(name)?;
    match value {
        Some(number) if !(low..=high).contains(&number) => {
            Err(ConfigError::invalid(fields.field(name), format!("a number from {low} to {high}"), number))
        }
        _ => Ok(value),
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
        assert_eq!(GenerationConfig::from_json(json), Ok(expected));
    }

    #[test]
    fn a_single_end_id_and_null_fields_are_read() {
        let json = r#"{"eos_token_id": 1, "temperature": null, "top_k": 20.0}"#;
        let config = GenerationConfig::from_json(json).unwrap();
        assert_eq!(config.eos_token_ids, [1]);
        assert_eq!((config.temperature, config.top_k), (None, Some(20)));
    }

    #[test]
    fn values_outside_their_range_are_errors_that_name_the_field() {
        for (json, field) in [
            (r#"{"top_p": 1.5}"#, "top_p"),
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"top_k": -4}"#, "top_k"),
            (r#"{"min_p": "low"}"#, "min_p"),
            (r#"{"eos_token_id": [1, -1]}"#, "eos_token_id"),
            (r#"{"max_new_tokens": 1.5}"#, "max_new_tokens"),
        ] {
            let error = GenerationConfig::from_json(json).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }
}
