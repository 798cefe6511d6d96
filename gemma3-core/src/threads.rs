//! The CPU threads of a model: a pool of its own, so that a thread count really binds and the host's
//! global pool stays the host's.

use std::sync::Arc;

use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// Where computations run: on a pool for CPU devices, on the caller's thread for others (whose
/// command streams belong to the thread that uses them). Cloning shares the pool.
#[derive(Debug, Clone)]
pub struct Threads {
    pool: Option<Arc<ThreadPool>>,
}

impl Threads {
    /// `count` threads for a CPU device (`None`: as many as the process may use), none for others.
    ///
    /// # Errors
    ///
    /// Threads that the system does not give.
    pub fn new(device: &Device, count: Option<usize>) -> Result<Self, ThreadPoolBuildError> {
        if !crate::device::is_cpu(device) {
            return Ok(Self { pool: None });
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(count.unwrap_or(0)) // 0: rayon asks the system.
            .thread_name(|index| format!("gemma3-{index}"))
            .build()?;
        Ok(Self { pool: Some(Arc::new(pool)) })
    }

    /// Threads that compute; 1 on devices that are not CPUs.
    pub fn count(&self) -> usize {
        self.pool.as_ref().map_or(1, |pool| pool.current_num_threads())
    }

    /// Runs `f` on the pool. What burn's CPU backends and our operations parallelize inside of it
    /// stays on the pool.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(f),
            None => f(),
        }
    }
}
