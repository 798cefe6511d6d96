//! A machine's memory of one sequence, as those hold it who don't know the machine.

use std::any::Any;
use std::fmt;

/// What a machine keeps of a sequence: a [`Machine::Cache`](crate::ops::machine::Machine::Cache).
pub(crate) trait CacheMemory: fmt::Debug + Send + Sync {
    /// A copy that shares memory until one of the two is written to.
    fn fork(&self) -> Box<dyn CacheMemory>;

    /// For the machine that made it.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

impl<C: Any + Clone + fmt::Debug + Send + Sync> CacheMemory for C {
    fn fork(&self) -> Box<dyn CacheMemory> {
        Box::new(self.clone())
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl Clone for Box<dyn CacheMemory> {
    fn clone(&self) -> Self {
        (**self).fork()
    }
}
