//! What a device allows at most, and how much work it is given at once.
//!
//! Devices differ in how large a buffer may be: 128 MiB is what WebGPU promises, and the head of a small model is larger.
//! Matrices that don't fit lie in several buffers ([`Matrix`](super::machine::Matrix)); what can't be divided is refused
//! with the figures when it is asked for, because what cubecl says of a buffer comes with the first reading after it.
//!
//! A GPU that is busy with one submission draws nothing meanwhile, and systems take one that lasts seconds for hung. wgpu's
//! runtime submits after a number of launches, however long they take, so passes of many rows have what they have
//! launched submitted after an amount of work ([`Commands::spend`](super::commands::Commands::spend)).

use cubecl::client::Client;

use super::gemm::has_cooperative;
use crate::device::DeviceFailed;

/// What a device allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceLimits {
    /// Bytes of a buffer, or of the part of one that a kernel reads.
    pub(crate) buffer_bytes: u64,
    /// Bytes to which the beginning of such a part is aligned.
    pub(crate) alignment: u64,
    /// Operations of a submission, and of a launch that can be divided; `None` where the system lets computations take
    /// as long as they will.
    pub(crate) submission_flops: Option<u64>,
}

/// What a GPU of 1 TFLOP/s computes in 100 ms where kernels reach six tenths of that.
const SUBMISSION_FLOPS: u64 = 60_000_000_000;
/// By how much more one computes that has cooperative matrices: the smallest of these reach some 8 TFLOP/s with them.
const COOPERATIVE_GAIN: u64 = 8;
/// Rows of which those of a launch are a multiple: kernels take about as many at once, and buffers can be bound from there.
const GRANULARITY: usize = 64;
/// Begins the names of wgpu's runtimes, whose devices draw, too.
pub(super) const WGPU: &str = "wgpu";

#[cfg(test)]
std::thread_local! {
    /// Limits that tests say devices have, as far as these allow as much.
    pub(crate) static FORCED: std::cell::Cell<Option<DeviceLimits>> = const { std::cell::Cell::new(None) };
}

impl DeviceLimits {
    /// Those of a client's device.
    pub(crate) fn of(client: &Client) -> Self {
        let memory = &client.properties().memory;
        let alignment = memory.alignment.max(1);
        let gain = if has_cooperative(client) { COOPERATIVE_GAIN } else { 1 };
        let limits = Self {
            buffer_bytes: memory.max_page_size / alignment * alignment,
            alignment,
            submission_flops: client.name().starts_with(WGPU).then_some(SUBMISSION_FLOPS * gain),
        };
        #[cfg(test)]
        let limits = FORCED.get().map_or(limits, |forced| Self {
            buffer_bytes: forced.buffer_bytes.min(limits.buffer_bytes),
            alignment: forced.alignment.max(limits.alignment),
            ..forced
        });
        limits
    }

    /// Refuses a buffer that the device doesn't hold in one piece. `during` completes "the device failed ...".
    ///
    /// # Errors
    ///
    /// The figures.
    pub(crate) fn expect_buffer(&self, bytes: usize, during: &'static str) -> Result<(), DeviceFailed> {
        match bytes as u64 <= self.buffer_bytes {
            true => Ok(()),
            false => Err(self.too_large(bytes as u64, during)),
        }
    }

    /// What doesn't fit one buffer.
    pub(crate) fn too_large(&self, bytes: u64, during: &'static str) -> DeviceFailed {
        let most = self.buffer_bytes;
        DeviceFailed::new(
            "a GPU",
            during,
            format!("they take {bytes} bytes in one buffer, of at most {most}"),
        )
    }

    /// Rows of the input of each of the launches that make up one of `rows` rows and so many operations a row: a multiple
    /// of [`GRANULARITY`] unless all are few enough.
    pub(crate) fn rows_of_launch(&self, rows: usize, row_flops: u64) -> usize {
        let Some(most) = self.submission_flops else { return rows.max(1) };
        let fitting = usize::try_from(most / row_flops.max(1)).unwrap_or(usize::MAX);
        if rows <= fitting {
            return rows.max(1);
        }
        // Launches of alike lengths: the shortest would fill a device the least.
        let launches = rows.div_ceil((fitting / GRANULARITY * GRANULARITY).max(GRANULARITY));
        rows.div_ceil(launches).next_multiple_of(GRANULARITY)
    }
}

/// Operations of a product of so many rows, outputs and inputs.
pub(crate) const fn product_flops(rows: usize, outputs: usize, inputs: usize) -> u64 {
    2 * rows as u64 * outputs as u64 * inputs as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_has_as_many_rows_as_the_work_allows() {
        let limits = DeviceLimits { buffer_bytes: 0, alignment: 256, submission_flops: Some(1000) };
        assert_eq!(limits.rows_of_launch(100, 10), 100);
        assert_eq!(limits.rows_of_launch(260, 6), 128);
        // Not 448 and 72.
        assert_eq!(limits.rows_of_launch(520, 2), 320);
        assert_eq!(limits.rows_of_launch(500, 4), 192);
        // A launch of the granularity is as small as can be.
        assert_eq!(limits.rows_of_launch(300, 1000), 64);
        assert_eq!(DeviceLimits { submission_flops: None, ..limits }.rows_of_launch(300, 1000), 300);
    }
}
