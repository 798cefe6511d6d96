//! The text files beside a model's weights.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use gemma3_core::checkpoint::{self, CheckpointError};
use gemma3_core::config::ConfigError;
use serde_json::Value;

use crate::Error;

/// Far above every real file of the kind (the published `tokenizer_config.json` has 1 MB); what is larger is
/// not read.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// A text file that was found beside the weights.
pub(crate) struct Neighbour {
    path: PathBuf,
    /// What it holds.
    pub(crate) text: String,
}

impl Neighbour {
    /// Reads the file of a name in the folder of a model; `None` if it is absent.
    pub(crate) fn find(model: &Path, name: &str) -> Result<Option<Self>, Error> {
        let path = path_beside(model, name);
        // A link to nowhere is not absent: interrupted downloads leave such.
        if let Err(error) = std::fs::symlink_metadata(&path)
            // A folder on the way that is a file is as good as none.
            && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        {
            return Ok(None);
        }
        let text = checkpoint::read_text(&path, MAX_TEXT_BYTES)?;
        Ok(Some(Self { path, text }))
    }

    /// Its content as a JSON object.
    pub(crate) fn json(&self) -> Result<Value, Error> {
        let json: Value = serde_json::from_str(&self.text)
            .map_err(|error| self.refused(ConfigError::Json { problem: error.to_string() }))?;
        match &json {
            Value::Object(_) => Ok(json),
            other => Err(self.refused(invalid("(the file)", "an object", other))),
        }
    }

    /// An error about its content.
    pub(crate) fn refused(&self, source: ConfigError) -> Error {
        CheckpointError::Config { file: self.path.display().to_string(), source }.into()
    }
}

/// Where a file of a name would lie beside a model: in the model's folder, or in the folder that its file lies in.
pub(crate) fn path_beside(model: &Path, name: &str) -> PathBuf {
    let folder = if model.is_dir() { model } else { model.parent().unwrap_or(Path::new("")) };
    folder.join(name)
}

/// A field of another type than expected. The value is not repeated: a file may hold one of any length.
pub(crate) fn invalid(field: &str, expected: &str, found: &Value) -> ConfigError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    ConfigError::InvalidField {
        field: field.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    }
}
