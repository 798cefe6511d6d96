//! How long it takes from a device's name to the first token, most of which is compiling kernels.

use std::time::Instant;

use gemma3::CacheOptions;
use gemma3::core::generate::{ContinueOptions, Session, SessionOptions, warm_up};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::determinism::drawing;
use crate::limits::Limits;
use crate::models::RandomModel;
use crate::report::{Figure, Subject, rounded};
use crate::{Failure, child, measure};

/// Seconds of a start, one after the other.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Start {
    pub open_s: f64,
    /// Making the random weights is part of it.
    pub load_s: f64,
    /// Compiling everything that a session needs.
    pub warm_up_s: f64,
    /// Of a prompt, afterwards.
    pub first_token_s: f64,
}

impl Figure for Start {
    const LIST: &'static str = "starts";

    fn text(&self, subject: &Subject, _limits: &Limits) -> String {
        let Subject { model, format, .. } = subject;
        let Self { open_s, load_s, warm_up_s, first_token_s } = self;
        format!(
            "{model}:{format}: a start: device {open_s:.2} s, weights made and loaded {load_s:.2} s, warm-up \
             {warm_up_s:.2} s, then a first token in {first_token_s:.3} s"
        )
    }

    fn json(&self, _limits: &Limits) -> Value {
        json!({
            "open_s": rounded(self.open_s, 3),
            "load_s": rounded(self.load_s, 3),
            "warm_up_s": rounded(self.warm_up_s, 3),
            "first_token_s": rounded(self.first_token_s, 4),
        })
    }
}

/// Tokens of a session's cache beyond the prompt.
const CAPACITY: usize = 4096;

/// [`Part::Start`](crate::arguments::Part::Start).
pub fn run(random: &RandomModel, arguments: &Arguments) -> Result<(), Failure> {
    let begun = Instant::now();
    let device = crate::open(arguments)?;
    let open_s = begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let model = random.load(&device, arguments)?;
    device.sync()?;
    let load_s = begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let depth = arguments.depth();
    let cache = CacheOptions { capacity: Some(depth + CAPACITY), ..CacheOptions::default() };
    let session = SessionOptions { cache, sequence: 0 };
    // The sampler that draws is the longest kernel.
    let options = ContinueOptions { sampling: drawing(), ..measure::options(1) };
    warm_up(&model, &session, &options, &mut |_| {})?;
    let warm_up_s = begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let mut session = Session::new(&model, &session)?;
    session.append(&measure::ids(&model, depth, 0))?;
    for token in session.generate(options)? {
        token?;
    }
    let first_token_s = begun.elapsed().as_secs_f64();
    child::answer(&Start { open_s, load_s, warm_up_s, first_token_s })
}
