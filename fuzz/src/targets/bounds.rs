//! Memory and time: how much of both an entry point takes.
//!
//! Memory is counted over all threads, because tokenizers and images use several. So only one input may run at a
//! time; [`super::explore`] sees to it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// What one input may take of a processor: thousands of times what it takes.
const MOST_TIME: Duration = Duration::from_secs(5);
/// Tables that do not depend on the input, and threads that are started.
const FIXED_BYTES: usize = 1 << 20;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of it and allocates
// nothing.
#[allow(unsafe_code, reason = "the trait asks for it; the argument is above")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed).wrapping_add(layout.size());
        PEAK.fetch_max(held, Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed).wrapping_add(layout.size());
        PEAK.fetch_max(held, Relaxed);
        // SAFETY: as above. Pages of zeros cost nothing until they are used, as in an application.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `run`.
///
/// # Panics
/// If it held more than `most_bytes` (and [`FIXED_BYTES`]) at a time, or took longer than [`MOST_TIME`].
pub fn within<T>(most_bytes: usize, run: impl FnOnce() -> T) -> T {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let start = processor_time();
    let result = run();
    let took = processor_time().saturating_sub(start);
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    assert!(
        peak <= most_bytes + FIXED_BYTES,
        "{peak} bytes held, {most_bytes} and {FIXED_BYTES} are allowed"
    );
    assert!(took <= MOST_TIME, "took {took:?}");
    result
}

/// What this process has taken of a processor: a machine that is busy with other things does not count.
#[cfg(unix)]
fn processor_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process knows what it uses");
    let time = usage.user_time() + usage.system_time();
    Duration::from_micros(time.num_microseconds().unsigned_abs())
}

/// The time of day, where the system isn't asked.
#[cfg(not(unix))]
fn processor_time() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// An error as the user reads it: it says something, and nobody has to scroll through a file's content for it.
pub fn check_error(error: &dyn std::error::Error) {
    const MOST_CHARS: usize = 4096;
    let message = error.to_string();
    assert!(!message.trim().is_empty(), "an error without words: {error:?}");
    assert!(message.len() <= MOST_CHARS, "an error of {} bytes", message.len());
    let control = message.chars().find(|character| character.is_control() && *character != '\n');
    assert_eq!(control, None, "what a terminal obeys: {message:?}");
}
