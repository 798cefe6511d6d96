//! Holds a conversation. `/reset` forgets it, `/system TEXT` changes the instructions, `/quit` leaves;
//! Ctrl-C stops an answer, and at the prompt the program.
//!
//! `cargo run --release --example chat -- --model google/gemma-3-1b-it`

mod common;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::Parser;
use common::{Loaded, ModelArguments, Outcome, OutputError, SamplingArguments, next_line, note, out, show};
use gemma3::{CancelHandle, Chat, ChatTemplateKind, FinishReason, TemplateChoice, WhenFull};

/// Talks with Gemma 3.
#[derive(Debug, Parser)]
struct Arguments {
    /// Instructions for the model.
    #[arg(long)]
    system: Option<String>,

    /// Forget the oldest turns when the context is full, rather than refusing the next one.
    #[arg(long)]
    drop_oldest: bool,

    /// Write Gemma's turns, though the model came with another chat template.
    #[arg(long)]
    gemma_turns: bool,

    #[command(flatten)]
    model: ModelArguments,

    #[command(flatten)]
    sampling: SamplingArguments,
}

/// The answer that Ctrl-C would stop.
type Running = Arc<Mutex<Option<CancelHandle>>>;

fn main() -> ExitCode {
    common::run(run)
}

fn run(arguments: &Arguments) -> Outcome {
    let Loaded { gemma, load_s, .. } = common::load(&arguments.model)?;
    note!("loaded in {load_s:.2} s; /reset, /system TEXT, /quit; Ctrl-C stops an answer");
    if !gemma.is_instruction_tuned() {
        note!(
            "note: this is a base model. It continues text and is not tuned for chat: expect it to ramble. \
             For conversations take an instruction-tuned one, such as --model google/gemma-3-1b-it."
        );
    }
    let template = if arguments.gemma_turns { TemplateChoice::Gemma } else { TemplateChoice::Checkpoint };
    note!("chat template: {}", describe(template, gemma.chat_template_kind()));
    let mut options = arguments.sampling.options(&gemma);
    options.max_new_tokens = options.max_new_tokens.or((!gemma.is_instruction_tuned()).then_some(128));
    let session = arguments.model.session_options();
    common::warm_up(&gemma, &session, &options)?;
    let when_full = if arguments.drop_oldest { WhenFull::DropOldest } else { WhenFull::Stop };
    let mut builder = gemma.chat().options(options).session(session).when_full(when_full).template(template);
    if let Some(system) = &arguments.system {
        builder = builder.system(system);
    }
    let mut chat = builder.start()?;
    let running = stop_answers_on_ctrl_c()?;

    let mut input = std::io::stdin().lock();
    loop {
        show("> ")?;
        let Some(line) = next_line(&mut input)? else { break };
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                note!("error: {error}");
                continue;
            }
        };
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => break,
            "/reset" => {
                chat.reset();
                note!("(the conversation is forgotten)");
            }
            line if line == "/system" || line.starts_with("/system ") => {
                let text = line["/system".len()..].trim();
                chat.set_system((!text.is_empty()).then(|| text.to_owned()));
                note!("(instructions changed, the conversation starts anew)");
            }
            line if line.starts_with('/') => {
                note!("unknown command; there are /reset, /system TEXT, /quit")
            }
            question => match answer(&mut chat, question, &running, arguments.drop_oldest) {
                Ok(()) => {}
                Err(error) if error.is::<OutputError>() => return Err(error),
                // An answer that fails leaves the conversation as it is.
                Err(error) => note!("error: {error}"),
            },
        }
    }
    Ok(())
}

fn describe(choice: TemplateChoice, kind: ChatTemplateKind) -> &'static str {
    match (choice, kind) {
        (TemplateChoice::Checkpoint, ChatTemplateKind::Other) => "the model's own, not Gemma's",
        (TemplateChoice::Gemma, ChatTemplateKind::Other) => "Gemma's, in place of the model's own",
        (_, ChatTemplateKind::None) => "Gemma's; the model came with none",
        _ => "Gemma's",
    }
}

fn answer(chat: &mut Chat, question: &str, running: &Running, drops_oldest: bool) -> Outcome {
    let cancel = CancelHandle::new();
    set_running(running, Some(cancel.clone()));
    let result = stream_answer(chat, question, cancel);
    set_running(running, None);
    match result? {
        Some(FinishReason::Cancelled) => note!("(stopped)"),
        Some(FinishReason::ContextFull) if drops_oldest => {
            note!("(the context is full; the next question drops the oldest turns)")
        }
        Some(FinishReason::ContextFull) => note!("(the context is full; /reset starts anew)"),
        _ => {}
    }
    Ok(())
}

fn stream_answer(
    chat: &mut Chat,
    question: &str,
    cancel: CancelHandle,
) -> Result<Option<FinishReason>, Box<dyn std::error::Error>> {
    let mut stream = chat.ask_with(question, cancel)?;
    for piece in stream.by_ref() {
        show(&piece?.text)?;
    }
    out!("")?;
    Ok(stream.finish_reason())
}

/// Ctrl-C cancels the running answer; without one it ends the program.
fn stop_answers_on_ctrl_c() -> Result<Running, ctrlc::Error> {
    let running = Running::default();
    let handler = running.clone();
    ctrlc::set_handler(move || {
        let taken = handler.lock().ok().and_then(|mut running| running.take());
        match taken {
            Some(cancel) => cancel.cancel(),
            None => {
                note!("");
                std::process::exit(130);
            }
        }
    })?;
    Ok(running)
}

fn set_running(running: &Running, cancel: Option<CancelHandle>) {
    if let Ok(mut running) = running.lock() {
        *running = cancel;
    }
}
