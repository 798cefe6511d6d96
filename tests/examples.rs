//! The examples as programs: what they write, and what they do where they can't write or read.

#[path = "../gemma3-core/tests/common/mod.rs"]
mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Where cargo puts an example that it builds beside this test.
fn path_of(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test's path");
    let profile = test.parent().and_then(Path::parent).expect("the folder of the profile");
    profile.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION)
}

fn program(name: &str) -> Command {
    let path = path_of(name);
    assert!(path.exists(), "{} is missing; build it with `cargo build --examples`", path.display());
    let mut command = Command::new(path);
    command.stdin(Stdio::null());
    command
}

/// An example with a tiny model.
fn with_model(name: &str, model: &str, arguments: &[&str]) -> Option<Command> {
    let model = common::golden(model)?;
    let mut command = program(name);
    let (device, _) = common::devices().swap_remove(0);
    command.arg("--model").arg(model).args(["--device", device]).args(arguments);
    Some(command)
}

/// Every example that writes to stdout, in each of the ways in which it does.
fn writers(folder: &Path) -> Option<Vec<(&'static str, Command)>> {
    let text = folder.join("text.txt");
    std::fs::write(&text, "to the inn and back to the inn").expect("a file");
    let image = common::golden("images/rgba_121x120.png")?;
    let few = &["--greedy", "--max-new-tokens", "3"];
    let text_model = |name, arguments: &[&str]| with_model(name, "tiny-text", arguments);
    let mut describe = with_model("describe_image", "tiny-multimodal", few)?;
    describe.arg(&image).arg("what?");
    let mut views = program("image_views");
    views.arg(&image).arg("--out").arg(folder.join("views"));
    let mut help = program("generate");
    help.arg("--help");
    let mut writers = vec![
        ("score", text_model("score", &["the inn"])?),
        ("score --json", text_model("score", &["the inn", "--json"])?),
        ("generate", text_model("generate", &[few, &["the inn"][..]].concat())?),
        ("generate --json", text_model("generate", &[few, &["the inn", "--json"][..]].concat())?),
        ("bench", text_model("bench", &["-p", "4", "-n", "2", "-r", "1"])?),
        ("chat", text_model("chat", few)?),
        ("describe_image", describe),
        ("image_views", views),
        ("--help", help),
    ];
    // It has tests of its own, so `cargo test` builds only those of it.
    if path_of("quantization").exists() {
        let mut quantization = program("quantization");
        quantization.arg("--text").arg(&text).arg("--baseline").arg(common::golden("tiny-text")?);
        quantization.args(["--device", common::devices().swap_remove(0).0, "-r", "0"]);
        writers.push(("quantization", quantization));
    } else {
        common::skip("examples", "`quantization` is not built; `cargo build --examples` does it");
    }
    Some(writers)
}

/// What went to stderr, for messages.
fn notes(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// The lines that say that something went wrong.
fn errors(output: &Output) -> Vec<String> {
    notes(output).lines().filter(|line| line.starts_with("error: ")).map(str::to_owned).collect()
}

/// Feeds lines to a program.
fn run_with_input(mut command: Command, input: Vec<u8>) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // From a thread, as the program writes while it reads.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("all is read");
    output
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_ends_a_program_quietly() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(writers) = writers(folder.path()) else { return };
    for (name, mut command) in writers {
        // Nobody reads from the beginning.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command.stdout(writer).stderr(Stdio::piped()).output().expect("it runs");
        assert!(output.status.success(), "{name}: {}, {}", output.status, notes(&output));
        assert!(errors(&output).is_empty(), "{name}: {}", notes(&output));
        assert!(!notes(&output).contains("panicked"), "{name}: {}", notes(&output));
    }
    // What a program makes besides is whole.
    assert!(folder.path().join("views/whole.jpg").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_line_and_a_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(writers) = writers(folder.path()) else { return };
    for (name, mut command) in writers {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a full device");
        let output = command.stdout(full).stderr(Stdio::piped()).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{name}: {}", notes(&output));
        let [error] = &errors(&output)[..] else { panic!("{name}: one error in: {}", notes(&output)) };
        assert!(error.starts_with("error: cannot write to stdout: No space left"), "{name}: {error}");
        assert!(!notes(&output).contains("panicked"), "{name}: {}", notes(&output));
    }
}

/// Notes are not what was asked for.
#[cfg(target_os = "linux")]
#[test]
fn what_was_asked_for_is_written_where_notes_cannot_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(writers) = writers(folder.path()) else { return };
    for (name, mut command) in writers {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a full device");
        let output = command.stdout(Stdio::piped()).stderr(full).output().expect("it runs");
        assert!(output.status.success(), "{name}: {}", output.status);
        assert!(!output.stdout.is_empty(), "{name}");
    }
}

