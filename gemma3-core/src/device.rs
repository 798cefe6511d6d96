//! Finding a device by name, without the panic that burn has for one that is not there, and keeping what it compiles.

mod kernels;
mod read;

pub use kernels::persist_kernels;
pub use read::{DeviceFailed, read};

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, DeviceType};

/// Why there is no such device, or why it can't keep its kernels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The name is not one of burn's backends.
    #[error("unknown device `{name}`; expected one of {}, optionally with an index as in `cuda:1`", NAMES.join(", "))]
    UnknownName {
        /// The name as given.
        name: String,
    },
    /// The backend's cargo feature is off in this build.
    #[error("this build does not include the backend `{name}` (built in: {}); enable the cargo feature `{name}`", built_in.join(", "))]
    NotBuiltIn {
        /// The backend asked for.
        name: String,
        /// The backends that are built in.
        built_in: Vec<&'static str>,
    },
    /// The backend is built in, but the machine has no such device.
    #[error(
        "there is no device `{name}` on this machine: the backend found {found} device(s); check that the driver is installed"
    )]
    NotFound {
        /// The device asked for.
        name: String,
        /// How many devices the backend found.
        found: usize,
    },
    /// This build can't keep kernels on disk.
    #[error(
        "this build keeps no kernels on disk: enable the cargo feature `persistence`, and the feature of a GPU's backend"
    )]
    PersistenceNotBuiltIn,
    /// The folder for kernels can't be used.
    #[error("kernels can't be kept in {}: {reason}", folder.display())]
    KernelFolder {
        /// The folder as given.
        folder: PathBuf,
        /// What the system says of it.
        reason: String,
    },
    /// The program has no build id, by which kernels of one build are told from those of the next.
    #[error(
        "kernels can't be kept, because this program has no build id to tell them from those of another build; have the linker write one (GNU, LLVM: `--build-id`)"
    )]
    NoBuildId,
    /// Where kernels are kept was decided before.
    #[error(
        "cubecl's settings are fixed already, by the application or by the use of a GPU, and keep {}; decide on the folder before the first GPU is opened, or in those settings (`compilation.cache` and `environment.path`)",
        match kept { Some(folder) => format!("kernels in {}", folder.display()), None => "no kernels".to_owned() }
    )]
    KernelsDecided {
        /// The folder in which kernels are kept; `None`: they are not.
        kept: Option<PathBuf>,
    },
}

/// The names that [`open`] knows.
pub const NAMES: [&str; 8] = ["flex", "ndarray", "wgpu", "vulkan", "metal", "webgpu", "cuda", "rocm"];

/// The backends of this build, best first.
pub fn built_in() -> Vec<&'static str> {
    ["cuda", "metal", "rocm", "vulkan", "webgpu", "wgpu", "flex", "ndarray"]
        .into_iter()
        .filter(|name| device_type(name).is_some())
        .collect()
}

/// Finds a device by its backend's name, optionally with an index: `flex`, `wgpu`, `cuda:1`.
///
/// Without an index the backend's default device is meant (for wgpu: its choice of adapter).
///
/// # Errors
///
/// An unknown name, a backend that is not built in, or a device that the machine does not have.
pub fn open(name: &str) -> Result<Device, DeviceError> {
    let (backend, index) = match name.split_once(':') {
        Some((backend, index)) => match index.parse::<usize>() {
            Ok(index) => (backend, Some(index)),
            Err(_) => return Err(DeviceError::UnknownName { name: name.to_owned() }),
        },
        None => (name, None),
    };
    if !NAMES.contains(&backend) {
        return Err(DeviceError::UnknownName { name: name.to_owned() });
    }
    let Some(device_type) = device_type(backend) else {
        return Err(DeviceError::NotBuiltIn { name: backend.to_owned(), built_in: built_in() });
    };
    // Drivers do not like to be looked for by several threads at once: some then find nothing.
    static LOOKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
    let found: Vec<Device> = enumerate(device_type);
    let not_found = || DeviceError::NotFound { name: name.to_owned(), found: found.len() };
    let device = match index {
        Some(index) => found.get(index).cloned().ok_or_else(not_found)?,
        None if found.is_empty() => return Err(not_found()),
        None => default_of(backend).unwrap_or_else(|| found[0].clone()),
    };
    prepare(&device);
    Ok(device)
}

/// Has a GPU's runtime find its device now, while nobody else looks for one.
fn prepare(device: &Device) {
    #[cfg(feature = "cube")]
    #[allow(irrefutable_let_patterns, reason = "where only GPUs are built in, nothing else is left")]
    if let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() {
        #[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
        prepare_wgpu(device);
        let _ = device.client();
    }
    let _ = device;
}

/// Launches of which wgpu's runtime makes one submission: 32 unless it is told, which are six submissions for a decode step
/// of the 1B. More of them, and the device would have nothing to do while a prompt's first are made; how long a submission
/// takes is bounded elsewhere.
#[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
const LAUNCHES_OF_SUBMISSION: usize = 64;

