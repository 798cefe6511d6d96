//! Chat templates: text is a template in Jinja, JSON is a conversation.

use gemma3::tokenizer::{
    ChatTemplate, JinjaLimits, JinjaTemplate, NullKeys, conversation_from_json, conversation_to_json,
};
use serde_json::{Value, json};

use super::super::bounds::{check_error, within};

/// Little, so that many templates run.
const LIMITS: JinjaLimits =
    JinjaLimits { source_bytes: 64 << 10, fuel: 20_000, output_bytes: 64 << 10, recursion: 50 };
/// Of data that a template makes, by the definition of fuel.
const BYTES_PER_FUEL: usize = 64;
/// Numbers of a `range` (100,000 at most) as text, which the engine pays for when it is there.
const RANGE_BYTES: usize = 4 << 20;
/// A template as instructions.
const BYTES_PER_BYTE: usize = 256;

/// Reads one text.
pub fn run(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match serde_json::from_str(text) {
        Ok(value) => within(BYTES_PER_BYTE * text.len(), || conversation(&value)),
        Err(_) => {
            // The engine does not bound the text of a list that is repeated: see `JinjaLimits::fuel`.
            if text.contains('*') {
                return;
            }
            let data = BYTES_PER_FUEL * LIMITS.fuel as usize + 2 * LIMITS.output_bytes + RANGE_BYTES;
            within(BYTES_PER_BYTE * text.len() + data, || template(text));
        }
    }
}

fn template(source: &str) {
    let template = match JinjaTemplate::new(source, LIMITS) {
        Ok(template) => template,
        Err(error) => return check_error(&error),
    };
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "image" }, { "type": "text", "text": " What? " }] },
        { "role": "assistant", "content": "A\u{301} <b>\n" },
    ]);
    let variables = [("bos_token", "<bos>"), ("eos_token", "<eos>")];
    for add_generation_prompt in [false, true] {
        match template.render(&messages, add_generation_prompt, &variables) {
            Ok(text) => assert!(text.len() <= LIMITS.output_bytes),
            Err(error) => check_error(&error),
        }
    }
}

fn conversation(messages: &Value) {
    for nulls in [NullKeys::Keep, NullKeys::Drop] {
        let messages = match conversation_from_json(messages, nulls) {
            Ok(messages) => messages,
            Err(error) => {
                check_error(&error);
                continue;
            }
        };
        match ChatTemplate::render(&messages, true) {
            Ok(text) => {
                assert!(text.starts_with("<bos>") && text.ends_with("<start_of_turn>model\n"), "{text}");
                let json = conversation_to_json(&messages);
                let again = conversation_from_json(&json, NullKeys::Keep).expect("its own JSON is read");
                assert_eq!(ChatTemplate::render(&again, true).expect("its own JSON is a conversation"), text);
            }
            Err(error) => check_error(&error),
        }
    }
}
