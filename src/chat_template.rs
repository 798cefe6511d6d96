//! The chat template that came with a model: where it is written, and whether it is Gemma's.

use std::path::Path;

use gemma3_core::config::ConfigError;
use gemma3_tokenizer::{Edition, Tokenizer};
use serde_json::Value;

use crate::Error;
use crate::neighbours::{Neighbour, invalid};

/// Whose turns the chat template of a checkpoint writes; see [`Gemma3::chat_template_kind`](crate::Gemma3::chat_template_kind).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChatTemplateKind {
    /// There is no template: a base model.
    None,
    /// The template that is published with Gemma 3, in either of its editions ([`Edition`]).
    Gemma,
    /// Any other: that of a fine-tune with its own turns (ChatML), or with roles or tools that Gemma's does not
    /// have.
    Other,
}

/// A template with the special tokens whose names it may write.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    pub(crate) source: String,
    /// `bos_token`, `eos_token` and the like, with their text.
    pub(crate) special_tokens: Vec<(String, String)>,
}

impl Template {
    /// The template of a GGUF file, whose special tokens are those of its vocabulary.
    pub(crate) fn of_tokenizer(tokenizer: &Tokenizer) -> Option<Self> {
        let source = tokenizer.chat_template()?.to_owned();
        Some(Self { source, special_tokens: Vec::new() }.completed(tokenizer))
    }

    /// With the names that the files do not give.
    pub(crate) fn completed(mut self, tokenizer: &Tokenizer) -> Self {
        let ids = [
            ("bos_token", tokenizer.bos_id()),
            ("eos_token", tokenizer.eos_id()),
            ("unk_token", tokenizer.unknown_id()),
            ("pad_token", tokenizer.padding_id()),
        ];
        for (name, id) in ids {
            let is_given = self.special_tokens.iter().any(|(given, _)| given == name);
            if let Some(token) = id.filter(|_| !is_given).and_then(|id| tokenizer.id_to_token(id)) {
                self.special_tokens.push((name.to_owned(), token));
            }
        }
        self
    }

    pub(crate) fn kind(&self) -> ChatTemplateKind {
        self.edition().map_or(ChatTemplateKind::Other, |_| ChatTemplateKind::Gemma)
    }

    /// The edition of Gemma's template that this is; `None` for another one.
    pub(crate) fn edition(&self) -> Option<Edition> {
        Edition::of(&self.source)
    }
}

/// Where a folder may have a chat template; the first one counts. As transformers: a file of its own before the
/// field of `tokenizer_config.json`; then the templates in a folder, and the file of older processors.
pub(crate) const FILES: [&str; 4] =
    ["chat_template.jinja", CONFIG, "additional_chat_templates/default.jinja", "chat_template.json"];

const CONFIG: &str = "tokenizer_config.json";

/// The template of a Hugging Face folder, or beside the file of a model. Of several named templates it is the one
/// called `default`.
///
/// # Errors
///
/// One of [`FILES`] is there, needed, and cannot be read. Files after the first with a template are not needed, but
/// for the names of special tokens that it writes.
pub(crate) fn in_folder(model: &Path) -> Result<Option<Template>, Error> {
    for name in FILES {
        let Some(file) = Neighbour::find(model, name)? else { continue };
        if name.ends_with(".jinja") {
            let special_tokens = tokens_written_by(&file.text, model)?;
            return Ok(Some(Template { source: file.text, special_tokens }));
        }
        let json = file.json()?;
        let Some(source) = template_in(&json).map_err(|source| file.refused(source))? else { continue };
        let special_tokens = match name {
            CONFIG => special_tokens_in(&json),
            _ => tokens_written_by(&source, model)?,
        };
        return Ok(Some(Template { source, special_tokens }));
    }
    Ok(None)
}

/// The special tokens that a template may write. Gemma's own turns are written by ids, others by the names that the
/// configuration has for them.
fn tokens_written_by(template: &str, model: &Path) -> Result<Vec<(String, String)>, Error> {
    if !template.contains("_token") || Edition::of(template).is_some() {
        return Ok(Vec::new());
    }
    let config = Neighbour::find(model, CONFIG)?.map(|file| file.json()).transpose()?;
    Ok(config.as_ref().map(special_tokens_in).unwrap_or_default())
}

