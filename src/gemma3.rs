//! [`Gemma3`]: a model with its tokenizer.

use std::path::Path;
use std::sync::Arc;

use gemma3_core::CancelHandle;
use gemma3_core::Device;
use gemma3_core::cache::CacheOptions;
use gemma3_core::checkpoint::{Checkpoint, Warning};
use gemma3_core::generate;
use gemma3_core::generate::SessionOptions;
use gemma3_core::model::Model;
use gemma3_tokenizer::{Bos, Message, Tokenizer, special};
use gemma3_vision::{EncodedImage, VisionModel};

use crate::chat::ChatBuilder;
use crate::chat_format::{ChatFormat, ChatOptions, TemplateChoice};
use crate::chat_template::{ChatTemplateKind, Template};
use crate::images::{Prompt, Vision};
use crate::text::{Generation, TextSession};
use crate::{Error, GenerateOptions, Loader, load};

/// A loaded Gemma 3 with its tokenizer. Cloning shares the weights; it can be used from any number of
/// threads.
///
/// ```no_run
/// use gemma3::{Device, Gemma3, GenerateOptions};
///
/// # fn main() -> Result<(), gemma3::Error> {
/// let gemma = Gemma3::load("gemma-3-270m", &Device::default())?;
/// let options = GenerateOptions { max_new_tokens: Some(32), ..gemma.generate_options() };
/// println!("{}", gemma.generate("The history of bread begins", &options)?.text);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Gemma3 {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    model: Model,
    vision: Option<Vision>,
    tokenizer: Tokenizer,
    chat_template: Option<Template>,
    defaults: GenerateOptions,
    stop_token_ids: Vec<u32>,
    suppressed_ids: Arc<[u32]>,
    warnings: Vec<Warning>,
}

