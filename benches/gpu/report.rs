//! What was measured, as a table and as JSON.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::Failure;
use crate::arguments::Arguments;
use crate::limits::{Gemm, Limits};

/// Something that was measured.
pub trait Figure {
    /// The list of the JSON that it belongs to.
    const LIST: &'static str;

    /// For people; `subject` is what it was measured of.
    fn text(&self, subject: &Subject, limits: &Limits) -> String;

    /// An object without what a [`Subject`] says.
    fn json(&self, limits: &Limits) -> Value;
}

/// What something was measured of.
#[derive(Debug, Clone)]
pub struct Subject {
    pub model: String,
    pub format: String,
    pub backend: String,
}

/// Everything of a run.
pub struct Report {
    limits: Limits,
    backend: String,
    path: Option<PathBuf>,
    json: Map<String, Value>,
    failed: Vec<String>,
}

impl Report {
    /// An empty report; prints the limits.
    pub fn new(arguments: &Arguments, limits: Limits) -> Self {
        let card = arguments.card.clone().or_else(|| limits.card.clone());
        let card = card.unwrap_or_else(|| arguments.device.clone());
        let date = arguments.date.clone().unwrap_or_else(today);
        println!("{card}, {}, {date} {}", arguments.device, arguments.commit);
        println!("copies at {:.0} GB/s", limits.copy_gb_s);
        for (whose, gemm) in [("ours", &limits.own_gemm), ("burn's", &limits.burn_gemm)] {
            if let Some(Gemm { tflop_s, numbers }) = gemm {
                println!("products in {numbers} at {tflop_s:.3} TFLOP/s ({whose})");
            }
        }
        let rate = |gemm: &Option<Gemm>| gemm.as_ref().map(|gemm| rounded(gemm.tflop_s, 3));
        let head = json!({
            "date": date,
            "commit": arguments.commit,
            "device": card,
            "copy_gb_s": rounded(limits.copy_gb_s, 1),
            "gemm_tflop_s": limits.gemm().map(|gemm| rounded(gemm.tflop_s, 3)),
            "gemm_numbers": limits.gemm().map(|gemm| &gemm.numbers),
            "gemm_own_tflop_s": rate(&limits.own_gemm),
            "gemm_burn_tflop_s": rate(&limits.burn_gemm),
            "kernels_kept": arguments.kernel_cache.is_some(),
            "rows": [],
        });
        let json = head.as_object().cloned().unwrap_or_default();
        let (backend, path) = (arguments.device.clone(), arguments.json.clone());
        Self { limits, backend, path, json, failed: Vec::new() }
    }

    /// Adds a figure and prints it.
    pub fn add<F: Figure>(&mut self, model: &str, format: impl ToString, figure: &F) {
        let (model, format) = (model.to_owned(), format.to_string());
        let subject = Subject { model, format, backend: self.backend.clone() };
        println!("{}", figure.text(&subject, &self.limits));
        let mut object = figure.json(&self.limits);
        object["model"] = subject.model.into();
        object["format"] = subject.format.into();
        object["backend"] = subject.backend.into();
        if let Value::Array(list) = self.json.entry(F::LIST).or_insert_with(|| json!([])) {
            list.push(object);
        }
    }

    /// Notes how a part ended, and writes the JSON, so that nothing is lost if a later part is interrupted.
    ///
    /// # Errors
    ///
    /// JSON that cannot be written.
    pub fn end_part(&mut self, part: &str, result: Result<(), Failure>) -> Result<(), Failure> {
        if let Err(error) = result {
            println!("{part}: {error}");
            self.failed.push(part.to_owned());
            self.json.insert("failed".to_owned(), json!(self.failed));
        }
        self.save()
    }

    /// Ends the run.
    ///
    /// # Errors
    ///
    /// If a part has failed.
    pub fn end(self) -> Result<(), Failure> {
        match self.failed.is_empty() {
            true => Ok(()),
            false => Err(format!("failed: {}", self.failed.join(", ")).into()),
        }
    }

    /// Writes the JSON, if a file was named.
    pub fn save(&self) -> Result<(), Failure> {
        if let Some(path) = &self.path {
            std::fs::write(path, format!("{:#}\n", Value::from(self.json.clone())))?;
        }
        Ok(())
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

pub fn rounded(value: f64, digits: i32) -> f64 {
    let unit = 10_f64.powi(digits);
    (value * unit).round() / unit
}

/// Nothing where the share is not known.
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(String::new, |share| format!("{:.1}%", 100.0 * share))
}

/// The date in UTC, as in 2026-11-25.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date_of(seconds / 86_400)
}

/// The date so many days after 1970-01-01, counted in years that begin in March, so that leap days end them
/// (<https://howardhinnant.github.io/date_algorithms.html>).
fn date_of(days: u64) -> String {
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100); // of the year
    let month = (5 * day + 2) / 153; // from March
    let day = day - (153 * month + 2) / 5 + 1; // of the month
    let (month, january) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", 400 * era + year + january)
}
