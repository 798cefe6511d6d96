//! The table, or one JSON object a row.

use serde_json::json;

use crate::Arguments;
use crate::common::{OutputError, out};
use crate::divergence::Summary;
use crate::row::Row;

/// What all rows are printed with.
pub struct Report<'a> {
    baseline_bytes: u64,
    /// Positions that were scored.
    positions: usize,
    arguments: &'a Arguments,
}

impl<'a> Report<'a> {
    /// Prints the head of the table, unless it is to be JSON.
    pub fn new(baseline_bytes: u64, positions: usize, arguments: &'a Arguments) -> Result<Self, OutputError> {
        if !arguments.json {
            let Arguments { text, window, chunk, .. } = arguments;
            let text = text.display();
            out!("{positions} tokens of {text}, windows of {window}, {chunk} at once")?;
            out!("KL: divergence from the first row in nats; speeds in tokens per second\n")?;
            out!(
                "{:<28}  {:<16}  {:<5}  {:>7}  {:>5}  {:>8}  {:>7}  {:>10}  {:>9}  {:>9}  {:>8}",
                "model",
                "weights",
                "mode",
                "MB",
                "size",
                "prefill",
                "decode",
                "perplexity",
                "mean KL",
                "99% KL",
                "same top"
            )?;
        }
        Ok(Self { baseline_bytes, positions, arguments })
    }

    /// Prints one row.
    pub fn print(&self, row: &Row) -> Result<(), OutputError> {
        let bytes = row.weight_bytes();
        let size = bytes as f64 / self.baseline_bytes as f64;
        let (prefill, decode) = (median(&row.prefill), median(&row.decode));
        let (model, weights) = (row.candidate.model_name(), row.candidate.format_name());
        let mode = row.candidate.mode_name();
        let Some(Summary { perplexity, mean_kl, kl_99, same_top }) = Summary::of(&row.comparisons) else {
            return Ok(());
        };
        if self.arguments.json {
            let line = json!({
                "model": model,
                "weights": weights,
                "mode": mode,
                "weight_bytes": bytes,
                "weight_ratio": size,
                "prefill_tok_s": prefill,
                "decode_tok_s": decode,
                "perplexity": perplexity,
                "mean_kl": mean_kl,
                "kl_99": kl_99,
                "same_top": same_top,
                "positions": self.positions,
                "window": self.arguments.window,
                "chunk": self.arguments.chunk,
            });
            return out!("{line}");
        }
        let speed = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        out!(
            "{model:<28}  {weights:<16}  {mode:<17}  {:>7.1}  {size:>5.3}  {:>8}  {:>7}  {perplexity:>10.3}  {:>9}  {:>9}  {:>7.2}%",
            bytes as f64 / 1e6,
            speed(prefill),
            speed(decode),
            nats(mean_kl),
            nats(kl_99),
            100.0 * same_top,
        )
    }
}

/// Five decimals, or the power of ten where those would say nothing.
fn nats(value: f64) -> String {
    if value == 0.0 || value >= 1e-3 { format!("{value:.5}") } else { format!("{value:.1e}") }
}

/// The middle one, or the mean of the two in the middle; `None` of nothing.
fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    let lower = values.len().checked_sub(1)? / 2;
    Some((values.get(lower)? + values.get(upper)?) / 2.0)
}
