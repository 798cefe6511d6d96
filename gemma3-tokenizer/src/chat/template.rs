//! [`ChatTemplate`]: renders and encodes conversations.

use super::turns::{Piece, Turns};
use super::{ChatError, Edition, Message};
use crate::images::Images;
use crate::prompt::PromptEncoder;
use crate::tokenizer::{Bos, SpecialTokens, TokenizeOptions, Tokenizer};

/// How the texts of messages (and the names of unusual roles) are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserText {
    /// As characters: `<end_of_turn>` in a message does not end the turn, `<start_of_image>` does not
    /// announce an image. Where no message contains the name of a special token the ids are those of
    /// `Verbatim`.
    #[default]
    Escape,
    /// As the reference does: the rendered conversation is encoded as a whole, so whoever writes a message
    /// can also write turns.
    Verbatim,
}

/// Whether the ids of an answer include its `<end_of_turn>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The answer was cut short, or its stop id was not kept.
    Open,
    /// The last id of the answer is `<end_of_turn>`.
    Ended,
}

/// Gemma 3's chat template, the same for all sizes; equal to the published Jinja template for every
/// conversation that it accepts, and an error for every other.
///
/// ```
/// use gemma3_tokenizer::{ChatTemplate, Message, Tokenizer, UserText};
///
/// let messages = [Message::system("Be brief."), Message::user(" Hi ")];
/// assert_eq!(
///     ChatTemplate::render(&messages, true)?,
///     "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
/// );
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-text/tokenizer.json");
/// let tokenizer = Tokenizer::from_file(path)?;
/// let ids = ChatTemplate::encode(&tokenizer, &messages, true, UserText::Escape)?;
/// assert_eq!(ids.first().copied(), tokenizer.bos_id());
/// # Ok::<(), gemma3_tokenizer::ChatError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ChatTemplate;

impl ChatTemplate {
    /// The text of a conversation, beginning with `<bos>`. With `add_generation_prompt` it ends where the
    /// model's answer begins.
    ///
    /// A conversation of a system message alone renders without its text, as in the reference.
    ///
    /// # Errors
    /// No message, roles that do not alternate, or a system message that does not begin with text.
    pub fn render(messages: &[Message], add_generation_prompt: bool) -> Result<String, ChatError> {
        Ok(Turns::of(messages, add_generation_prompt)?.text_of_all())
    }

    /// The ids of a conversation, beginning with one `<bos>`.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and a vocabulary without the tokens of turns or images.
    pub fn encode(
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
        user_text: UserText,
    ) -> Result<Vec<u32>, ChatError> {
        encode(tokenizer, &Turns::of(messages, add_generation_prompt)?, user_text, None)
    }

    /// The ids of a conversation with images, beginning with one `<bos>`; what an image becomes is described at
    /// [`Images`].
    ///
    /// With [`UserText::Escape`] every [`Part::Image`](super::Part::Image) is an image, and `<start_of_image>` in a
    /// text is characters. With [`UserText::Verbatim`] those in texts count as well, as in the reference.
    ///
    /// ```
    /// use gemma3_tokenizer::{ChatTemplate, ImageTokens, Images, Message, Part, Role, Tokenizer, UserText};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-multimodal/tokenizer.json");
    ///
    /// let tokenizer = Tokenizer::from_file(path)?;
    /// let messages = [Message::new(Role::User, [Part::Image, "What is <start_of_image>?".into()])];
    /// let images = Images { tokens: ImageTokens::of(&tokenizer, 4)?, crops: &[0] };
    /// let ids = ChatTemplate::encode_with_images(&tokenizer, &messages, true, UserText::Escape, images)?;
    /// assert_eq!(ids.iter().filter(|&&id| id == images.tokens.soft_token).count(), 4);
    /// # Ok::<(), gemma3_tokenizer::ChatError>(())
    /// ```
    ///
    /// # Errors
    /// As [`ChatTemplate::encode`] and [`Tokenizer::encode_with_images`].
    pub fn encode_with_images(
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
        user_text: UserText,
        images: Images<'_>,
    ) -> Result<Vec<u32>, ChatError> {
        encode(tokenizer, &Turns::of(messages, add_generation_prompt)?, user_text, Some(images))
    }

