//! Memory: the process's own, as Linux counts it, and the device's.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use gemma3::Device;
use serde::{Deserialize, Serialize};

/// The memory of this process, in MiB.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct HostMemory {
    /// What is in no file, and has to stay: the heap, stacks, and memory shared with drivers, such as the pinned pages of
    /// transfers.
    pub anonymous_mib: f64,
    /// Pages of mapped files. The system takes them back when it needs them, and reads them again.
    pub file_mib: f64,
    /// The most that both have been together, as the system keeps it.
    pub peak_rss_mib: f64,
}

/// `None` where the system does not say.
pub fn host() -> Option<HostMemory> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib / 1024.0)
    };
    Some(HostMemory {
        anonymous_mib: mib("RssAnon")? + mib("RssShmem")?,
        file_mib: mib("RssFile")?,
        peak_rss_mib: mib("VmHWM")?,
    })
}

/// A thread that looks at the anonymous memory every few milliseconds: the system keeps the peak of all pages together
/// only.
pub struct Watch {
    done: Arc<AtomicBool>,
    thread: JoinHandle<f64>,
}

impl Watch {
    pub fn start() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut peak = 0.0_f64;
            loop {
                let last = seen.load(Ordering::Relaxed);
                peak = peak.max(host().map_or(0.0, |memory| memory.anonymous_mib));
                if last {
                    return peak;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { done, thread }
    }

    /// The most that was seen, in MiB.
    pub fn finish(self) -> f64 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(f64::NAN)
    }
}

/// The device's memory, in MiB.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct DeviceMemory {
    /// In buffers that are in use.
    pub in_use_mib: f64,
    /// In the allocator's pages.
    pub reserved_mib: f64,
}

/// `None` for devices without an allocator of their own.
pub fn device(device: &Device) -> Option<DeviceMemory> {
    let usage = device.memory_pool_usage()?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Some(DeviceMemory { in_use_mib: mib(usage.bytes_in_use), reserved_mib: mib(usage.bytes_reserved) })
}

/// What NVIDIA's driver says is used of the card by everyone, in MiB; `None` where there is no such tool or card.
pub fn card_mib(device_name: &str) -> Option<f64> {
    let index = device_name.split_once(':').map_or("0", |(_, index)| index);
    let query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id", index];
    let output = Command::new("nvidia-smi").args(query).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}
