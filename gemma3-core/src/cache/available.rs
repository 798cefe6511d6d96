//! Whether a cache can fit the memory, asked before it is allocated: an allocation that fails inside
//! a backend is a panic.

use burn::tensor::Device;

use super::CacheError;

/// Checks `needed_bytes` against what the device says it has. A device that does not say passes.
pub(super) fn check(needed_bytes: u64, device: &Device) -> Result<(), CacheError> {
    match available_bytes(device) {
        Some(available_bytes) if needed_bytes > available_bytes => {
            Err(CacheError::OutOfMemory { needed_bytes, available_bytes })
        }
        _ => Ok(()),
    }
}

/// Checks the bytes of the keys of a layer against what the device holds in one piece.
pub(super) fn check_layer(needed_bytes: u64, device: &Device) -> Result<(), CacheError> {
    match crate::device::most_buffer_bytes(device) {
        Some(most_bytes) if needed_bytes > most_bytes => {
            Err(CacheError::BeyondBuffer { needed_bytes, most_bytes })
        }
        _ => Ok(()),
    }
}

fn available_bytes(device: &Device) -> Option<u64> {
    if crate::device::is_cpu(device) {
        let mut system = sysinfo::System::new().ok()?;
        system.refresh_memory();
        let free = system.available_memory();
        // Inside a container the group's limit counts, not the machine's memory.
        let limited = system.cgroup_limits().map_or(free, |limits| free.min(limits.free_memory));
        return (limited > 0).then_some(limited);
    }
    None
}
