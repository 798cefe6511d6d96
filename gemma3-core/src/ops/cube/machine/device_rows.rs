//! Vectors that stay on the device on which they were made, until they enter a pass.

use std::any::Any;

use burn::tensor::Device;
use cubecl::server::Handle;

use crate::device::DeviceFailed;
use crate::ops::cube::commands::Commands;
use crate::ops::vectors::MachineRows;

/// Rows of f32 \[count, width\] in a device's memory.
#[derive(Debug)]
pub(crate) struct DeviceRows {
    commands: Commands,
    device: Device,
    handle: Handle,
    count: usize,
    width: usize,
}

impl DeviceRows {
    /// Rows that the commands before this write; `handle` holds them and nothing else.
    pub(crate) fn new(
        commands: &Commands,
        device: &Device,
        handle: Handle,
        count: usize,
        width: usize,
    ) -> Self {
        Self { commands: commands.clone(), device: device.clone(), handle, count, width }
    }

    /// Whether they lie in the memory of a device.
    pub(super) fn is_on(&self, device: &Device) -> bool {
        self.device == *device
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl MachineRows for DeviceRows {
    fn shape(&self) -> [usize; 2] {
        [self.count, self.width]
    }

    fn read(&self) -> Result<Vec<f32>, DeviceFailed> {
        Ok(self.commands.download(&self.handle)?)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