/// Opens a device of wgpu's with this library's settings, the first time; one that the application has opened before, and
/// what it says in `CUBECL_WGPU_MAX_TASKS`, stay as they are.
#[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
fn prepare_wgpu(device: &cubecl::Device) {
    use cubecl::wgpu::{AutoGraphicsApi, RuntimeOptions, WgpuDevice, WgpuDeviceKind, try_init_setup};

    static PREPARED: Mutex<Vec<WgpuDevice>> = Mutex::new(Vec::new());
    let cubecl::Device::Wgpu(device) = device else { return };
    let mut prepared = PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
    let is_anothers = matches!(device.kind, WgpuDeviceKind::Existing(_));
    if is_anothers || prepared.contains(device) || std::env::var_os("CUBECL_WGPU_MAX_TASKS").is_some() {
        return;
    }
    prepared.push(device.clone());
    if let Ok(options) = RuntimeOptions::with_tasks_max(Some(LAUNCHES_OF_SUBMISSION)) {
        // An error: it is open already, or can't be opened, which the runtime says when it is used.
        let _ = try_init_setup::<AutoGraphicsApi>(device, options);
    }
}

/// The devices of one backend. burn looks for adapters and drivers here, and a driver that is broken
/// rather than absent may panic; that is no device either.
fn enumerate(device_type: DeviceType) -> Vec<Device> {
    std::panic::catch_unwind(|| Device::enumerate(device_type).iter().cloned().collect()).unwrap_or_default()
}

/// The backend's own choice among its devices, where it is more than the first of the list.
fn default_of(backend: &str) -> Option<Device> {
    #[cfg(feature = "wgpu")]
    {
        use burn::tensor::DeviceKind::DefaultDevice;
        match backend {
            "wgpu" => return Some(Device::wgpu(DefaultDevice)),
            #[cfg(feature = "vulkan")]
            "vulkan" => return Some(Device::vulkan(DefaultDevice)),
            #[cfg(feature = "metal")]
            "metal" => return Some(Device::metal(DefaultDevice)),
            #[cfg(feature = "webgpu")]
            "webgpu" => return Some(Device::webgpu(DefaultDevice)),
            _ => {}
        }
    }
    let _ = backend;
    None
}

fn device_type(name: &str) -> Option<DeviceType> {
    match name {
        #[cfg(feature = "flex")]
        "flex" => Some(DeviceType::Flex),
        #[cfg(feature = "ndarray")]
        "ndarray" => Some(DeviceType::NdArray),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(DeviceType::Wgpu),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(DeviceType::Vulkan),
        #[cfg(feature = "metal")]
        "metal" => Some(DeviceType::Metal),
        #[cfg(feature = "webgpu")]
        "webgpu" => Some(DeviceType::WebGpu),
        #[cfg(feature = "cuda")]
        "cuda" => Some(DeviceType::Cuda),
        #[cfg(feature = "rocm")]
        "rocm" => Some(DeviceType::Rocm),
        _ => None,
    }
}

/// Whether computations on `device` run on the threads of this process.
pub fn is_cpu(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        burn::backend::DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        burn::backend::DispatchDevice::NdArray(_) => true,
        #[allow(unreachable_patterns)] // With CPU backends only, nothing is left.
        _ => false,
    }
}

/// Whether this crate brings its own operations for the device: burn's CPU backend flex.
pub(crate) fn is_flex(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        burn::backend::DispatchDevice::Flex(_) => true,
        #[allow(unreachable_patterns)] // With flex only, nothing is left.
        _ => false,
    }
}

/// Whether the device is a GPU that runs our kernels.
pub fn is_gpu(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "cube")]
        burn::backend::DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns)] // With GPUs only, nothing is left.
        _ => false,
    }
}

/// The most bytes of a buffer of a GPU; `None` where the memory is the only limit.
pub(crate) fn most_buffer_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cube")]
    #[allow(irrefutable_let_patterns, reason = "where only GPUs are built in, nothing else is left")]
    if let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() {
        return Some(crate::ops::cube::limits::DeviceLimits::of(&device.client()).buffer_bytes);
    }
    let _ = device;
    None
}

/// Runs what waits for a GPU by burn's means (reads a tensor, synchronizes) while no decode step is being recorded.
///
/// CUDA records in a mode in which waiting for the device fails in any thread, and spoils the record. This library's own
/// waits take turns with its records; an application whose other threads wait for the same GPU wraps them in this.
/// Elsewhere it just runs `wait`.
pub fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    #[cfg(feature = "cube")]
    return crate::ops::cube::commands::waiting(wait);
    #[cfg(not(feature = "cube"))]
    wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_an_error() {
        for name in ["", "gpu", "cuda:", "cuda:x", "flex:-1", "cuda:99999999999999999999"] {
            assert_eq!(open(name), Err(DeviceError::UnknownName { name: name.to_owned() }));
        }
    }

    #[test]
    fn a_device_that_does_not_exist_is_an_error() {
        for name in built_in() {
            let missing = format!("{name}:4096");
            assert!(matches!(open(&missing), Err(DeviceError::NotFound { .. })), "{missing}");
        }
    }

    #[test]
    fn a_backend_that_is_not_built_in_is_an_error() {
        for name in NAMES {
            if !built_in().contains(&name) {
                assert!(matches!(open(name), Err(DeviceError::NotBuiltIn { .. })), "{name}");
            }
        }
    }
}
