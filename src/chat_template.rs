//! The chat template that came with a model: where it is written, and whether it is Gemma's.

use std::io::ErrorKind;
use std::path::Path;

use gemma3_tokenizer::{Edition, Tokenizer};
use serde_json::Value;

use crate::Error;

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

/// The template of a Hugging Face folder. As transformers: `chat_template.jinja` before the field of
/// `tokenizer_config.json`; then `additional_chat_templates/default.jinja`, and `chat_template.json` of older
/// processors. Of several named templates it is the one called `default`.
///
/// # Errors
///
/// [`Error::ChatTemplateFile`]: one of these files is there, needed, and cannot be read. Files after the first
/// with a template are not needed, but for the names of special tokens that it writes.
pub(crate) fn in_folder(folder: &Path) -> Result<Option<Template>, Error> {
    let config_path = folder.join("tokenizer_config.json");
    let mut config = None;
    let mut source = read(&folder.join("chat_template.jinja"))?;
    if source.is_none() {
        config = read_json(&config_path)?;
        source = template_of(config.as_ref(), &config_path)?;
    }
    if source.is_none() {
        source = read(&folder.join("additional_chat_templates/default.jinja"))?;
    }
    if source.is_none() {
        let path = folder.join("chat_template.json");
        source = template_of(read_json(&path)?.as_ref(), &path)?;
    }
    let Some(source) = source else { return Ok(None) };
    // Gemma's own turns are written by ids, others by the names that the configuration has for them.
    if config.is_none() && source.contains("_token") && Edition::of(&source).is_none() {
        config = read_json(&config_path)?;
    }
    let special_tokens = config.as_ref().map(special_tokens_in).unwrap_or_default();
    Ok(Some(Template { source, special_tokens }))
}

fn template_of(json: Option<&Value>, path: &Path) -> Result<Option<String>, Error> {
    let template = json.map_or(Ok(None), template_in);
    template.map_err(|problem| Error::ChatTemplateFile { path: path.to_owned(), problem })
}

/// The field `chat_template` of a file: a template, or several with names, in a list of
/// `{"name": …, "template": …}` or in a map. `None` if there is none, or none of the name `default`.
///
/// # Errors
///
/// A field of another shape, with what it is.
pub(crate) fn template_in(json: &Value) -> Result<Option<String>, String> {
    const EXPECTED: &str = "expected a template, or a list of {\"name\": ..., \"template\": ...}";
    let named = match json.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => return Ok(Some(source.clone())),
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .map(|entry| entry.get("template").unwrap_or(&Value::Null)),
        Some(Value::Object(named)) => named.get("default"),
        Some(_) => return Err(format!("`chat_template` is neither text nor a list; {EXPECTED}")),
    };
    match named {
        None => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(_) => Err(format!("the template `default` in `chat_template` is no text; {EXPECTED}")),
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

fn read_json(path: &Path) -> Result<Option<Value>, Error> {
    let parse = |text: String| {
        serde_json::from_str(&text)
            .map_err(|error| Error::ChatTemplateFile { path: path.to_owned(), problem: error.to_string() })
    };
    read(path)?.map(parse).transpose()
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        // A folder on the way that is a file is as good as none.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::ChatTemplateFile { path: path.to_owned(), problem: error.to_string() }),
    }
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
