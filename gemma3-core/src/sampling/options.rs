//! The settings of a sampler, under the names of `generation_config.json` and of the ecosystem's
//! servers, and the ranges in which they mean something.

use std::collections::BTreeMap;

use super::SamplingError;

/// Temperatures below this one are greedy: already here a gap of 0.01 between two logits would be
/// a factor of e^1000 between their probabilities, and dividing by less could only overflow.
pub const GREEDY_BELOW_TEMPERATURE: f32 = 1e-5;

/// How the next token is chosen.
///
/// The default changes nothing: it draws from the model's own distribution. A model's
/// `generation_config.json` usually asks for more (`top_k` 64 and `top_p` 0.95 for the
/// instruction-tuned Gemma 3).
///
/// The fields are checked by [`validate`](Self::validate), which
/// [`Sampler::new`](super::Sampler::new) calls.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Draw at random (`true`), or always take the largest logit (`false`, greedy).
    pub do_sample: bool,
    /// Divisor of the logits, at least 0. 1 changes nothing, less sharpens, more flattens; 0 (and
    /// everything below [`GREEDY_BELOW_TEMPERATURE`]) is greedy.
    pub temperature: f32,
    /// Keep the `top_k` largest logits, and those equal to the smallest of them. 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens whose probabilities reach `top_p`, in (0, 1].
    /// 1 keeps all.
    pub top_p: f32,
    /// Keep tokens that are at least `min_p` times as probable as the most probable, in [0, 1].
    /// 0 keeps all.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens in the prompt or the
    /// generated text; above 0. 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens in the generated text. 0 changes nothing; the
    /// usual range is -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the generated text as often as they occur there.
    /// 0 changes nothing; the usual range is -2 to 2.
    pub frequency_penalty: f32,
    /// Added to the logits of the tokens named. -infinity forbids a token.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the random numbers; `None` leaves the choice to whoever makes the
    /// [`RandomKey`](super::RandomKey) (see [`fresh_seed`](super::fresh_seed)).
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            do_sample: true,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
        }
    }
}

impl SamplingOptions {
    /// The options of greedy decoding, without penalties.
    pub fn greedy() -> Self {
        Self { do_sample: false, ..Self::default() }
    }

    /// Whether the largest logit is taken instead of drawing: `do_sample` is off, or the
    /// temperature is (almost) 0.
    pub fn is_greedy(&self) -> bool {
        !self.do_sample || self.temperature < GREEDY_BELOW_TEMPERATURE
    }

