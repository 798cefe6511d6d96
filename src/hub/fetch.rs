//! A model of the hub: which files it needs, and whether the cache has them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use super::id::{is_commit, is_gguf, is_safe_path};
use super::repository::{self, Listing};
use super::transfer::{Hub, Snapshot};
use super::{FetchOptions, HubError, ModelId, Progress, environment};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// What is taken if the repository has it. All of it comes before the weights, so a folder with
/// weights has the rest.
const SMALL_FILES: [&str; 8] = [
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
];

/// An index of a thousand tensors has about 100 KB.
const INDEX_LIMIT_BYTES: u64 = 64 << 20;

/// Brings a model of the hub into the hub's cache and returns where it is: the folder of a
/// repository in the format of transformers, or the path of a GGUF file. What the cache already
/// has is returned without a word over the network.
///
/// `id` is `owner/name[@revision]` or `owner/name/file.gguf[@revision]` (see [`ModelId`]).
/// Downloads resume, and nothing half-downloaded is ever returned, now or by a later call.
///
/// The call blocks until the model is there. The hub's first answer is waited for at most half a
/// minute; once files flow, the `hf-hub` crate sets no time limit, so a connection that falls
/// silent without closing holds the call for as long as the system keeps it.
///
/// # Errors
/// [`HubError::InvalidId`], [`HubError::Unauthorized`] (401), [`HubError::Forbidden`] (403),
/// [`HubError::NotFound`] (404), [`HubError::Unreachable`], [`HubError::Offline`],
/// [`HubError::NoWeights`], [`HubError::Interrupted`], [`HubError::Corrupt`], [`HubError::Disk`]
/// and the rarer ones of [`HubError`].
pub fn fetch(
    id: &str,
    options: &FetchOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, HubError> {
    let mut id: ModelId = id.parse()?;
    if let (None, Some(revision)) = (&id.revision, &options.revision) {
        id = format!("{id}@{revision}").parse()?;
    }
    let cache_dir = environment::hub_cache(options)?;
    let cached = cached(&cache_dir, &id);
    if let Some(cached) = &cached
        && cached.has_tokenizer
    {
        return Ok(cached.path.clone());
    }
    // Another program may have cached weights without the tokenizer. That is still better than
    // nothing where the hub cannot be asked.
    match download(&cache_dir, &id, options, progress) {
        Err(error @ (HubError::Unreachable { .. } | HubError::Offline { .. })) => {
            cached.map(|cached| cached.path).ok_or(error)
        }
        result => result,
    }
}

/// What the cache has of a model.
struct Cached {
    path: PathBuf,
    has_tokenizer: bool,
}

fn cached(cache_dir: &Path, id: &ModelId) -> Option<Cached> {
    let revision = id.revision.as_deref().unwrap_or("main");
    let repo = Repo::new(id.repository.clone(), RepoType::Model);
    let references = cache_dir.join(repo.folder_name()).join("refs");
    let commit = match fs::read_to_string(references.join(revision)) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => revision.to_owned(),
    };
    if !is_commit(&commit) {
        return None;
    }
    let folder = Cache::new(cache_dir.to_owned()).repo(repo).pointer_path(&commit);
    match &id.file {
        Some(file) => {
            let path = folder.join(file);
            path.is_file().then_some(Cached {
                path,
                has_tokenizer: true, // It is inside a GGUF file.
            })
        }
        None if folder.join(CONFIG).is_file() && has_weights(&folder) => {
            Some(Cached { has_tokenizer: folder.join(TOKENIZER).is_file(), path: folder })
        }
        None => None,
    }
}

fn has_weights(folder: &Path) -> bool {
    folder.join(WEIGHTS).is_file()
        || shards(&folder.join(WEIGHTS_INDEX))
            .is_ok_and(|shards| !shards.is_empty() && shards.iter().all(|shard| folder.join(shard).is_file()))
}

