//! The thread that waits for the device, so that nobody else has to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use cubecl::bytes::Bytes;

use crate::device::DeviceFailed;
use crate::ops::MachineError;
use crate::ops::cube::commands::Reading;
use crate::ops::machine::Outcome;
use crate::ops::pending::Pending;

type Job = Box<dyn FnOnce() + Send>;

/// Takes readings in the order in which they were started, waits for each and hands on what it brings. Every reading ends
/// here, whether anyone still wants it or not. The thread begins with the first of them; when the machine is dropped, it
/// finishes those it has, and ends.
#[derive(Debug, Default)]
pub(super) struct Waiter(Mutex<Option<Sender<Job>>>);

/// Where jobs go.
#[derive(Debug, Clone)]
pub(super) struct Queue(Sender<Job>);

/// Numbers on their way to the host, and what of the outcomes of a pass is made of them.
pub(super) struct Answer {
    pub(super) reading: Reading,
    pub(super) fill: Fill,
}

type Fill = Box<dyn FnOnce(&[u8], &mut [Outcome]) -> Result<(), MachineError> + Send>;

impl Waiter {
    /// Where to put readings that are about to be started.
    ///
    /// # Errors
    ///
    /// When there can be no thread.
    pub(super) fn queue(&self) -> Result<Queue, MachineError> {
        let mut sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*sender {
            return Ok(Queue(sender.clone()));
        }
        let (jobs, queue) = channel::<Job>();
        let work = move || {
            for job in queue {
                // A runtime may panic over a device that failed; a promise that is dropped says so.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        };
        let thread = thread::Builder::new().name("gemma3 device".to_owned());
        thread
            .spawn(work)
            .map_err(|error| DeviceFailed::new("a GPU", "to get a thread that waits for it", error))?;
        Ok(Queue(sender.insert(jobs).clone()))
    }
}

impl Queue {
    /// Promises what a reading brings.
    pub(super) fn promise<T: Send + 'static>(
        &self,
        reading: Reading,
        convert: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> Pending<T> {
        let (pending, fulfil) = Pending::promised();
        self.push(Box::new(move || fulfil.with(wait(reading).map(|bytes| convert(&bytes)))));
        pending
    }

    /// Promises the outcomes of a pass over so many sequences.
    pub(super) fn outcomes(&self, sequences: usize, answers: Vec<Answer>) -> Pending {
        let none = vec![Outcome::default(); sequences];
        if answers.is_empty() {
            return Pending::ready(Ok(none));
        }
        let (pending, fulfil) = Pending::promised();
        self.push(Box::new(move || fulfil.with(filled(none, answers))));
        pending
    }

    fn push(&self, job: Job) {
        if let Err(job) = self.0.send(job) {
            (job.0)(); // The thread is gone, and readings have to be finished.
        }
    }
}

fn wait(reading: Reading) -> Result<Bytes, MachineError> {
    Ok(reading.bytes().map_err(DeviceFailed::from)?)
}

fn filled(mut outcomes: Vec<Outcome>, answers: Vec<Answer>) -> Result<Vec<Outcome>, MachineError> {
    // All of them, also after one that failed.
    let arrived: Vec<_> = answers.into_iter().map(|answer| (wait(answer.reading), answer.fill)).collect();
    for (bytes, fill) in arrived {
        fill(&bytes?, &mut outcomes)?;
    }
    Ok(outcomes)
}
