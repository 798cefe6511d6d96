//! How a model is loaded.

use burn::tensor::Device;

use crate::formats::Quantization;
use crate::ops::Precision;
use crate::threads::Threads;

/// How to load a model.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// CPU threads to compute with, on a pool that the model owns. `None`: as many as the process may
    /// use. On flex results are the same with any number, bit for bit. Has no effect on devices that are not CPUs.
    pub threads: Option<usize>,
    /// Threads to be used in place of a pool of the model's: the host's own ([`Threads::lent`]), or those of another
    /// model of the same device ([`Model::threads`](super::Model::threads)).
    pub lent_threads: Option<Threads>,
    /// Whether to look for weights that are NaN or infinite, which otherwise show as NaN logits much
    /// later. `None`: in debug builds only, because it reads every weight once more.
    pub check_finite: Option<bool>,
    /// How exact the products are. [`Precision::Exact`] is what the reference is compared with.
    pub precision: Precision,
    /// Whether matrices of float formats are kept in fewer bits. Norms stay as they are. On ndarray the
    /// numbers are the quantized ones and the memory is that of f32.
    pub quantization: Quantization,
    /// Whether the definition computes, in burn's own operations, in place of what is fast on the device: for
    /// experiments, and as what the rest is compared with. Weights are then expanded to f32.
    pub plain: bool,
    /// Called after each tensor.
    pub progress: Option<&'a mut (dyn FnMut(LoadProgress) + Send)>,
}

impl LoadOptions<'_> {
    /// The threads to compute with on a device.
    ///
    /// # Errors
    ///
    /// Threads that the system does not give.
    pub fn threads(&self, device: &Device) -> Result<Threads, rayon::ThreadPoolBuildError> {
        match &self.lent_threads {
            Some(threads) if crate::device::is_cpu(device) => Ok(threads.clone()),
            _ => Threads::new(device, self.threads),
        }
    }
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the file's tensors that have been read.
    pub loaded_bytes: u64,
    /// Bytes of all of them.
    pub total_bytes: u64,
}
