//! Models of random weights.

use std::fmt;
use std::str::FromStr;

use gemma3::Device;
use gemma3::core::checkpoint::{Checkpoint, CheckpointError, TensorFormat};
use gemma3::core::config::TextConfig;
use gemma3::core::model::Model;

use crate::Failure;
use crate::arguments::Arguments;

/// A size and a format, as in `1b:bf16`.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomModel {
    pub size: String,
    pub format: TensorFormat,
    config: TextConfig,
}

impl FromStr for RandomModel {
    type Err = Failure;

    fn from_str(name: &str) -> Result<Self, Failure> {
        let (size, format) = name.split_once(':').ok_or("a model is a size and a format, as in 1b:bf16")?;
        Ok(Self { size: size.to_owned(), format: format.parse()?, config: config(size)? })
    }
}

impl fmt::Display for RandomModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.size, self.format)
    }
}

impl RandomModel {
    /// The weights, each made when it is asked for.
    pub fn checkpoint(&self) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::random(self.config.clone(), self.format, 0)
    }

    /// Outputs and inputs of the matrices of a layer, and whether they are a gate over an up projection.
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")), allow(dead_code))]
    pub fn matrices(&self) -> [(&'static str, [usize; 2], bool); 4] {
        let TextConfig { hidden_size: hidden, intermediate_size: intermediate, .. } = self.config;
        let (queries, keys) = (self.config.query_width(), self.config.key_value_width());
        [
            ("q, k, v", [queries + 2 * keys, hidden], false),
            ("output", [hidden, queries], false),
            ("gate, up", [2 * intermediate, hidden], true),
            ("down", [hidden, intermediate], false),
        ]
    }

    /// Its sizes.
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")), allow(dead_code))]
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The model on a device.
    pub fn load(&self, device: &Device, arguments: &Arguments) -> Result<Model, Failure> {
        Ok(Model::load(&self.checkpoint()?, device, arguments.load_options())?)
    }
}

fn config(size: &str) -> Result<TextConfig, String> {
    match size {
        "tiny" => Ok(tiny()),
        "270m" => Ok(TextConfig::gemma3_270m()),
        "1b" => Ok(TextConfig::gemma3_1b()),
        "4b" => Ok(TextConfig::gemma3_4b()),
        "12b" => Ok(TextConfig::gemma3_12b()),
        "27b" => Ok(TextConfig::gemma3_27b()),
        other => Err(format!("unknown size `{other}`: 270m, 1b, 4b, 12b, 27b or tiny")),
    }
}

/// A windowed layer and a global one of the 270M's width: no released size, but every path through this program.
pub fn tiny() -> TextConfig {
    let whole = TextConfig::gemma3_270m();
    let layer_types = whole.layer_types[4..6].to_vec();
    TextConfig { vocab_size: 4096, num_hidden_layers: layer_types.len(), layer_types, ..whole }
}
