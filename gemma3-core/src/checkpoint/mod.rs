//! Checkpoints: the tensors of a Gemma 3 model by their role, whatever file they come from.
//!
//! A [`Checkpoint`] is a Hugging Face folder (one safetensors file or shards), a single
//! `.safetensors` beside its `config.json`, a `.gguf` file, any of these as bytes in memory, or
//! random weights of a true shape. The model asks for [`TextTensor`]s and doesn't know which it was.
//! Files are memory-mapped; nothing is copied or converted here.
//!
//! # Untrusted files
//! Opening a file from a stranger ends in a [`Checkpoint`] or a [`CheckpointError`]: every offset,
//! length and shape is checked against the file's size before it is used, no number of the file
//! decides how much is allocated, and every tensor of the decoder has the format and shape that the
//! configuration asks for before [`Checkpoint::open`] returns. The weights themselves are not looked
//! at. A file must not be rewritten while it is open.

mod configs;
mod error;
mod folder;
mod foreign;
mod gguf;
mod layout;
mod names;
mod output_matrix;
mod part_name;
mod random;
mod safetensors;
mod shards;
mod storage;
mod tensors;
mod warning;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::config::{GenerationConfig, ImageTokens, ModelConfig, TextConfig, VisionConfig};
pub use crate::formats::TensorFormat;

pub use error::CheckpointError;
pub use folder::read_text;
pub use gguf::{GgufError, GgufFile, GgufMetadata, GgufStrings};
pub use names::{LayerTensor, TextTensor};
pub use random::RandomTensor;
pub use storage::CheckpointBytes;
pub use tensors::TensorView;
pub use warning::{Warning, WarningKind};

use configs::Configs;
use foreign::{FileKind, adapter, stand_in};
use layout::{Layout, Names};
use output_matrix::OutputMatrix;
use tensors::{StoredFormat, TensorTable};

/// A model's weights and configuration. Cloning shares them.
#[derive(Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

/// Everything that doesn't change when the configuration is replaced is shared once more.
struct Inner {
    weights: Arc<Weights>,
    config: ModelConfig,
}

struct Weights {
    /// The path, or what the bytes were called; for errors.
    source: String,
    table: TensorTable,
    names: Names,
    generation_config: GenerationConfig,
    gguf: Option<GgufMetadata>,
    format_name: String,
    warnings: Vec<Warning>,
}

