//! The host's memory while a model is loaded from a file onto the device.
//!
//! Random weights are written to a folder; a process of its own loads them from there, as an application would, and
//! computes a token, while a thread watches its memory. What counts is the most anonymous memory, above what the process
//! had once the device was open: a driver's context takes its own share, which no model adds to. The file's pages are
//! counted by themselves, since the system takes them back when it needs the memory. On a device that has no memory of
//! its own the model counts as well.

use std::path::Path;
use std::time::Instant;

use gemma3::core::checkpoint::Checkpoint;
use gemma3::core::model::Model;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arguments::{Arguments, Part};
use crate::limits::Limits;
use crate::memory::{self, HostMemory, Watch};
use crate::models::RandomModel;
use crate::report::{Figure, Report, Subject, rounded};
use crate::{Failure, child, measure};

/// What the process found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loaded {
    /// At its start.
    pub start: HostMemory,
    /// With the device open, before loading.
    pub opened: HostMemory,
    /// With the model on the device, after a token.
    pub end: HostMemory,
    /// The most anonymous memory while the checkpoint was opened and loaded.
    pub peak_loading_mib: f64,
    /// The same up to the token, with what compiling needs.
    pub peak_token_mib: f64,
    /// Opening the checkpoint and loading.
    pub load_s: f64,
    /// From there to the first token: most of it compiling.
    pub first_token_s: f64,
}

impl Loaded {
    /// What loading needed above the open device, and what loading and the token did, in MiB.
    fn above_mib(&self) -> [f64; 2] {
        let both = self.peak_loading_mib.max(self.peak_token_mib);
        [self.peak_loading_mib, both].map(|peak| peak - self.opened.anonymous_mib)
    }
}

impl Figure for Loaded {
    const LIST: &'static str = "host_memory";

    fn text(&self, subject: &Subject, _limits: &Limits) -> String {
        let Subject { model, format, .. } = subject;
        let [loading, both] = self.above_mib();
        format!(
            "{model}:{format}: loaded in {:.1} s, first token {:.1} s later; the host's anonymous memory was at most \
             {both:.0} MiB ({loading:.0} MiB while loading) above the {:.0} MiB of the open device ({:.0} MiB before \
             that), {:.0} MiB in the end; with the file's pages {:.0} MiB at most",
            self.load_s,
            self.first_token_s,
            self.opened.anonymous_mib,
            self.start.anonymous_mib,
            self.end.anonymous_mib,
            self.end.peak_rss_mib,
        )
    }

    fn json(&self, _limits: &Limits) -> Value {
        let [loading, both] = self.above_mib();
        json!({
            "peak_anonymous_mib": rounded(both, 0),
            "peak_loading_mib": rounded(loading, 0),
            "open_device_mib": rounded(self.opened.anonymous_mib, 0),
            "start_mib": rounded(self.start.anonymous_mib, 0),
            "end_mib": rounded(self.end.anonymous_mib, 0),
            "end_file_mib": rounded(self.end.file_mib, 0),
            "peak_rss_mib": rounded(self.end.peak_rss_mib, 0),
            "load_s": rounded(self.load_s, 2),
            "first_token_s": rounded(self.first_token_s, 2),
        })
    }
}

/// Writes the model, has it loaded, and deletes it.
pub fn measure(model: &RandomModel, report: &mut Report) -> Result<(), Failure> {
    let folder = tempfile::Builder::new().prefix("gemma3-bench-").tempdir()?;
    let begun = Instant::now();
    crate::folder::write(&model.checkpoint()?, folder.path())?;
    println!("{model}: written in {:.1} s", begun.elapsed().as_secs_f64());
    let path = folder.path().to_str().ok_or("a folder whose name is no text")?;
    let loaded: Loaded = child::run_once(Part::Load, path)?;
    report.add(&model.size, model.format, &loaded);
    folder.close()?;
    Ok(())
}

/// [`Part::Load`].
pub fn run(folder: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let unknown = "this system does not say how much memory a process has";
    let start = memory::host().ok_or(unknown)?;
    let device = crate::open(arguments)?;
    device.sync()?;
    let opened = memory::host().ok_or(unknown)?;

    let watch = Watch::start();
    let begun = Instant::now();
    let checkpoint = Checkpoint::open(folder)?;
    let model = Model::load(&checkpoint, &device, arguments.load_options())?;
    drop(checkpoint);
    let load_s = begun.elapsed().as_secs_f64();
    let peak_loading_mib = watch.finish();

    let watch = Watch::start();
    let begun = Instant::now();
    let mut session = measure::session(&model, 64, 64, 0)?;
    session.append(&measure::ids(&model, 8, 0))?;
    for token in session.generate(measure::options(1))? {
        token?;
    }
    let first_token_s = begun.elapsed().as_secs_f64();
    let peak_token_mib = watch.finish();
    let end = memory::host().ok_or(unknown)?;
    child::answer(&Loaded { start, opened, end, peak_loading_mib, peak_token_mib, load_s, first_token_s })
}