fn download(
    cache_dir: &Path,
    id: &ModelId,
    options: &FetchOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, HubError> {
    if environment::is_offline(options) {
        return Err(HubError::Offline { id: id.to_string(), cache: cache_dir.to_owned() });
    }
    let token = environment::token(options);
    let hub = Hub::new(cache_dir, environment::endpoint(options), token.clone())?;
    let revision = id.revision.as_deref().unwrap_or("main");
    progress(Progress::Step("asking the hub"));
    let listing = repository::list(&hub.endpoint, token.as_deref(), &id.repository, revision)?;
    let snapshot = hub.snapshot(&id.repository, &listing.commit);
    let page = hub.page(&id.repository);
    let path = match &id.file {
        Some(file) => {
            require(&listing, file, &page)?;
            snapshot.bring(file, progress)?
        }
        None => {
            bring_folder(&snapshot, &listing, &page, progress)?;
            snapshot.folder()
        }
    };
    snapshot.remember(&id.repository, revision)?;
    Ok(path)
}

fn bring_folder(
    snapshot: &Snapshot<'_>,
    listing: &Listing,
    page: &str,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), HubError> {
    if !listing.has(WEIGHTS) && !listing.has(WEIGHTS_INDEX) {
        let gguf_files = listing.files.iter().filter(|file| is_gguf(file));
        return Err(HubError::NoWeights {
            page: page.to_owned(),
            gguf_files: gguf_files.take(30).cloned().collect(),
        });
    }
    require(listing, CONFIG, page)?;
    for file in SMALL_FILES.into_iter().filter(|file| listing.has(file)) {
        snapshot.bring(file, progress)?;
    }
    if listing.has(WEIGHTS) {
        snapshot.bring(WEIGHTS, progress)?;
        return Ok(());
    }
    let index = snapshot.bring(WEIGHTS_INDEX, progress)?;
    let shards = shards(&index).map_err(|reason| HubError::BadAnswer {
        page: page.to_owned(),
        reason: format!("{WEIGHTS_INDEX}: {reason}"),
    })?;
    for shard in &shards {
        require(listing, shard, page)?;
    }
    for shard in &shards {
        snapshot.bring(shard, progress)?;
    }
    Ok(())
}

fn require(listing: &Listing, file: &str, page: &str) -> Result<(), HubError> {
    if listing.has(file) {
        return Ok(());
    }
    Err(HubError::NotFound { what: format!("file {file}"), page: page.to_owned() })
}

/// The names of the files over which an index spreads its tensors.
fn shards(index: &Path) -> Result<BTreeSet<String>, String> {
    let size = fs::metadata(index).map_err(|error| error.to_string())?.len();
    if size > INDEX_LIMIT_BYTES {
        return Err(format!("{size} bytes are too many for an index"));
    }
    let text = fs::read_to_string(index).map_err(|error| error.to_string())?;
    let json: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let map =
        json["weight_map"].as_object().ok_or("expected `weight_map` to be a map from tensors to files")?;
    map.values()
        .map(|file| {
            file.as_str()
                .filter(|file| is_safe_path(file))
                .map(str::to_owned)
                .ok_or_else(|| format!("{file} is not a file of the repository"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache with the given files of the repository o/n at `COMMIT`, which `main` refers to.
    fn cache_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--o--n");
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), COMMIT).unwrap();
        let folder = repository.join("snapshots").join(COMMIT);
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        cache
    }

    fn offline(cache: &tempfile::TempDir, id: &str) -> Result<PathBuf, HubError> {
        let options = FetchOptions {
            cache_dir: Some(cache.path().to_owned()),
            offline: Some(true),
            ..FetchOptions::default()
        };
        fetch(id, &options, &mut |_| {})
    }

    #[test]
    fn what_is_cached_is_found_without_a_network() {
        let cache = cache_with(&[(CONFIG, "{}"), (TOKENIZER, "{}"), (WEIGHTS, "")]);
        for id in ["o/n", "o/n@main", &format!("o/n@{COMMIT}")] {
            let folder = offline(&cache, id).unwrap();
            assert!(folder.ends_with(COMMIT), "{id}");
        }
        let gguf = cache_with(&[("a.gguf", "GGUF")]);
        assert!(offline(&gguf, "o/n/a.gguf").unwrap().is_file());
    }

    #[test]
    fn weights_without_a_tokenizer_do_where_the_hub_cannot_be_asked() {
        let cache = cache_with(&[(CONFIG, "{}"), (WEIGHTS, "")]);
        assert!(offline(&cache, "o/n").is_ok());
    }

    #[test]
    fn an_incomplete_folder_is_not_taken_for_a_model() {
        let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
        for files in [
            &[(CONFIG, "{}"), (TOKENIZER, "{}")][..],
            &[(TOKENIZER, "{}"), (WEIGHTS, "")],
            &[(CONFIG, "{}"), (WEIGHTS_INDEX, index), ("1.safetensors", "")],
            &[(CONFIG, "{}"), (WEIGHTS_INDEX, "{}")],
            &[(CONFIG, "{}"), (WEIGHTS_INDEX, r#"{"weight_map":{}}"#)],
        ] {
            let cache = cache_with(files);
            let result = offline(&cache, "o/n");
            assert!(matches!(result, Err(HubError::Offline { .. })), "{files:?}");
        }
        let whole = [(CONFIG, "{}"), (WEIGHTS_INDEX, index), ("1.safetensors", ""), ("2.safetensors", "")];
        assert!(offline(&cache_with(&whole), "o/n").is_ok());
    }

    #[test]
    fn an_index_cannot_name_files_outside_the_repository() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("index");
        for file in ["../x", "/etc/passwd", "", "a/../../x", "C:\\x"] {
            let json = serde_json::json!({ "weight_map": { "tensor": file } });
            fs::write(&index, json.to_string()).unwrap();
            assert!(shards(&index).is_err(), "{file:?}");
        }
    }
}
