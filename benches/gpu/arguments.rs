//! What the command line says.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use gemma3::{LoadOptions, Precision};

use crate::Failure;
use crate::measure::Case;
use crate::models::RandomModel;

/// Measures Gemma 3 on a GPU.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// The device: cuda, vulkan, wgpu, ..., as built in.
    #[arg(long, default_value = "cuda")]
    pub device: String,

    /// Sizes (270m, 1b, 4b, 12b, 27b, tiny) and formats of random weights; "" for none.
    #[arg(long, default_value = "1b:bf16,1b:q8_0,1b:q4_0,4b:bf16,4b:q4_0", value_delimiter = ',')]
    models: Vec<String>,

    /// Tokens before a decode.
    #[arg(long, default_value_t = 128)]
    n_prompt: usize,

    /// Tokens of a decode; 0 leaves decodes out.
    #[arg(long, default_value_t = 256)]
    n_gen: usize,

    /// Depths of further decodes.
    #[arg(long, value_delimiter = ',')]
    depths: Vec<usize>,

    /// Tokens of prefills, each into an empty context; 0 leaves them out.
    #[arg(long, alias = "n-prefill", default_value = "2048", value_delimiter = ',')]
    prompts: Vec<usize>,

    /// Sequences that are decoded together.
    #[arg(long, value_delimiter = ',')]
    batches: Vec<usize>,

    /// Repetitions, of which the median counts.
    #[arg(short = 'r', long, default_value_t = 3)]
    repetitions: usize,

    /// f32 activations in every product.
    #[arg(long)]
    exact: bool,

    /// The limits alone.
    #[arg(long)]
    pub limits_only: bool,

    /// Products of f32 by each tile of the exact kernel, and plain multiply-adds, alone: of `--models` and `--prompts`.
    #[arg(long)]
    pub tiles: bool,

    /// What a decode step costs beside its computations, and its products by each of their divisions, alone: of `--models`.
    #[arg(long)]
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")), allow(dead_code))]
    pub costs: bool,

    /// What each kernel of a whole prompt takes, alone: of `--models` and `--prompts`, and with `--vision` of an image.
    #[arg(long)]
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")), allow(dead_code))]
    pub profile: bool,

    /// Also measure burn's product for the limit; its search for a kernel can take most of a minute.
    #[arg(long)]
    pub burn_gemm: bool,

    /// Also measure the image encoder.
    #[arg(long)]
    pub vision: bool,

    /// Also measure the host's memory while these models load from a file, as in 4b:bf16. The file, of the model's size,
    /// is written to the system's folder for temporary files.
    #[arg(long, value_delimiter = ',')]
    load: Vec<String>,

    /// Also check that a seed gives the same tokens twice, in one process and in two, with the first model.
    #[arg(long)]
    pub determinism: bool,

    /// Also decode so many tokens in a row with the first model, and see what becomes of the memory.
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub steady: usize,

    /// Also time two starts of the first model, from the device to the first token.
    #[arg(long)]
    pub warm: bool,

    /// Where compiled kernels are kept between processes; needs the cargo feature `persistence`.
    #[arg(long, value_name = "FOLDER")]
    pub kernel_cache: Option<PathBuf>,

    /// Where everything goes as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,

    /// The date, for the JSON [default: today's].
    #[arg(long)]
    pub date: Option<String>,

    /// The commit, for the JSON.
    #[arg(long, default_value = "")]
    pub commit: String,

    /// The card's name, for the JSON [default: what the device says].
    #[arg(long)]
    pub card: Option<String>,

    /// Small arrays and a small image encoder, to try this program on a device that is slow.
    #[arg(long)]
    pub tiny: bool,

    /// The part that this process is to do.
    #[arg(long, hide = true)]
    pub part: Option<Part>,

    /// What to do it with: a model, or a folder.
    #[arg(long, hide = true, default_value = "")]
    pub subject: String,

    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a process of its own does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    Limits,
    BurnGemm,
    Model,
    Vision,
    Load,
    Draws,
    Steady,
    Start,
    Costs,
    Empty,
    Divisions,
    Profile,
}

impl Arguments {
    pub fn models(&self) -> Result<Vec<RandomModel>, Failure> {
        parsed(&self.models)
    }

    /// The models whose loading is watched.
    pub fn load(&self) -> Result<Vec<RandomModel>, Failure> {
        parsed(&self.load)
    }

    /// Tokens of prefills.
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda", feature = "rocm")), allow(dead_code))]
    pub fn prompts(&self) -> &[usize] {
        &self.prompts
    }

    pub fn precision(&self) -> Precision {
        if self.exact { Precision::Exact } else { Precision::Fast }
    }

    pub fn load_options(&self) -> LoadOptions<'static> {
        LoadOptions { precision: self.precision(), ..LoadOptions::default() }
    }

    pub fn repetitions(&self) -> usize {
        self.repetitions.max(1)
    }

    /// Tokens before a decode: at least the one that it starts from.
    pub fn depth(&self) -> usize {
        self.n_prompt.max(1)
    }

    /// What is measured of each model.
    pub fn cases(&self) -> Vec<Case> {
        let decode = |n_depth, batch| Case { n_prompt: 0, n_gen: self.n_gen, n_depth, batch };
        let prefill = |n_prompt: &usize| Case { n_prompt: *n_prompt, n_gen: 0, n_depth: 0, batch: 1 };
        let mut cases = vec![decode(self.depth(), 1)];
        cases.extend(self.depths.iter().map(|depth| decode(*depth, 1)));
        cases.extend(self.prompts.iter().map(prefill));
        cases.extend(self.batches.iter().map(|batch| decode(self.depth(), *batch)));
        cases.retain(|case| case.n_gen + case.n_prompt > 0);
        cases
    }
}

fn parsed(names: &[String]) -> Result<Vec<RandomModel>, Failure> {
    names.iter().filter(|name| !name.is_empty()).map(|name| name.parse()).collect()
}