    /// Whether any option looks at the history, so that a caller without one need not keep it.
    pub fn uses_history(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Checks that every field that is used is in its range. Greedy decoding doesn't draw, so it uses none
    /// of `temperature`, `top_k`, `top_p` and `min_p`: whatever a model's authors recommend there, it
    /// works.
    ///
    /// # Errors
    /// [`SamplingError::InvalidOption`] naming the first field that is not, or
    /// [`SamplingError::InvalidBias`] naming the token.
    pub fn validate(&self) -> Result<(), SamplingError> {
        self.validate_drawing()?;
        let r = self.repetition_penalty;
        let positive = "a finite number above 0 (1 changes nothing)";
        check("repetition_penalty", r, r.is_finite() && r > 0.0, positive)?;
        for (field, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            let finite = "a finite number (0 changes nothing)";
            check(field, value, value.is_finite(), finite)?;
        }
        for (&id, &bias) in &self.logit_bias {
            if bias.is_nan() || bias == f32::INFINITY {
                return Err(SamplingError::InvalidBias { id, found: bias });
            }
        }
        Ok(())
    }

    /// The fields that only drawing uses, if there is drawing.
    fn validate_drawing(&self) -> Result<(), SamplingError> {
        if !self.do_sample {
            return Ok(());
        }
        // Every comparison with NaN is false, so NaN fails each of these.
        let t = self.temperature;
        let finite_from_zero = "a finite number, 0 (greedy) or above";
        check("temperature", t, t.is_finite() && t >= 0.0, finite_from_zero)?;
        if self.is_greedy() {
            return Ok(());
        }
        let p = self.top_p;
        let above_zero = "above 0 and at most 1 (1 keeps all)";
        check("top_p", p, p > 0.0 && p <= 1.0, above_zero)?;
        let p = self.min_p;
        check("min_p", p, (0.0..=1.0).contains(&p), "in 0 to 1 (0 keeps all)")
    }
}

fn check(field: &'static str, value: f32, valid: bool, expected: &'static str) -> Result<(), SamplingError> {
    if valid { Ok(()) } else { Err(SamplingError::InvalidOption { field, expected, found: value }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected_field(change: impl FnOnce(&mut SamplingOptions)) -> Option<&'static str> {
        let mut options = SamplingOptions::default();
        change(&mut options);
        match options.validate() {
            Err(SamplingError::InvalidOption { field, .. }) => Some(field),
            _ => None,
        }
    }

    #[test]
    fn the_defaults_and_the_ends_of_every_range_are_valid() {
        assert_eq!(SamplingOptions::default().validate(), Ok(()));
        assert_eq!(SamplingOptions::greedy().validate(), Ok(()));
        let ends = SamplingOptions {
            temperature: 0.0,
            top_k: usize::MAX,
            top_p: f32::from_bits(1),
            min_p: 1.0,
            repetition_penalty: f32::MAX,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            logit_bias: BTreeMap::from([(0, f32::NEG_INFINITY)]),
            ..SamplingOptions::default()
        };
        assert_eq!(ends.validate(), Ok(()));
    }

    #[test]
    fn values_out_of_range_are_errors_that_name_the_field() {
        for t in [-0.1, f32::NAN, f32::INFINITY] {
            assert_eq!(rejected_field(|o| o.temperature = t), Some("temperature"));
        }
        for p in [0.0, -0.5, 1.0001, f32::NAN, f32::INFINITY] {
            assert_eq!(rejected_field(|o| o.top_p = p), Some("top_p"));
        }
        for p in [-0.1, 1.1, f32::NAN] {
            assert_eq!(rejected_field(|o| o.min_p = p), Some("min_p"));
        }
        for r in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let field = rejected_field(|o| o.repetition_penalty = r);
            assert_eq!(field, Some("repetition_penalty"));
        }
        for v in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let field = rejected_field(|o| o.presence_penalty = v);
            assert_eq!(field, Some("presence_penalty"));
            let field = rejected_field(|o| o.frequency_penalty = v);
            assert_eq!(field, Some("frequency_penalty"));
        }
    }

    #[test]
    fn greedy_decoding_ignores_what_only_drawing_uses() {
        let odd = SamplingOptions { top_p: 100.0, min_p: f32::NAN, ..SamplingOptions::default() };
        assert!(odd.validate().is_err());
        assert_eq!(SamplingOptions { temperature: 0.0, ..odd.clone() }.validate(), Ok(()));
        assert_eq!(SamplingOptions { do_sample: false, temperature: -1.0, ..odd.clone() }.validate(), Ok(()));
        // A negative temperature is no way to write greedy.
        let error = SamplingOptions { temperature: -1.0, ..odd.clone() }.validate().unwrap_err();
        assert!(matches!(error, SamplingError::InvalidOption { field: "temperature", .. }), "{error:?}");
        // Penalties count in greedy decoding too.
        assert!(SamplingOptions { do_sample: false, repetition_penalty: 0.0, ..odd }.validate().is_err());
    }

    #[test]
    fn the_error_says_the_field_the_range_and_the_value() {
        let options = SamplingOptions { top_p: 1.5, ..SamplingOptions::default() };
        let message = options.validate().unwrap_err().to_string();
        assert!(message.contains("`top_p`"), "{message}");
        assert!(message.contains("at most 1"), "{message}");
        assert!(message.contains("1.5"), "{message}");
    }

    #[test]
    fn a_bias_that_is_no_number_is_an_error_that_names_the_token() {
        for bias in [f32::NAN, f32::INFINITY] {
            let options = SamplingOptions {
                logit_bias: BTreeMap::from([(5, 1.0), (9, bias)]),
                ..SamplingOptions::default()
            };
            let error = options.validate().unwrap_err();
            assert!(matches!(error, SamplingError::InvalidBias { id: 9, .. }));
        }
    }

    #[test]
    fn greedy_is_do_sample_off_or_a_vanishing_temperature() {
        assert!(SamplingOptions::greedy().is_greedy());
        assert!(!SamplingOptions::default().is_greedy());
        for (temperature, greedy) in [(0.0, true), (9e-6, true), (1e-5, false), (0.7, false)] {
            let options = SamplingOptions { temperature, ..SamplingOptions::default() };
            assert_eq!(options.is_greedy(), greedy, "temperature {temperature}");
        }
    }
}
