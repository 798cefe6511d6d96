//! Whether a seed gives the same tokens: twice in one process, and in two processes.

use gemma3::core::generate::ContinueOptions;
use gemma3::core::model::Model;
use gemma3::core::sampling::SamplingOptions;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arguments::{Arguments, Part};
use crate::limits::Limits;
use crate::models::RandomModel;
use crate::report::{Figure, Report, Subject};
use crate::{Failure, child, measure};

/// Generations of one process with one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Draws {
    /// The ids of each.
    ids: Vec<Vec<u32>>,
}

/// What came of comparing them.
struct Comparison {
    tokens: usize,
    /// The first token at which one differs from the first of them.
    differ_from: Option<usize>,
}

const TOKENS: usize = 256;

impl Figure for Comparison {
    const LIST: &'static str = "determinism";

    fn text(&self, subject: &Subject, _limits: &Limits) -> String {
        let Subject { model, format, .. } = subject;
        let result = match self.differ_from {
            None => "equal".to_owned(),
            Some(at) => format!("NOT equal from token {at} on"),
        };
        format!(
            "{model}:{format}: {} tokens drawn with one seed, twice in each of two processes: {result}",
            self.tokens
        )
    }

    fn json(&self, _limits: &Limits) -> Value {
        let equal = self.differ_from.is_none();
        json!({ "tokens": self.tokens, "equal": equal, "differ_from": self.differ_from })
    }
}

/// Draws in two processes, twice in each.
///
/// # Errors
///
/// Ids that differ.
pub fn compare(model: &RandomModel, report: &mut Report) -> Result<(), Failure> {
    let mut generations = Vec::new();
    for _ in 0..2 {
        let draws: Draws = child::run_once(Part::Draws, &model.to_string())?;
        generations.extend(draws.ids);
    }
    let (first, others) = generations.split_first().ok_or("nothing was generated")?;
    let differ_from = |ids: &Vec<u32>| (ids != first).then(|| common_length(ids, first));
    let differ_from = others.iter().filter_map(differ_from).min();
    let comparison = Comparison { tokens: first.len(), differ_from };
    report.add(&model.size, model.format, &comparison);
    match (comparison.tokens, differ_from) {
        (TOKENS, None) => Ok(()),
        (TOKENS, Some(at)) => Err(format!("generations of one seed differ from token {at} on").into()),
        (found, _) => Err(format!("expected {TOKENS} tokens, found {found}").into()),
    }
}

fn common_length(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// [`Part::Draws`].
pub fn run(random: &RandomModel, arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    let model = random.load(&device, arguments)?;
    let ids = [generate(&model, arguments)?, generate(&model, arguments)?];
    child::answer(&Draws { ids: ids.into() })
}

fn generate(model: &Model, arguments: &Arguments) -> Result<Vec<u32>, Failure> {
    let depth = arguments.depth();
    let mut session = measure::session(model, depth + TOKENS, 512, 0)?;
    session.append(&measure::ids(model, depth, 0))?;
    let options = ContinueOptions { sampling: drawing(), ..measure::options(TOKENS) };
    let tokens = session.generate(options)?.map(|token| token.map(|token| token.id));
    Ok(tokens.collect::<Result<_, _>>()?)
}

/// As the published instruction-tuned models draw.
pub fn drawing() -> SamplingOptions {
    SamplingOptions {
        temperature: 1.0,
        top_k: 64,
        top_p: 0.95,
        seed: Some(20_251_126),
        ..SamplingOptions::default()
    }
}
