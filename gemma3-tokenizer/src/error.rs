//! What can go wrong when a tokenizer is loaded or used. Each variant is one cause.

use std::path::PathBuf;

/// Why a tokenizer could not be loaded, or a text or a list of ids not converted.
///
/// Token texts that appear in messages are shortened: a file may hold tokens of any length.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file could not be read.
    #[error("cannot read {}: {source}; pass the path of a readable tokenizer.json", path.display())]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A file was read and refused.
    #[error("{file}: {source}")]
    InFile {
        /// The file.
        file: String,
        /// Why; any of the other variants.
        source: Box<TokenizerError>,
    },

    /// Git left a pointer in place of the tokenizer.json.
    #[error(
        "this is a Git LFS pointer{}, not the file itself; run `git lfs pull` in its folder, or download the file \
         from the model's page",
        bytes.map_or(String::new(), |bytes| format!(" to a file of {bytes} bytes"))
    )]
    GitLfsPointer {
        /// Bytes of the real file, if the pointer says.
        bytes: Option<u64>,
    },

    /// The file is larger than any real one.
    #[error("{}: expected at most {limit} bytes, found {found}; this is not a tokenizer.json", path.display())]
    FileTooLarge {
        /// The file asked for.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
        /// Its size.
        found: u64,
    },

    /// The bytes are not a tokenizer.json: not JSON, truncated, or fields of another shape.
    #[error(
        "not a tokenizer.json: {}; fetch the file again, or convert it with Hugging Face's tokenizers",
        shorten_sentence(&source.to_string())
    )]
    Parse {
        /// Line, column and what was expected there.
        source: serde_json::Error,
    },

    /// The vocabulary is of a kind that Gemma does not use.
    #[error("unsupported {part} {found:?}: expected {expected}; take the tokenizer of a Gemma 3")]
    Unsupported {
        /// Which part of the file, such as "model type".
        part: &'static str,
        /// What the file says.
        found: String,
        /// What this crate reads.
        expected: &'static str,
    },

    /// A GGUF vocabulary whose arrays do not belong together.
    #[error(
        "the vocabulary has {tokens} tokens, {scores} scores and {token_types} token types: expected one of each per token; convert the model anew"
    )]
    LengthMismatch {
        /// Length of `tokenizer.ggml.tokens`.
        tokens: usize,
        /// Length of `tokenizer.ggml.scores`.
        scores: usize,
        /// Length of `tokenizer.ggml.token_type`.
        token_types: usize,
    },

    /// There is no token at all.
    #[error("the vocabulary is empty: expected at least one token; take the tokenizer of a Gemma 3")]
    EmptyVocabulary,

    /// Two ids have the same text, so encoding would be ambiguous.
    #[error(
        "token {token:?} is listed twice, as ids {first} and {second}: expected distinct tokens; take the file from \
         the model's page again"
    )]
    DuplicateToken {
        /// The shortened text.
        token: String,
        /// The id seen first.
        first: u32,
        /// The id seen next.
        second: u32,
    },

    /// Two texts have the same id, so decoding would be ambiguous.
    #[error(
        "id {id} is given to both {first:?} and {second:?}: expected one token per id; take the file from the \
         model's page again"
    )]
    DuplicateId {
        /// The id in question.
        id: u32,
        /// One of its texts, shortened.
        first: String,
        /// The other one.
        second: String,
    },

    /// A score that cannot be ranked.
    #[error("token {id} has the score {score}: expected a finite number; convert the model anew")]
    InvalidScore {
        /// The token's id.
        id: u32,
        /// The score in the file.
        score: f32,
    },

    /// A token type that GGUF does not define.
    #[error("token {id} has the type {found}: expected 1 (normal) to 6 (byte); convert the model anew")]
    InvalidTokenType {
        /// The token's id.
        id: u32,
        /// The type in the file.
        found: i32,
    },

    /// A metadata key names a token that does not exist.
    #[error(
        "{key} is {id}, but the vocabulary has {vocab_size} tokens: expected an id below that; convert the model anew"
    )]
    IdOutOfRange {
        /// The metadata key, such as `tokenizer.ggml.bos_token_id`.
        key: &'static str,
        /// Its value.
        id: u32,
        /// The number of tokens.
        vocab_size: usize,
    },

    /// Characters outside the vocabulary would vanish without a trace.
    #[error(
        "the vocabulary has neither all 256 byte tokens (<0x00> to <0xFF>) nor an unknown token: \
         expected one of them, or some characters cannot be encoded; convert the model anew"
    )]
    NoFallback,

    /// A merge rule that does not fit the vocabulary.
    #[error(
        "merge {rank} of {left:?} and {right:?} is not possible: expected both and their concatenation in the vocabulary; take the file from the model's page again"
    )]
    InvalidMerge {
        /// The position in the list of merges.
        rank: usize,
        /// The left part, shortened.
        left: String,
        /// The right part, shortened.
        right: String,
    },

    /// A text or a list of ids could grow to many times its length, whatever a user writes.
    #[error(
        "the {part} can make a text more than {limit} times as long: expected steps that replace characters by a \
         few others"
    )]
    Growth {
        /// Which part of the file, such as "normalizer".
        part: &'static str,
        /// How much is allowed.
        limit: usize,
    },

    /// The merges that follow from the scores of a GGUF vocabulary have far more text than its tokens.
    #[error(
        "the vocabulary has {found} bytes of tokens' parts: expected at most {limit}, {} times its tokens",
        crate::gguf::MERGED_PER_TOKEN_BYTE
    )]
    TooManyMerges {
        /// Bytes of all merges.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },

    /// The `tokenizers` crate refused a part of the file.
    #[error("the tokenizer cannot be built: {message}; take the tokenizer of a Gemma 3")]
    Build {
        /// Its message.
        message: String,
    },

    /// The `tokenizers` crate could not encode a text (only custom pipelines can fail).
    #[error("the text cannot be encoded: {message}")]
    Encode {
        /// Its message.
        message: String,
    },

    /// The `tokenizers` crate could not decode a list of ids (only custom decoders can fail).
    #[error("the ids cannot be decoded: {message}")]
    Decode {
        /// Its message.
        message: String,
    },

    /// A token that the operation needs is not in this vocabulary.
    #[error(
        "the vocabulary has no token {token:?}: use a tokenizer of an instruction-tuned Gemma 3, for images of \
         one with 4B parameters or more"
    )]
    MissingToken {
        /// Its text.
        token: String,
    },

    /// The images do not belong to the prompt. In an escaped text `<start_of_image>` is no placeholder, only an
    /// image part of a message is.
    #[error(
        "the prompt has {placeholders} <start_of_image> {}, but {images} {} given: expected one image for each \
         placeholder",
        if *placeholders == 1 { "placeholder" } else { "placeholders" },
        if *images == 1 { "image was" } else { "images were" },
    )]
    ImageCount {
        /// Placeholders found.
        placeholders: usize,
        /// Images given.
        images: usize,
    },

    /// The ids of the images do not fit into memory.
    #[error(
        "the ids of {images} images with {count} soft tokens a view do not fit into memory: expected \
         mm_tokens_per_image soft tokens (256 in released models) and a few crops an image"
    )]
    ImagesTooLarge {
        /// Images given.
        images: usize,
        /// Soft tokens asked for.
        count: usize,
    },
}

