//! Which template writes the turns of a conversation: Gemma's, or the checkpoint's own.

use gemma3_tokenizer::{ChatTemplate, Edition, Message, Roles, UserText};
use gemma3_vision::EncodedImage;

use crate::images::Prompt;
use crate::{Error, Gemma3, GenerateOptions};

/// Which template writes the turns of conversations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TemplateChoice {
    /// The one that came with the checkpoint: Gemma's where it is [`ChatTemplateKind::Gemma`](crate::ChatTemplateKind::Gemma) or there is none,
    /// any other rendered by the feature `jinja`. Without the feature another one is
    /// [`Error::OtherChatTemplate`].
    #[default]
    Checkpoint,
    /// Gemma's turns, whatever came with the checkpoint.
    Gemma,
}

/// How [`Gemma3::respond_with`](crate::Gemma3::respond_with) writes conversations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChatOptions {
    /// Which template writes the turns.
    pub template: TemplateChoice,
    /// What becomes of turns that do not alternate.
    pub roles: Roles,
    /// Whether special tokens in messages stay text.
    pub user_text: UserText,
}

/// A template that is ready to write conversations of one model.
#[derive(Debug, Clone)]
pub(crate) enum ChatFormat {
    /// Gemma's turns.
    Gemma(Edition),
    /// The checkpoint's template, rendered.
    #[cfg(feature = "jinja")]
    Rendered(std::sync::Arc<rendered::Rendered>),
}

impl ChatFormat {
    pub(crate) fn new(gemma: &Gemma3, choice: TemplateChoice) -> Result<Self, Error> {
        match (choice, gemma.template()) {
            (TemplateChoice::Gemma, _) | (_, None) => Ok(Self::Gemma(Edition::Current)),
            (TemplateChoice::Checkpoint, Some(template)) => match template.edition() {
                Some(edition) => Ok(Self::Gemma(edition)),
                #[cfg(feature = "jinja")]
                None => Ok(Self::Rendered(rendered::Rendered::new(template, gemma.tokenizer())?.into())),
                #[cfg(not(feature = "jinja"))]
                None => Err(Error::OtherChatTemplate),
            },
        }
    }

    /// A conversation up to where the model answers, with the images of its [`Part::Image`](crate::Part::Image)s
    /// in order.
    pub(crate) fn encode(
        &self,
        gemma: &Gemma3,
        messages: &[Message],
        images: &[EncodedImage],
        user_text: UserText,
    ) -> Result<Prompt, Error> {
        refuse_unseen_images(gemma, messages)?;
        let tokenizer = gemma.tokenizer();
        gemma.prompt(images, |images| match self {
            Self::Gemma(edition) => {
                ChatTemplate::encode_edition(*edition, tokenizer, messages, true, user_text, images)
            }
            #[cfg(feature = "jinja")]
            Self::Rendered(rendered) => rendered.encode(tokenizer, messages, user_text, images),
        })
    }

    /// The options with what ends an answer.
    pub(crate) fn ending_turns(&self, gemma: &Gemma3, options: &GenerateOptions) -> GenerateOptions {
        let mut options = options.clone();
        match self {
            Self::Gemma(_) => options.stop_token_ids.extend(gemma.tokenizer().end_of_turn_id()),
            #[cfg(feature = "jinja")]
            Self::Rendered(rendered) => match rendered.end() {
                rendered::End::None => {}
                rendered::End::Token(id) => options.stop_token_ids.push(*id),
                rendered::End::Text(text) => options.stop.push(text.clone()),
            },
        }
        options
    }

    /// Whether Gemma's turns are written, which can be continued without writing them all again.
    pub(crate) fn is_gemma(&self) -> bool {
        matches!(self, Self::Gemma(_))
    }
}

/// A text-only model would read the placeholder of an image as text.
pub(crate) fn refuse_unseen_images(gemma: &Gemma3, messages: &[Message]) -> Result<(), Error> {
    let has_image = |message: &Message| message.images() > 0;
    let is_blind = gemma.vision_part().is_none();
    if is_blind && messages.iter().any(has_image) { Err(Error::ImagesUnsupported) } else { Ok(()) }
}

#[cfg(feature = "jinja")]
mod rendered {
    use gemma3_tokenizer::{ChatError, Images, JinjaLimits, JinjaTemplate, Message, Tokenizer, UserText};

    use crate::chat_template::Template;

    /// A compiled template that is not Gemma's.
    #[derive(Debug)]
    pub(crate) struct Rendered {
        template: JinjaTemplate,
        special_tokens: Vec<(String, String)>,
        end: End,
    }

    /// How the model ends an answer, as far as the template shows it.
    #[derive(Debug)]
    pub(crate) enum End {
        /// By the model's own end-of-sequence ids alone.
        None,
        /// By a special token.
        Token(u32),
        /// By a text that is no special token of this vocabulary.
        Text(String),
    }

    impl Rendered {
        pub(crate) fn new(template: &Template, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
            let special_tokens = template.special_tokens.clone();
            let template = JinjaTemplate::new(&template.source, JinjaLimits::default())?;
            let end = match template.after_answer(&variables(&special_tokens)) {
                Some(after) => End::of(after.trim(), tokenizer),
                None => End::None,
            };
            Ok(Self { template, special_tokens, end })
        }

        pub(crate) fn end(&self) -> &End {
            &self.end
        }

        pub(crate) fn encode(
            &self,
            tokenizer: &Tokenizer,
            messages: &[Message],
            user_text: UserText,
            images: Option<Images<'_>>,
        ) -> Result<Vec<u32>, ChatError> {
            let variables = variables(&self.special_tokens);
            self.template.encode(tokenizer, messages, true, user_text, images, &variables)
        }
    }

    impl End {
        /// The end that the text after an answer begins with.
        fn of(after: &str, tokenizer: &Tokenizer) -> Self {
            let begins = |id: &u32| {
                tokenizer.id_to_token(*id).is_some_and(|name| !name.is_empty() && after.starts_with(&name))
            };
            let length = |id: &u32| tokenizer.id_to_token(*id).map_or(0, |name| name.len());
            match tokenizer.special_ids().iter().copied().filter(begins).max_by_key(length) {
                Some(id) => Self::Token(id),
                // What follows an answer, up to the end of its line.
                None => match after.lines().next() {
                    Some(line) => Self::Text(line.trim_end().to_owned()),
                    None => Self::None,
                },
            }
        }
    }

    fn variables(special_tokens: &[(String, String)]) -> Vec<(&str, &str)> {
        special_tokens.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
    }
}
