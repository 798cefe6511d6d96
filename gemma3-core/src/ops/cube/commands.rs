//! The stream of commands of a model.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use burn::backend::DispatchDevice;
use burn::tensor::{Device, StreamId};
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::{Handle, ServerError};

use super::limits::{DeviceLimits, WGPU};

/// A client whose commands go to one stream, whatever thread they come from. A recorded step has to be replayed
/// on the stream that it was recorded on, and what it reads has to be written there; so everything that belongs
/// to a model goes through its stream.
#[derive(Clone)]
pub(crate) struct Commands {
    client: Client,
    limits: DeviceLimits,
    /// What has been launched since the last submission that was asked for.
    spent: Arc<Spent>,
}

/// Work that a device was given.
#[derive(Debug, Default)]
struct Spent {
    flops: AtomicU64,
    submissions: AtomicU64,
}

/// Streams of threads count from 0; those of models lie beyond, so that few devices' stream pools, which take
/// the number modulo their size, put both in one place.
static NEXT_STREAM: AtomicU64 = AtomicU64::new(61);

/// Held for writing while a step is recorded, for reading while a thread waits for a device: CUDA records in a mode
/// in which waiting fails, in any thread, and spoils the record.
static RECORDING: RwLock<()> = RwLock::new(());

/// Runs what waits for a device.
pub(crate) fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    let _no_record = RECORDING.read().unwrap_or_else(PoisonError::into_inner);
    wait()
}

/// Runs what records; nothing that belongs to this library waits meanwhile.
pub(crate) fn recording<T>(record: impl FnOnce() -> T) -> T {
    let _alone = RECORDING.write().unwrap_or_else(PoisonError::into_inner);
    record()
}

/// A part of a buffer.
pub(crate) fn part(buffer: &Handle, start: usize, bytes: usize) -> Handle {
    let (start, bytes) = (start as u64, bytes as u64);
    buffer.clone().offset_start(start).offset_end(buffer.size_in_used().saturating_sub(start + bytes))
}

type ReadBytes = Pin<Box<dyn Future<Output = Result<Vec<Bytes>, ServerError>> + Send>>;

/// A buffer on its way to the host. Whoever starts one waits for it, in the end: wgpu would reuse the buffer that the copy
/// arrives in while it is still mapped.
#[must_use = "wgpu takes a reading for done when it is dropped"]
pub(crate) struct Reading {
    bytes: ReadBytes,
    /// What the future borrows.
    _client: Arc<Client>,
}

impl Reading {
    /// Waits for the bytes.
    pub(crate) fn bytes(mut self) -> Result<Bytes, ServerError> {
        let bytes = waiting(|| cubecl::future::block_on(self.bytes.as_mut()));
        // One buffer was asked for.
        Ok(bytes?.pop().unwrap_or_else(|| Bytes::from_bytes_vec(Vec::new())))
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Commands").field(&self.client.name()).finish()
    }
}

impl Commands {
    /// A new stream on a device; `None` if it is none of cubecl's.
    pub(crate) fn open(device: &Device) -> Option<Self> {
        #[allow(irrefutable_let_patterns, reason = "where only GPUs are built in, nothing else is left")]
        let DispatchDevice::Cube(device) = device.as_dispatch() else { return None };
        let mut client = device.client();
        let value = NEXT_STREAM.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the client is ours alone. Buffers made on other streams and used on this one are waited for by
        // the server, as between threads; nothing else depends on which stream a client names.
        unsafe { client.set_stream(StreamId { value }) };
        Some(Self { limits: DeviceLimits::of(&client), client, spent: Arc::default() })
    }

    /// The client that speaks to the stream.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the host encodes every launch of a replay anew, with a barrier in front of it, as wgpu's runtime does.
    pub(crate) fn encodes_replays(&self) -> bool {
        self.client.name().starts_with(WGPU)
    }

    /// What the device allows at most.
    pub(crate) fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    /// Notes that launches of so many operations follow. Where a submission must not take too long, what was launched
    /// before is submitted first if it would become too much with them.
    pub(crate) fn spend(&self, flops: u64) {
        let Some(most) = self.limits.submission_flops else { return };
        let before = self.spent.flops.fetch_add(flops, Ordering::Relaxed);
        if before > 0 && before.saturating_add(flops) > most {
            self.spent.flops.store(flops, Ordering::Relaxed);
            self.spent.submissions.fetch_add(1, Ordering::Relaxed);
            // A device that fails says so where something is read from it.
            let _ = self.client.flush();
        }
    }

    /// Submissions that [`spend`](Self::spend) asked for.
    #[cfg(test)]
    pub(crate) fn submissions(&self) -> u64 {
        self.spent.submissions.load(Ordering::Relaxed)
    }

    /// Copies numbers to the device.
    pub(crate) fn upload(&self, values: &[f32]) -> Handle {
        self.client.create_from_slice(f32::as_bytes(values))
    }

    /// The same of many numbers that nobody needs any more, which saves a copy.
    pub(crate) fn hand_over(&self, values: Vec<f32>) -> Handle {
        self.client.create(Bytes::from_elems(values))
    }

    /// Copies numbers to the device.
    pub(crate) fn upload_words(&self, values: &[u32]) -> Handle {
        self.client.create_from_slice(u32::as_bytes(values))
    }

    /// Reads numbers back, after everything before them on the stream.
    pub(crate) fn download(&self, handle: &Handle) -> Result<Vec<f32>, ServerError> {
        let bytes = waiting(|| self.client.read_one(handle.clone()))?;
        Ok(f32::from_bytes(&bytes).to_vec())
    }

    /// Starts reading a buffer back as it is after everything before this on the stream, without waiting.
    pub(crate) fn start_reading(&self, handle: &Handle) -> Reading {
        let client = Arc::new(self.client.clone());
        // SAFETY: the client lives on the heap and as long as `Reading`, whose fields are dropped in their order: the
        // future that borrows it first.
        let borrowed: &'static Client = unsafe { &*Arc::as_ptr(&client) };
        let bytes = Box::pin(borrowed.read_async(vec![handle.clone()]));
        Reading { bytes, _client: client }
    }

    /// Waits for everything so far.
    pub(crate) fn wait(&self) -> Result<(), ServerError> {
        waiting(|| cubecl::future::block_on(self.client.sync()))
    }
}
