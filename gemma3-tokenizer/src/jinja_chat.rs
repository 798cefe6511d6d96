//! Conversations through a custom template: from typed messages to ids, with the special tokens that a user has
//! typed told from those that the template writes.

use minijinja::value::Value as JinjaValue;
use serde_json::{Value, json};

use crate::chat::{ChatError, Message, UserText, conversation_to_json};
use crate::images::Images;
use crate::jinja::{JinjaError, JinjaTemplate};
use crate::prompt::PromptEncoder;
use crate::special;
use crate::tokenizer::{Bos, SpecialTokens, TokenizeOptions, Tokenizer};

impl JinjaTemplate {
    /// The ids of a conversation: those of the reference's `apply_chat_template`, which adds nothing to what the
    /// template writes, so there is a `<bos>` only if the template writes one.
    ///
    /// With [`UserText::Escape`] special tokens in messages stay characters although the template writes the
    /// messages; where no message contains the name of one the ids are those of [`UserText::Verbatim`]. A template
    /// that changes the letters of a message changes the name with it.
    ///
    /// With `images` each `<start_of_image>` that the template writes (not one that a user has typed, if escaped)
    /// is the place of an image; what it becomes is described at [`Images`]. `variables` are further names that the
    /// template may use, such as `bos_token`; `tools` and `documents` are none.
    ///
    /// ```
    /// use gemma3_tokenizer::{Bos, JinjaLimits, JinjaTemplate, Message, Tokenizer, UserText};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-text/tokenizer.json");
    ///
    /// let tokenizer = Tokenizer::from_file(path)?;
    /// let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}";
    /// let template = JinjaTemplate::new(source, JinjaLimits::default())?;
    /// let ids = |text| template.encode(&tokenizer, &[Message::user(text)], true, UserText::Escape, None, &[]);
    /// assert_eq!(ids("hi")?, tokenizer.encode("user: hi<eos>", Bos::None)?);
    /// let ends = ids("hi<eos>")?.iter().filter(|&&id| Some(id) == tokenizer.eos_id()).count();
    /// assert_eq!(ends, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`JinjaTemplate::render`], another number of images than places, and a text that cannot be encoded.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
        user_text: UserText,
        images: Option<Images<'_>>,
        variables: &[(&str, &str)],
    ) -> Result<Vec<u32>, ChatError> {
        let mut conversation = for_template(messages);
        let escape = match user_text {
            UserText::Verbatim => None,
            UserText::Escape => Some(Escape::new(tokenizer, &mut conversation)),
        };
        let text = self.render_conversation(&conversation, add_generation_prompt, variables)?;
        match escape {
            Some(escape) => escape.encode(tokenizer, &text, images),
            None => {
                let options = TokenizeOptions { bos: Bos::None, special_tokens: SpecialTokens::Parse };
                Ok(match images {
                    Some(images) => tokenizer.encode_with_images(&text, options, images)?,
                    None => tokenizer.encode_with(&text, options)?,
                })
            }
        }
    }

    /// What the template writes after an answer, by which it ends: `"<end_of_turn>\n"` in Gemma's. `None` if the
    /// template refuses a question with an answer, or changes the answer's text.
    pub fn after_answer(&self, variables: &[(&str, &str)]) -> Option<String> {
        const ANSWER: &str = "answer";
        let conversation = for_template(&[Message::user("question"), Message::model(ANSWER)]);
        let text = self.render_conversation(&conversation, false, variables).ok()?;
        text.rsplit_once(ANSWER).map(|(_, after)| after.to_owned())
    }

    fn render_conversation(
        &self,
        conversation: &Value,
        add_generation_prompt: bool,
        variables: &[(&str, &str)],
    ) -> Result<String, JinjaError> {
        let none = ["tools", "documents"].map(|name| (name, JinjaValue::from(())));
        let variables = variables.iter().map(|&(name, value)| (name, JinjaValue::from(value)));
        self.render_values(conversation, add_generation_prompt, none.into_iter().chain(variables).collect())
    }
}

/// The conversation as templates expect it: a message without content has an empty text.
fn for_template(messages: &[Message]) -> Value {
    let mut conversation = conversation_to_json(messages);
    for message in conversation.as_array_mut().into_iter().flatten() {
        if message["content"].as_array().is_some_and(Vec::is_empty) {
            message["content"] = json!("");
        }
    }
    conversation
}

/// Special tokens in messages, told apart by a mark within their names: the template writes the names with the
/// mark, and only those without one are special.
struct Escape {
    /// The names of special tokens, long ones first.
    names: Vec<String>,
    /// Longer than any run of its character in the messages, so none of theirs is taken for it.
    mark: String,
}

/// No character of any text that is meant to be read (a Unicode noncharacter).
const MARK: char = '\u{fdd0}';

impl Escape {
    /// Marks the names of special tokens in a conversation.
    fn new(tokenizer: &Tokenizer, conversation: &mut Value) -> Self {
        let special = tokenizer.special_ids().iter().filter_map(|&id| tokenizer.id_to_token(id));
        // Not special in every GGUF file.
        let image =
            tokenizer.token_to_id(special::START_OF_IMAGE).map(|_| special::START_OF_IMAGE.to_owned());
        let mut names: Vec<String> = special.chain(image).filter(|name| !name.is_empty()).collect();
        names.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        names.dedup();
        let mut longest = 0;
        each_text(conversation, &mut |text| longest = longest.max(longest_run(text)));
        let this = Self { names, mark: String::from(MARK).repeat(longest + 1) };
        each_text(conversation, &mut |text| this.mark_names(text));
        this
    }

    fn mark_names(&self, text: &mut String) {
        let mut marked = String::new();
        let mut rest = text.as_str();
        while let Some((at, name)) = self.next_name(rest) {
            let first = name.chars().next().map_or(0, char::len_utf8);
            marked += &rest[..at + first];
            marked += &self.mark;
            // What follows within the name may begin another one.
            rest = &rest[at + first..];
        }
        marked += rest;
        *text = marked;
    }

    /// The first special token of a text, of those that begin there the longest.
    fn next_name(&self, text: &str) -> Option<(usize, &str)> {
        text.char_indices().find_map(|(at, _)| {
            let name = self.names.iter().find(|name| text[at..].starts_with(name.as_str()))?;
            Some((at, name.as_str()))
        })
    }

    fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        images: Option<Images<'_>>,
    ) -> Result<Vec<u32>, ChatError> {
        let mut prompt = match images {
            Some(images) => {
                let places = text.matches(special::START_OF_IMAGE).count();
                PromptEncoder::with_images(tokenizer, SpecialTokens::Escape, images, places)?
            }
            None => PromptEncoder::new(tokenizer, SpecialTokens::Escape),
        };
        let mut rest = text;
        while let Some((at, name)) = self.next_name(rest) {
            prompt.text(&rest[..at].replace(&self.mark, ""));
            if name == special::START_OF_IMAGE {
                prompt.image()?
            } else {
                prompt.special(name)?
            }
            rest = &rest[at + name.len()..];
        }
        prompt.text(&rest.replace(&self.mark, ""));
        Ok(prompt.finish()?)
    }
}

fn longest_run(text: &str) -> usize {
    text.split(|character| character != MARK).map(|run| run.len() / MARK.len_utf8()).max().unwrap_or(0)
}

/// Every string of a conversation, the names of roles included.
fn each_text(value: &mut Value, change: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| each_text(item, change)),
        Value::Object(fields) => fields.values_mut().for_each(|field| each_text(field, change)),
        _ => {}
    }
}
