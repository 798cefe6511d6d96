//! One file of a repository into the hub's cache, through the `hf-hub` crate, which knows the
//! cache's layout, its locks, and how to resume.
//!
//! What the crate leaves open is closed here: answers that would make it panic or write outside
//! the cache, other processes at the same file, sizes and digests of what arrived.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, Repo, RepoType};
use ureq::http::StatusCode;

use super::id::is_safe_name;
use super::repository::{refusal, unreachable};
use super::{HubError, Meter, Progress, files};

/// How long to pause before each further try of a transfer that broke off.
const PAUSES: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(4)];

/// How long to wait for another process that downloads the same file.
const LOCK_PATIENCE: Duration = Duration::from_secs(4 * 60 * 60);

/// The hub's cache, and the way to the hub.
pub(super) struct Hub {
    api: Api,
    cache: Cache,
    /// Address without a slash at the end.
    pub endpoint: String,
}

impl Hub {
    pub(super) fn new(
        cache_dir: &Path,
        endpoint: Option<String>,
        token: Option<String>,
    ) -> Result<Self, HubError> {
        let cache = Cache::new(cache_dir.to_owned());
        let mut builder = ApiBuilder::from_cache(cache.clone()).with_token(token).with_progress(false);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let api = builder.build().map_err(|error| HubError::BadAnswer {
            page: "the hub's client".to_owned(),
            reason: error.to_string(),
        })?;
        // The crate keeps the address of the public hub to itself; a file's address shows it.
        let address = api.model("owner/name".to_owned()).url("");
        let endpoint = address.split("/owner/name/").next().unwrap_or_default();
        let endpoint = endpoint.to_owned();
        Ok(Self { api, cache, endpoint })
    }

    pub(super) fn page(&self, repository: &str) -> String {
        format!("{}/{repository}", self.endpoint)
    }

    /// A repository at one commit.
    pub(super) fn snapshot(&self, repository: &str, commit: &str) -> Snapshot<'_> {
        let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, commit.to_owned());
        Snapshot {
            hub: self,
            page: self.page(repository),
            api: self.api.repo(repo.clone()),
            repo,
            commit: commit.to_owned(),
        }
    }
}

/// The folder of a repository's files at a commit. All files are asked for by commit, so that a
/// push in the middle of a download cannot mix two versions.
pub(super) struct Snapshot<'a> {
    hub: &'a Hub,
    page: String,
    api: ApiRepo,
    repo: Repo,
    commit: String,
}

