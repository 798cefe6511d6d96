//! Loosely typed conversations: lists of `{"role": ..., "content": ...}` as Hugging Face's
//! `apply_chat_template` takes them, read the way Gemma's Jinja template reads them.
//!
//! The template is lenient in places: a missing content and a content that is a map render as nothing, parts
//! of unknown type are passed over. What it cannot render is an error here.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{ChatError, Message, Part, Role};

/// What becomes of message keys whose value is null, such as `"content": null`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NullKeys {
    /// They reach the template, which refuses such a content: transformers before version 5.
    #[default]
    Keep,
    /// They count as missing: transformers 5.
    Drop,
}

/// Reads a conversation from JSON.
///
/// ```
/// use gemma3_tokenizer::{ChatTemplate, NullKeys, conversation_from_json};
/// use serde_json::json;
///
/// let messages = conversation_from_json(
///     &json!([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]),
///     NullKeys::Keep,
/// )?;
/// assert_eq!(
///     ChatTemplate::render(&messages, false)?,
///     "<bos><start_of_turn>user\n<start_of_image>What?<end_of_turn>\n",
/// );
/// # Ok::<(), gemma3_tokenizer::ChatError>(())
/// ```
///
/// # Errors
/// JSON that is not a list, messages without a role, and contents that the template cannot render.
/// Whether the roles alternate is found out by rendering.
pub fn conversation_from_json(messages: &Value, nulls: NullKeys) -> Result<Vec<Message>, ChatError> {
    let Some(messages) = messages.as_array() else {
        return Err(ChatError::NotAConversation { found: kind_of(messages) });
    };
    messages.iter().enumerate().map(|(index, message)| message_from_json(index, message, nulls)).collect()
}

fn message_from_json(index: usize, message: &Value, nulls: NullKeys) -> Result<Message, ChatError> {
    let key = |name| message.get(name).filter(|value| nulls == NullKeys::Keep || !value.is_null());
    let role = key("role").and_then(Value::as_str).map(Role::from_name);
    let role = role.ok_or(ChatError::MissingRole { index })?;
    let content = match (key("content"), index) {
        // Only here does the template treat a system message differently.
        (content, 0) if role == Role::System => system_content(content)?,
        (content, _) => turn_content(index, content)?,
    };
    Ok(Message { role, content })
}

/// The first item of a list counts, whatever its type, if it has a text.
fn system_content(content: Option<&Value>) -> Result<Vec<Part>, ChatError> {
    let text = match content {
        Some(Value::String(text)) => Some(text.as_str()),
        Some(Value::Array(items)) => items.first().and_then(|item| item.get("text")).and_then(Value::as_str),
        _ => None,
    };
    match text {
        Some(text) => Ok(vec![Part::Text(text.to_owned())]),
        None => Err(ChatError::SystemWithoutText { found: content.map_or("no", kind_of) }),
    }
}

fn turn_content(index: usize, content: Option<&Value>) -> Result<Vec<Part>, ChatError> {
    match content {
        Some(Value::String(text)) => Ok(vec![Part::Text(text.clone())]),
        // Jinja iterates over nothing, and over the keys of a map, which are no parts.
        None | Some(Value::Object(_)) => Ok(Vec::new()),
        Some(Value::Array(items)) => {
            items.iter().filter_map(|item| part_from_json(index, item).transpose()).collect()
        }
        Some(other) => Err(ChatError::InvalidContent { index, found: kind_of(other) }),
    }
}

fn part_from_json(index: usize, item: &Value) -> Result<Option<Part>, ChatError> {
    match item.get("type").and_then(Value::as_str) {
        Some("image") => Ok(Some(Part::Image)),
        Some("text") => {
            let text = python_text(index, item.get("text"))?;
            Ok(Some(Part::Text(text.into_owned())))
        }
        _ => Ok(None),
    }
}

/// What Jinja's `trim` makes of a value before it strips it: `str(value)`.
fn python_text(index: usize, text: Option<&Value>) -> Result<Cow<'_, str>, ChatError> {
    Ok(match text {
        None => "".into(),
        Some(Value::String(text)) => text.into(),
        Some(Value::Null) => "None".into(),
        Some(Value::Bool(true)) => "True".into(),
        Some(Value::Bool(false)) => "False".into(),
        Some(Value::Number(number)) if !number.is_f64() => number.to_string().into(),
        Some(other) => {
            return Err(ChatError::InvalidText { index, found: kind_of(other) });
        }
    })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null as",
        Value::Bool(_) => "a boolean as",
        Value::Number(_) => "a number as",
        Value::String(_) => "a string as",
        Value::Array(_) => "a list as",
        Value::Object(_) => "a map as",
    }
}

/// Writes a conversation as JSON, for custom templates and for files: a message of one text has that
/// text as its content, others have a list of parts.
pub fn conversation_to_json(messages: &[Message]) -> Value {
    let part = |part: &Part| match part {
        Part::Text(text) => json!({ "type": "text", "text": text }),
        Part::Image => json!({ "type": "image" }),
    };
    let message = |message: &Message| {
        let role = match &message.role {
            Role::Model => "assistant",
            other => other.name(),
        };
        let content = match message.content.as_slice() {
            [Part::Text(text)] => json!(text),
            parts => parts.iter().map(part).collect(),
        };
        json!({ "role": role, "content": content })
    };
    messages.iter().map(message).collect()
}
