//! Custom chat templates in Jinja, rendered within limits. A template comes with a model, so from a stranger: it can
//! read nothing but the conversation, and neither run nor write without bound.
//!
//! The dialect is the one that transformers gives its templates: `trim_blocks`, `lstrip_blocks`, `raise_exception`,
//! `break` and `continue`, and the Python methods of strings and maps that templates use. One difference: `tojson`
//! writes `<`, `>`, `&` and `'` as escapes such as `\u003c`.

use std::io;

use minijinja::value::{Kwargs, Serde, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, syntax::SyntaxConfig};

use crate::chat::is_python_space;
use crate::error::shorten_sentence;
use crate::jinja_values;

/// What a template may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JinjaLimits {
    /// Length of the template.
    pub source_bytes: usize,
    /// Work of one rendering: about one for each instruction, and for each 64 bytes of data made (so it bounds the
    /// memory too, at 64 bytes each). What minijinja 3.1 charges too late is a list that is made text: the text of a list
    /// that holds a long one a thousand times (`[range(100000)] * 1000 | string`) is there before it is paid for.
    pub fuel: u64,
    /// Length of the rendered text.
    pub output_bytes: usize,
    /// Depth of nested blocks and macro calls, at most 500.
    pub recursion: usize,
}

impl Default for JinjaLimits {
    /// 256 KiB of template, 2 million of fuel (a fraction of a second, and at most 128 MB), 16 MiB of output,
    /// recursion to 100.
    fn default() -> Self {
        Self { source_bytes: 256 << 10, fuel: 2_000_000, output_bytes: 16 << 20, recursion: 100 }
    }
}

/// Why a custom template could not be compiled or rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JinjaError {
    /// The template is longer than allowed.
    #[error("the chat template has {found} bytes: expected at most {limit} (JinjaLimits::source_bytes)")]
    SourceTooLong {
        /// Its length.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The template is not valid Jinja.
    #[error("the chat template is not valid: {}", shorten_sentence(&source.to_string()))]
    Syntax {
        /// Where and why.
        source: minijinja::Error,
    },
    /// The rendered text became longer than allowed.
    #[error("the chat template wrote more than {limit} bytes (JinjaLimits::output_bytes)")]
    OutputTooLong {
        /// The limit.
        limit: usize,
    },
    /// The template did more work than allowed.
    #[error("the chat template did not finish within {limit} units of fuel (JinjaLimits::fuel)")]
    OutOfFuel {
        /// The limit.
        limit: u64,
    },
    /// The template refused the conversation by `raise_exception`.
    #[error("the chat template refused the conversation: {}", shorten_sentence(message))]
    Raised {
        /// Its message.
        message: String,
    },
    /// The template failed in another way, such as by using an undefined value.
    #[error("the chat template failed: {}", shorten_sentence(&source.to_string()))]
    Render {
        /// Where and why.
        source: minijinja::Error,
    },
}

/// A compiled chat template.
///
/// Variables hold values of at most 64 levels, and attributes of a `namespace` data only: a namespace in a namespace is a
/// copy. Rendering takes place in a thread of its own, whose stack is large enough for whatever a template may do.
///
/// ```
/// use gemma3_tokenizer::{JinjaLimits, JinjaTemplate, Message, conversation_to_json};
///
/// let source = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}";
/// let template = JinjaTemplate::new(source, JinjaLimits::default())?;
/// let messages = conversation_to_json(&[Message::user("  Hello ")]);
/// assert_eq!(template.render(&messages, false, &[("bos_token", "<bos>")])?, "[user] Hello\n");
/// # Ok::<(), gemma3_tokenizer::JinjaError>(())
/// ```
#[derive(Debug)]
pub struct JinjaTemplate {
    environment: Environment<'static>,
    limits: JinjaLimits,
}

/// The only template of the environment: there is no loader, so it can include no other.
const NAME: &str = "chat_template";

