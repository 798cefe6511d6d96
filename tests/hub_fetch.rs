//! Fetching from the hub, against a hub on this machine.
#![cfg(feature = "hub")]

mod hub_mock;

use std::fs;
use std::path::{Path, PathBuf};

use gemma3::hub::{FetchOptions, HubError, Progress, Token, fetch};
use hub_mock::{COMMIT, ID, MockHub, Reply, Repository, Request, dead_endpoint};

fn fetch_quietly(id: &str, options: &FetchOptions) -> Result<PathBuf, HubError> {
    fetch(id, options, &mut |_| {})
}

fn cache() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn assert_has(folder: &Path, repository: &Repository) {
    for (name, bytes) in &repository.files {
        let found = fs::read(folder.join(name)).expect("a fetched file");
        assert_eq!(&found, bytes, "{name}");
    }
}

#[test]
fn a_repository_arrives_whole_in_the_layout_of_the_hubs_cache() {
    let (repository, cache) = (Repository::tiny_text(), cache());
    let hub = MockHub::serving(repository.clone());
    let folder = fetch_quietly(ID, &hub.options(&cache)).unwrap();

    assert_has(&folder, &repository);
    let root = cache.path().join("models--tester--tiny");
    assert_eq!(folder, root.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
}

#[test]
fn what_was_fetched_once_is_not_asked_for_again() {
    let cache = cache();
    let hub = MockHub::serving(Repository::tiny_text());
    let first = fetch_quietly(ID, &hub.options(&cache)).unwrap();
    let requests = hub.request_count();
    let second = fetch_quietly(ID, &hub.options(&cache)).unwrap();
    assert_eq!(first, second);
    assert_eq!(hub.request_count(), requests);
}

#[test]
fn a_sharded_repository_arrives_with_every_shard_of_its_index() {
    let mut repository = Repository::tiny_text();
    repository.files.remove("model.safetensors");
    let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    let repository = repository
        .with("model.safetensors.index.json", index)
        .with("model-1.safetensors", "first")
        .with("model-2.safetensors", "second");
    let (hub, cache) = (MockHub::serving(repository.clone()), cache());
    let folder = fetch_quietly(ID, &hub.options(&cache)).unwrap();
    assert_has(&folder, &repository);
}

#[test]
fn only_the_files_of_a_model_are_fetched() {
    let repository = Repository::tiny_text().with("README.md", "read me");
    let (hub, cache) = (MockHub::serving(repository), cache());
    let folder = fetch_quietly(ID, &hub.options(&cache)).unwrap();
    assert!(!folder.join("README.md").exists());
}

#[test]
fn a_gguf_file_arrives_alone() {
    let repository = Repository::default().with("q4/tiny.gguf", "GGUF bytes").with("q8/tiny.gguf", "others");
    let (hub, cache) = (MockHub::serving(repository), cache());
    let file = fetch_quietly(&format!("{ID}/q4/tiny.gguf"), &hub.options(&cache)).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"GGUF bytes");
    assert!(!file.parent().unwrap().join("../q8/tiny.gguf").exists());
}

#[test]
fn a_repository_of_gguf_files_is_an_error_that_lists_them() {
    let hub = MockHub::serving(Repository::default().with("tiny-q4.gguf", "x"));
    let error = fetch_quietly(ID, &hub.options(&cache())).unwrap_err();
    assert!(matches!(error, HubError::NoWeights { .. }), "{error}");
    assert!(error.to_string().contains("tiny-q4.gguf"), "{error}");
}

#[test]
fn the_token_is_sent_and_only_if_there_is_one() {
    let hub = MockHub::serving(Repository::tiny_text());
    fetch_quietly(ID, &hub.options(&cache())).unwrap();
    assert!(hub.authorizations().iter().all(Option::is_none));

    let hub = MockHub::serving(Repository::tiny_text());
    let options = FetchOptions { token: Token::Given("secret".into()), ..hub.options(&cache()) };
    fetch_quietly(ID, &options).unwrap();
    let expected = Some("Bearer secret".to_owned());
    assert!(hub.authorizations().iter().all(|found| *found == expected));
}

