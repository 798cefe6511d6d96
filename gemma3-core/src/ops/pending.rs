//! [`Pending`]: what a device has promised. The only thing in this library that waits for one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::MachineError;
use super::machine::Outcome;

/// Something that a device has been asked for: a future that any executor may poll, or that a thread may wait for.
///
/// Dropping it waits for nothing; the device does what it was asked.
pub struct Pending<T = Vec<Outcome>>(State<T>);

enum State<T> {
    /// It is here.
    Ready(Result<T, MachineError>),
    /// It is computed when it is asked for: by the definition, which has no thread of its own.
    Deferred(Box<dyn FnOnce() -> Result<T, MachineError> + Send>),
    /// Another thread brings it.
    Promised(Arc<Promise<T>>),
    /// It has been given out.
    Taken,
}

const TAKEN: MachineError = MachineError::Bug { what: "what a device had promised was asked for twice" };

impl<T: Send + 'static> Pending<T> {
    /// What is here already.
    pub fn ready(result: Result<T, MachineError>) -> Self {
        Self(State::Ready(result))
    }

    /// What is computed by whoever asks for it.
    pub fn deferred(compute: impl FnOnce() -> Result<T, MachineError> + Send + 'static) -> Self {
        Self(State::Deferred(Box::new(compute)))
    }

    /// What another thread brings, and what that thread brings it with.
    pub fn promised() -> (Self, Fulfil<T>) {
        let promise =
            Arc::new(Promise { state: Mutex::new(Promised::Waiting(None)), arrived: Condvar::new() });
        (Self(State::Promised(promise.clone())), Fulfil(Some(promise)))
    }

    /// Whether [`wait`](Self::wait) returns at once.
    pub fn is_ready(&self) -> bool {
        match &self.0 {
            State::Promised(promise) => matches!(*promise.lock(), Promised::Arrived(_)),
            State::Ready(_) | State::Deferred(_) | State::Taken => true,
        }
    }

    /// Waits for it.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn wait(self) -> Result<T, MachineError> {
        match self.0 {
            State::Ready(result) => result,
            State::Deferred(compute) => compute(),
            State::Promised(promise) => promise.wait(),
            State::Taken => Err(TAKEN),
        }
    }
}

impl<T: Send + Unpin + 'static> Future for Pending<T> {
    type Output = Result<T, MachineError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.0, State::Taken) {
            State::Ready(result) => Poll::Ready(result),
            State::Deferred(compute) => Poll::Ready(compute()),
            State::Taken => Poll::Ready(Err(TAKEN)),
            State::Promised(promise) => match promise.poll(context) {
                Some(result) => Poll::Ready(result),
                None => {
                    self.0 = State::Promised(promise);
                    Poll::Pending
                }
            },
        }
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            State::Ready(_) => "Pending(ready)",
            State::Deferred(_) => "Pending(when asked for)",
            State::Promised(_) => "Pending(promised)",
            State::Taken => "Pending(taken)",
        })
    }
}

struct Promise<T> {
    state: Mutex<Promised<T>>,
    arrived: Condvar,
}

enum Promised<T> {
    Waiting(Option<Waker>),
    Arrived(Option<Result<T, MachineError>>),
}

impl<T> Promise<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Promised<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) -> Result<T, MachineError> {
        let mut state = self.lock();
        loop {
            match &mut *state {
                Promised::Arrived(result) => return result.take().unwrap_or(Err(TAKEN)),
                Promised::Waiting(_) => {
                    state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn poll(&self, context: &Context<'_>) -> Option<Result<T, MachineError>> {
        match &mut *self.lock() {
            Promised::Arrived(result) => Some(result.take().unwrap_or(Err(TAKEN))),
            Promised::Waiting(waker) => {
                *waker = Some(context.waker().clone());
                None
            }
        }
    }

    fn bring(&self, result: Result<T, MachineError>) {
        let before = std::mem::replace(&mut *self.lock(), Promised::Arrived(Some(result)));
        self.arrived.notify_all();
        if let Promised::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// Keeps a promise. Dropped without [`with`](Self::with), it brings an error, so that nobody waits for ever.
pub struct Fulfil<T>(Option<Arc<Promise<T>>>);

impl<T> Fulfil<T> {
    /// Brings what was promised.
    pub fn with(mut self, result: Result<T, MachineError>) {
        if let Some(promise) = self.0.take() {
            promise.bring(result);
        }
    }
}

impl<T> Drop for Fulfil<T> {
    fn drop(&mut self) {
        if let Some(promise) = self.0.take() {
            promise.bring(Err(MachineError::Bug { what: "a device's thread ended before it answered" }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_kept_from_another_thread() {
        let (pending, fulfil) = Pending::promised();
        assert!(!pending.is_ready());
        let other = std::thread::spawn(move || fulfil.with(Ok(7)));
        assert_eq!(pending.wait(), Ok(7));
        other.join().expect("it brought it");
    }

    #[test]
    fn a_promise_that_nobody_keeps_is_an_error() {
        let (pending, fulfil) = Pending::<u32>::promised();
        drop(fulfil);
        assert!(pending.is_ready());
        assert!(matches!(pending.wait(), Err(MachineError::Bug { .. })));
    }

    #[test]
    fn a_future_is_woken() {
        struct Flag(std::sync::atomic::AtomicBool);
        impl std::task::Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let flag = Arc::new(Flag(false.into()));
        let waker = Waker::from(flag.clone());
        let (mut pending, fulfil) = Pending::promised();
        assert_eq!(Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)), Poll::Pending);
        fulfil.with(Ok(3));
        assert!(flag.0.load(std::sync::atomic::Ordering::SeqCst));
        assert_eq!(Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)), Poll::Ready(Ok(3)));
    }
}
