//! Running a stream to its end while measuring it.

use std::time::Instant;

use gemma3::{AnswerStream, Error, FinishReason, Piece, TextStream};
use serde_json::{Value, json};

use super::{peak_rss_bytes, show};

/// What the streams of the library have in common.
pub trait Stream: Iterator<Item = Result<Piece, Error>> {
    fn prefill(&mut self) -> Result<bool, Error>;
    fn finish_reason(&self) -> Option<FinishReason>;
}

impl Stream for TextStream<'_> {
    fn prefill(&mut self) -> Result<bool, Error> {
        self.prefill()
    }

    fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason()
    }
}

impl Stream for AnswerStream<'_> {
    fn prefill(&mut self) -> Result<bool, Error> {
        self.prefill()
    }

    fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason()
    }
}

/// A text that was generated, and how long it took.
pub struct Measured {
    pub text: String,
    pub ids: Vec<u32>,
    pub finish_reason: &'static str,
    /// Seconds of the prefill alone.
    pub prefill_s: f64,
    /// Seconds to the first token.
    pub ttft_s: f64,
    /// Seconds to the end.
    pub total_s: f64,
}

impl Measured {
    /// Runs a stream; `print` shows the text as it comes.
    pub fn run(mut stream: impl Stream, print: bool) -> Result<Self, Box<dyn std::error::Error>> {
        let start = Instant::now();
        stream.prefill()?;
        let prefill_s = start.elapsed().as_secs_f64();
        let (mut text, mut ids) = (String::new(), Vec::new());
        let mut ttft_s = prefill_s;
        for piece in stream.by_ref() {
            let piece = piece?;
            if ids.is_empty() {
                ttft_s = start.elapsed().as_secs_f64();
            }
            if print {
                show(&piece.text)?;
            }
            text += &piece.text;
            ids.extend(piece.token.map(|token| token.id));
        }
        let finish_reason = stream.finish_reason().map_or("error", |reason| reason.name());
        Ok(Self { text, ids, finish_reason, prefill_s, ttft_s, total_s: start.elapsed().as_secs_f64() })
    }

    /// The first token comes with the prefill; the others are a step each.
    pub fn decode_tok_s(&self) -> f64 {
        match self.ids.len() {
            0 | 1 => 0.0,
            count => (count - 1) as f64 / (self.total_s - self.ttft_s),
        }
    }

    /// One JSON object.
    pub fn json(&self, prompt_ids: &[u32], load_s: f64) -> Value {
        json!({
            "prompt_ids": prompt_ids,
            "ids": self.ids,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "prompt_tokens": prompt_ids.len(),
            "completion_tokens": self.ids.len(),
            "load_s": load_s,
            "ttft_s": self.ttft_s,
            "prefill_tok_s": prompt_ids.len() as f64 / self.prefill_s,
            "decode_tok_s": self.decode_tok_s(),
            "peak_rss_bytes": peak_rss_bytes(),
        })
    }

    /// One line for people.
    pub fn summary(&self, prompt_tokens: usize, load_s: f64) -> String {
        format!(
            "{prompt_tokens} prompt tokens, {} new ({}); loaded in {load_s:.2} s, first token after {:.2} s, \
             prefill {:.1} tok/s, decode {:.1} tok/s, peak memory {:.0} MB",
            self.ids.len(),
            self.finish_reason,
            self.ttft_s,
            prompt_tokens as f64 / self.prefill_s,
            self.decode_tok_s(),
            peak_rss_bytes() as f64 / 1e6,
        )
    }
}