#[test]
fn a_revision_is_asked_for_and_remembered_under_its_name() {
    let (hub, cache) = (MockHub::serving(Repository::tiny_text()), cache());
    fetch_quietly(&format!("{ID}@refs/pr/3"), &hub.options(&cache)).unwrap();
    let refs = cache.path().join("models--tester--tiny/refs");
    assert_eq!(fs::read_to_string(refs.join("refs/pr/3")).unwrap(), COMMIT);
    assert!(!refs.join("main").exists());
}

#[test]
fn progress_goes_up_to_the_size_of_each_file() {
    let repository = Repository::tiny_text();
    let size = repository.files["model.safetensors"].len() as u64;
    let (hub, cache) = (MockHub::serving(repository), cache());
    let mut reports = Vec::new();
    fetch(ID, &hub.options(&cache), &mut |progress| {
        if let Progress::Bytes { what, done, total } = progress
            && what == "model.safetensors"
        {
            reports.push((done, total));
        }
    })
    .unwrap();
    assert!(reports.is_sorted());
    assert!(reports.iter().all(|&(_, total)| total == size));
    assert_eq!(reports.last(), Some(&(size, size)));
}

/// The hub may already refuse the listing, or only the files (as it does for gated repositories).
fn refused(status: u16) -> [HubError; 2] {
    let listing = MockHub::answering(move |_| {
        Reply::status(status).with_header("x-error-message", "Words of the hub.")
    });
    let repository = Repository::tiny_text();
    let files = MockHub::answering(move |request| {
        if request.path.starts_with("/api/") { repository.reply(request) } else { Reply::status(status) }
    });
    [&listing, &files].map(|hub| fetch_quietly(ID, &hub.options(&cache())).unwrap_err())
}

