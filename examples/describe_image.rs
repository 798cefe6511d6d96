//! Asks about images.
//!
//! `cargo run --release --example describe_image -- --model gemma-3-4b-it photo.jpg "What is in this picture?"`

mod common;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use common::{ImageArguments, Loaded, Measured, ModelArguments, Outcome, SamplingArguments, note, out};
use gemma3::{EncodeOptions, EncodedImage, Gemma3, GenerateOptions, Image, PanAndScan, Question};
use serde_json::{Value, json};

/// Asks Gemma 3 about images.
#[derive(Debug, Parser)]
struct Arguments {
    /// Image files (PNG, JPEG, WebP) and then the question.
    #[arg(required = true, num_args = 2.., value_name = "IMAGE... QUESTION")]
    images_and_question: Vec<String>,

    /// Show wide and tall images also in crops.
    #[arg(long)]
    pan_and_scan: bool,

    /// One JSON object on stdout in place of the text.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reading: ImageArguments,

    #[command(flatten)]
    model: ModelArguments,

    #[command(flatten)]
    sampling: SamplingArguments,
}

/// An image that was given, encoded.
struct Shown {
    path: String,
    image: EncodedImage,
    encode_s: f64,
}

fn main() -> ExitCode {
    common::run(run)
}

fn run(arguments: &Arguments) -> Outcome {
    let (question, paths) = arguments.images_and_question.split_last().ok_or("no question")?;
    // First, because an unreadable file should not cost loading a model.
    let images: Vec<(&String, Image)> = paths
        .iter()
        .map(|path| Ok((path, arguments.reading.open(path.as_ref())?)))
        .collect::<Result<_, Box<dyn std::error::Error>>>()?;
    let Loaded { gemma, load_s, .. } = common::load(&arguments.model)?;
    let options = arguments.sampling.options(&gemma);

    let encode = EncodeOptions {
        pan_and_scan: arguments.pan_and_scan.then(PanAndScan::default),
        ..EncodeOptions::default()
    };
    let mut shown = Vec::with_capacity(images.len());
    for (path, image) in images {
        let start = Instant::now();
        let image = gemma.encode_image(&image, &encode)?;
        shown.push(Shown { path: path.clone(), image, encode_s: start.elapsed().as_secs_f64() });
    }

    let (prompt_ids, measured) = ask(&gemma, arguments, &shown, question, options)?;
    if arguments.json {
        let mut line = measured.json(&prompt_ids, load_s);
        line["images"] = shown.iter().map(Shown::json).collect();
        out!("{line}")?;
    } else {
        out!("")?;
        note!("");
        shown.iter().for_each(|shown| note!("{}", shown.summary()));
        note!("{}", measured.summary(prompt_ids.len(), load_s));
    }
    Ok(())
}

/// A tuned model answers in a conversation, a base model continues the text after the images.
fn ask(
    gemma: &Gemma3,
    arguments: &Arguments,
    shown: &[Shown],
    question: &str,
    mut options: GenerateOptions,
) -> Result<(Vec<u32>, Measured), Box<dyn std::error::Error>> {
    let print = !arguments.json;
    if gemma.is_instruction_tuned() {
        let mut chat = gemma.chat().options(options).session(arguments.model.session_options()).start()?;
        let images = shown.iter().fold(Question::new(), |question, shown| question.image(&shown.image));
        let stream = chat.ask(images.text(question))?;
        let prompt_tokens = stream.prompt_tokens();
        let measured = Measured::run(stream, print)?;
        return Ok((chat.tokens().ids()[..prompt_tokens].to_vec(), measured));
    }
    // A base model rarely stops by itself.
    options.max_new_tokens = options.max_new_tokens.or(Some(256));
    let mut session = gemma.session_with(&arguments.model.session_options())?;
    let images: Vec<EncodedImage> = shown.iter().map(|shown| shown.image.clone()).collect();
    session.append_with_images(&("<start_of_image>".repeat(images.len()) + question), &images)?;
    let prompt_ids = session.tokens().ids().to_vec();
    Ok((prompt_ids, Measured::run(session.stream(&options)?, print)?))
}

impl Shown {
    fn json(&self) -> Value {
        let crop = |crop: &gemma3::Crop| json!({ "x": crop.x, "y": crop.y, "width": crop.width, "height": crop.height });
        json!({
            "path": self.path,
            "width": self.image.width(),
            "height": self.image.height(),
            "crops": self.image.crops().iter().map(crop).collect::<Vec<_>>(),
            "soft_tokens": self.image.soft_token_count(),
            "encode_s": self.encode_s,
        })
    }

    fn summary(&self) -> String {
        format!(
            "{}: {} x {}, {} crops, {} soft tokens, encoded in {:.2} s",
            self.path,
            self.image.width(),
            self.image.height(),
            self.image.crops().len(),
            self.image.soft_token_count(),
            self.encode_s
        )
    }
}
