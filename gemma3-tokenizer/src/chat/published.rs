//! Recognizing Gemma 3's own Jinja template, without rendering it.
//!
//! The template has been copied, converted and saved anew many times: with other white space, quotes, marks of
//! trimming, comments, with `\n` as an escape or as a line break. So not the text is compared but its tokens, as
//! a Jinja lexer would find them, and of the texts between the tags only what would be written. Everything else
//! makes another template: one that writes a tool's description, another role or one newline less is not Gemma's.

/// The editions of Gemma 3's template. All sizes have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Edition {
    /// The published one, with an empty line after the system text.
    #[default]
    Current,
    /// The one of the first weeks, which Google's GGUF files of that time hold: one line break after the system
    /// text. Nothing else differs.
    First,
}

/// No template of Gemma's is longer, however it is laid out (they have 1.5 KB): longer ones are not read.
const MAX_BYTES: usize = 64 << 10;

/// What [`fingerprint`] gives for each edition.
const FINGERPRINTS: [(u64, Edition); 2] =
    [(0x5b5a_6624_1a58_0458, Edition::Current), (0x7bec_bf4f_23d5_0842, Edition::First)];

impl Edition {
    /// The edition that a Jinja template is, so that [`ChatTemplate`](super::ChatTemplate) writes the same. White
    /// space that isn't written, quotes, marks of trimming and comments do not count.
    ///
    /// `None` for a template that differs in anything else, though it may write the same for some
    /// conversations. The answer does not depend on the feature `jinja`: nothing is rendered.
    ///
    /// ```
    /// use gemma3_tokenizer::Edition;
    ///
    /// let chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    /// assert_eq!(Edition::of(chatml), None);
    /// ```
    pub fn of(source: &str) -> Option<Self> {
        if source.len() > MAX_BYTES {
            return None;
        }
        let found = fingerprint(source);
        FINGERPRINTS.iter().find(|(known, _)| *known == found).map(|(_, edition)| *edition)
    }

    /// What stands between the system text and the first turn's.
    pub(crate) fn system_end(self) -> &'static str {
        match self {
            Self::Current => "\n\n",
            Self::First => "\n",
        }
    }
}

fn fingerprint(source: &str) -> u64 {
    // FNV-1a, with a byte that UTF-8 doesn't have after each token.
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let bytes = tokens(source).into_iter().flat_map(|token| token.into_bytes().into_iter().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, hash)
}

/// The tokens of a template: `text …` for what is written as it stands, and those within tags.
fn tokens(source: &str) -> Vec<String> {
    let source = source.replace("\r\n", "\n");
    let mut rest = source.strip_suffix('\n').unwrap_or(&source);
    let mut tokens = Vec::new();
    let mut text = String::new();
    let mut before = After::Nothing;
    while let Some((at, kind)) = next_tag(rest) {
        let (literal, tag) = rest.split_at(at);
        let Some((inner, after_tag)) = split_tag(&tag[2..], kind) else {
            // Not valid Jinja, and no token of a valid template.
            tokens.push("a tag without an end".to_owned());
            return tokens;
        };
        text += kept(literal, before, Some((kind, inner)));
        let code = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
        let code = if kind == Tag::Comment { Vec::new() } else { code_tokens(code) };
        match (kind, code.as_slice()) {
            (Tag::Comment, _) => {}
            // A string alone is text.
            (Tag::Print, [only]) if only.starts_with('"') => text += &only[1..],
            (_, code) => {
                flush(&mut text, &mut tokens);
                tokens.push(if kind == Tag::Print { "{{" } else { "{%" }.to_owned());
                tokens.extend_from_slice(code);
            }
        }
        before = if inner.ends_with('-') {
            After::Trimming
        } else if kind == Tag::Print || inner.ends_with('+') {
            After::Nothing
        } else {
            After::Block
        };
        rest = after_tag;
    }
    text += kept(rest, before, None);
    flush(&mut text, &mut tokens);
    tokens
}

fn flush(text: &mut String, tokens: &mut Vec<String>) {
    if !text.is_empty() {
        tokens.push(format!("text {}", std::mem::take(text)));
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Print,
    Block,
    Comment,
}

/// What the tag before a text does to it.
#[derive(Clone, Copy, PartialEq)]
enum After {
    Nothing,
    /// Takes the line break after it (`trim_blocks`).
    Block,
    /// `-%}`
    Trimming,
}

fn next_tag(text: &str) -> Option<(usize, Tag)> {
    text.match_indices('{').find_map(|(at, _)| match text.as_bytes().get(at + 1)? {
        b'{' => Some((at, Tag::Print)),
        b'%' => Some((at, Tag::Block)),
        b'#' => Some((at, Tag::Comment)),
        _ => None,
    })
}

/// The inside of a tag, and what follows the tag; `None` if it has no end.
fn split_tag(text: &str, kind: Tag) -> Option<(&str, &str)> {
    let end = match kind {
        Tag::Print => "}}",
        Tag::Block => "%}",
        Tag::Comment => "#}",
    };
    let mut quote = None;
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match (quote, character) {
            (None, _) if text[at..].starts_with(end) => return Some((&text[..at], &text[at + end.len()..])),
            (None, '"' | '\'') if kind != Tag::Comment => quote = Some(character),
            (Some(_), '\\') => drop(characters.next()),
            (Some(open), _) if open == character => quote = None,
            _ => {}
        }
    }
    None
}

