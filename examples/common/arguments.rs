//! Command-line arguments that several examples have.

use gemma3::{CacheDtype, CacheOptions, Gemma3, GenerateOptions, Precision, Quantization, SessionOptions};

/// Which model, where.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArguments {
    /// A Hugging Face folder, a .gguf file, or a hub id (owner/name, owner/name@revision,
    /// owner/name/file.gguf). Without it, Gemma 3 270M is obtained.
    #[arg(long, value_name = "DIR_OR_GGUF_OR_HUB_ID")]
    pub model: Option<String>,

    /// The image encoder of a .gguf file (mmproj-....gguf).
    #[arg(long, value_name = "GGUF")]
    pub mmproj: Option<std::path::PathBuf>,

    /// Device: flex, ndarray, wgpu, vulkan, metal, webgpu, cuda or rocm, as built in; an index may
    /// follow, as in cuda:1.
    #[arg(long, default_value_t = default_device())]
    pub device: String,

    /// Where a GPU's compiled kernels are kept for the next start; needs the cargo feature persistence.
    #[arg(long, value_name = "DIR")]
    pub kernel_cache: Option<std::path::PathBuf>,

    /// CPU threads of flex and ndarray [default: all].
    #[arg(long)]
    pub threads: Option<usize>,

    /// f32 activations in every product, as the reference has; slower with quantized weights on the CPU.
    #[arg(long)]
    pub exact: bool,

    /// Keep matrices of float formats in 8 bits.
    #[arg(long, conflicts_with = "load_in_4bit")]
    pub load_in_8bit: bool,

    /// Keep matrices of float formats in 4 bits (the embedding in 8).
    #[arg(long)]
    pub load_in_4bit: bool,

    /// In which numbers keys and values are kept: f32, bf16 or f16 [default: f16 on flex and GPUs, f32
    /// with --exact and elsewhere].
    #[arg(long, value_name = "DTYPE", value_parser = parse_cache_dtype)]
    pub cache_dtype: Option<CacheDtype>,

    /// Positions of the context [default: 8192, or the model's if that is less].
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,

    /// Tokens that a prefill computes at once.
    #[arg(long, value_name = "TOKENS", default_value_t = CacheOptions::default().chunk)]
    pub chunk: usize,
}

impl ModelArguments {
    pub fn quantization(&self) -> Quantization {
        match (self.load_in_8bit, self.load_in_4bit) {
            (true, _) => Quantization::EightBit,
            (_, true) => Quantization::FourBit,
            _ => Quantization::None,
        }
    }

    pub fn precision(&self) -> Precision {
        if self.exact { Precision::Exact } else { Precision::Fast }
    }

    pub fn session_options(&self) -> SessionOptions {
        let cache = CacheOptions { capacity: self.context, chunk: self.chunk, dtype: self.cache_dtype };
        SessionOptions { cache, sequence: 0 }
    }
}

/// `f32`, `bf16` or `f16`.
pub fn parse_cache_dtype(name: &str) -> Result<CacheDtype, String> {
    match name {
        "f32" => Ok(CacheDtype::F32),
        "bf16" => Ok(CacheDtype::BF16),
        "f16" => Ok(CacheDtype::F16),
        _ => Err("expected f32, bf16 or f16".to_owned()),
    }
}

/// The first backend that this program was built with.
fn default_device() -> String {
    gemma3::device::built_in().first().copied().unwrap_or("flex").to_owned()
}

/// How tokens are chosen. What is not given is as the model's generation_config.json says.
#[derive(Debug, Clone, clap::Args)]
pub struct SamplingArguments {
    /// The most probable token each time.
    #[arg(long, conflicts_with = "sample")]
    pub greedy: bool,

    /// Draw tokens even if the model's defaults say greedy.
    #[arg(long)]
    pub sample: bool,

    /// The most tokens to generate.
    #[arg(long)]
    pub max_new_tokens: Option<usize>,

    /// Divides the logits; 0 is greedy.
    #[arg(long)]
    pub temperature: Option<f32>,

    /// Keep the k most probable tokens (0: all).
    #[arg(long)]
    pub top_k: Option<usize>,

    /// Keep the most probable tokens that reach this probability together.
    #[arg(long)]
    pub top_p: Option<f32>,

    /// Keep tokens at least this many times as probable as the best.
    #[arg(long)]
    pub min_p: Option<f32>,

    /// Above 1: makes tokens of the prompt and the text less probable.
    #[arg(long)]
    pub repetition_penalty: Option<f32>,

    /// Subtracted from the logits of tokens that the text has.
    #[arg(long, allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,

    /// Subtracted as often as the text has the token.
    #[arg(long, allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,

    /// ID=BIAS, added to a token's logit; may be repeated.
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias)]
    pub logit_bias: Vec<(u32, f32)>,

    /// Seed of the random numbers.
    #[arg(long)]
    pub seed: Option<u64>,

    /// A string that ends the text; may be repeated.
    #[arg(long)]
    pub stop: Vec<String>,

    /// An id that ends the text; may be repeated.
    #[arg(long)]
    pub stop_token_id: Vec<u32>,

    /// Go on after the model's own end-of-sequence ids.
    #[arg(long)]
    pub ignore_eos: bool,
}

impl SamplingArguments {
    /// The model's defaults with what was given in their place.
    pub fn options(&self, gemma: &Gemma3) -> GenerateOptions {
        let mut options = gemma.generate_options();
        let sampling = &mut options.sampling;
        sampling.do_sample = match (self.greedy, self.sample || self.asks_for_drawing()) {
            (true, _) => false,
            (false, true) => true,
            (false, false) => sampling.do_sample,
        };
        set(&mut sampling.temperature, self.temperature);
        set(&mut sampling.top_k, self.top_k);
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.repetition_penalty, self.repetition_penalty);
        set(&mut sampling.presence_penalty, self.presence_penalty);
        set(&mut sampling.frequency_penalty, self.frequency_penalty);
        sampling.logit_bias.extend(self.logit_bias.iter().copied());
        sampling.seed = self.seed;
        options.max_new_tokens = self.max_new_tokens.or(options.max_new_tokens);
        options.stop.clone_from(&self.stop);
        options.stop_token_ids.clone_from(&self.stop_token_id);
        options.ignore_eos = self.ignore_eos;
        options
    }

    /// A temperature or a filter makes sense only when drawing.
    fn asks_for_drawing(&self) -> bool {
        self.temperature.is_some_and(|t| t > 0.0)
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.min_p.is_some()
            || self.seed.is_some()
    }
}

fn set<T>(target: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *target = value;
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected ID=BIAS")?;
    let id = id.trim().parse().map_err(|error| format!("`{id}`: {error}"))?;
    let bias = bias.trim().parse().map_err(|error| format!("`{bias}`: {error}"))?;
    Ok((id, bias))
}

/// `2,5,7` as ids.
pub fn parse_ids(text: &str) -> Result<Vec<u32>, String> {
    text.split(',').map(|id| id.trim().parse().map_err(|error| format!("`{id}`: {error}"))).collect()
}
