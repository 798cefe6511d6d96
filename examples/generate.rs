//! Continues a text.
//!
//! `cargo run --release --example generate -- "The history of bread begins"`

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::{Loaded, Measured, ModelArguments, Outcome, SamplingArguments, note, out, parse_ids};
use gemma3::TextSession;

/// Continues a text with Gemma 3.
#[derive(Debug, Parser)]
struct Arguments {
    /// The text to continue.
    #[arg(required_unless_present = "ids", conflicts_with = "ids")]
    prompt: Option<String>,

    /// The prompt as token ids (2,5,...); nothing is added.
    #[arg(long, value_parser = parse_ids)]
    ids: Option<std::vec::Vec<u32>>,

    /// One JSON object on stdout in place of the text.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArguments,

    #[command(flatten)]
    sampling: SamplingArguments,
}

fn main() -> ExitCode {
    common::run(run)
}

fn run(arguments: &Arguments) -> Outcome {
    let Loaded { gemma, load_s, .. } = common::load(&arguments.model)?;
    let mut options = arguments.sampling.options(&gemma);
    // A base model rarely stops by itself.
    options.max_new_tokens = options.max_new_tokens.or((!gemma.is_instruction_tuned()).then_some(256));
    let mut session = gemma.session_with(&arguments.model.session_options())?;
    enter_prompt(&mut session, arguments)?;
    let prompt_ids = session.tokens().ids().to_vec();

    let measured = Measured::run(session.stream(&options)?, !arguments.json)?;
    if arguments.json {
        out!("{}", measured.json(&prompt_ids, load_s))?;
    } else {
        out!("")?;
        note!("\n{}", measured.summary(prompt_ids.len(), load_s));
    }
    Ok(())
}

fn enter_prompt(session: &mut TextSession, arguments: &Arguments) -> Result<(), gemma3::Error> {
    match (&arguments.ids, &arguments.prompt) {
        (Some(ids), _) => session.append_ids(ids),
        (None, prompt) => {
            let prompt = prompt.as_deref().unwrap_or_default();
            if session.gemma().tokenizer().starts_with_bos(prompt) {
                note!(
                    "note: the prompt begins with <bos>, and one is put before it, as always: the model sees two. \
                     Leave it out of the prompt."
                );
            }
            session.append(prompt)
        }
    }
}
