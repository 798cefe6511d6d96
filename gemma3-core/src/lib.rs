//! Gemma 3's decoder on [burn]: token ids in, token ids out.
//!
//! This crate reads a checkpoint (a Hugging Face folder or a GGUF file), runs the decoder on any device
//! that burn has, and generates. It knows nothing of text or pixels: the crate `gemma3` puts it together
//! with the tokenizer.
//!
//! ```no_run
//! use gemma3_core::checkpoint::Checkpoint;
//! use gemma3_core::generate::{ContinueOptions, Session, SessionOptions};
//! use gemma3_core::model::{LoadOptions, Model};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("gemma-3-270m")?;
//! let device = gemma3_core::device::open("flex")?;
//! let model = Model::load(&checkpoint, &device, LoadOptions::default())?;
//!
//! let mut session = Session::new(&model, &SessionOptions::default())?;
//! session.append(&[2, 818, 3433, 529, 9922, 14160])?;
//! for token in session.generate(ContinueOptions { max_new_tokens: Some(16), ..Default::default() })? {
//!     println!("{}", token?.id);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The dependencies of the modules point one way:
//! [`generate`] → [`model`] → `run` → {[`ops`], [`cache`]} → {[`formats`], [`checkpoint`]} → [`config`].

#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod cache;
mod cancel;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod formats;
pub mod generate;
pub mod model;
pub mod ops;
mod run;
pub mod sampling;
mod threads;

pub use burn::tensor::Device;
pub use cancel::CancelHandle;
pub use threads::Threads;