impl Gemma3 {
    /// Loads a Hugging Face folder, a `.safetensors` file beside its `config.json`, or a `.gguf` file. Of a model
    /// in several numbered files (`…-00001-of-00003`) any one stands for all.
    ///
    /// A `.gguf` file is complete in itself: what lies beside it is not read, except for a `tokenizer.json` if the
    /// file has no vocabulary. Of a folder, what the model does not need is not read: the settings of
    /// preprocessing beside a model that takes text only may be broken, or another model's.
    ///
    /// A folder of the 4B, 12B or 27B is loaded with its image encoder; a `.gguf` file has it in a second
    /// file ([`Loader::mmproj`]). What else can be chosen is in the [`loader`](Self::loader).
    ///
    /// # Errors
    ///
    /// Files that are missing, malformed, of another model, or without a tokenizer.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self, Error> {
        Self::loader(path).device(device).load()
    }

    /// Sets out to load what [`load`](Self::load) loads, with choices: the device, threads, precision, an image encoder in
    /// a file of its own, progress.
    pub fn loader(path: impl AsRef<Path>) -> Loader<'static, 'static> {
        Loader::of_path(path.as_ref())
    }

    /// Sets out to load from a checkpoint and a tokenizer that the caller opened, for instance from memory. For text alone
    /// of a model that sees, give [`Checkpoint::with_vision`]`(None)` of it.
    pub fn loader_of(checkpoint: &Checkpoint, tokenizer: Tokenizer) -> Loader<'_, 'static> {
        Loader::of_checkpoint(checkpoint, tokenizer)
    }

    /// `chat_template` is the one beside the weights, if there is one.
    pub(crate) fn new(
        model: Model,
        vision: Option<Vision>,
        tokenizer: Tokenizer,
        chat_template: Option<Template>,
        warnings: Vec<Warning>,
    ) -> Self {
        let chat_template = chat_template.map(|template| template.completed(&tokenizer));
        let chat_template = chat_template.or_else(|| Template::of_tokenizer(&tokenizer));
        let core = generate::ContinueOptions::for_model(model.config(), model.generation_config());
        let mut stop_token_ids = core.stop_token_ids;
        if chat_template.as_ref().is_some_and(|template| template.source.contains(special::END_OF_TURN)) {
            // The conversions disagree on whether the end of a turn is among the end-of-sequence ids.
            stop_token_ids.extend(tokenizer.end_of_turn_id().filter(|id| !stop_token_ids.contains(id)));
        }
        let defaults = GenerateOptions {
            sampling: core.sampling,
            max_new_tokens: core.max_new_tokens,
            ..GenerateOptions::default()
        };
        let suppressed_ids = load::unspeakable_ids(&tokenizer, model.config());
        Self {
            shared: Arc::new(Shared {
                model,
                vision,
                tokenizer,
                chat_template,
                defaults,
                stop_token_ids,
                suppressed_ids,
                warnings,
            }),
        }
    }

    /// What is odd about the model's files and did not keep it from loading; to be shown or logged.
    pub fn warnings(&self) -> &[Warning] {
        &self.shared.warnings
    }

    /// The decoder, for work on token ids.
    pub fn model(&self) -> &Model {
        &self.shared.model
    }

    /// The image encoder; `None` for a model that takes text only.
    pub fn vision(&self) -> Option<&VisionModel> {
        self.shared.vision.as_ref().map(|vision| &vision.model)
    }

    pub(crate) fn vision_part(&self) -> Option<&Vision> {
        self.shared.vision.as_ref()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.shared.tokenizer
    }

    /// Whether the checkpoint came with a chat template, as instruction-tuned models do. A base model
    /// continues text; it has not learned to answer or to end a turn.
    pub fn is_instruction_tuned(&self) -> bool {
        self.chat_template().is_some()
    }

    /// The Jinja template that came with the checkpoint, the one called `default` if there are several.
    pub fn chat_template(&self) -> Option<&str> {
        self.template().map(|template| template.source.as_str())
    }

    /// Whose turns the checkpoint's template writes. Conversations over Gemma's own are written by
    /// [`ChatTemplate`](gemma3_tokenizer::ChatTemplate), which equals it; any other is rendered with the feature
    /// `jinja` and an error without, unless Gemma's turns are asked for
    /// ([`TemplateChoice::Gemma`]).
    ///
    /// A template is Gemma's if its tokens are those of the published one: white space that isn't written,
    /// quotes and comments do not count. So the answer is the same with and without the feature `jinja`. Any other
    /// difference makes it [`ChatTemplateKind::Other`], even one that shows only in some conversations.
    pub fn chat_template_kind(&self) -> ChatTemplateKind {
        self.template().map_or(ChatTemplateKind::None, Template::kind)
    }

    pub(crate) fn template(&self) -> Option<&Template> {
        self.shared.chat_template.as_ref()
    }

    /// The generation defaults that came with the model.
    pub fn generate_options(&self) -> GenerateOptions {
        self.shared.defaults.clone()
    }

    /// The ids that end a text: those of `config.json` and `generation_config.json`, and for models with
    /// a chat template that writes `<end_of_turn>` that one.
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.shared.stop_token_ids
    }

    /// A new text with the default context (8,192 tokens, or the model's if that is less).
    ///
    /// # Errors
    ///
    /// A cache larger than the memory.
    pub fn session(&self) -> Result<TextSession, Error> {
        self.session_with(&SessionOptions::default())
    }

    /// A new text with the context and chunk given.
    ///
    /// # Errors
    ///
    /// A context that is zero, beyond the model, or larger than the memory.
    pub fn session_with(&self, options: &SessionOptions) -> Result<TextSession, Error> {
        TextSession::new(self, options)
    }

    /// Runs everything once that generations with these options need, so that a GPU has compiled its kernels
    /// before the first text asks for them. See [`warm_up`](gemma3_core::generate::warm_up).
    ///
    /// # Errors
    ///
    /// Those of [`session_with`](Self::session_with) and of generating.
    pub fn warm_up(
        &self,
        session: &SessionOptions,
        options: &GenerateOptions,
        progress: &mut dyn FnMut(generate::WarmUpProgress),
    ) -> Result<(), Error> {
        Ok(generate::warm_up(self.model(), session, &self.core_options(options), progress)?)
    }

    /// The same for [`generate_batch`](Self::generate_batch), [`respond`](Self::respond) and the like: `sequences`
    /// prompts, the longest of `prompt_tokens` tokens. Kernels are those of the number of sequences and of the
    /// longest prompt with what may be generated, up to the next 1,024 tokens.
    ///
    /// # Errors
    ///
    /// Those of [`session_with`](Self::session_with) and of generating.
    pub fn warm_up_batch(
        &self,
        sequences: usize,
        prompt_tokens: usize,
        options: &GenerateOptions,
        progress: &mut dyn FnMut(generate::WarmUpProgress),
    ) -> Result<(), Error> {
        let cache = self.batch_cache(prompt_tokens, prompt_tokens, options);
        let session = SessionOptions { cache, sequence: 0 };
        let mut total = 1;
        // Its prompts are computed one by one.
        self.warm_up(&session, options, &mut |part| {
            total = part.total + 1;
            progress(generate::WarmUpProgress { total, ..part });
        })?;
        let options = vec![self.core_options(options); sequences];
        generate::warm_up_batch(self.model(), &session, &options, &mut |_| {})?;
        progress(generate::WarmUpProgress { done: total, total });
        Ok(())
    }

    /// Continues a text: `<bos>`, the prompt with special tokens read as such (as Hugging Face's `encode`
    /// does), then up to the end. A `<bos>` that is written in the prompt is a second one; see
    /// [`TextSession::append`].
    ///
    /// # Errors
    ///
    /// A prompt longer than the context, or invalid options.
    pub fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<Generation, Error> {
        let mut session = self.session()?;
        session.append(prompt)?;
        session.generate(options)
    }

    /// Continues several texts together, reading the weights once for all at each step. Sequence `i`
    /// draws the random numbers of sequence `i`.
    ///
    /// # Errors
    ///
    /// As [`generate`](Self::generate).
    pub fn generate_batch(
        &self,
        prompts: &[&str],
        options: &GenerateOptions,
    ) -> Result<Vec<Generation>, Error> {
        let encode = |prompt: &&str| Ok(self.tokenizer().encode(prompt, Bos::Add)?);
        let prompts: Vec<Vec<u32>> = prompts.iter().map(encode).collect::<Result<_, Error>>()?;
        self.generate_ids_batch(&prompts, options)
    }

    /// Answers several conversations together: the counterpart of
    /// `apply_chat_template(messages, add_generation_prompt=True)` followed by `generate` and
    /// `batch_decode` of the new tokens.
    ///
    /// Text in messages is escaped: a special token written in it stays text. Turns that do not alternate are an
    /// error; [`respond_with`](Self::respond_with) can merge them.
    ///
    /// # Errors
    ///
    /// A conversation that the template refuses, or that does not fit the context, and
    /// [`Error::OtherChatTemplate`].
    pub fn respond(
        &self,
        conversations: &[Vec<Message>],
        options: &GenerateOptions,
    ) -> Result<Vec<Generation>, Error> {
        let images = vec![Vec::new(); conversations.len()];
        self.respond_with_images(conversations, &images, options)
    }

    /// [`respond`](Self::respond) to conversations with images: for each of them the images of its
    /// [`Part::Image`](crate::Part::Image)s, in order.
    ///
    /// # Errors
    ///
    /// Those of [`respond`](Self::respond), another number of images than places for them, or a model that
    /// takes text only.
    pub fn respond_with_images(
        &self,
        conversations: &[Vec<Message>],
        images: &[Vec<EncodedImage>],
        options: &GenerateOptions,
    ) -> Result<Vec<Generation>, Error> {
        self.respond_with(conversations, images, ChatOptions::default(), options)
    }

    /// [`respond_with_images`](Self::respond_with_images) with a choice of what writes the conversations: the
    /// template, what becomes of roles that do not alternate, whether special tokens in messages stay text.
    ///
    /// # Errors
    ///
    /// Those of [`respond_with_images`](Self::respond_with_images).
    pub fn respond_with(
        &self,
        conversations: &[Vec<Message>],
        images: &[Vec<EncodedImage>],
        chat: ChatOptions,
        options: &GenerateOptions,
    ) -> Result<Vec<Generation>, Error> {
        if conversations.len() != images.len() {
            let (conversations, images) = (conversations.len(), images.len());
            return Err(Error::ImageLists { conversations, images });
        }
        let format = ChatFormat::new(self, chat.template)?;
        let encode = |(messages, images): (&Vec<Message>, &Vec<EncodedImage>)| {
            format.encode(self, &chat.roles.apply(messages), images, chat.user_text)
        };
        let prompts: Vec<Prompt> =
            conversations.iter().zip(images).map(encode).collect::<Result<_, Error>>()?;
        // The model's own end ids know what ends a turn of Gemma's if the checkpoint's template is Gemma's.
        let is_known = format.is_gemma() && chat.template == TemplateChoice::Checkpoint;
        match is_known || options.ignore_eos {
            true => self.generate_prompts(&prompts, options),
            false => self.generate_prompts(&prompts, &format.ending_turns(self, options)),
        }
    }

    /// Continues several sequences of ids together; nothing is added to them.
    ///
    /// # Errors
    ///
    /// As [`generate`](Self::generate), and ids that the model does not know.
    pub fn generate_ids_batch(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
    ) -> Result<Vec<Generation>, Error> {
        let prompt = |ids: &Vec<u32>| Prompt { ids: ids.clone(), spans: Vec::new() };
        let prompts: Vec<Prompt> = prompts.iter().map(prompt).collect();
        self.generate_prompts(&prompts, options)
    }

    fn generate_prompts(
        &self,
        prompts: &[Prompt],
        options: &GenerateOptions,
    ) -> Result<Vec<Generation>, Error> {
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.ids.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut sessions = Vec::with_capacity(prompts.len());
        for (sequence, prompt) in (0..).zip(prompts) {
            let cache = self.batch_cache(prompt.ids.len(), longest, options);
            let mut session = self.session_with(&SessionOptions { cache, sequence })?;
            session.append_prompt(prompt)?;
            sessions.push(session);
        }
        crate::text::generate_batch(&mut sessions, options, &CancelHandle::new())
    }

    /// The cache of a sequence of a batch, given the length of its prompt and of the longest.
    fn batch_cache(&self, prompt: usize, longest: usize, options: &GenerateOptions) -> CacheOptions {
        let most = self.model().text_config().max_position_embeddings;
        let room = options.max_new_tokens.unwrap_or(gemma3_core::cache::DEFAULT_CAPACITY);
        let needs = |prompt: usize| prompt.saturating_add(room).min(most);
        let capacity = self.model().capacity_in_batch(needs(prompt), needs(longest));
        CacheOptions { capacity: Some(capacity.clamp(1, most)), ..CacheOptions::default() }
    }

    /// A conversation.
    pub fn chat(&self) -> ChatBuilder {
        ChatBuilder::new(self)
    }

    /// The core's options for options on text.
    pub(crate) fn core_options(&self, options: &GenerateOptions) -> generate::ContinueOptions {
        let mut stop_token_ids = options.stop_token_ids.clone();
        if !options.ignore_eos {
            stop_token_ids.extend_from_slice(self.stop_token_ids());
        }
        // Greedy is the reference's argmax, to be comparable with it: a trained model does not rate a row
        // without a token highest. Drawing can hit any row that is not excluded.
        let suppressed_ids = match options.sampling.is_greedy() {
            true => Arc::from([]),
            false => self.shared.suppressed_ids.clone(),
        };
        generate::ContinueOptions {
            sampling: options.sampling.clone(),
            max_new_tokens: options.max_new_tokens,
            stop_token_ids,
            suppressed_ids,
            logprobs: options.logprobs,
        }
    }
}
