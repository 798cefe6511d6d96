//! From `--model` to a loaded model, with progress on stderr.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gemma3::hub::{self, DefaultModelOptions, FetchOptions, ModelId, Progress};
use gemma3::{Gemma3, GenerateOptions, LoadOptions, SessionOptions, device};
use indicatif::{ProgressBar, ProgressStyle};

use super::{ModelArguments, Outcome, note};

/// A model and what loading it took.
pub struct Loaded {
    pub gemma: Gemma3,
    /// Where it came from.
    pub path: PathBuf,
    /// Seconds from the file to the device, without a download.
    pub load_s: f64,
}

/// Obtains and loads the model that the arguments name.
pub fn load(arguments: &ModelArguments) -> Result<Loaded, Box<dyn Error>> {
    // Before a GPU is opened.
    if let Some(folder) = &arguments.kernel_cache {
        device::persist_kernels(folder)?;
    }
    // Early, because a wrong name should not cost a download.
    let device = device::open(&arguments.device)?;
    let path = obtain(arguments.model.as_deref())?;
    let bar = bar();
    bar.set_message("loading");
    let start = Instant::now();
    let mut progress = |p: gemma3::LoadProgress| {
        bar.set_length(p.total_bytes);
        bar.set_position(p.loaded_bytes);
    };
    let options = LoadOptions {
        threads: arguments.threads,
        precision: arguments.precision(),
        quantization: arguments.quantization(),
        progress: Some(&mut progress),
        ..LoadOptions::default()
    };
    let gemma = match &arguments.mmproj {
        Some(mmproj) => Gemma3::loader(&path).mmproj(mmproj).device(&device).options(options).load()?,
        None => Gemma3::loader(&path).device(&device).options(options).load()?,
    };
    let load_s = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    for warning in gemma.warnings() {
        note!("note: {warning}");
    }
    Ok(Loaded { gemma, path, load_s })
}

/// Has a GPU compile its kernels before the first text needs them; a CPU has none.
pub fn warm_up(gemma: &Gemma3, session: &SessionOptions, options: &GenerateOptions) -> Outcome {
    if device::is_cpu(gemma.model().device()) {
        return Ok(());
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message("compiling");
    gemma.warm_up(session, options, &mut |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// A path as it is, a hub id through the hub, nothing as the default model.
pub fn obtain(model: Option<&str>) -> Result<PathBuf, Box<dyn Error>> {
    let bar = bar();
    let mut progress = |progress: Progress<'_>| match progress {
        Progress::Step(what) => bar.suspend(|| note!("{what}")),
        Progress::Bytes { what, done, total } => {
            bar.set_message(what.to_owned());
            bar.set_length(total);
            bar.set_position(done);
        }
        _ => {}
    };
    let Some(model) = model else {
        let obtained = hub::default_model(&DefaultModelOptions::default(), &mut progress)?;
        bar.finish_and_clear();
        note!("{}", obtained.note);
        return Ok(obtained.path);
    };
    if Path::new(model).exists() {
        return Ok(model.into());
    }
    let Ok(id) = model.parse::<ModelId>() else {
        return Err(format!("`{model}` is neither a file or folder here nor a hub id (owner/name)").into());
    };
    let path = hub::fetch(&id.to_string(), &FetchOptions::default(), &mut progress)?;
    bar.finish_and_clear();
    note!("{id} from the Hugging Face Hub; Gemma's terms of use apply: {}", hub::GEMMA_TERMS);
    Ok(path)
}

/// A bar of bytes on stderr, which shows itself only on a terminal.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
