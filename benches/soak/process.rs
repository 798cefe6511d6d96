//! What the system says this process holds.

use std::fs;
use std::time::{Duration, Instant};

/// What a process holds at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Memory that is resident.
    pub rss_bytes: u64,
    /// Threads that exist.
    pub threads: u64,
    /// Files, sockets and the like that are open.
    pub handles: u64,
}

impl Sample {
    /// Of this process now; `None` where the system has no `/proc` as Linux has it.
    pub fn now() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let number = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            rss_bytes: number("VmRSS:")? << 10,
            threads: number("Threads:")?,
            handles: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        })
    }

    /// As [`now`](Self::now), when threads that were told to end have ended: waits until `expected` holds for
    /// threads and handles, a few seconds at most.
    pub fn settled(expected: Option<Self>) -> Option<Self> {
        let end = Instant::now() + Duration::from_secs(5);
        let mut sample = Self::now()?;
        let mut is_settled = false;
        while !is_settled && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            let next = Self::now()?;
            is_settled = match expected {
                Some(expected) => (next.threads, next.handles) == (expected.threads, expected.handles),
                None => (next.threads, next.handles) == (sample.threads, sample.handles),
            };
            sample = next;
        }
        Some(sample)
    }
}
