//! The numbers of the preprocessing, and `preprocessor_config.json`.

use gemma3_core::config::ConfigError;
use serde_json::{Map, Value};

/// What pixels go through before the model sees them. All released models have [`Self::gemma3`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreprocessorConfig {
    /// Width and height of the model's input in pixels.
    pub image_size: usize,
    /// What is subtracted from red, green and blue after rescaling.
    pub image_mean: [f32; 3],
    /// What red, green and blue are divided by after that.
    pub image_std: [f32; 3],
    /// What levels 0 to 255 are multiplied by first. In f64, in which transformers multiplies.
    pub rescale_factor: f64,
}

impl PreprocessorConfig {
    /// The largest `image_size` that is accepted.
    pub const MAX_IMAGE_SIZE: usize = 8192;

    /// The released models': 896x896 pixels from -1 to 1.
    pub fn gemma3() -> Self {
        Self { image_size: 896, image_mean: [0.5; 3], image_std: [0.5; 3], rescale_factor: 1.0 / 255.0 }
    }

    /// Reads a `preprocessor_config.json`. Fields that are absent or null are those of [`Self::gemma3`].
    ///
    /// The image's number of soft tokens (`image_seq_length`) belongs to the model's configuration, and the
    /// options of pan and scan to each call; neither is read.
    ///
    /// # Errors
    ///
    /// Text that isn't JSON, fields of the wrong type, and every setting with which transformers would compute
    /// something else than this crate.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let file: Value =
            serde_json::from_str(text).map_err(|error| ConfigError::Json { problem: error.to_string() })?;
        let Value::Object(fields) = &file else {
            return Err(invalid("(the file)", "an object", &file));
        };
        check_switches(fields)?;
        let defaults = Self::gemma3();
        let config = Self {
            image_size: image_size(fields)?.unwrap_or(defaults.image_size),
            image_mean: channels(fields, "image_mean")?.unwrap_or(defaults.image_mean),
            image_std: channels(fields, "image_std")?.unwrap_or(defaults.image_std),
            rescale_factor: number(fields, "rescale_factor")?.unwrap_or(defaults.rescale_factor),
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that the numbers make sense: a size of 1 to [`Self::MAX_IMAGE_SIZE`], and finite results.
    ///
    /// # Errors
    ///
    /// The first field that doesn't.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |field: &str, expected: &str, found: String| {
            Err(ConfigError::InvalidField { field: field.to_owned(), expected: expected.to_owned(), found })
        };
        if self.image_size == 0 || self.image_size > Self::MAX_IMAGE_SIZE {
            return refuse("size", "1 to 8192 pixels", self.image_size.to_string());
        }
        if !self.rescale_factor.is_finite() || self.rescale_factor <= 0.0 {
            return refuse("rescale_factor", "a finite number above 0", self.rescale_factor.to_string());
        }
        if !self.image_mean.iter().all(|mean| mean.is_finite()) {
            return refuse("image_mean", "finite numbers", format!("{:?}", self.image_mean));
        }
        if !self.image_std.iter().all(|std| std.is_finite() && *std != 0.0) {
            return refuse("image_std", "finite numbers other than 0", format!("{:?}", self.image_std));
        }
        // Linear in the level, so the two ends decide.
        if !(0..3).all(|channel| [0, 255].iter().all(|level| self.pixel_value(*level, channel).is_finite())) {
            return refuse(
                "rescale_factor",
                "pixel values that are finite in f32",
                self.rescale_factor.to_string(),
            );
        }
        Ok(())
    }

    /// `(level * rescale_factor - mean) / std` of channel 0 to 2, rounded where transformers rounds.
    pub(super) fn pixel_value(&self, level: u8, channel: usize) -> f32 {
        let [mean, std] = [&self.image_mean, &self.image_std]
            .map(|values| values.get(channel).copied().unwrap_or_default());
        ((f64::from(level) * self.rescale_factor) as f32 - mean) / std
    }
}

/// Steps that this crate always takes or never takes.
fn check_switches(fields: &Map<String, Value>) -> Result<(), ConfigError> {
    let always = ["do_resize", "do_rescale", "do_normalize", "do_convert_rgb"].map(|name| (name, true));
    let never = ["do_center_crop", "do_pad", "do_pan_and_scan"].map(|name| (name, false));
    for (name, expected) in always.into_iter().chain(never) {
        match present(fields, name) {
            None => {}
            Some(Value::Bool(value)) if *value == expected => {}
            Some(Value::Bool(_)) => {
                let advice = match name {
                    "do_pan_and_scan" => {
                        "false or null; pass `PanAndScan` with the images instead".to_owned()
                    }
                    _ => format!("{expected} or null"),
                };
                return Err(unsupported(name, &advice, (!expected).to_string()));
            }
            Some(other) => return Err(invalid(name, "true or false", other)),
        }
    }
    // Pillow's number of the bilinear filter.
    match present(fields, "resample") {
        None => Ok(()),
        Some(value) if value.as_f64() == Some(2.0) => Ok(()),
        Some(value) => Err(unsupported("resample", "2 (bilinear)", brief(value))),
    }
}

