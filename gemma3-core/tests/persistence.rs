//! Kernels on disk: where they can be kept, the second process on a folder compiles nothing.
//!
//! cubecl's settings are the process's, so each case is a process of its own: an ignored test that the others start.
#![cfg(all(feature = "persistence", feature = "cube"))]

mod common;
mod count_compilations;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::devices;
use count_compilations::{Compilations, tiny_model};
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use gemma3_core::cache::CacheOptions;
use gemma3_core::device::{self, DeviceError, persist_kernels};
use gemma3_core::generate::{ContinueOptions, SessionOptions, warm_up};

/// The folder of a started process, and the name of its device. Without them ignored tests have nothing to do.
const FOLDER: &str = "GEMMA3_TEST_FOLDER";
const DEVICE: &str = "GEMMA3_TEST_DEVICE";

/// Runs an ignored test in a process of its own, in `folder`.
fn start(test: &str, folder: &Path, device: &str) {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .args(["--ignored", "--exact", "--nocapture", test])
        .current_dir(folder)
        .env(FOLDER, folder)
        .env(DEVICE, device)
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test}: {}\n{text}\n{errors}", output.status);
    assert!(text.contains("1 passed"), "there is a test {test}: {text}");
}

fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// What a start compiled, and how many kernels it added to those that are kept.
struct Start {
    compiled: usize,
    added: u64,
}

/// A start on `folder`, with settings of the host's: that the log is written shows that they are kept.
fn start_on(folder: &Path, device: &str) -> Start {
    let host = tempfile::tempdir().expect("a folder");
    let settings = "[compilation.logger]\nlevel = \"basic\"\nfile = \"compilations.log\"\n";
    std::fs::write(host.path().join("cubecl.toml"), settings).expect("written");
    std::fs::write(host.path().join("kernels"), folder.to_str().expect("UTF-8")).expect("written");
    start("one_start", host.path(), device);
    let report = std::fs::read_to_string(host.path().join("report")).expect("a report");
    let (compiled, added) = report.split_once(' ').expect("two numbers");
    Start { compiled: compiled.parse().expect("a number"), added: added.parse().expect("a number") }
}

#[test]
fn a_second_start_compiles_nothing() {
    let mut tested = 0;
    for (name, gpu) in devices().into_iter().filter(|(_, device)| !device::is_cpu(device)) {
        drop(gpu);
        let kernels = tempfile::tempdir().expect("a folder");
        // One that is not there yet.
        let folder = kernels.path().join("kernels");
        let first = start_on(&folder, name);
        let second = start_on(&folder, name);
        println!("{name}: {} compiled, {} kept; then {}", first.compiled, first.added, second.compiled);
        assert!(first.compiled > 0, "{name}: nothing was compiled, or it is not counted");
        if ["cuda", "rocm", "vulkan"].contains(&name) {
            assert!(first.added > 0, "{name}: kernels are kept");
        }
        if first.added > 0 {
            assert_eq!((second.compiled, second.added), (0, 0), "{name}");
        } else {
            // Shaders are the driver's to compile.
            assert_eq!((second.compiled, second.added), (first.compiled, 0), "{name}");
        }
        tested += 1;
    }
    if tested == 0 {
        println!("skipped: no GPU to test on");
    }
}

/// Kernels on disk.
fn kept() -> u64 {
    let backends = ["cuda/", "hip/", "vulkan/"];
    let namespaces = cubecl::environment::namespaces();
    let kernels = namespaces.iter().filter(|space| backends.iter().any(|b| space.namespace.starts_with(b)));
    kernels.map(|space| space.entries).sum()
}

#[test]
#[ignore = "a process of its own, started by `a_second_start_compiles_nothing`"]
fn one_start() {
    let Some(host) = folder() else { return };
    let kernels = std::fs::read_to_string(host.join("kernels")).expect("a folder's name");
    persist_kernels(Path::new(&kernels)).expect("kernels can be kept");
    assert!(Path::new(&kernels).is_dir());
    let before = kept();
    let gpu = device::open(&std::env::var(DEVICE).expect("a name")).expect("a device");
    let model = tiny_model(&gpu);
    let cache = CacheOptions { capacity: Some(64), chunk: 16, ..CacheOptions::default() };
    let session = SessionOptions { cache, sequence: 0 };
    warm_up(&model, &session, &ContinueOptions::default(), &mut |_| {}).expect("a warm-up");
    let added = kept() - before;
    let compiled = Compilations::logged_to(&host.join("compilations.log")).so_far(&gpu).len();
    std::fs::write(host.join("report"), format!("{compiled} {added}")).expect("written");
}

#[test]
fn the_folder_is_decided_once() {
    let folder = tempfile::tempdir().expect("a folder");
    start("the_first_folder_counts", folder.path(), "");
    start("settings_of_the_host_count", folder.path(), "");
}

#[test]
#[ignore = "a process of its own, started by `the_folder_is_decided_once`"]
fn the_first_folder_counts() {
    if folder().is_none() {
        return;
    }
    // It may go by several names.
    let folder = std::env::current_dir().expect("a folder");
    let file = folder.join("file");
    std::fs::write(&file, "not a folder").expect("written");
    // What can't be used decides nothing.
    assert!(matches!(persist_kernels(&file), Err(DeviceError::KernelFolder { .. })));
    let first = folder.join("first");
    assert_eq!(persist_kernels(&first), Ok(()));
    assert_eq!(persist_kernels(&first), Ok(()));
    // The same folder by another name.
    assert_eq!(persist_kernels(Path::new("first")), Ok(()));
    let error = persist_kernels(&folder.join("second")).expect_err("another folder");
    assert_eq!(error, DeviceError::KernelsDecided { kept: Some(first) });
}

#[test]
#[ignore = "a process of its own, started by `the_folder_is_decided_once`"]
fn settings_of_the_host_count() {
    let Some(folder) = folder() else { return };
    CubeClRuntimeConfig::set(CubeClRuntimeConfig::default());
    let error = persist_kernels(&folder).expect_err("decided");
    assert_eq!(error, DeviceError::KernelsDecided { kept: None });
}
