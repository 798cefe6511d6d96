//! Changes to inputs: to bytes, and to what formats mean by them.

mod bytes;
mod image;
mod json;
mod safetensors;
mod template;

pub use bytes::bytes;
pub use image::image;
pub use json::json;
pub use safetensors::{file as safetensors_file, safetensors};
pub use template::template;

use super::Random;