fn image_size(fields: &Map<String, Value>) -> Result<Option<usize>, ConfigError> {
    let Some(value) = present(fields, "size") else { return Ok(None) };
    let Value::Object(size) = value else {
        return Err(invalid("size", "an object with `height` and `width`", value));
    };
    let side = |name: &str| {
        let value = size.get(name).unwrap_or(&Value::Null);
        let side = value.as_u64().and_then(|side| usize::try_from(side).ok());
        side.ok_or_else(|| invalid(&format!("size.{name}"), "a number of pixels", value))
    };
    let [height, width] = [side("height")?, side("width")?];
    if height != width {
        return Err(unsupported("size", "a square", format!("{width}x{height}")));
    }
    Ok(Some(height))
}

fn channels(fields: &Map<String, Value>, name: &str) -> Result<Option<[f32; 3]>, ConfigError> {
    let Some(value) = present(fields, name) else { return Ok(None) };
    let numbers = value.as_array().map(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
    match numbers.flatten().as_deref() {
        Some([red, green, blue]) => Ok(Some([*red as f32, *green as f32, *blue as f32])),
        _ => Err(invalid(name, "a list of three numbers", value)),
    }
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<Option<f64>, ConfigError> {
    let number = |value: &Value| value.as_f64().ok_or_else(|| invalid(name, "a number", value));
    present(fields, name).map(number).transpose()
}

/// A field that is there and not null.
fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

fn invalid(field: &str, expected: &str, found: &Value) -> ConfigError {
    ConfigError::InvalidField { field: field.to_owned(), expected: expected.to_owned(), found: brief(found) }
}

fn unsupported(field: &str, expected: &str, found: String) -> ConfigError {
    ConfigError::Unsupported { field: field.to_owned(), found, expected: expected.to_owned() }
}

/// A value as text for an error, cut where a hostile file would make it long, and without characters that a terminal
/// obeys.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("a list of {} values", values.len()),
        Value::Object(map) => format!("an object of {} fields", map.len()),
        other => {
            let mut text = String::new();
            for character in other.to_string().chars().take(80) {
                match character.is_control() {
                    true => text.extend(character.escape_default()),
                    false => text.push(character),
                }
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_quote_a_value_briefly_and_without_control_characters() {
        let text = "\u{9b}2J".repeat(1000);
        for json in [format!(r#""{text}""#), format!(r#"{{"do_resize": "{text}"}}"#)] {
            let error = PreprocessorConfig::from_json(&json).expect_err("an error").to_string();
            assert!(error.contains("\\u{9b}2J") && !error.contains('\u{9b}'), "{error:?}");
            assert!(error.len() < 500, "{error}");
        }
    }

    #[test]
    fn absent_and_null_fields_are_gemmas() {
        let gemma3 = Ok(PreprocessorConfig::gemma3());
        assert_eq!(PreprocessorConfig::from_json("{}"), gemma3);
        assert_eq!(PreprocessorConfig::from_json(r#"{"size": null, "resample": null}"#), gemma3);
    }

    #[test]
    fn every_field_is_read() {
        let text = r#"{"size": {"height": 56, "width": 56}, "image_mean": [0, 0.25, 1], "image_std": [1, 2, -4],
                       "rescale_factor": 0.5, "resample": 2, "do_resize": true, "do_pan_and_scan": false}"#;
        let expected = PreprocessorConfig {
            image_size: 56,
            image_mean: [0.0, 0.25, 1.0],
            image_std: [1.0, 2.0, -4.0],
            rescale_factor: 0.5,
        };
        assert_eq!(PreprocessorConfig::from_json(text), Ok(expected));
    }

    #[test]
    fn what_would_compute_something_else_is_an_error_that_names_the_field() {
        let cases = [
            (r#""resample": 3"#, "resample"),
            (r#""resample": "bilinear""#, "resample"),
            (r#""size": {"height": 896, "width": 448}"#, "size"),
            (r#""size": {"height": 0, "width": 0}"#, "size"),
            (r#""size": {"height": 8193, "width": 8193}"#, "size"),
            (r#""size": {"height": -1, "width": -1}"#, "size.height"),
            (r#""size": {"shortest_edge": 896}"#, "size.height"),
            (r#""size": 896"#, "size"),
            (r#""do_resize": false"#, "do_resize"),
            (r#""do_rescale": false"#, "do_rescale"),
            (r#""do_normalize": false"#, "do_normalize"),
            (r#""do_convert_rgb": false"#, "do_convert_rgb"),
            (r#""do_resize": 1"#, "do_resize"),
            (r#""do_pan_and_scan": true"#, "do_pan_and_scan"),
            (r#""do_center_crop": true"#, "do_center_crop"),
            (r#""do_pad": true"#, "do_pad"),
            (r#""image_std": [0.5, 0, 0.5]"#, "image_std"),
            (r#""image_std": [0.5, 1e-60, 0.5]"#, "image_std"),
            (r#""image_mean": [1e39, 0, 0]"#, "image_mean"),
            (r#""image_mean": [0.5, 0.5]"#, "image_mean"),
            (r#""image_mean": 0.5"#, "image_mean"),
            (r#""rescale_factor": 0"#, "rescale_factor"),
            (r#""rescale_factor": 1e300"#, "rescale_factor"),
            (r#""rescale_factor": "1/255""#, "rescale_factor"),
        ];
        for (field, name) in cases {
            let error = PreprocessorConfig::from_json(&format!("{{{field}}}")).expect_err(field).to_string();
            assert!(error.contains(&format!("`{name}`")) && error.contains("expected"), "{field}: {error}");
        }
        for text in ["", "[]", "{", "null"] {
            assert!(PreprocessorConfig::from_json(text).is_err(), "{text}");
        }
    }
}