/// Marks the errors of `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl JinjaTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// A template that is too long or not valid.
    pub fn new(source: &str, limits: JinjaLimits) -> Result<Self, JinjaError> {
        if source.len() > limits.source_bytes {
            return Err(JinjaError::SourceTooLong { found: source.len(), limit: limits.source_bytes });
        }
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let mut environment = Environment::new();
        let syntax = syntax.map_err(|source| JinjaError::Syntax { source })?;
        let source = jinja_values::bound_assignments(source, syntax.clone())
            .map_err(|source| JinjaError::Syntax { source })?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(limits.fuel));
        environment.set_recursion_limit(limits.recursion);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("trim", trim);
        // Unlike in minijinja, in Python None is not iterable.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.set_unknown_method_callback(python_method);
        jinja_values::add_filters(&mut environment);
        environment.add_template_owned(NAME, source).map_err(|source| JinjaError::Syntax { source })?;
        Ok(Self { environment, limits })
    }

    /// Renders a conversation given as JSON (see [`conversation_to_json`](crate::conversation_to_json)).
    /// `variables` are further names that the template may use, such as `bos_token`.
    ///
    /// The text can be encoded with [`Bos::None`](crate::Bos::None) or, if it is not known whether the
    /// template writes `<bos>`, with [`Bos::Once`](crate::Bos::Once). Whatever the messages contain is then encoded
    /// as in the reference, special tokens of a user included; [`JinjaTemplate::encode`] tells them from the
    /// template's own.
    ///
    /// # Errors
    /// The limits, `raise_exception`, and whatever else fails in the template.
    pub fn render(
        &self,
        messages: &serde_json::Value,
        add_generation_prompt: bool,
        variables: &[(&str, &str)],
    ) -> Result<String, JinjaError> {
        let variables = variables.iter().map(|&(name, value)| (name, Value::from(value)));
        self.render_values(messages, add_generation_prompt, variables.collect())
    }

    /// [`JinjaTemplate::render`] with variables of any type.
    pub(crate) fn render_values(
        &self,
        messages: &serde_json::Value,
        add_generation_prompt: bool,
        variables: Vec<(&str, Value)>,
    ) -> Result<String, JinjaError> {
        let render = || self.render_here(messages, add_generation_prompt, variables.clone());
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(jinja_values::STACK_BYTES);
            match thread.spawn_scoped(scope, render) {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(_) => render(), // A system without threads.
            }
        })
    }

    fn render_here(
        &self,
        messages: &serde_json::Value,
        add_generation_prompt: bool,
        variables: Vec<(&str, Value)>,
    ) -> Result<String, JinjaError> {
        let mut context = variables;
        context.push(("messages", Value::from(Serde(messages))));
        context.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        let context = Value::from_pairs(context);

        let mut output = Bounded { bytes: Vec::new(), limit: self.limits.output_bytes, is_full: false };
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut output).map(|_| ()));
        match rendered {
            Ok(()) => Ok(String::from_utf8_lossy(&output.bytes).into_owned()),
            Err(_) if output.is_full => Err(JinjaError::OutputTooLong { limit: self.limits.output_bytes }),
            Err(error) => Err(self.render_error(error)),
        }
    }

    fn render_error(&self, error: Error) -> JinjaError {
        if error.kind() == ErrorKind::OutOfFuel {
            return JinjaError::OutOfFuel { limit: self.limits.fuel };
        }
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            if let Some(raised) = inner.downcast_ref::<Raised>() {
                return JinjaError::Raised { message: raised.0.clone() };
            }
            cause = inner.source();
        }
        JinjaError::Render { source: error }
    }
}

/// A writer that refuses to grow beyond its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit.saturating_sub(self.bytes.len()) {
            self.is_full = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// Jinja's `trim`: Python's `str(value).strip(chars)`.
fn trim(value: &Value, chars: Option<String>) -> String {
    let text = if value.is_undefined() { String::new() } else { python_str(value) };
    strip(&text, chars.as_deref(), Side::Both).to_owned()
}

fn python_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool if value.is_true() => "True".into(),
        ValueKind::Bool => "False".into(),
        _ => value.to_string(),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Left,
    Right,
    Both,
}

fn strip<'a>(text: &'a str, chars: Option<&str>, side: Side) -> &'a str {
    let is_stripped = |character: char| match chars {
        Some(chars) => chars.contains(character),
        None => is_python_space(character),
    };
    let text = if side == Side::Right { text } else { text.trim_start_matches(is_stripped) };
    if side == Side::Left { text } else { text.trim_end_matches(is_stripped) }
}

/// The Python methods that chat templates call on strings and maps.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => string_method(state, text, method, arguments),
        (ValueKind::Map, _) => map_method(state, value, method, arguments),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn string_method(state: &mut State, text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    // What these methods read; the engine charges for what they return.
    state.consume_fuel(text.len() as u64 / 64)?;
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(arguments)?;
            let side = match method {
                "lstrip" => Side::Left,
                "rstrip" => Side::Right,
                _ => Side::Both,
            };
            Value::from(strip(text, chars, side))
        }
        "startswith" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.starts_with(prefix))
        }
        "endswith" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.ends_with(suffix))
        }
        "upper" | "lower" | "title" | "capitalize" => {
            let () = from_args(arguments)?;
            return state.apply_filter(method, &[Value::from(text)]);
        }
        "replace" => {
            let (from, to): (&str, &str) = from_args(arguments)?;
            return state.apply_filter("replace", &[Value::from(text), Value::from(from), Value::from(to)]);
        }
        "split" => {
            let (separator, _): (Option<&str>, Kwargs) = from_args(arguments)?;
            match separator {
                Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
                Some(separator) => text.split(separator).map(Value::from).collect(),
                None => text.split_whitespace().map(Value::from).collect(),
            }
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn map_method(state: &mut State, map: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    match method {
        "get" => {
            let (key, default): (&Value, Option<&Value>) = from_args(arguments)?;
            let found = map.get_item(key)?;
            let default = || default.cloned().unwrap_or_else(|| Value::from(()));
            Ok(if found.is_undefined() { default() } else { found })
        }
        "items" => {
            let () = from_args(arguments)?;
            state.apply_filter("items", std::slice::from_ref(map))
        }
        "keys" => {
            let () = from_args(arguments)?;
            Ok(map.try_iter()?.collect())
        }
        "values" => {
            let () = from_args(arguments)?;
            map.try_iter()?.map(|key| map.get_item(&key)).collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}