    /// [`ChatTemplate::encode`], or with images [`ChatTemplate::encode_with_images`], as one of the template's
    /// editions writes the conversation.
    ///
    /// # Errors
    /// Those of the two.
    pub fn encode_edition(
        edition: Edition,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
        user_text: UserText,
        images: Option<Images<'_>>,
    ) -> Result<Vec<u32>, ChatError> {
        let turns = Turns::of_edition(edition, messages, add_generation_prompt)?;
        encode(tokenizer, &turns, user_text, images)
    }

    /// The text that continues a conversation after an answer: the answer's end, `message`, and the
    /// beginning of the next answer.
    ///
    /// # Errors
    /// `message` is not a user's.
    pub fn render_next_turn(message: &Message, answer: Answer) -> Result<String, ChatError> {
        Ok(Turns::after_answer(message, answer == Answer::Ended)?.text_of_all())
    }

    /// The ids that continue a conversation after an answer, so that only these need to be computed.
    ///
    /// The ids so far (of [`ChatTemplate::encode`] with the generation prompt, and of the answer) and
    /// these ids together are what encoding the whole conversation gives, if the answer's ids are what
    /// its stripped text encodes to. (A model may spell a text otherwise; then the conversation goes
    /// on with the ids that it really produced.)
    ///
    /// ```
    /// use gemma3_tokenizer::{Answer, ChatTemplate, Message};
    ///
    /// assert_eq!(
    ///     ChatTemplate::render_next_turn(&Message::user("Why?"), Answer::Open)?,
    ///     "<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
    /// );
    /// # Ok::<(), gemma3_tokenizer::ChatError>(())
    /// ```
    ///
    /// # Errors
    /// As [`ChatTemplate::render_next_turn`], and a vocabulary without the tokens of turns or images.
    pub fn encode_next_turn(
        tokenizer: &Tokenizer,
        message: &Message,
        answer: Answer,
        user_text: UserText,
    ) -> Result<Vec<u32>, ChatError> {
        encode(tokenizer, &Turns::after_answer(message, answer == Answer::Ended)?, user_text, None)
    }

    /// The ids that continue a conversation with a message that has images: as [`ChatTemplate::encode_next_turn`],
    /// with the images of `message` only.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_next_turn`] and [`Tokenizer::encode_with_images`].
    pub fn encode_next_turn_with_images(
        tokenizer: &Tokenizer,
        message: &Message,
        answer: Answer,
        user_text: UserText,
        images: Images<'_>,
    ) -> Result<Vec<u32>, ChatError> {
        encode(tokenizer, &Turns::after_answer(message, answer == Answer::Ended)?, user_text, Some(images))
    }
}

/// Without `images` an image is a bare `<start_of_image>`.
fn encode(
    tokenizer: &Tokenizer,
    turns: &Turns<'_>,
    user_text: UserText,
    images: Option<Images<'_>>,
) -> Result<Vec<u32>, ChatError> {
    if user_text == UserText::Verbatim {
        let text = turns.text_of_all();
        let options = TokenizeOptions { bos: Bos::None, special_tokens: SpecialTokens::Parse };
        return Ok(match images {
            Some(images) => tokenizer.encode_with_images(&text, options, images)?,
            None => tokenizer.encode_with(&text, options)?,
        });
    }
    let mut prompt = match images {
        Some(images) => PromptEncoder::with_images(tokenizer, SpecialTokens::Escape, images, turns.images())?,
        None => PromptEncoder::new(tokenizer, SpecialTokens::Escape),
    };
    for piece in turns.pieces() {
        match piece {
            Piece::Special(token) => prompt.special(token)?,
            Piece::Image => prompt.image()?,
            Piece::Text(text) => prompt.text(text),
        }
    }
    Ok(prompt.finish()?)
}