/// What is written of a text between two tags, as transformers renders templates (`trim_blocks`,
/// `lstrip_blocks`).
fn kept<'a>(text: &'a str, before: After, next: Option<(Tag, &str)>) -> &'a str {
    let text = match before {
        After::Nothing => text,
        After::Block => text.strip_prefix('\n').unwrap_or(text),
        After::Trimming => text.trim_start(),
    };
    match next {
        Some((_, inner)) if inner.starts_with('-') => text.trim_end(),
        Some((Tag::Block | Tag::Comment, inner)) if !inner.starts_with('+') => {
            let line = text.trim_end_matches([' ', '\t']);
            let is_at_line_start = line.ends_with('\n') || (line.is_empty() && before != After::Nothing);
            if is_at_line_start { line } else { text }
        }
        _ => text,
    }
}

/// Names, numbers, operators, and strings as `"` and their content.
fn code_tokens(code: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut characters = code.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' | '\'' => tokens.push(string(character, &mut characters)),
            _ if character.is_whitespace() => {}
            _ if is_name(character) => {
                let mut name = String::from(character);
                while let Some(next) = characters.next_if(|next| is_name(*next)) {
                    name.push(next);
                }
                tokens.push(name);
            }
            _ => tokens.push(character.to_string()),
        }
    }
    tokens
}

fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The rest of a string after its opening quote.
fn string(quote: char, characters: &mut impl Iterator<Item = char>) -> String {
    let mut content = String::from('"');
    while let Some(character) = characters.next().filter(|character| *character != quote) {
        content.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The template as `tokenizer_config.json` of the published models has it.
    fn published() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-text/tokenizer_config.json");
        let text = std::fs::read_to_string(path).expect("the configuration");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        json["chat_template"].as_str().expect("a template").to_owned()
    }

    #[test]
    fn the_published_template_is_recognized_however_it_is_laid_out() {
        let template = published();
        let first = template.replace("'\n\n'", "'\n'");
        assert_eq!(fingerprint(&first), FINGERPRINTS[1].0);
        assert_eq!(Edition::of(&first), Some(Edition::First));
        let escaped = template.replace("\n\n'", "\\n\\n'").replace("\n'", "\\n'");
        assert_ne!(escaped, template);
        for (name, same) in [
            ("line breaks as escapes, as in a .jinja file", escaped.clone()),
            ("without the last line break", template.trim_end().to_owned()),
            ("line breaks of Windows", escaped.replace('\n', "\r\n")),
            ("a comment", format!("{{# Copied, with love. #}}{template}")),
            ("other indentation", escaped.replace("    ", "\t")),
            ("one line", escaped.lines().map(str::trim).collect::<String>()),
            (
                "spaces for line breaks, as Google's GGUF files have it",
                escaped.replace('\n', " ").replace("  ", ""),
            ),
            ("double quotes", escaped.replace('\'', "\"")),
            ("spaces in tags", template.replace("{{'", "{{  '").replace("-%}", " -%}")),
            (
                "no marks but before and after tags",
                template.replace("{{ bos_token }}\n{%-", "{{ bos_token }}{%-"),
            ),
        ] {
            assert_eq!(Edition::of(&same), Some(Edition::Current), "{name}:\n{same}");
        }
    }

    #[test]
    fn a_template_that_writes_something_else_is_another() {
        let template = published();
        let tools = "{%- if tools -%}{{ tools | tojson }}{%- endif -%}";
        for (name, other) in [
            ("three line breaks after the system text", template.replace("\n\n'", "\n\n\n'")),
            (
                "a line break that is written",
                template.replace("{{ bos_token }}\n{%- if", "{{ bos_token }}\n{% if"),
            ),
            ("another role", template.replace("role = \"model\"", "role = \"assistant\"")),
            ("another end of turn", template.replace("<end_of_turn>", "<|im_end|>")),
            ("a text behind", format!("{template}<think>")),
            ("tools", template.replace("{%- if add_gen", &format!("{tools}{{%- if add_gen"))),
            ("without <bos>", template.replace("{{ bos_token }}", "")),
            ("without the check of roles", template.replace("!= (loop", "== (loop")),
            ("untrimmed contents", template.replace(" | trim", "")),
            ("too long to be read", template.clone() + &" ".repeat(MAX_BYTES)),
            ("nothing", String::new()),
            ("an open tag", "{{".to_owned()),
            ("an open string", "{% '".to_owned()),
            ("half of it", template[..template.len() / 2].to_owned()),
        ] {
            assert_eq!(Edition::of(&other), None, "{name}:\n{other}");
        }
    }

    #[test]
    fn no_part_of_the_template_is_the_template() {
        let template = published();
        let whole = template.trim_end();
        for (at, _) in whole.char_indices() {
            assert_eq!(Edition::of(&whole[..at]), None, "{:?}", &whole[..at]);
            assert_eq!(Edition::of(&whole[at + 1..]), None, "{:?}", &whole[at + 1..]);
        }
    }

    #[test]
    fn a_template_is_read_as_jinja_reads_it() {
        for (source, expected) in [
            ("a{{ b }}c", &["text a", "{{", "b", "text c"][..]),
            ("a \n{{- b -}}\n c", &["text a", "{{", "b", "text c"]),
            ("{% if x %}\n  {% endif %}\n", &["{%", "if", "x", "{%", "endif"]),
            ("{% if x +%}\n{% endif %}", &["{%", "if", "x", "text \n", "{%", "endif"]),
            ("a {# no {{ tag #}\n b", &["text a  b"]),
            ("{{ '}}' ~ \"it's\" }}", &["{{", "\"}}", "~", "\"it's"]),
            ("<{{ '\\n' }}>", &["text <\n>"]),
            ("{ % } {", &["text { % } {"]),
        ] {
            assert_eq!(tokens(source), expected, "{source:?}");
        }
    }
}
