//! Samples of a run: as a table, as JSON, and whether they are flat.

use serde_json::{Value, json};

use super::process::Sample;

/// How much more the last third may hold than the middle one: pages that an allocator keeps come and go.
const MOST_GROWTH_BYTES: u64 = 8 << 20;
const MOST_GROWTH_PER_THOUSAND: u64 = 20;
const ROWS: usize = 20;

/// A sample after each turn.
#[derive(Debug, Default)]
pub struct Curve {
    samples: Vec<Sample>,
}

/// What some turns in a row held.
struct Row {
    last_turn: usize,
    median_rss_bytes: u64,
    most_rss_bytes: u64,
    most_threads: u64,
    most_handles: u64,
}

impl Curve {
    pub fn push(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    fn rows(&self) -> Vec<Row> {
        let length = self.samples.len().div_ceil(ROWS).max(1);
        let row = |(index, samples): (usize, &[Sample])| {
            let most = |of: fn(&Sample) -> u64| samples.iter().map(of).max().unwrap_or(0);
            Row {
                last_turn: index * length + samples.len(),
                median_rss_bytes: median(samples),
                most_rss_bytes: most(|sample| sample.rss_bytes),
                most_threads: most(|sample| sample.threads),
                most_handles: most(|sample| sample.handles),
            }
        };
        self.samples.chunks(length).enumerate().map(row).collect()
    }

    /// For people.
    pub fn print(&self) {
        println!(
            "{:>10} {:>14} {:>14} {:>8} {:>8}",
            "up to turn", "median RSS, MB", "most RSS, MB", "threads", "handles"
        );
        for row in self.rows() {
            println!(
                "{:>10} {:>14.1} {:>14.1} {:>8} {:>8}",
                row.last_turn,
                megabytes(row.median_rss_bytes),
                megabytes(row.most_rss_bytes),
                row.most_threads,
                row.most_handles
            );
        }
        let [middle, last] = self.thirds();
        println!(
            "median of the middle third {:.1} MB, of the last {:.1} MB",
            megabytes(middle),
            megabytes(last)
        );
    }

    pub fn json(&self) -> Value {
        let row = |row: Row| {
            json!({
                "last_turn": row.last_turn,
                "median_rss_bytes": row.median_rss_bytes,
                "most_rss_bytes": row.most_rss_bytes,
                "most_threads": row.most_threads,
                "most_handles": row.most_handles,
            })
        };
        let [middle, last] = self.thirds();
        json!({
            "turns": self.samples.len(),
            "middle_third_rss_bytes": middle,
            "last_third_rss_bytes": last,
            "curve": self.rows().into_iter().map(row).collect::<Vec<_>>(),
        })
    }

    /// Medians of the middle and of the last third.
    fn thirds(&self) -> [u64; 2] {
        let third = self.samples.len() / 3;
        let of = |start: usize, end: usize| median(self.samples.get(start..end).unwrap_or_default());
        [of(third, 2 * third), of(2 * third, self.samples.len())]
    }

    /// Why the curve is not flat, if it isn't.
    pub fn growth(&self) -> Option<String> {
        let [middle, last] = self.thirds();
        let allowed = middle + middle * MOST_GROWTH_PER_THOUSAND / 1000 + MOST_GROWTH_BYTES;
        (last > allowed).then(|| {
            format!(
                "resident memory grows: {:.1} MB in the middle third, {:.1} MB in the last",
                megabytes(middle),
                megabytes(last)
            )
        })
    }
}

fn median(samples: &[Sample]) -> u64 {
    let mut bytes: Vec<u64> = samples.iter().map(|sample| sample.rss_bytes).collect();
    bytes.sort_unstable();
    bytes.get(bytes.len() / 2).copied().unwrap_or(0)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
