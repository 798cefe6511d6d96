//! [`Loader`]: from files to a [`Gemma3`].

use std::path::{Path, PathBuf};

use gemma3_core::Device;
use gemma3_core::checkpoint::{Checkpoint, Warning};
use gemma3_core::model::{LoadError, LoadOptions, Model};
use gemma3_tokenizer::Tokenizer;
use gemma3_vision::{Mmproj, PreprocessorConfig, VisionLoadOptions, VisionModel, VisionWeights};

use crate::chat_template::Template;
use crate::images::Vision;
use crate::{Error, Gemma3, load};

/// How to load a model. See [`Gemma3::loader`].
///
/// ```no_run
/// use gemma3::{Gemma3, LoadOptions, Precision, device};
///
/// # fn main() -> Result<(), gemma3::Error> {
/// let gemma = Gemma3::loader("gemma-3-4b-it-Q4_K_M.gguf")
///     .mmproj("mmproj-model-f16.gguf")
///     .device(&device::open("flex")?)
///     .options(LoadOptions { precision: Precision::Exact, ..LoadOptions::default() })
///     .load()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is loaded before `load`"]
pub struct Loader<'a, 'o> {
    source: Source<'a>,
    mmproj: Option<MmprojSource<'a>>,
    preprocessor: Option<PreprocessorConfig>,
    device: Device,
    options: LoadOptions<'o>,
}

enum Source<'a> {
    Path(PathBuf),
    Opened(&'a Checkpoint, Box<Tokenizer>),
}

enum MmprojSource<'a> {
    Path(PathBuf),
    Opened(&'a Mmproj),
}

impl<'a> Loader<'a, 'static> {
    pub(crate) fn of_path(path: &Path) -> Self {
        Self::new(Source::Path(path.to_owned()))
    }

    pub(crate) fn of_checkpoint(checkpoint: &'a Checkpoint, tokenizer: Tokenizer) -> Self {
        Self::new(Source::Opened(checkpoint, Box::new(tokenizer)))
    }

    fn new(source: Source<'a>) -> Self {
        let (device, options) = (Device::default(), LoadOptions::default());
        Self { source, mmproj: None, preprocessor: None, device, options }
    }
}

impl<'a, 'o> Loader<'a, 'o> {
    /// The device that computes; burn's default without.
    pub fn device(mut self, device: &Device) -> Self {
        self.device = device.clone();
        self
    }

    /// Threads, precision, quantization, checks, progress.
    pub fn options<'p>(self, options: LoadOptions<'p>) -> Loader<'a, 'p> {
        let Self { source, mmproj, preprocessor, device, options: _ } = self;
        Loader { source, mmproj, preprocessor, device, options }
    }

    /// The image encoder beside a `.gguf` file, usually called `mmproj-….gguf`.
    pub fn mmproj(mut self, path: impl AsRef<Path>) -> Self {
        self.mmproj = Some(MmprojSource::Path(path.as_ref().to_owned()));
        self
    }

    /// The same, of a file that the caller opened.
    pub fn opened_mmproj(mut self, mmproj: &'a Mmproj) -> Self {
        self.mmproj = Some(MmprojSource::Opened(mmproj));
        self
    }

    /// The settings of the preprocessing of images, if they are not those that come with the model.
    pub fn preprocessor(mut self, preprocessor: PreprocessorConfig) -> Self {
        self.preprocessor = Some(preprocessor);
        self
    }

    /// Loads.
    ///
    /// # Errors
    ///
    /// Files that are missing, malformed, of another model, or without a tokenizer; a second file that is not the image
    /// encoder of this model.
    pub fn load(self) -> Result<Gemma3, Error> {
        let Self { source, mmproj, preprocessor, device, options } = self;
        let opened;
        let mmproj = match mmproj {
            None => None,
            Some(MmprojSource::Opened(mmproj)) => Some(mmproj),
            Some(MmprojSource::Path(path)) => {
                opened = Mmproj::open(path)?;
                Some(&opened)
            }
        };
        match source {
            Source::Path(path) => open(&path, mmproj, preprocessor, &device, options),
            Source::Opened(checkpoint, tokenizer) => {
                let weights = Weights { checkpoint, mmproj, preprocessor };
                assemble(weights, *tokenizer, None, None, &device, options)
            }
        }
    }
}

