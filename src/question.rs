//! What a user asks: texts and images in any order.

use gemma3_tokenizer::{Message, Part, Role};
use gemma3_vision::{EncodedImage, Image};

/// A user's turn: texts and images in the order in which the model is to see them.
///
/// ```no_run
/// use gemma3::{Image, Question};
///
/// # fn main() -> Result<(), gemma3::ImageError> {
/// let (before, after) = (Image::open("before.png")?, Image::open("after.png")?);
/// let question =
///     Question::new().image(before).image(after).text("What has changed between these two pictures?");
/// # Ok(())
/// # }
/// ```
///
/// A plain string is a question of one text.
#[derive(Debug, Clone, Default)]
pub struct Question {
    parts: Vec<QuestionPart>,
}

#[derive(Debug, Clone)]
enum QuestionPart {
    Text(String),
    Image(QuestionImage),
}

/// An image to ask about: one that is yet to be encoded, or one that was encoded before
/// ([`Gemma3::encode_image`](crate::Gemma3::encode_image)).
#[derive(Debug, Clone)]
pub enum QuestionImage {
    /// Pixels. They go through the image encoder when the question is asked.
    Pixels(Image),
    /// Soft tokens. Nothing is computed.
    Encoded(EncodedImage),
}

impl Question {
    /// A question without parts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text. White space around it is stripped, as the chat template does.
    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.parts.push(QuestionPart::Text(text.into()));
        self
    }

    /// Adds an image.
    #[must_use]
    pub fn image(mut self, image: impl Into<QuestionImage>) -> Self {
        self.parts.push(QuestionPart::Image(image.into()));
        self
    }

    /// The message with placeholders, and the images for them.
    pub(crate) fn into_message(self) -> (Message, Vec<QuestionImage>) {
        let mut images = Vec::new();
        let mut content = Vec::with_capacity(self.parts.len());
        for part in self.parts {
            content.push(match part {
                QuestionPart::Text(text) => Part::Text(text),
                QuestionPart::Image(image) => {
                    images.push(image);
                    Part::Image
                }
            });
        }
        (Message { role: Role::User, content }, images)
    }
}

impl From<&str> for Question {
    fn from(text: &str) -> Self {
        Self::new().text(text)
    }
}

impl From<String> for Question {
    fn from(text: String) -> Self {
        Self::new().text(text)
    }
}

impl From<&String> for Question {
    fn from(text: &String) -> Self {
        Self::new().text(text.as_str())
    }
}

impl From<Image> for QuestionImage {
    fn from(image: Image) -> Self {
        Self::Pixels(image)
    }
}

impl From<&Image> for QuestionImage {
    fn from(image: &Image) -> Self {
        Self::Pixels(image.clone())
    }
}

impl From<EncodedImage> for QuestionImage {
    fn from(image: EncodedImage) -> Self {
        Self::Encoded(image)
    }
}

impl From<&EncodedImage> for QuestionImage {
    fn from(image: &EncodedImage) -> Self {
        Self::Encoded(image.clone())
    }
}
