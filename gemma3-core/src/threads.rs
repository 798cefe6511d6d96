//! The CPU threads of a model: a pool of its own or one that the host lends, so that a thread count really
//! binds and the global pool stays the host's.
//!
//! A decode step is about a hundred small parallel regions. A thread of rayon that finds nothing to do goes to sleep
//! after some microseconds, and waking it takes longer than most of the regions. So the threads of a model's own
//! pool stay awake while the model computes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder, Yield};

/// Where computations run: on a pool for CPU devices, on the caller's thread for others (whose
/// command streams belong to the thread that uses them). Cloning shares the pool.
#[derive(Debug, Clone)]
pub struct Threads {
    pool: Option<Pool>,
}

#[derive(Debug, Clone)]
enum Pool {
    Own(Arc<OwnPool>),
    Lent(Arc<ThreadPool>),
}

impl Threads {
    /// `count` threads for a CPU device (`None`: as many as the process may use), none for others.
    ///
    /// While a computation runs, and a moment longer, they all look for work, also when there is too little for
    /// all; between computations they sleep.
    ///
    /// # Errors
    ///
    /// Threads that the system does not give.
    pub fn new(device: &Device, count: Option<usize>) -> Result<Self, ThreadPoolBuildError> {
        if !crate::device::is_cpu(device) {
            return Ok(Self { pool: None });
        }
        Ok(Self { pool: Some(Pool::Own(Arc::new(OwnPool::new(count)?))) })
    }

    /// The host's own pool, which goes to sleep and wakes as rayon has it. Decoding a small model is slower on it
    /// than on a pool of the model's.
    pub fn lent(pool: Arc<ThreadPool>) -> Self {
        Self { pool: Some(Pool::Lent(pool)) }
    }

    /// Threads that compute; 1 on devices that are not CPUs.
    pub fn count(&self) -> usize {
        match &self.pool {
            Some(Pool::Own(own)) => own.pool.current_num_threads(),
            Some(Pool::Lent(pool)) => pool.current_num_threads(),
            None => 1,
        }
    }

    /// Runs `f` on the pool. What burn's CPU backends and our operations parallelize inside of it
    /// stays on the pool.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(Pool::Own(own)) => {
                let _computation = Computation::begin(&own.keeper);
                own.pool.install(f)
            }
            Some(Pool::Lent(pool)) => pool.install(f),
            None => f(),
        }
    }
}

/// A pool whose threads wait for work in a way of our own.
#[derive(Debug)]
struct OwnPool {
    pool: ThreadPool,
    keeper: Arc<Keeper>,
}

impl OwnPool {
    fn new(count: Option<usize>) -> Result<Self, ThreadPoolBuildError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(count.unwrap_or(0)) // 0: rayon asks the system.
            .thread_name(|index| format!("gemma3-{index}"))
            .build()?;
        let keeper = Arc::new(Keeper::default());
        let all_started = Arc::new(Barrier::new(pool.current_num_threads() + 1));
        // The first thing that each thread does, and the last: everything else runs inside of it. It must never
        // be found by a thread that waits for a part of a computation, which would then wait for the
        // computation's end; so it is given out once, before there are any.
        let (kept, started) = (Arc::clone(&keeper), Arc::clone(&all_started));
        pool.spawn_broadcast(move |_| {
            started.wait();
            kept.work();
        });
        all_started.wait();
        Ok(Self { pool, keeper })
    }
}

impl Drop for OwnPool {
    fn drop(&mut self) {
        self.keeper.end.store(true, Ordering::SeqCst);
        self.keeper.wake();
    }
}

/// How long threads look for work after a computation: until the next token of a fast model.
const LINGER: Duration = Duration::from_micros(200);

/// Keeps threads awake while there are computations.
#[derive(Debug, Default)]
struct Keeper {
    computations: AtomicUsize,
    end: AtomicBool,
    sleeping: Mutex<()>,
    woken: Condvar,
}

