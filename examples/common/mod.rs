//! What the examples share: their arguments, obtaining and loading a model, measuring, reading and writing.
#![allow(dead_code, unused_imports)] // Each example uses a part.

mod arguments;
mod images;
mod lines;
mod measure;
mod measured;
mod model;
mod output;
mod speed;

use std::error::Error;
use std::process::ExitCode;

pub use arguments::{ModelArguments, SamplingArguments, parse_cache_dtype, parse_ids};
pub use images::ImageArguments;
pub use lines::next_line;
pub use measure::peak_rss_bytes;
pub use measured::Measured;
pub use model::{Loaded, load, obtain, warm_up};
pub use output::{OutputError, flush, show, write_line, write_note};
pub(crate) use output::{note, out};
pub use speed::Speed;

/// burn allocates a tensor for every operation. An allocator that keeps the pages of what is freed spares
/// the system from clearing them each time: on Linux with glibc a third of a CPU prefill.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What an example returns from `main`: any error, printed as text.
pub type Outcome = Result<(), Box<dyn Error>>;

/// Runs an example on its arguments and prints an error as a person would want to read it.
///
/// Output that nobody reads any more is no error: `generate ... | head -1` has done what was asked.
pub fn run<A: clap::Parser>(main: impl FnOnce(&A) -> Outcome) -> ExitCode {
    match parse().and_then(|arguments| arguments.map_or(Ok(()), |arguments| main(&arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            note!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<OutputError>().is_some_and(OutputError::is_closed_pipe)
}

/// The arguments; `None` if help was asked for, which is printed.
fn parse<A: clap::Parser>() -> Result<Option<A>, Box<dyn Error>> {
    match A::try_parse() {
        Ok(arguments) => Ok(Some(arguments)),
        Err(wrong) if wrong.use_stderr() => wrong.exit(),
        Err(help) => {
            help.print().map_err(OutputError)?;
            flush()?;
            Ok(None)
        }
    }
}
