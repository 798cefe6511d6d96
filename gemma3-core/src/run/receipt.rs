//! [`Receipt`]: what a pass will have given.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::ForwardError;
use crate::ops::machine::Outcome;
use crate::ops::pending::Pending;

/// What a pass will have given, one outcome for each of its rows. Dropping it waits for nothing.
#[derive(Debug)]
pub(crate) struct Receipt(Pending);

impl Receipt {
    pub(crate) fn new(pending: Pending) -> Self {
        Self(pending)
    }

    /// Whether [`wait`](Self::wait) returns at once.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    /// Waits until the device has come so far.
    pub(crate) fn wait(self) -> Result<Vec<Outcome>, ForwardError> {
        Ok(self.0.wait()?)
    }
}

impl Future for Receipt {
    type Output = Result<Vec<Outcome>, ForwardError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map_err(ForwardError::from)
    }
}
