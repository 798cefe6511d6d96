//! A run: models in use for many turns, loaded and unloaded again and again.

use std::path::Path;

use gemma3::{Device, Error, Gemma3};

use super::curve::Curve;
use super::habits::Habits;
use super::process::Sample;

/// What to run.
pub struct Soak<'a> {
    /// The model that is in use all the time, and now and then loaded a second time.
    pub model: &'a Path,
    /// A model that sees, likewise.
    pub seeing_model: &'a Path,
    pub device: &'a Device,
    pub turns: usize,
    /// Turns between two loads.
    pub load_every: usize,
    /// Tokens of each context.
    pub context: usize,
}

/// What came of it.
pub struct Outcome {
    /// A sample after each turn, with the models in use.
    pub curve: Curve,
    /// Without a model, after a first use of each: what the process and its libraries keep for good.
    pub before: Sample,
    /// Without a model, at the end.
    pub after: Sample,
}

impl Soak<'_> {
    /// Runs. `None` where the system doesn't say what a process holds.
    pub fn run(&self) -> Result<Option<Outcome>, Error> {
        for path in [self.model, self.seeing_model] {
            self.load_and_unload(path)?;
        }
        let Some(before) = Sample::settled(None) else { return Ok(None) };
        let mut curve = Curve::default();
        {
            let mut text = self.load(self.model)?;
            let mut seeing = self.load(self.seeing_model)?;
            for turn in 0..self.turns {
                text.turn(turn)?;
                seeing.turn(turn)?;
                if turn % self.load_every == self.load_every - 1 {
                    self.load_and_unload(self.model)?;
                    self.load_and_unload(self.seeing_model)?;
                }
                curve.push(Sample::now().unwrap_or(before));
            }
        }
        let after = Sample::settled(Some(before)).unwrap_or(before);
        Ok(Some(Outcome { curve, before, after }))
    }

    fn load(&self, path: &Path) -> Result<Habits, Error> {
        Habits::new(&Gemma3::load(path, self.device)?, self.context)
    }

    /// All habits once.
    fn load_and_unload(&self, path: &Path) -> Result<(), Error> {
        let mut habits = self.load(path)?;
        (0..7).try_for_each(|turn| habits.turn(turn))
    }
}

impl Outcome {
    /// What was not as flat as it must be.
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.curve.growth().into_iter().collect();
        for (name, before, after) in [
            ("threads", self.before.threads, self.after.threads),
            ("handles", self.before.handles, self.after.handles),
        ] {
            if before != after {
                faults.push(format!("{before} {name} before, {after} after the models were unloaded"));
            }
        }
        faults
    }
}
