//! What the examples share: their arguments, obtaining and loading a model, and measuring.
#![allow(dead_code, unused_imports)] // Each example uses a part.

mod arguments;
mod measure;
mod measured;
mod model;
mod speed;

pub use arguments::{ModelArguments, SamplingArguments, parse_cache_dtype, parse_ids};
pub use measure::peak_rss_bytes;
pub use measured::Measured;
pub use model::{Loaded, load, obtain, warm_up};
pub use speed::Speed;

/// burn allocates a tensor for every operation. An allocator that keeps the pages of what is freed spares
/// the system from clearing them each time: on Linux with glibc a third of a CPU prefill.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What an example returns from `main`: any error, printed as text.
pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs an example and prints an error as a person would want to read it.
pub fn run(main: impl FnOnce() -> Outcome) -> std::process::ExitCode {
    match main() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
