//! What an application does with a model for hours: chats whose oldest turns fall out, cancelled and abandoned
//! answers, forks, texts that are cut back and continued, batches, images.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use gemma3::{
    CacheOptions, CancelHandle, Chat, EncodeOptions, Error, Gemma3, GenerateOptions, Image, ImageCache,
    Question, SamplingOptions, SessionOptions, TextSession, WhenFull,
};

/// Tokens of an answer: few, so that many turns take little time.
const ANSWER_TOKENS: usize = 4;

/// A model in use.
pub struct Habits {
    gemma: Gemma3,
    chat: Chat,
    text: TextSession,
    images: Option<ImageCache>,
}

impl Habits {
    /// A conversation and a text on a model, each in a context of `context` tokens.
    pub fn new(gemma: &Gemma3, context: usize) -> Result<Self, Error> {
        let cache = CacheOptions { capacity: Some(context), ..CacheOptions::default() };
        let session = SessionOptions { cache, ..SessionOptions::default() };
        // Room for three images, so that old ones are dropped.
        let images = match gemma.vision() {
            Some(_) => {
                let image = gemma.encode_image(&picture(0)?, &EncodeOptions::default())?;
                Some(gemma.image_cache(3 * image.bytes())?)
            }
            None => None,
        };
        let mut chat = gemma.chat().system("Be brief.").session(session).when_full(WhenFull::DropOldest);
        if let Some(images) = &images {
            chat = chat.image_cache(images.clone());
        }
        Ok(Self { chat: chat.start()?, text: gemma.session_with(&session)?, images, gemma: gemma.clone() })
    }

    /// One turn; `index` decides which habit it is.
    pub fn turn(&mut self, index: usize) -> Result<(), Error> {
        *self.chat.options_mut() = options(index);
        match index % 7 {
            0 => self.chat.answer(format!("Question {index}: what is bread made of?")).map(drop),
            1 => self.cancelled_answer(index),
            2 => self.abandoned_answer(index),
            3 => self.continued_text(index),
            4 => self.forked_text(index),
            5 => self.batch(index),
            _ => self.image(index),
        }
    }

    /// An answer that another thread stops, at a time that differs from turn to turn.
    fn cancelled_answer(&mut self, index: usize) -> Result<(), Error> {
        let cancel = CancelHandle::new();
        let pause = Duration::from_micros(200 * (index as u64 % 100));
        thread::scope(|scope| {
            let handle = cancel.clone();
            scope.spawn(move || {
                thread::sleep(pause);
                handle.cancel();
            });
            let answer = self.chat.ask_with("And how is it baked?", cancel)?;
            answer.into_generation().map(drop)
        })
    }

    /// An answer of which only the first piece is read.
    fn abandoned_answer(&mut self, index: usize) -> Result<(), Error> {
        let mut answer = self.chat.ask(format!("Tell me {index} things."))?;
        answer.next().transpose().map(drop)
    }

    /// A text that is cut back when it grows, and continued.
    fn continued_text(&mut self, index: usize) -> Result<(), Error> {
        if self.text.tokens().len() > self.text.tokens().capacity() / 2 {
            let kept = index % 20 + 1;
            self.text.tokens_mut().rewind(kept);
        }
        self.text.append(&format!(" In the year {index} the history of bread"))?;
        self.text.generate(&options(index)).map(drop)
    }

    /// Two continuations of one text; one of the sessions is dropped.
    fn forked_text(&mut self, index: usize) -> Result<(), Error> {
        if self.text.tokens().len() > self.text.tokens().capacity() / 2 || self.text.tokens().is_empty() {
            self.text.tokens_mut().clear();
            self.text.append("The history of bread begins")?;
        }
        let mut fork = self.text.clone();
        fork.append(" with a fork")?;
        fork.generate(&options(index))?;
        self.text.append(" without one")?;
        self.text.generate(&options(index)).map(drop)
    }

    fn batch(&mut self, index: usize) -> Result<(), Error> {
        let prompts = [format!("Bread number {index}"), "The oven".to_owned(), "Flour, water and".to_owned()];
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        self.gemma.generate_batch(&prompts, &options(index)).map(drop)
    }

    /// A question on one of five images; every third time the image is encoded anew and given up meanwhile.
    fn image(&mut self, index: usize) -> Result<(), Error> {
        if self.images.is_none() {
            return self.chat.answer("What do you see?").map(drop);
        }
        let image = picture(index as u32 % 5)?;
        if index.is_multiple_of(3) {
            let cancel = CancelHandle::new();
            cancel.cancel();
            let options = EncodeOptions { cancel: Some(cancel), ..EncodeOptions::default() };
            self.gemma.encode_image(&image, &options).expect_err("a cancelled encoding");
        }
        self.chat.answer(Question::new().image(image).text("What is this?")).map(drop)
    }
}

fn options(index: usize) -> GenerateOptions {
    let sampling = SamplingOptions { seed: Some(index as u64), top_k: 20, ..SamplingOptions::default() };
    GenerateOptions { sampling, max_new_tokens: Some(ANSWER_TOKENS), ..GenerateOptions::default() }
}

fn picture(seed: u32) -> Result<Image, Error> {
    const SIDE: u32 = 40;
    let pixels: Arc<[u8]> = (0..SIDE * SIDE * 3).map(|i| (i * (seed + 3) / 7) as u8).collect();
    Ok(Image::from_rgb8(SIDE, SIDE, pixels)?)
}
