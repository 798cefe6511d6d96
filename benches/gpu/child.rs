//! A part of the measurement in a process of its own: what one leaves in the device's allocator changed what the next
//! one measured (copies made the decodes after them 5% slower on an H100), and one that ends badly takes no other
//! with it.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Failure;
use crate::arguments::Part;

/// Runs this program once more with the same arguments, for one part, and hands on what it [`answer`]s, at once.
pub fn run<T: DeserializeOwned>(part: Part, subject: &str, each: impl FnMut(T)) -> Result<(), Failure> {
    run_with(part, subject, &[], each)
}

/// [`run`] with more in the environment.
pub fn run_with<T: DeserializeOwned>(
    part: Part,
    subject: &str,
    environment: &[(&str, String)],
    mut each: impl FnMut(T),
) -> Result<(), Failure> {
    let value = part.to_possible_value().ok_or("a part without a name")?;
    let mut child = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .args(["--part", value.get_name(), "--subject", subject])
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .spawn()?;
    let answers = child.stdout.take().ok_or("a process without an output")?;
    for line in BufReader::new(answers).lines() {
        let line = line?;
        match serde_json::from_str(&line) {
            Ok(found) => each(found),
            Err(_) => println!("{line}"),
        }
    }
    let status = child.wait()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("the process of this part ended with {status}").into()),
    }
}

/// [`run`] of a part that answers once.
pub fn run_once<T: DeserializeOwned>(part: Part, subject: &str) -> Result<T, Failure> {
    let mut answer = None;
    run(part, subject, |found| answer = Some(found))?;
    answer.ok_or_else(|| "the process of this part found nothing".into())
}

/// Says what was found.
pub fn answer(found: &impl Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string(found)?);
    Ok(())
}
