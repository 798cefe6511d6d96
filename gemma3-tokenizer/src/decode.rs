//! Ids to text, one token at a time: the decoder of Gemma's tokenizer.json (replace "▁" by a space, join
//! byte tokens, concatenate), written so that a whole list and a stream take the same path.
//!
//! Byte tokens are joined over the whole run of them, as the reference does: if the run is valid UTF-8
//! it is that text, otherwise *each* of its bytes becomes one U+FFFD. So nothing of a run can be given
//! out before it is known to be invalid, or over.

use serde_json::Value;

/// How ids become text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DecodePlan {
    /// Token by token, as described above.
    Incremental(Incremental),
    /// A decoder that needs the whole list: left to the `tokenizers` crate.
    Whole,
}

/// The steps of an incremental decoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Incremental {
    /// (pattern, replacement), in order; no pattern is empty.
    replacements: Vec<(String, String)>,
    byte_fallback: bool,
}

impl DecodePlan {
    /// Reads the `decoder` of a tokenizer.json; what is not understood here is decoded as a whole.
    pub fn from_json(decoder: Option<&Value>) -> Self {
        decoder.and_then(Incremental::from_json).map_or(Self::Whole, Self::Incremental)
    }
}

impl Incremental {
    fn from_json(decoder: &Value) -> Option<Self> {
        let steps = match decoder.get("type")?.as_str()? {
            "Sequence" => decoder.get("decoders")?.as_array()?.as_slice(),
            _ => std::slice::from_ref(decoder),
        };
        let mut plan = Self::default();
        let mut is_fused = false;
        for step in steps {
            match step.get("type")?.as_str()? {
                // After the bytes are joined a replacement would see several tokens at once.
                "Replace" if !plan.byte_fallback && !is_fused => {
                    let pattern = step.get("pattern")?.get("String")?.as_str()?;
                    let content = step.get("content")?.as_str()?;
                    if pattern.is_empty() {
                        return None;
                    }
                    plan.replacements.push((pattern.into(), content.into()));
                }
                "ByteFallback" if !is_fused => plan.byte_fallback = true,
                "Fuse" => is_fused = true,
                _ => return None,
            }
        }
        Some(plan)
    }

    /// Appends what `token` completes to `text`.
    pub fn push(&self, token: String, run: &mut ByteRun, text: &mut String) {
        let mut token = token;
        for (pattern, content) in &self.replacements {
            if token.contains(pattern.as_str()) {
                token = token.replace(pattern.as_str(), content);
            }
        }
        match byte_of(&token).filter(|_| self.byte_fallback) {
            Some(byte) => run.push(byte, text),
            None => {
                run.finish(text);
                text.push_str(&token);
            }
        }
    }
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// The byte tokens since the last other token.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByteRun {
    /// Held back: valid UTF-8 so far, perhaps with an unfinished character at the end.
    held: Vec<u8>,
    /// The bytes of `held` that are whole characters.
    whole: usize,
    /// The run is invalid: each further byte is one U+FFFD.
    is_broken: bool,
}

impl ByteRun {
    fn push(&mut self, byte: u8, text: &mut String) {
        if self.is_broken {
            text.push(char::REPLACEMENT_CHARACTER);
            return;
        }
        self.held.push(byte);
        match std::str::from_utf8(self.held.get(self.whole..).unwrap_or_default()) {
            Ok(_) => self.whole = self.held.len(),
            Err(error) if error.error_len().is_some() => {
                self.replace_held(text);
                self.is_broken = true;
            }
            // An unfinished character.
            Err(_) => {}
        }
    }

    /// Ends the run and appends what was held back.
    pub fn finish(&mut self, text: &mut String) {
        if !self.held.is_empty() {
            match std::str::from_utf8(&self.held) {
                Ok(characters) => text.push_str(characters),
                Err(_) => self.replace_held(text),
            }
        }
        *self = Self::default();
    }

    fn replace_held(&mut self, text: &mut String) {
        text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, self.held.len()));
        self.held.clear();
    }
}
