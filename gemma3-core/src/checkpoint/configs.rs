//! `config.json` and `generation_config.json` together: the first must be right, the second only helps.

use super::foreign::quantized;
use super::{CheckpointError, Warning, WarningKind};
use crate::config::{ConfigFile, GenerationConfig, ModelConfig, TieFlags};

/// What the two files say.
pub(super) struct Configs {
    /// The name of the `config.json` in errors and warnings.
    pub(super) label: String,
    pub(super) model: ModelConfig,
    pub(super) ties: TieFlags,
    pub(super) generation: GenerationConfig,
    pub(super) warnings: Vec<Warning>,
}

impl Configs {
    /// Reads the text of a `config.json`; `label` names it in errors and warnings.
    pub(super) fn read(label: &str, text: &str) -> Result<Self, CheckpointError> {
        quantized::reject_config(label, text)?;
        let ConfigFile { mut model, ties, notes } =
            ConfigFile::read(text).map_err(|error| CheckpointError::config(label, error))?;
        let mut warnings: Vec<_> = notes.into_iter().map(|note| Warning::of_note(label, note)).collect();
        warnings.extend(drop_ids_without_rows(&mut model.eos_token_ids, model.text.vocab_size, label));
        let generation = GenerationConfig::default();
        Ok(Self { label: label.to_owned(), model, ties, generation, warnings })
    }

    /// Adds the text of a `generation_config.json`, or why it couldn't be read. Its recommendations never
    /// keep a model from loading.
    pub(super) fn recommend(&mut self, label: &str, text: Result<String, CheckpointError>) {
        let problem = match text {
            Err(error) => {
                // Which begins with the file's name, as a warning does.
                let problem = error.to_string();
                problem.strip_prefix(&format!("{label}: ")).unwrap_or(&problem).to_owned()
            }
            Ok(text) if text.trim().is_empty() => "the file is empty".to_owned(),
            Ok(text) => match GenerationConfig::read(&text) {
                Ok((mut generation, notes)) => {
                    let rows = self.model.text.vocab_size;
                    self.warnings.extend(notes.into_iter().map(|note| Warning::of_note(label, note)));
                    self.warnings.extend(drop_ids_without_rows(&mut generation.eos_token_ids, rows, label));
                    self.generation = generation;
                    return;
                }
                Err(error) => error.to_string(),
            },
        };
        let effect = "its recommendations are left out";
        self.warnings.push(Warning::new(WarningKind::Recommendation, label, problem, effect));
    }
}

/// Drops ids that end a text and that the model can't give, with a warning if there are any.
fn drop_ids_without_rows(ids: &mut Vec<u32>, rows: usize, label: &str) -> Option<Warning> {
    let has_row = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < rows);
    let other = *ids.iter().find(|id| !has_row(id))?;
    ids.retain(has_row);
    let problem = format!("field `eos_token_id` names the id {other}, of a model with {rows} tokens");
    Some(Warning::new(WarningKind::SpecialToken, label, problem, "it is passed over"))
}
