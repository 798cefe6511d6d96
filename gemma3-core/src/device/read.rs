//! Numbers on their way back from a device, which is where it says that it failed.

use std::fmt::Display;

use burn::tensor::Tensor;

use super::waiting;

/// A device failed, for instance for lack of memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device {device} failed {during}: {reason}")]
pub struct DeviceFailed {
    /// The device.
    pub device: String,
    /// What it was doing, as far as is known: devices say so late.
    pub during: &'static str,
    /// What the backend said.
    pub reason: String,
}

impl DeviceFailed {
    /// `during` completes "the device failed ...".
    pub fn new(device: impl Into<String>, during: &'static str, reason: impl Display) -> Self {
        Self { device: device.into(), during, reason: reason.to_string() }
    }
}

/// Kernels don't know the name of the device that they run on; it is the one that the application opened.
#[cfg(feature = "cube")]
impl From<cubecl::server::ServerError> for DeviceFailed {
    fn from(error: cubecl::server::ServerError) -> Self {
        Self::new("a GPU", "in what it was asked to compute", error)
    }
}

/// Waits for a tensor of floats and reads it back in f32, row-major.
///
/// # Errors
///
/// When the device fails.
pub fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, DeviceFailed> {
    let device = format!("{:?}", tensor.device());
    let during = "while a tensor was computed and read back";
    let data =
        waiting(|| tensor.try_into_data()).map_err(|error| DeviceFailed::new(&*device, during, error))?;
    let values = data.convert::<f32>().try_into_vec();
    values.map_err(|error| DeviceFailed::new(device, during, format!("{error:?}")))
}
