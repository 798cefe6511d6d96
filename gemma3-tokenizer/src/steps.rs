//! What the steps of a tokenizer.json may cost. The file comes from a stranger, the text from a user.
//!
//! Steps follow each other, so what they do to a text's length multiplies: forty that each replace a character by two
//! make a terabyte of a character. And a regular expression of a few bytes may take megabytes when it is compiled.

use serde_json::Value;

use crate::error::TokenizerError;

/// The most times that a text may become longer. Gemma's steps make it 3 times as long (a space becomes U+2581, which
/// has 3 bytes).
const MOST_GROWTH: usize = 256;
/// The most regular expressions of a part. Each may take 10 MB, where the `regex` crate draws the line; tokenizers have
/// four at most.
const MOST_EXPRESSIONS: usize = 16;

/// Checks a normalizer, pre-tokenizer or decoder; `part` names it in the error.
pub(crate) fn check(part: &'static str, step: Option<&Value>) -> Result<(), TokenizerError> {
    if step.map_or(1, growth) > MOST_GROWTH {
        return Err(TokenizerError::Growth { part, limit: MOST_GROWTH });
    }
    match step.map_or(0, expressions) {
        found if found > MOST_EXPRESSIONS => Err(TokenizerError::Unsupported {
            part,
            found: format!("{found} regular expressions"),
            expected: "at most 16",
        }),
        _ => Ok(()),
    }
}

/// The steps inside of a sequence.
fn inner(step: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["normalizers", "pretokenizers", "decoders"];
    lists.into_iter().filter_map(|name| step.get(name).and_then(Value::as_array)).flatten()
}

/// How many regular expressions a step has, with those inside of it.
fn expressions(step: &Value) -> usize {
    let own = step.get("pattern").and_then(|pattern| pattern.get("Regex")).map_or(0, |_| 1);
    own + inner(step).map(expressions).sum::<usize>()
}

/// How many times as long a text can become, in bytes, by a step and those inside of it. Saturates.
fn growth(step: &Value) -> usize {
    let text_of = |name: &str| step.get(name).and_then(Value::as_str).map_or(0, str::len);
    match step.get("type").and_then(Value::as_str) {
        Some("Sequence") => inner(step).map(growth).fold(1, usize::saturating_mul),
        Some("Replace") => {
            let pattern =
                step.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
            match pattern.map_or(0, str::len) {
                // An expression, or nothing: may match between all characters.
                0 => 1 + text_of("content"),
                length => text_of("content").div_ceil(length).max(1),
            }
        }
        // Before each part of the text that stands between two special tokens.
        Some("Prepend") => 1 + text_of("prepend"),
        // A table of what characters become.
        Some("Precompiled") => 64,
        // Bytes that are no letters become letters of two bytes; spaces around ideographs.
        Some("ByteLevel" | "BertNormalizer") => 2,
        // The others take away, or change a text once, however often they are applied.
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replace(pattern: &str, content: &str) -> Value {
        json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
    }

    #[test]
    fn what_steps_do_to_a_length_multiplies() {
        assert_eq!(growth(&replace(" ", "\u{2581}")), 3);
        assert_eq!(growth(&replace("abc", "b")), 1);
        assert_eq!(growth(&replace("", "abc")), 4);
        let steps = json!({ "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "\u{2581}" },
            { "type": "Sequence", "normalizers": [replace(" ", "\u{2581}"), { "type": "NFC" }] },
        ]});
        assert_eq!(growth(&steps), 12);
        assert!(check("normalizer", Some(&steps)).is_ok());
        assert!(check("normalizer", None).is_ok());
    }

    #[test]
    fn regular_expressions_are_few() {
        let split = json!({ "type": "Split", "pattern": { "Regex": "\\w{40}" }, "behavior": "Removed", "invert": false });
        let steps = |length| json!({ "type": "Sequence", "pretokenizers": vec![&split; length] });
        assert!(check("pre_tokenizer", Some(&steps(16))).is_ok());
        let error = check("pre_tokenizer", Some(&steps(17))).expect_err("an error").to_string();
        assert!(error.contains("17 regular expressions"), "{error}");
    }

    #[test]
    fn a_chain_that_doubles_a_text_forty_times_is_an_error() {
        for (part, name) in [("normalizer", "normalizers"), ("decoder", "decoders")] {
            let steps = json!({ "type": "Sequence", name: vec![replace("a", "aa"); 40] });
            let error = check(part, Some(&steps)).expect_err("an error").to_string();
            assert!(error.contains(part) && error.contains("256"), "{error}");
        }
        // As many as there are numbers.
        let steps = json!({ "type": "Sequence", "pretokenizers": vec![json!({ "type": "ByteLevel" }); 100] });
        assert!(check("pre_tokenizer", Some(&steps)).is_err());
    }
}