impl Checkpoint {
    /// Opens what lies at `path`: a Hugging Face folder (`config.json` with `model.safetensors` or
    /// `model.safetensors.index.json` and its shards, or shards numbered `model-00001-of-00003.safetensors`
    /// without one), a `.safetensors` file with its `config.json` beside it, or a `.gguf` file. Files are
    /// recognized by their contents, not their names. Any file of a numbered set, of either kind, stands for
    /// the set.
    ///
    /// # Errors
    /// [`CheckpointError`]: nothing there, damaged, incomplete, not a Gemma 3 model, or a tensor
    /// whose format or shape isn't what the configuration asks for.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|error| CheckpointError::io(path, error))?;
        if metadata.is_dir() {
            let folder = folder::open_folder(path)?;
            return Self::from_huggingface(path.display().to_string(), folder);
        }
        let bytes = CheckpointBytes::map(path)?;
        if gguf::has_magic(bytes.as_slice()) {
            return Self::from_gguf(GgufFile::open(path)?);
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")) {
            let folder = folder::open_single_file(path)?;
            return Self::from_huggingface(path.display().to_string(), folder);
        }
        stand_in::reject(&path.display().to_string(), bytes.as_slice())?;
        let FileKind { found, advice } = FileKind::of(path, bytes.as_slice());
        Err(CheckpointError::UnknownFileType { path: path.to_owned(), found, advice })
    }

    /// Opens a GGUF file that is already in memory.
    ///
    /// # Errors
    /// [`CheckpointError`], as for [`Checkpoint::open`].
    pub fn from_gguf_bytes(bytes: impl Into<CheckpointBytes>) -> Result<Self, CheckpointError> {
        Self::from_gguf(GgufFile::from_bytes(bytes)?)
    }

    /// Opens safetensors files that are already in memory, with the text of their `config.json` and
    /// `generation_config.json`. The shards' order doesn't matter; no index is needed.
    ///
    /// # Errors
    /// [`CheckpointError`], as for [`Checkpoint::open`].
    pub fn from_safetensors_bytes(
        config_json: &str,
        generation_config_json: Option<&str>,
        shards: impl IntoIterator<Item = impl Into<CheckpointBytes>>,
    ) -> Result<Self, CheckpointError> {
        let shards = shards.into_iter().map(Into::into);
        let folder = folder::from_memory(config_json, generation_config_json, shards)?;
        Self::from_huggingface("safetensors in memory".to_owned(), folder)
    }

    /// Random weights of a true shape, for measurements and tests without a file. Each tensor is
    /// made when it is asked for, the same for the same `seed` and name on every machine.
    ///
    /// Norms are F32. Matrices have the given format; where its blocks don't divide a row they are
    /// Q8_0 (in real files too such rows have another format), or BF16 where that doesn't either.
    /// The scales are such that activations and logits stay finite and depend on every layer:
    /// projections keep the variance of their input, the embedding is small and the final norm large
    /// (logits with a standard deviation of about 2).
    ///
    /// # Errors
    /// [`CheckpointError::Config`] if the sizes don't fit together.
    pub fn random(config: TextConfig, format: TensorFormat, seed: u64) -> Result<Self, CheckpointError> {
        Self::random_with(ModelConfig::from_text(config), format, [], seed)
    }

    /// [`Checkpoint::random`] with tensors beyond those of the decoder, such as an image encoder's.
    ///
    /// # Errors
    /// As for [`Checkpoint::random`].
    pub fn random_with(
        config: ModelConfig,
        format: TensorFormat,
        more: impl IntoIterator<Item = RandomTensor>,
        seed: u64,
    ) -> Result<Self, CheckpointError> {
        const SOURCE: &str = "random weights";
        config.validate().map_err(|error| CheckpointError::config(SOURCE, error))?;
        let names = Names::HuggingFace { prefix: "model.", head: None, embedding_is_head: false };
        let mut table = TensorTable::default();
        for tensor in TextTensor::all(&config.text) {
            let entry = random::entry(tensor, &config.text, format, seed);
            table.entries.insert(names.of(tensor), entry);
        }
        table.entries.extend(more.into_iter().map(|tensor| tensor.entry(seed)));
        let weights = Weights {
            source: SOURCE.to_owned(),
            table,
            names,
            generation_config: GenerationConfig::default(),
            gguf: None,
            format_name: format!("random {}", format.name().to_uppercase()),
            warnings: Vec::new(),
        };
        Self::checked(weights, config)
    }

    /// The same weights with another image encoder in the configuration: one that lies in a file of its own
    /// (beside a GGUF), or none, for text alone.
    ///
    /// # Errors
    /// [`CheckpointError::Config`] if the sizes don't fit together.
    pub fn with_vision(&self, vision: Option<(VisionConfig, ImageTokens)>) -> Result<Self, CheckpointError> {
        let (vision, image_tokens) = vision.unzip();
        let config = ModelConfig { vision, image_tokens, ..self.inner.config.clone() };
        let weights = Arc::clone(&self.inner.weights);
        config.validate().map_err(|error| CheckpointError::config(&weights.source, error))?;
        Ok(Self { inner: Arc::new(Inner { weights, config }) })
    }

    /// The same weights under another decoder configuration, for experiments with constants that
    /// shape no tensor (rope bases, window, attention scale), some of which a GGUF file can't say.
    ///
    /// # Errors
    /// [`CheckpointError::Config`] if the sizes don't fit together; missing tensors or wrong shapes
    /// if the weights don't fit them.
    pub fn with_text_config(&self, text: TextConfig) -> Result<Self, CheckpointError> {
        let config = ModelConfig { text, ..self.inner.config.clone() };
        let weights = Arc::clone(&self.inner.weights);
        config.validate().map_err(|error| CheckpointError::config(&weights.source, error))?;
        weights.check_tensors(&config.text)?;
        Ok(Self { inner: Arc::new(Inner { weights, config }) })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// The authors' sampling defaults; empty where the checkpoint has none.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.inner.weights.generation_config
    }

    /// The metadata of a GGUF file, with the vocabulary; `None` for other checkpoints.
    pub fn gguf(&self) -> Option<&GgufMetadata> {
        self.inner.weights.gguf.as_ref()
    }

    /// File kind and main weight format, for people: `"GGUF Q4_K_M"`, `"safetensors BF16"`.
    pub fn format_name(&self) -> &str {
        &self.inner.weights.format_name
    }

    /// What is odd about the files and doesn't keep the model from running.
    pub fn warnings(&self) -> &[Warning] {
        &self.inner.weights.warnings
    }

    /// The path that was opened, or what stands for it; for messages.
    pub fn source(&self) -> &str {
        &self.inner.weights.source
    }

    /// Stored bytes of the decoder's tensors, a tied head counted once.
    pub fn total_weight_bytes(&self) -> u64 {
        let weights = &self.inner.weights;
        TextTensor::all(&self.inner.config.text)
            .filter_map(|tensor| weights.table.bytes_of(&weights.names.of(tensor)))
            .sum()
    }

    /// A tensor of the decoder. [`TextTensor::Head`] of a tied model is the embedding.
    ///
    /// # Errors
    /// [`CheckpointError::NoSuchLayer`]. Everything else was checked when the checkpoint was opened
    /// and fails only if its bytes changed since.
    pub fn tensor(&self, tensor: TextTensor) -> Result<TensorView<'_>, CheckpointError> {
        let layers = self.inner.config.text.num_hidden_layers;
        let tensor = match tensor {
            TextTensor::Layer(layer, _) if layer >= layers => {
                return Err(CheckpointError::NoSuchLayer { layer, layers });
            }
            TextTensor::Head if self.head_is_tied() => TextTensor::Embedding,
            other => other,
        };
        self.raw(&self.inner.weights.names.of(tensor))
    }

    /// Any tensor by its name in the file, such as those of an image encoder. Its format is read,
    /// its shape is not compared with anything.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], [`CheckpointError::UnsupportedFormat`] or
    /// [`CheckpointError::InvalidTensor`].
    pub fn raw(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        let weights = &self.inner.weights;
        weights.table.view(name, &weights.source)
    }

    /// Stored bytes of the tensor of this name in the file; `None` if there is none, or its format isn't
    /// read.
    pub fn bytes_of(&self, name: &str) -> Option<u64> {
        self.inner.weights.table.bytes_of(name)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let entries = &self.inner.weights.table.entries;
        entries.keys().map(String::as_str)
    }

    /// Whether the stored weights of norms are `1 + w` (GGUF) or `w` (everything else).
    pub fn norms_include_one(&self) -> bool {
        matches!(self.inner.weights.names, Names::Gguf)
    }

    /// Whether the head that makes the logits is the embedding.
    pub fn head_is_tied(&self) -> bool {
        self.inner.config.text.tie_word_embeddings
    }

    fn from_gguf(file: GgufFile) -> Result<Self, CheckpointError> {
        let source = file.label().to_owned();
        adapter::reject_gguf(&file, &source)?;
        let (mut config, warnings) =
            gguf::model_config(&source, &file).map_err(|error| CheckpointError::config(&source, error))?;
        let (table, metadata) = file.into_parts();
        let [embedding, head] =
            [TextTensor::Embedding, TextTensor::Head].map(|tensor| Names::Gguf.of(tensor));
        config.text.tie_word_embeddings =
            !table.entries.contains_key(&head) || output_matrix::same_numbers(&table, &embedding, &head);
        let format_name = gguf::format_name(&metadata, &table);
        let weights = Weights {
            source,
            table,
            names: Names::Gguf,
            generation_config: GenerationConfig::default(),
            gguf: Some(metadata),
            format_name,
            warnings,
        };
        Self::checked(weights, config)
    }

    fn from_huggingface(source: String, folder: folder::Folder) -> Result<Self, CheckpointError> {
        let folder::Folder { configs, table } = folder;
        let layout = Layout::find(&table, &source, &configs.model.text)?;
        let OutputMatrix { tied, embedding_is_head, warning } =
            OutputMatrix::decide(&table, &source, &configs, &layout)?;
        let Configs { mut model, generation, mut warnings, .. } = configs;
        model.text.tie_word_embeddings = tied;
        warnings.extend(warning);
        let weights = Weights {
            format_name: format!("safetensors {}", main_format(&table)),
            source,
            table,
            names: Names::HuggingFace { prefix: layout.prefix, head: layout.head, embedding_is_head },
            generation_config: generation,
            gguf: None,
            warnings,
        };
        Self::checked(weights, model)
    }

    fn checked(weights: Weights, config: ModelConfig) -> Result<Self, CheckpointError> {
        weights.check_tensors(&config.text)?;
        let weights = Arc::new(weights);
        Ok(Self { inner: Arc::new(Inner { weights, config }) })
    }
}

