//! How probable a model finds a text: log-probabilities, perplexity, the best next tokens.
//!
//! `cargo run --release --example score -- "The history of bread begins in the Neolithic."`

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::{Loaded, ModelArguments, Outcome, out, parse_ids};
use gemma3::core::sampling::top_logits;
use gemma3::tokenizer::Bos;

/// Scores a text with Gemma 3.
#[derive(Debug, Parser)]
struct Arguments {
    /// The text to score.
    #[arg(required_unless_present = "ids", conflicts_with = "ids")]
    text: Option<String>,

    /// The text as token ids (2,5,...); nothing is added.
    #[arg(long, value_parser = parse_ids)]
    ids: Option<std::vec::Vec<u32>>,

    /// One JSON object on stdout in place of the table.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArguments,
}

fn main() -> ExitCode {
    common::run(run)
}

fn run(arguments: &Arguments) -> Outcome {
    let Loaded { gemma, .. } = common::load(&arguments.model)?;
    let ids = match (&arguments.ids, &arguments.text) {
        (Some(ids), _) => ids.clone(),
        (None, text) => gemma.tokenizer().encode(text.as_deref().unwrap_or_default(), Bos::Add)?,
    };
    let mut session_options = arguments.model.session_options();
    // As large as the text, if nothing was asked for.
    session_options.cache.capacity = session_options.cache.capacity.or(Some(ids.len().max(1)));
    let mut session = gemma.session_with(&session_options)?;
    let logprobs: Vec<f32> = session.score_ids(&ids, 0)?.iter().map(|token| token.logprob).collect();
    let mean_logprob = match logprobs.len() {
        0 => None,
        count => Some(logprobs.iter().map(|x| f64::from(*x)).sum::<f64>() / count as f64),
    };
    let top = top_logits(session.tokens_mut().logits()?, 10);

    if arguments.json {
        let line = serde_json::json!({
            "ids": ids,
            "logprobs": logprobs,
            "mean_logprob": mean_logprob,
            "top": top,
        });
        return Ok(out!("{line}")?);
    }
    let token = |id: u32| format!("{:?}", gemma.tokenizer().id_to_token(id).unwrap_or_default());
    out!("{:>6}  {:>7}  {:>9}  token", "place", "id", "log-prob")?;
    for (place, id) in ids.iter().enumerate() {
        let logprob = place.checked_sub(1).and_then(|i| logprobs.get(i));
        let logprob = logprob.map_or_else(|| "-".to_owned(), |x| format!("{x:.4}"));
        out!("{place:>6}  {id:>7}  {logprob:>9}  {}", token(*id))?;
    }
    out!("\n{:>6}  {:>7}  {:>9}  most probable next tokens", "", "id", "logit")?;
    for (id, logit) in top {
        out!("{:>6}  {id:>7}  {logit:>9.4}  {}", "", token(id))?;
    }
    if let Some(mean_logprob) = mean_logprob {
        out!(
            "\n{} tokens scored, mean log-probability {mean_logprob:.4}, perplexity {:.3}",
            logprobs.len(),
            (-mean_logprob).exp()
        )?;
    }
    Ok(())
}
