//! Memory.

/// The most memory that this process has had resident, in bytes; 0 where the system does not say.
#[cfg(unix)]
pub fn peak_rss_bytes() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| u64::try_from(usage.max_rss()).unwrap_or(0) * unit)
}

/// The most memory that this process has had resident, in bytes; 0 where the system does not say.
#[cfg(not(unix))]
pub fn peak_rss_bytes() -> u64 {
    0
}