impl TokenizerError {
    /// This error with the file that it is about.
    pub fn in_file(self, file: impl Into<String>) -> Self {
        Self::InFile { file: file.into(), source: Box::new(self) }
    }

    pub(crate) fn build(error: tokenizers::Error) -> Self {
        Self::Build { message: shorten_sentence(&error.to_string()) }
    }

    pub(crate) fn encode(error: tokenizers::Error) -> Self {
        Self::Encode { message: shorten_sentence(&error.to_string()) }
    }

    pub(crate) fn decode(error: tokenizers::Error) -> Self {
        Self::Decode { message: shorten_sentence(&error.to_string()) }
    }
}

/// The first characters of a token, for messages.
pub(crate) fn shorten(token: &str) -> String {
    shorten_to(token, 40)
}

/// The beginning of another's message, which may quote the file; without characters that a terminal obeys.
pub(crate) fn shorten_sentence(sentence: &str) -> String {
    let mut shortened = String::new();
    for character in shorten_to(sentence, 400).chars() {
        match character.is_control() && character != '\n' {
            true => shortened.extend(character.escape_default()),
            false => shortened.push(character),
        }
    }
    shortened
}

fn shorten_to(text: &str, most_chars: usize) -> String {
    match text.char_indices().nth(most_chars) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
