//! The rotary embedding's parameters, which the `config.json` files spell in three ways.

use serde_json::Value;

use super::ConfigError;
use super::json::{Fields, brief};

/// What every spelling comes down to.
#[derive(Debug, PartialEq)]
pub(super) struct RopeParameters {
    pub(super) global_theta: f64,
    pub(super) global_factor: f64,
    pub(super) local_theta: f64,
}

/// Reads, in this order of precedence: `rope_parameters` by layer type (transformers 5), then
/// `rope_theta`, `rope_scaling` and `rope_local_base_freq` (transformers 4), then the defaults.
pub(super) fn rope_parameters(fields: &Fields<'_>) -> Result<RopeParameters, ConfigError> {
    let path = fields.field("rope_parameters");
    let full_path = format!("{path}.full_attention");
    let sliding_path = format!("{path}.sliding_attention");
    let (mut full, mut sliding) = (None, None);
    if let Some(value) = fields.get("rope_parameters") {
        let by_type = Fields::new(value, &path)?;
        match by_type.first(&["full_attention", "sliding_attention"]) {
            Some(_) => {
                let object = |name: &str, path| by_type.get(name).map(|v| Fields::new(v, path));
                full = object("full_attention", &full_path).transpose()?;
                sliding = object("sliding_attention", &sliding_path).transpose()?;
            }
            // One set without layer types: transformers takes it for the full-attention layers.
            None => full = Some(by_type),
        }
    }

    let theta = |parameters: Option<Fields<'_>>| match parameters {
        Some(parameters) => {
            parameters.refuse_null("rope_theta", "a number")?;
            parameters.number("rope_theta")
        }
        None => Ok(None),
    };
    let global_theta = match theta(full)? {
        Some(theta) => theta,
        None => fields.number_or("rope_theta", 1e6)?,
    };
    let local_theta = match theta(sliding)? {
        Some(theta) => theta,
        None => fields.number_or("rope_local_base_freq", 1e4)?,
    };

    if let Some(sliding) = &sliding {
        let factor = linear_factor(sliding)?.unwrap_or(1.0);
        if factor != 1.0 {
            return Err(ConfigError::unsupported(
                sliding.field("factor"),
                "no scaling of the sliding layers",
                factor,
            ));
        }
    }
    let mut global_factor = None;
    if let Some(full) = &full {
        global_factor = linear_factor(full)?;
    }
    if global_factor.is_none()
        && let Some(value) = fields.get("rope_scaling")
    {
        let path = fields.field("rope_scaling");
        global_factor = linear_factor(&Fields::new(value, &path)?)?;
    }
    Ok(RopeParameters { global_theta, global_factor: global_factor.unwrap_or(1.0), local_theta })
}

/// The factor of linear scaling; `None` where the type is `default` or absent. The type's key is
/// `rope_type`, or `type` in older files; some hold both.
fn linear_factor(parameters: &Fields<'_>) -> Result<Option<f64>, ConfigError> {
    if let Some(partial) = parameters.number("partial_rotary_factor")?
        && partial != 1.0
    {
        return Err(ConfigError::unsupported(
            parameters.field("partial_rotary_factor"),
            "1 (all dimensions rotate)",
            partial,
        ));
    }
    let mut kind = None;
    for key in ["rope_type", "type"] {
        let Some(found) = parameters.string(key)? else {
            continue;
        };
        if !["linear", "default"].contains(&found) {
            return Err(ConfigError::unsupported(
                parameters.field(key),
                "\"linear\" or \"default\"",
                brief(&Value::from(found)),
            ));
        }
        if kind.is_some_and(|kind| kind != found) {
            return Err(ConfigError::invalid(
                parameters.field(key),
                "the same value as `rope_type`",
                brief(&Value::from(found)),
            ));
        }
        kind = Some(found);
    }
    match kind {
        Some("linear") => match parameters.number("factor")? {
            Some(factor) => Ok(Some(factor)),
            None => Err(ConfigError::MissingField {
                field: parameters.field("factor"),
                expected: "the factor of linear rope scaling",
                advice: "take the config.json that belongs to the weights",
            }),
        },
        // transformers would ignore such a factor without a word.
        None if parameters.get("factor").is_some() => Err(ConfigError::MissingField {
            field: parameters.field("rope_type"),
            expected: "the rope type that the factor belongs to",
            advice: "take the config.json that belongs to the weights",
        }),
        _ => Ok(None),
    }
}