impl Keeper {
    /// A thread's life.
    fn work(&self) {
        let mut idle_since = Instant::now();
        while !self.end.load(Ordering::SeqCst) {
            if rayon::yield_now() == Some(Yield::Executed) || self.is_needed() {
                idle_since = Instant::now();
            } else if idle_since.elapsed() > LINGER {
                self.sleep();
                continue;
            }
            // Other programs may have more to do than to look for work.
            std::thread::yield_now();
        }
    }

    fn is_needed(&self) -> bool {
        self.computations.load(Ordering::SeqCst) > 0
    }

    fn sleep(&self) {
        let mut sleeping = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_needed() && !self.end.load(Ordering::SeqCst) {
            sleeping = self.woken.wait(sleeping).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake(&self) {
        // Whoever is about to sleep has either seen what changed, or waits already.
        drop(self.sleeping.lock().unwrap_or_else(PoisonError::into_inner));
        self.woken.notify_all();
    }
}

/// A computation that needs the threads.
struct Computation<'a>(&'a Keeper);

impl<'a> Computation<'a> {
    fn begin(keeper: &'a Keeper) -> Self {
        if keeper.computations.fetch_add(1, Ordering::SeqCst) == 0 {
            keeper.wake();
        }
        Self(keeper)
    }
}

impl Drop for Computation<'_> {
    fn drop(&mut self) {
        self.0.computations.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use rayon::prelude::*;

    fn pool(threads: usize) -> Threads {
        Threads::new(&Device::flex(), Some(threads)).expect("threads")
    }

    #[test]
    fn work_runs_on_as_many_threads_as_were_asked_for() {
        for count in [1, 2, 5] {
            let threads = pool(count);
            assert_eq!(threads.count(), count);
            assert_eq!(threads.run(rayon::current_num_threads), count);
        }
    }

    #[test]
    fn a_lent_pool_is_the_one_that_computes() {
        let pool = ThreadPoolBuilder::new().num_threads(3).thread_name(|_| "host".to_owned());
        let threads = Threads::lent(Arc::new(pool.build().expect("threads")));
        let name = threads.run(|| std::thread::current().name().map(str::to_owned));
        assert_eq!(name.as_deref(), Some("host"));
    }

    #[test]
    fn computations_beside_each_other_and_inside_each_other_end() {
        let threads = pool(3);
        let sum = |n: u64| threads.run(|| (0..n).into_par_iter().map(|x| x ^ 1).sum::<u64>());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..200 {
                        let nested = threads.run(|| sum(n * 10));
                        assert_eq!(nested, (0..n * 10).map(|x| x ^ 1).sum::<u64>());
                    }
                });
            }
        });
    }

    #[test]
    fn threads_sleep_between_computations_and_wake_for_the_next() {
        let threads = pool(2);
        for _ in 0..5 {
            assert_eq!(threads.run(|| (0..100_u64).into_par_iter().sum::<u64>()), 4950);
            std::thread::sleep(5 * LINGER);
        }
    }

    #[test]
    fn a_panic_ends_the_computation_and_not_the_threads() {
        let threads = pool(2);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            threads.run(|| panic!("on purpose"));
        }));
        assert!(result.is_err());
        let Some(Pool::Own(own)) = &threads.pool else { panic!("a pool of its own") };
        assert!(!own.keeper.is_needed());
        assert_eq!(threads.run(|| 1), 1);
    }

    #[test]
    fn threads_end_with_their_pool() {
        let threads = pool(3);
        let kept = match &threads.pool {
            Some(Pool::Own(own)) => Arc::downgrade(&own.keeper),
            _ => panic!("a pool of its own"),
        };
        drop(threads);
        let deadline = Instant::now() + Duration::from_secs(10);
        while kept.strong_count() > 0 {
            assert!(Instant::now() < deadline, "a thread goes on");
            std::thread::yield_now();
        }
    }
}
