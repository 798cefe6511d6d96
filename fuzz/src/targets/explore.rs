//! The loop of the ordinary test: mutated seeds until the time is over.
//!
//! - `GEMMA3_FUZZ_SECONDS`: how long each target runs.
//! - `GEMMA3_FUZZ_SEED`: other random numbers; inputs are a function of this number and of their own.
//! - `GEMMA3_FUZZ_KEEP`: a file into which each input is written before it runs, for those that end the process.
//!
//! A failing input is printed in hex; `GEMMA3_FUZZ_INPUT` (hex) runs one input alone.

use std::any::Any;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Random, Target};

/// Memory is counted over the whole process, so targets take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Far fewer than a busy machine tries in a second: that mutations are tried at all.
const FEWEST_INPUTS: u64 = 20;

/// Runs a target on its seeds as they are, then on mutations of them for `seconds`, and prints how many.
///
/// # Panics
/// With the input, if a property does not hold.
pub fn explore(target: &Target, seconds: u64) {
    let _turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
    print_panics_briefly();
    if let Some(hex) = variable("GEMMA3_FUZZ_INPUT") {
        return run(target, &from_hex(&hex), "GEMMA3_FUZZ_INPUT");
    }
    let seconds = number("GEMMA3_FUZZ_SECONDS").unwrap_or(seconds);
    let stream = number("GEMMA3_FUZZ_SEED").unwrap_or(0);
    let end = Instant::now() + Duration::from_secs(seconds);
    let seeds = (target.seeds)();
    for (index, seed) in seeds.iter().enumerate() {
        run(target, seed, &format!("seed {index}"));
    }
    let mut count = 0;
    while Instant::now() < end {
        let mut random = Random::new(stream.wrapping_mul(1 << 40).wrapping_add(count));
        let mut input = random.choose(&seeds).clone();
        let other = random.choose(&seeds).clone();
        for _ in 0..=random.length(8) {
            (target.mutate)(&mut random, &mut input, &other);
        }
        run(target, &input, &format!("input {count} of GEMMA3_FUZZ_SEED={stream}"));
        count += 1;
    }
    println!("{}: {count} mutations of {} seeds in {seconds} s", target.name, seeds.len());
    assert!(count >= FEWEST_INPUTS.min(seconds), "mutations are tried");
}

fn run(target: &Target, input: &[u8], name: &str) {
    if let Some(path) = variable("GEMMA3_FUZZ_KEEP") {
        std::fs::write(path, input).expect("the file of GEMMA3_FUZZ_KEEP can be written");
    }
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        panic!(
            "{}, {name}: {}\nagain with GEMMA3_FUZZ_INPUT={}",
            target.name,
            message(panic.as_ref()),
            to_hex(input)
        );
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str) -> Option<u64> {
    variable(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")))
}

fn to_hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(hex, "{byte:02x}").expect("a string grows");
    }
    hex
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        hex.trim().chars().map(|digit| digit.to_digit(16).expect("GEMMA3_FUZZ_INPUT is in hex")).collect();
    digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| (byte << 4) | *digit as u8)).collect()
}

/// Lets panics that the library catches pass with a line. A backtrace would read the program's symbols, whose memory
/// would count as an input's.
fn print_panics_briefly() {
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
}

/// Prepares a libFuzzer target: writes its seeds into the folder of `GEMMA3_FUZZ_SEEDS`, if that is set, and lets
/// panics pass that the library catches (those of image decoders); the others still end the process.
pub fn write_seeds(target: &Target) {
    print_panics_briefly();
    let Some(folder) = variable("GEMMA3_FUZZ_SEEDS") else { return };
    std::fs::create_dir_all(&folder).expect("the folder of GEMMA3_FUZZ_SEEDS can be made");
    for (index, seed) in (target.seeds)().into_iter().enumerate() {
        let path = Path::new(&folder).join(format!("seed-{index:03}"));
        std::fs::write(path, seed).expect("the folder of GEMMA3_FUZZ_SEEDS can be written");
    }
}

/// A target's mutation in libFuzzer's buffer: the input is its first `size` bytes, at most `max_size` may be used.
/// Returns the new size.
pub fn mutate_in_place(target: &Target, input: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut changed = input.get(..size).unwrap_or_default().to_vec();
    (target.mutate)(&mut Random::new(seed.into()), &mut changed, &[]);
    changed.truncate(max_size.min(input.len()));
    input[..changed.len()].copy_from_slice(&changed);
    changed.len()
}
