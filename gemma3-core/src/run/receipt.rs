//! [`Receipt`]: what a pass will have given.

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

    /// Waits until the device has come so far.
    pub(crate) fn wait(self) -> Result<Vec<Outcome>, ForwardError> {
        Ok(self.0.wait()?)
    }
}
