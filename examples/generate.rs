//! Continues a text.
//!
//! `cargo run --release --example generate -- "The history of bread begins"`

mod common;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use common::{Loaded, ModelArguments, Outcome, SamplingArguments, parse_ids, peak_rss_bytes};
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
    common::run(|| run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Outcome {
    let Loaded { gemma, load_s, .. } = common::load(&arguments.model)?;
    let mut options = arguments.sampling.options(&gemma);
    // A base model rarely stops by itself.
    options.max_new_tokens = options.max_new_tokens.or((!gemma.is_instruction_tuned()).then_some(256));
    let mut session = gemma.session_with(&arguments.model.session_options())?;
    enter_prompt(&mut session, arguments)?;
    let prompt_ids = session.tokens().ids().to_vec();

    let start = Instant::now();
    let mut stream = session.stream(&options)?;
    stream.prefill()?;
    let prefill_s = start.elapsed().as_secs_f64();
    let (mut text, mut ids) = (String::new(), Vec::new());
    let mut ttft_s = prefill_s;
    for piece in stream.by_ref() {
        let piece = piece?;
        if ids.is_empty() {
            ttft_s = start.elapsed().as_secs_f64();
        }
        if !arguments.json {
            print!("{}", piece.text);
            std::io::stdout().flush()?;
        }
        text += &piece.text;
        ids.extend(piece.token.map(|token| token.id));
    }
    let total_s = start.elapsed().as_secs_f64();
    let finish_reason = stream.finish_reason().map_or("error", |reason| reason.name());

    let prefill_tok_s = prompt_ids.len() as f64 / prefill_s;
    // The first token comes with the prefill; the others are a step each.
    let decode_tok_s = match ids.len() {
        0 | 1 => 0.0,
        count => (count - 1) as f64 / (total_s - ttft_s),
    };
    if arguments.json {
        let line = serde_json::json!({
            "prompt_ids": prompt_ids,
            "ids": ids,
            "text": text,
            "finish_reason": finish_reason,
            "prompt_tokens": prompt_ids.len(),
            "completion_tokens": ids.len(),
            "load_s": load_s,
            "ttft_s": ttft_s,
            "prefill_tok_s": prefill_tok_s,
            "decode_tok_s": decode_tok_s,
            "peak_rss_bytes": peak_rss_bytes(),
        });
        println!("{line}");
        return Ok(());
    }
    println!();
    eprintln!(
        "\n{} prompt tokens, {} new ({finish_reason}); loaded in {load_s:.2} s, first token after {ttft_s:.2} s, \
         prefill {prefill_tok_s:.1} tok/s, decode {decode_tok_s:.1} tok/s, peak memory {:.0} MB",
        prompt_ids.len(),
        ids.len(),
        peak_rss_bytes() as f64 / 1e6,
    );
    Ok(())
}

fn enter_prompt(session: &mut TextSession, arguments: &Arguments) -> Result<(), gemma3::Error> {
    match (&arguments.ids, &arguments.prompt) {
        (Some(ids), _) => session.append_ids(ids),
        (None, prompt) => session.append(prompt.as_deref().unwrap_or_default()),
    }
}