impl Weights {
    /// Every tensor of the decoder is there, in a format of its role, with the shape of the
    /// configuration.
    fn check_tensors(&self, config: &TextConfig) -> Result<(), CheckpointError> {
        const NORM_FORMATS: &[TensorFormat] = &[TensorFormat::F32, TensorFormat::F16, TensorFormat::BF16];
        for tensor in TextTensor::all(config) {
            let name = self.names.of(tensor);
            let expected = tensor.shape(config);
            let Some(entry) = self.table.entries.get(&name) else {
                return Err(CheckpointError::MissingTensor {
                    file: self.source.clone(),
                    tensor: name,
                    expected: Some(expected),
                });
            };
            let file = self.table.label_of(entry).to_owned();
            if entry.shape != expected {
                return Err(CheckpointError::WrongShape {
                    file,
                    tensor: name,
                    expected,
                    found: entry.shape.clone(),
                });
            }
            let formats: &'static [TensorFormat] = match tensor.is_norm() {
                true => NORM_FORMATS,
                false => &TensorFormat::ALL,
            };
            let problem = match &entry.format {
                StoredFormat::Known(format) if formats.contains(format) => None,
                StoredFormat::Known(format) => Some(format.to_string()),
                StoredFormat::Unknown(found) => Some(found.clone()),
            };
            if let Some(found) = problem {
                return Err(CheckpointError::UnsupportedFormat {
                    file,
                    tensor: name,
                    expected: formats,
                    found,
                });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Checkpoint")
            .field("source", &self.source())
            .field("format", &self.format_name())
            .finish_non_exhaustive()
    }
}

/// The format with most bytes, in capitals.
fn main_format(table: &TensorTable) -> String {
    let mut bytes_by_format = BTreeMap::<&'static str, u64>::new();
    for entry in table.entries.values() {
        if let StoredFormat::Known(format) = &entry.format
            && let Ok(bytes) = format.tensor_bytes(&entry.shape)
        {
            let total = bytes_by_format.entry(format.name()).or_default();
            *total = total.saturating_add(bytes as u64);
        }
    }
    let main = bytes_by_format.into_iter().max_by_key(|(_, bytes)| *bytes);
    main.map_or("(no weights)", |(name, _)| name).to_uppercase()
}