fn open(
    path: &Path,
    mmproj: Option<&Mmproj>,
    preprocessor: Option<PreprocessorConfig>,
    device: &Device,
    options: LoadOptions<'_>,
) -> Result<Gemma3, Error> {
    let checkpoint = Checkpoint::open(path)?;
    let chat_template = load::chat_template(path, &checkpoint)?;
    let ignored = load::ignored_template(path, &checkpoint);
    if mmproj.is_some() {
        // What the encoder's file says of the model is completed by the tokenizer.
        let tokenizer = load::tokenizer(path, &checkpoint)?;
        let weights = Weights { checkpoint: &checkpoint, mmproj, preprocessor };
        return assemble(weights, tokenizer, chat_template, ignored, device, options);
    }
    let preprocessor = match preprocessor {
        Some(given) => Some(given),
        None => load::preprocessor(path, &checkpoint)?,
    };
    let weights = Weights { checkpoint: &checkpoint, mmproj: None, preprocessor };
    // Reading a vocabulary takes as long as reading the weights of a small model: both at once.
    let (tokenizer, loaded) = std::thread::scope(|scope| {
        let tokenizer = scope.spawn(|| load::tokenizer(path, &checkpoint));
        let loaded = weights.load(device, options);
        (tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), loaded)
    });
    let tokenizer = tokenizer?;
    let (model, vision) = loaded?;
    let warnings = warnings(&checkpoint, ignored, &tokenizer);
    Ok(Gemma3::new(model, vision, tokenizer, chat_template, warnings))
}

fn assemble(
    weights: Weights<'_>,
    tokenizer: Tokenizer,
    chat_template: Option<Template>,
    ignored: Option<Warning>,
    device: &Device,
    options: LoadOptions<'_>,
) -> Result<Gemma3, Error> {
    let with_vision = load::with_mmproj(weights.checkpoint, weights.mmproj, &tokenizer)?;
    let checkpoint = with_vision.as_ref().unwrap_or(weights.checkpoint);
    let (model, vision) = Weights { checkpoint, ..weights }.load(device, options)?;
    let warnings = warnings(checkpoint, ignored, &tokenizer);
    Ok(Gemma3::new(model, vision, tokenizer, chat_template, warnings))
}

fn warnings(checkpoint: &Checkpoint, ignored: Option<Warning>, tokenizer: &Tokenizer) -> Vec<Warning> {
    let mut warnings = checkpoint.warnings().to_vec();
    warnings.extend(ignored);
    warnings.extend(load::tokens_without_rows(tokenizer, checkpoint));
    warnings
}

/// The weights of a model, opened and not yet on a device.
struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    mmproj: Option<&'a Mmproj>,
    preprocessor: Option<PreprocessorConfig>,
}

impl Weights<'_> {
    /// Loads the decoder, and the image encoder if there is one.
    fn load(self, device: &Device, mut options: LoadOptions<'_>) -> Result<(Model, Option<Vision>), Error> {
        let Self { checkpoint, mmproj, preprocessor } = self;
        let encoder = match mmproj {
            Some(mmproj) => Some(VisionWeights::in_mmproj(mmproj, checkpoint.config().text.hidden_size)),
            None => VisionWeights::in_checkpoint(checkpoint),
        };
        let threads = options.threads(device).map_err(LoadError::from)?;
        let text_bytes = checkpoint.total_weight_bytes();
        let vision_bytes = encoder.as_ref().map_or(0, VisionWeights::total_bytes);
        let mut progress = load::Progress::new(options.progress.take(), text_bytes + vision_bytes);
        let vision = match &encoder {
            Some(encoder) => {
                let mut report = progress.after(0);
                let vision_options = VisionLoadOptions {
                    check_finite: options.check_finite,
                    precision: options.precision,
                    plain: options.plain,
                    progress: Some(&mut report),
                };
                let preprocessor = preprocessor.unwrap_or_else(|| match mmproj {
                    Some(mmproj) => *mmproj.preprocessor(),
                    None => load::default_preprocessor(encoder.config()),
                });
                Some(VisionModel::load(encoder, preprocessor, device, &threads, vision_options)?)
            }
            None => None,
        };
        let vision = vision.zip(load::image_tokens(checkpoint.config()));
        let vision = vision.map(|(model, tokens)| Vision { model, tokens });
        let mut report = progress.after(vision_bytes);
        let lent_threads = Some(threads);
        let options = LoadOptions { progress: Some(&mut report), lent_threads, ..options };
        Ok((Model::load(checkpoint, device, options)?, vision))
    }
}