#[test]
fn a_401_says_to_log_in() {
    for error in refused(401) {
        assert!(matches!(error, HubError::Unauthorized { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("HF_TOKEN") && message.contains("hf auth login"));
    }
}

#[test]
fn a_403_says_to_accept_the_licence_on_the_models_page() {
    for error in refused(403) {
        assert!(matches!(error, HubError::Forbidden { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("accept the licence"), "{message}");
        assert!(message.contains(&format!("/{ID}")), "{message}");
    }
}

#[test]
fn a_404_says_to_check_the_spelling() {
    for error in refused(404) {
        assert!(matches!(error, HubError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains("spelling"), "{error}");
    }
}

#[test]
fn the_words_of_the_hub_are_passed_on() {
    let [error, _] = refused(403);
    assert!(error.to_string().contains("Words of the hub."), "{error}");
}

#[test]
fn no_connection_is_told_apart_from_a_refusal() {
    let options = FetchOptions {
        cache_dir: Some(cache().path().to_owned()),
        endpoint: Some(dead_endpoint()),
        token: Token::Anonymous,
        offline: Some(false),
        ..FetchOptions::default()
    };
    let error = fetch_quietly(ID, &options).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("network"), "{error}");
}

#[test]
fn offline_asks_nobody() {
    let hub = MockHub::serving(Repository::tiny_text());
    let options = FetchOptions { offline: Some(true), ..hub.options(&cache()) };
    let error = fetch_quietly(ID, &options).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    assert_eq!(hub.request_count(), 0);
}

#[test]
fn answers_that_are_not_the_hubs_are_errors() {
    let login_page = |_: &Request| Reply::status(200).with_body("<html>Log in, please</html>");
    let nowhere = |request: &Request| {
        if request.path.starts_with("/api/") {
            Repository::tiny_text().reply(request)
        } else {
            // A redirect without an address makes the client crate panic.
            Reply::status(304).with_header("etag", "\"x\"").with_header("x-repo-commit", COMMIT)
        }
    };
    for hub in [MockHub::answering(login_page), MockHub::answering(nowhere)] {
        let error = fetch_quietly(ID, &hub.options(&cache())).unwrap_err();
        assert!(matches!(error, HubError::BadAnswer { .. }), "{error}");
    }
}

#[test]
fn an_etag_or_commit_that_would_leave_the_cache_is_an_error() {
    for (etag, commit) in [("../../evil", COMMIT), ("good", "../../evil")] {
        let hub = MockHub::answering(move |request| {
            let mut reply = Repository::tiny_text().reply(request);
            for (name, value) in &mut reply.headers {
                match *name {
                    "etag" => *value = format!("\"{etag}\""),
                    "x-repo-commit" => *value = commit.to_owned(),
                    _ => {}
                }
            }
            reply
        });
        let cache = cache();
        let error = fetch_quietly(ID, &hub.options(&cache)).unwrap_err();
        assert!(matches!(error, HubError::BadAnswer { .. }), "{error}");
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
    }
}

/// A hub whose weights always break off half-way.
fn breaking_off(repository: Repository) -> MockHub {
    MockHub::answering(move |request| {
        let mut reply = repository.reply(request);
        if request.path.ends_with("/model.safetensors") {
            reply.sent_bytes = reply.body.len() / 2;
        }
        reply
    })
}

#[test]
fn a_download_that_breaks_off_is_an_error_and_never_taken_for_a_model() {
    let (hub, cache) = (breaking_off(Repository::tiny_text()), cache());
    let error = fetch_quietly(ID, &hub.options(&cache)).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { .. }), "{error}");
    assert!(error.to_string().contains("resumes"), "{error}");

    let offline = FetchOptions { offline: Some(true), ..hub.options(&cache) };
    let error = fetch_quietly(ID, &offline).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
}

#[test]
fn a_download_that_broke_off_resumes() {
    let (repository, cache) = (Repository::tiny_text(), cache());
    let broken = breaking_off(repository.clone());
    fetch_quietly(ID, &broken.options(&cache)).unwrap_err();

    let whole = MockHub::serving(repository.clone());
    let mut least = u64::MAX;
    let folder = fetch(ID, &whole.options(&cache), &mut |progress| {
        if let Progress::Bytes { what: "model.safetensors", done, .. } = progress {
            least = least.min(done);
        }
    })
    .unwrap();
    assert_has(&folder, &repository);
    let half = repository.files["model.safetensors"].len() as u64 / 2;
    assert!(least >= half, "began again at {least}");
}

#[test]
fn a_leftover_that_is_too_long_or_already_whole_is_thrown_away() {
    let repository = Repository::tiny_text();
    let weights = &repository.files["model.safetensors"];
    for leftover in [weights.clone(), [&weights[..], b"more"].concat()] {
        let cache = cache();
        let blobs = cache.path().join("models--tester--tiny/blobs");
        fs::create_dir_all(&blobs).unwrap();
        let part = blobs.join(format!("{}.part", hub_mock::sha256(weights)));
        fs::write(part, leftover).unwrap();

        let whole = MockHub::serving(repository.clone());
        let folder = fetch_quietly(ID, &whole.options(&cache)).unwrap();
        assert_has(&folder, &repository);
    }
}

#[test]
fn a_link_to_a_deleted_blob_is_replaced() {
    let (repository, cache) = (Repository::tiny_text(), cache());
    let hub = MockHub::serving(repository.clone());
    fetch_quietly(ID, &hub.options(&cache)).unwrap();
    fs::remove_dir_all(cache.path().join("models--tester--tiny/blobs")).unwrap();
    let folder = fetch_quietly(ID, &hub.options(&cache)).unwrap();
    assert_has(&folder, &repository);
}

#[test]
fn bytes_that_do_not_fit_their_digest_are_deleted() {
    let repository = Repository::tiny_text();
    let damaging = repository.clone();
    let hub = MockHub::answering(move |request| {
        let mut reply = damaging.reply(request);
        if request.path.ends_with("/model.safetensors") {
            reply.body[0] ^= 1;
        }
        reply
    });
    let cache = cache();
    let error = fetch_quietly(ID, &hub.options(&cache)).unwrap_err();
    assert!(matches!(error, HubError::Corrupt { .. }), "{error}");

    let good = MockHub::serving(repository.clone());
    let folder = fetch_quietly(ID, &good.options(&cache)).unwrap();
    assert_has(&folder, &repository);
}

#[test]
fn two_that_fetch_at_once_both_get_the_model() {
    let (repository, cache) = (Repository::tiny_text(), cache());
    let hub = MockHub::serving(repository.clone());
    let options = hub.options(&cache);
    std::thread::scope(|scope| {
        let runs = [(); 2].map(|()| scope.spawn(|| fetch_quietly(ID, &options)));
        for run in runs {
            let folder = run.join().expect("no panic").unwrap();
            assert_has(&folder, &repository);
        }
    });
}