#[test]
fn wrong_arguments_are_told_on_stderr() {
    let output = program("generate").args(["--temperature", "warm", "hi"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(notes(&output).contains("invalid value 'warm' for '--temperature"), "{}", notes(&output));
}

#[test]
fn a_line_that_is_no_text_is_one_error_and_the_conversation_goes_on() {
    let Some(command) = with_model("chat", "tiny-text", &["--greedy", "--max-new-tokens", "3"]) else {
        return;
    };
    let lines: [&[u8]; 7] = [
        b"the inn",
        b"in Latin-1: caf\xe9",
        b"with a carriage return\r",
        b"a \0 in it",
        &b"x".repeat(5 << 20),
        &b"to the inn ".repeat(20_000),
        b"and without an end",
    ];
    let output = run_with_input(command, lines.join(&b'\n'));
    assert!(output.status.success(), "{}", notes(&output));
    let errors = errors(&output);
    let [not_text, too_long, too_many_tokens] = &errors[..] else { panic!("three errors: {errors:?}") };
    assert_eq!(not_text, "error: the line is not UTF-8 text (from its byte 16 on); it was left out");
    assert_eq!(too_long, "error: the line has more than 4194304 bytes; it was left out");
    assert!(too_many_tokens.contains("make the context larger"), "{too_many_tokens}");
    // A prompt for each line and one for the end; an answer's line is ended only if there was one.
    let text = text(&output);
    assert_eq!(text.matches("> ").count(), lines.len() + 1, "{text}");
    assert_eq!(text.lines().count(), lines.len() - errors.len() + 1, "{text}");
}

#[test]
fn dropping_the_oldest_turns_is_advised_only_where_it_was_not_chosen() {
    let question = "to the inn ".repeat(40);
    let message = |arguments: &[&str]| {
        let arguments = [&["--context", "40"], arguments].concat();
        let command = with_model("chat", "tiny-text", &arguments)?;
        let output = run_with_input(command, question.clone().into_bytes());
        assert!(output.status.success(), "{}", notes(&output));
        let [error] = &errors(&output)[..] else { panic!("one error in: {}", notes(&output)) };
        Some(error.clone())
    };
    let (Some(stopping), Some(dropping)) = (message(&[]), message(&["--drop-oldest"])) else { return };
    assert!(stopping.contains("make the context larger, or choose to drop the oldest turns"), "{stopping}");
    assert!(
        dropping.contains("no turn is left to drop: make the context larger, or the question"),
        "{dropping}"
    );
    assert!(!dropping.contains("choose"), "{dropping}");
}

/// A black square in the middle of a transparent image, under which there is black, too.
fn black_on_nothing(folder: &Path) -> PathBuf {
    let is_inside = |x, y| (16..48).contains(&x) && (16..48).contains(&y);
    let image =
        image::RgbaImage::from_fn(64, 64, |x, y| image::Rgba([0, 0, 0, 255 * u8::from(is_inside(x, y))]));
    let path = folder.join("transparent.png");
    image.save(&path).expect("a PNG");
    path
}

#[test]
fn transparent_images_are_laid_on_the_colour_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = black_on_nothing(folder.path());
    for (background, expected) in [
        (None, [0; 3]),
        (Some("white"), [255; 3]),
        (Some("black"), [0; 3]),
        (Some("#3080f0"), [0x30, 0x80, 0xf0]),
        (Some("3080F0"), [0x30, 0x80, 0xf0]),
    ] {
        let mut command = program("image_views");
        command.arg(&path).arg("--out").arg(folder.path());
        command.args(background.iter().flat_map(|colour| ["--background", colour]));
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{}", notes(&output));
        let seen = image::open(folder.path().join("whole.jpg")).expect("a picture").into_rgb8();
        for ([x, y], expected) in [([20, 20], expected), ([875, 448], expected), ([448, 448], [0; 3])] {
            let found = seen.get_pixel(x, y).0;
            // JPEG rounds.
            let is_close = found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 4);
            assert!(is_close, "{background:?} at {x}, {y}: expected {expected:?}, found {found:?}");
        }
    }
    for wrong in ["transparent", "#12345", "#12345g", "+12345", "#1234567", ""] {
        let output =
            program("image_views").arg(&path).args(["--background", wrong]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(
            notes(&output).contains("expected white, black or six hexadecimal digits"),
            "{}",
            notes(&output)
        );
    }
}

/// The soft tokens differ, so what is generated does.
#[test]
fn a_model_sees_the_background() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = black_on_nothing(folder.path());
    let ids = |background: &[&str]| {
        let arguments = ["--json", "--greedy", "--max-new-tokens", "24", "--ignore-eos"];
        let mut command = with_model("describe_image", "tiny-multimodal", &arguments)?;
        let output = command.args(background).arg(&path).arg("what?").output().expect("it runs");
        assert!(output.status.success(), "{}", notes(&output));
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        Some(line["ids"].clone())
    };
    let (Some(dropped), Some(black), Some(white)) =
        (ids(&[]), ids(&["--background", "black"]), ids(&["--background", "white"]))
    else {
        return;
    };
    assert_eq!(dropped, black);
    assert_ne!(dropped, white);
}

#[test]
fn an_image_that_cannot_be_read_is_named_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("photo.gif");
    let error = |path: &Path| {
        let output = program("image_views").arg(path).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let [error] = &errors(&output)[..] else { panic!("one error in: {}", notes(&output)) };
        assert_eq!(error.matches("photo.gif").count(), 1, "{error}");
        error.clone()
    };
    assert!(error(&path).ends_with("photo.gif: no such file; check the path"));
    std::fs::write(&path, b"GIF89a").expect("a file");
    assert!(error(&path).contains("photo.gif: expected a PNG, JPEG or WebP image, found a GIF image"));
}