/// The field `chat_template` of a file: a template, or several with names, in a list of
/// `{"name": …, "template": …}` or in a map. `None` if there is none, or none of the name `default`.
///
/// # Errors
///
/// A field of another shape.
fn template_in(json: &Value) -> Result<Option<String>, ConfigError> {
    const EXPECTED: &str = "a template, or a list of {\"name\": ..., \"template\": ...}";
    let named = match json.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => return Ok(Some(source.clone())),
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .map(|entry| entry.get("template").unwrap_or(&Value::Null)),
        Some(Value::Object(named)) => named.get("default"),
        Some(other) => return Err(invalid("chat_template", EXPECTED, other)),
    };
    match named {
        None => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(other) => Err(invalid("chat_template, the template `default`", "a template", other)),
    }
}

/// The special tokens that `tokenizer_config.json` names, as text or as `{"content": …}`.
fn special_tokens_in(json: &Value) -> Vec<(String, String)> {
    let token = |(name, value): (&String, &Value)| {
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        name.ends_with("_token").then(|| (name.clone(), text.to_owned()))
    };
    json.as_object().into_iter().flatten().filter_map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_template_is_text_or_the_default_of_several() {
        let named = |name: &str| json!({ "name": name, "template": format!("<{name}>") });
        for (field, expected) in [
            (json!("{{ messages }}"), Some("{{ messages }}")),
            (json!([named("tool_use"), named("default"), named("rag")]), Some("<default>")),
            (json!({ "default": "a", "rag": "b" }), Some("a")),
            (json!([named("rag")]), None),
            (json!([]), None),
            (json!(null), None),
        ] {
            let found = template_in(&json!({ "chat_template": field })).expect("a template or none");
            assert_eq!(found.as_deref(), expected, "{field}");
        }
        assert_eq!(template_in(&json!({})), Ok(None));
        for field in [json!(7), json!([{ "name": "default" }]), json!({ "default": 1 })] {
            let error = template_in(&json!({ "chat_template": field })).expect_err("no template");
            let error = error.to_string();
            assert!(error.contains("chat_template") && error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn special_tokens_are_texts_or_maps_with_a_content() {
        let config = json!({
            "bos_token": "<bos>", "eos_token": { "content": "<|im_end|>", "special": true },
            "pad_token": null, "add_bos_token": true, "tokenizer_class": "GemmaTokenizer",
        });
        let expected = [("bos_token", "<bos>"), ("eos_token", "<|im_end|>")];
        assert_eq!(
            special_tokens_in(&config),
            expected.map(|(name, text)| (name.to_owned(), text.to_owned()))
        );
    }

    #[test]
    fn the_files_of_a_folder_come_in_the_order_of_transformers() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a file");
        let source = || in_folder(folder.path()).expect("readable files").map(|template| template.source);
        assert_eq!(source(), None);
        write("chat_template.json", r#"{"chat_template": "processor"}"#);
        assert_eq!(source().as_deref(), Some("processor"));
        std::fs::create_dir(folder.path().join("additional_chat_templates")).expect("a folder");
        write("additional_chat_templates/tool_use.jinja", "tools");
        assert_eq!(source().as_deref(), Some("processor"));
        write("additional_chat_templates/default.jinja", "additional");
        assert_eq!(source().as_deref(), Some("additional"));
        write("tokenizer_config.json", r#"{"chat_template": "config", "eos_token": "<eos>"}"#);
        assert_eq!(source().as_deref(), Some("config"));
        write("chat_template.jinja", "file");
        let template = in_folder(folder.path()).expect("readable files").expect("a template");
        assert_eq!((template.source.as_str(), template.special_tokens.len()), ("file", 0));
        write("chat_template.jinja", "{{ eos_token }}");
        let template = in_folder(folder.path()).expect("readable files").expect("a template");
        assert_eq!(template.special_tokens, [("eos_token".to_owned(), "<eos>".to_owned())]);
        // What is not needed is not read, and what is needed is named.
        write("tokenizer_config.json", "{");
        let error = in_folder(folder.path()).expect_err("the name of a token").to_string();
        assert!(error.contains("tokenizer_config.json"), "{error}");
        write("chat_template.jinja", "file");
        assert_eq!(source().as_deref(), Some("file"));
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        for text in ["", "{\"chat_template\": \"{{", "{\"chat_template\": 3}"] {
            std::fs::write(folder.path().join("tokenizer_config.json"), text).expect("a file");
            let error = in_folder(folder.path()).expect_err("a broken file").to_string();
            assert!(error.contains("tokenizer_config.json"), "{error}");
        }
    }
}
