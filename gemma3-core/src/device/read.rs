//! Numbers on their way back from a device, which is where it says that it failed.

use std::fmt::Display;

use burn::tensor::Tensor;

use super::waiting;

/// A device failed while it computed, for instance for lack of memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device failed: {reason}")]
pub struct DeviceFailed {
    /// What the backend said.
    pub reason: String,
}

impl DeviceFailed {
    pub(crate) fn new(reason: impl Display) -> Self {
        Self { reason: reason.to_string() }
    }
}

#[cfg(feature = "cube")]
impl From<cubecl::server::ServerError> for DeviceFailed {
    fn from(error: cubecl::server::ServerError) -> Self {
        Self::new(error)
    }
}

/// Waits for a tensor of floats and reads it back in f32, row-major.
///
/// # Errors
///
/// When the device fails.
pub fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, DeviceFailed> {
    let data = waiting(|| tensor.try_into_data()).map_err(DeviceFailed::new)?;
    data.convert::<f32>().try_into_vec().map_err(|error| DeviceFailed { reason: format!("{error:?}") })
}
