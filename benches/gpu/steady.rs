//! Many decode steps in a row: the memory has to stay as it is.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::limits::Limits;
use crate::memory::{self, DeviceMemory};
use crate::models::RandomModel;
use crate::report::{Figure, Subject, rounded};
use crate::{Failure, child, measure};

/// What became of the memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Steady {
    pub steps: usize,
    pub tok_s: f64,
    /// After the warm-up, after each quarter of the steps.
    pub looks: Vec<Look>,
}

/// The memory at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Look {
    /// As the device's allocator has it.
    pub device: Option<DeviceMemory>,
    /// As NVIDIA's driver has it, of everyone on the card.
    pub card_mib: Option<f64>,
    /// This process's anonymous memory.
    pub host_mib: Option<f64>,
}

/// Something that a look sees, in MiB.
type Seen = fn(&Look) -> Option<f64>;

/// Everything that a look sees, and its names for people and in JSON.
const SEEN: [(&str, &str, Seen); 4] = [
    ("device, in use", "in_use_mib", |look| look.device.map(|memory| memory.in_use_mib)),
    ("device, reserved", "reserved_mib", |look| look.device.map(|memory| memory.reserved_mib)),
    ("whole card", "card_mib", |look| look.card_mib),
    ("host, anonymous", "host_anonymous_mib", |look| look.host_mib),
];

impl Figure for Steady {
    const LIST: &'static str = "steady";

    fn text(&self, subject: &Subject, _limits: &Limits) -> String {
        let Subject { model, format, .. } = subject;
        let mut text = format!(
            "{model}:{format}: {} steps in a row at {:.1} tok/s; MiB after the warm-up and after each quarter:",
            self.steps, self.tok_s
        );
        for (name, _, seen) in SEEN {
            let shown = |look| seen(look).map_or_else(|| " -".to_owned(), |mib| format!(" {mib:.1}"));
            let values: String = self.looks.iter().map(shown).collect();
            text.push_str(&format!("\n    {name:<17}{values}"));
        }
        text
    }

    fn json(&self, _limits: &Limits) -> Value {
        let rate = rounded(self.tok_s, 1);
        let mut object = json!({ "steps": self.steps, "decode_tok_s": rate, "flat": self.is_flat() });
        for (_, name, seen) in SEEN {
            let values = self.looks.iter().map(|look| seen(look).map(|mib| rounded(mib, 1)));
            object[name] = values.collect();
        }
        object
    }
}

/// Steps before the first look.
const WARM: usize = 16;

/// [`Part::Steady`](crate::arguments::Part::Steady).
pub fn run(random: &RandomModel, arguments: &Arguments) -> Result<(), Failure> {
    let (depth, steps) = (arguments.depth(), arguments.steady);
    let device = crate::open(arguments)?;
    let model = random.load(&device, arguments)?;
    let look = || Look {
        device: memory::device(&device),
        card_mib: memory::card_mib(&arguments.device),
        host_mib: memory::host().map(|memory| memory.anonymous_mib),
    };
    let mut session = measure::session(&model, depth + WARM + steps, 512, 0)?;
    session.append(&measure::ids(&model, depth, 0))?;
    let mut stream = session.generate(measure::options(WARM + steps))?;
    for token in stream.by_ref().take(WARM) {
        token?;
    }
    let mut looks = vec![look()];
    let mut took = Duration::ZERO;
    for quarter in 0..4 {
        let count = steps * (quarter + 1) / 4 - steps * quarter / 4;
        let begun = Instant::now();
        for token in stream.by_ref().take(count) {
            token?;
        }
        took += begun.elapsed();
        looks.push(look());
    }
    child::answer(&Steady { steps, tok_s: steps as f64 / took.as_secs_f64(), looks })
}

impl Steady {
    /// Whether the allocator's pages stayed as they were, and the card's memory but for what a driver may move.
    fn is_flat(&self) -> bool {
        const DRIVER_MIB: f64 = 2.0;
        let grown = |look: &Look, seen: Seen| Some(seen(look)? - seen(self.looks.first()?)?);
        let [_, (_, _, reserved), (_, _, card), _] = SEEN;
        self.looks.iter().all(|look| {
            grown(look, reserved).is_none_or(|mib| mib <= 0.0)
                && grown(look, card).is_none_or(|mib| mib <= DRIVER_MIB)
        })
    }
}
