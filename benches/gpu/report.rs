//! What was measured, as a table and as JSON.

use gemma3::core::checkpoint::TensorFormat;
use gemma3::core::config::{LayerType, TextConfig};
use gemma3::core::model::Model;
use serde_json::{Value, json};

use crate::measure::Case;

/// All rows of a run.
pub struct Report {
    copy_gb_s: f64,
    rows: Vec<Row>,
}

/// One case.
pub struct Row {
    model: String,
    format: TensorFormat,
    backend: String,
    case: Case,
    /// The median of the repetitions, tokens a second.
    rate: f64,
    /// The bytes that a decode step reads, over the copy bandwidth, over the time that it takes.
    share_of_limit: Option<f64>,
    launches_per_block: Option<usize>,
}

impl Row {
    /// The case's rates, in tokens a second.
    pub fn new(
        model: &Model,
        size: &str,
        format: TensorFormat,
        backend: &str,
        case: &Case,
        mut rates: Vec<f64>,
        copy_gb_s: f64,
    ) -> Self {
        rates.sort_by(f64::total_cmp);
        let rate = rates[rates.len() / 2];
        let steps = rate / case.batch as f64;
        let bytes = step_bytes(model, case);
        Self {
            model: size.to_owned(),
            format,
            backend: backend.to_owned(),
            case: *case,
            rate,
            share_of_limit: (case.n_gen > 0).then(|| bytes * steps / 1e9 / copy_gb_s),
            launches_per_block: model.decoder().launches_per_block(),
        }
    }
}

/// Bytes that a step reads: the weights once, and of each sequence the keys and values that it sees, halfway
/// through the decode.
fn step_bytes(model: &Model, case: &Case) -> f64 {
    let config: &TextConfig = model.decoder().config();
    let length = case.n_depth + case.n_gen / 2;
    let seen = |kind: &LayerType| match kind {
        LayerType::FullAttention => length,
        LayerType::SlidingAttention => length.min(config.sliding_window),
    };
    let positions: usize = config.layer_types.iter().map(seen).sum();
    let width = 2 * config.num_key_value_heads * config.head_dim;
    let bytes_per_value = model.decoder().cache_dtype().bytes() as usize;
    let cache = (case.batch * positions * width * bytes_per_value) as f64;
    model.decoder().weight_bytes() as f64 + cache
}

impl Report {
    /// An empty report.
    pub fn new(copy_gb_s: f64) -> Self {
        println!(
            "model format  backend  prompt    gen  depth batch      tok/s  of the limit  launches a block"
        );
        Self { copy_gb_s, rows: Vec::new() }
    }

    /// Adds a row and prints it.
    pub fn add(&mut self, row: Row) {
        let Case { n_prompt, n_gen, n_depth, batch } = row.case;
        let share = row.share_of_limit.map_or_else(String::new, |share| format!("{:.1}%", 100.0 * share));
        let launches = row.launches_per_block.map_or_else(String::new, |launches| launches.to_string());
        println!(
            "{:>5} {:>6} {:>8} {n_prompt:>7} {n_gen:>6} {n_depth:>6} {batch:>5} {:>10.0} {share:>13} {launches:>17}",
            row.model,
            row.format.to_string(),
            row.backend,
            row.rate,
        );
        self.rows.push(row);
    }

    /// Everything as JSON.
    pub fn json(&self, date: &str, commit: &str, card: &str) -> String {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let all = json!({
            "date": date,
            "commit": commit,
            "device": card,
            "copy_gb_s": self.copy_gb_s.round(),
            "gemm_tflop_s": null,
            "rows": rows,
        });
        format!("{all:#}\n")
    }
}

impl Row {
    fn json(&self) -> Value {
        let Case { n_prompt, n_gen, n_depth, batch } = self.case;
        let prefill = (n_gen == 0).then_some(self.rate.round());
        let decode = (n_gen > 0).then_some((self.rate * 10.0).round() / 10.0);
        json!({
            "model": self.model,
            "format": self.format.to_string(),
            "backend": self.backend,
            "n_prompt": n_prompt,
            "n_gen": n_gen,
            "n_depth": n_depth,
            "batch": batch,
            "prefill_tok_s": prefill,
            "decode_tok_s": decode,
            "share_of_limit": self.share_of_limit.map(|share| (share * 1000.0).round() / 1000.0),
            "launches_per_block": self.launches_per_block,
        })
    }
}