impl Snapshot<'_> {
    pub(super) fn folder(&self) -> PathBuf {
        self.hub.cache.repo(self.repo.clone()).pointer_path(&self.commit)
    }

    /// Brings a file, whose path was checked to be safe, into the cache if it is not there.
    pub(super) fn bring(
        &self,
        file: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, HubError> {
        let path = self.folder().join(file);
        let began = Instant::now();
        let mut pauses = PAUSES.iter();
        loop {
            if path.exists() {
                return Ok(path);
            }
            if path.is_symlink() {
                // Its blob was deleted, and the crate does not put a link where one is.
                files::remove(&path);
            }
            let error = match self.attempt(file, progress) {
                Ok(path) => return Ok(path),
                Err(error) => error,
            };
            match error {
                HubError::Locked { .. } if began.elapsed() < LOCK_PATIENCE => {
                    progress(Progress::Step("waiting for another process that downloads it"));
                }
                HubError::Interrupted { .. } | HubError::Unreachable { .. } => match pauses.next() {
                    Some(&pause) => sleep(pause),
                    None => return Err(error),
                },
                error => return Err(error),
            }
        }
    }

    fn attempt(&self, file: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf, HubError> {
        let announced = self.announced(file)?;
        let reporter = Reporter(Meter::new(file, announced.size() as u64, progress));
        let path = self.api.download_with_progress(file, reporter).map_err(|error| {
            if is_stale_part(&error) {
                // What an earlier run left is longer than the file, or already whole; the
                // server has nothing to add to either.
                files::remove(&self.blob(&announced).with_extension("part"));
            }
            self.error(file, error)
        })?;
        self.check(file, &path, &announced)?;
        Ok(path)
    }

    /// What the hub says of a file before it is downloaded: size, digest, commit.
    fn announced(&self, file: &str) -> Result<Metadata, HubError> {
        let url = self.api.url(file);
        // The crate unwraps on a redirect that leads nowhere, as a login page may send one.
        let metadata = catch_unwind(AssertUnwindSafe(|| self.hub.api.metadata(&url)))
            .map_err(|_| self.bad_answer(file, "a redirect without a usable address"))?
            .map_err(|error| self.error(file, error))?;
        // Both become names in the cache.
        if !is_safe_name(metadata.etag()) {
            return Err(self.bad_answer(file, "an etag that cannot be the name of a file"));
        }
        if metadata.commit_hash() != self.commit {
            return Err(self.bad_answer(file, "another commit than the one that was asked for"));
        }
        Ok(metadata)
    }

    /// Large files are named by their SHA-256, small ones by git's SHA-1, which says less than
    /// their size and their parser.
    fn check(&self, file: &str, path: &Path, announced: &Metadata) -> Result<(), HubError> {
        let etag = announced.etag();
        let size = std::fs::metadata(path).map_err(HubError::disk(path, "read"))?.len();
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (expected, found) = if size != announced.size() as u64 {
            (format!("{} bytes", announced.size()), format!("{size} bytes"))
        } else if is_sha256 {
            (etag.to_ascii_lowercase(), files::sha256_of_file(path)?)
        } else {
            return Ok(());
        };
        if expected == found {
            return Ok(());
        }
        files::remove(path);
        files::remove(&self.blob(announced));
        Err(HubError::Corrupt { file: file.to_owned(), expected, found })
    }

    fn blob(&self, announced: &Metadata) -> PathBuf {
        self.hub.cache.repo(self.repo.clone()).blob_path(announced.etag())
    }

    /// Remembers that a branch or tag is this commit: after all files have come, so that it never
    /// points at a folder of which some are missing.
    pub(super) fn remember(&self, repository: &str, revision: &str) -> Result<(), HubError> {
        let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
        self.hub
            .cache
            .repo(repo)
            .create_ref(&self.commit)
            .map_err(HubError::disk(self.hub.cache.path(), "written"))
    }

    fn bad_answer(&self, file: &str, reason: &str) -> HubError {
        HubError::BadAnswer { page: self.page.clone(), reason: format!("{file}: {reason}") }
    }

    fn error(&self, file: &str, error: ApiError) -> HubError {
        match error {
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(status @ (408 | 416 | 429 | 500..)) => HubError::Interrupted {
                    file: file.to_owned(),
                    reason: format!("the hub answered {status}"),
                },
                ureq::Error::StatusCode(status) => match StatusCode::from_u16(status) {
                    Ok(status) => refusal(status, &self.page, file, String::new()),
                    Err(_) => self.bad_answer(file, "a status that is none"),
                },
                error => unreachable(&self.hub.endpoint, &error),
            },
            ApiError::TooManyRetries(error) => self.error(file, *error),
            ApiError::LockAcquisition(_) => {
                HubError::Locked { file: file.to_owned(), cache: self.hub.cache.path().clone() }
            }
            ApiError::IoError(error) if is_of_the_disk(&error) => {
                HubError::disk(self.hub.cache.path(), "written")(error)
            }
            ApiError::IoError(error) => {
                HubError::Interrupted { file: file.to_owned(), reason: error.to_string() }
            }
            ApiError::InvalidResume => HubError::Interrupted {
                file: file.to_owned(),
                reason: "what an earlier run left does not fit".to_owned(),
            },
            error => self.bad_answer(file, &error.to_string()),
        }
    }
}

fn is_stale_part(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::RequestError(error) => matches!(**error, ureq::Error::StatusCode(416)),
        _ => false,
    }
}

/// The crate reports the disk's and the network's errors alike. Two runs at the same file can meet
/// in the moments that the crate's lock does not cover, and then find a link already made or a part
/// already renamed: those errors are not of the disk, and trying again settles them.
fn is_of_the_disk(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::*;
    matches!(
        error.kind(),
        PermissionDenied
            | StorageFull
            | QuotaExceeded
            | ReadOnlyFilesystem
            | NotADirectory
            | IsADirectory
            | FileTooLarge
            | InvalidFilename
    )
}

/// Hands the crate's progress on.
struct Reporter<'a>(Meter<'a>);

impl hf_hub::api::Progress for Reporter<'_> {
    // The crate calls this at each try, and then says how much is there already.
    fn init(&mut self, _size: usize, _filename: &str) {
        self.0.done = 0;
    }

    fn update(&mut self, size: usize) {
        self.0.add(size as u64);
    }

    fn finish(&mut self) {
        self.0.set(self.0.total);
    }
}
