//! Shaders as browsers get them, checked by the rules of WebGPU.
//!
//! On a machine of its own cubecl writes WGSL that a browser would not take: every buffer may be written, and what runs
//! it here (naga, in wgpu) is laxer than the language in some places. So shaders are collected on their way to the
//! driver, rewritten as cubecl would have written them in a browser, and checked by naga's validator without any
//! capability that WebGPU lacks, and by [`Shader::check`]'s own rules where naga has none.
//!
//! With `GEMMA3_WGSL` each is also written to that folder, for another compiler to check: `tests/browser/check.mjs` has
//! that of Chrome do it.
#![allow(dead_code)] // Each test file uses a part.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use burn::tensor::Device;
use burn::tensor::wgpu::wgpu::naga;
use burn::tensor::wgpu::{WgpuSetup, wgpu};
use naga::valid::{Capabilities, GlobalUse, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess, TypeInner};

/// What cubecl logs for each shader, on level `trace`: this, the name, a backtick, a line break, the source.
const LOGGED: &str = "[cubecl-wgpu] compiling WGSL module `";

/// Buffers of a kernel, the one with its lengths and scalars included. WebGPU promises 8, and adapters of browsers have
/// 10 or more where they have more: three kernels need 9.
const STORAGE_BUFFERS: u32 = 9;
/// Units of a workgroup. WebGPU promises 256; the kernel that chooses tokens takes 512 where a device has room for 1,024.
const WORKGROUP_UNITS: u32 = 512;

/// How the threads begin on which cubecl computes for devices that an application has made, as [`device`] does. Other
/// tests' devices have larger limits, of which their kernels make use.
const THREADS: &str = "DSD-5-";

/// Every shader that this process has compiled for such devices since it collects, by source: its name.
static COLLECTED: LazyLock<Mutex<BTreeMap<String, String>>> = LazyLock::new(Mutex::default);

struct Collector;

impl log::Log for Collector {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("cubecl_wgpu")
    }

    fn log(&self, record: &log::Record<'_>) {
        let is_of_device = std::thread::current().name().is_some_and(|name| name.starts_with(THREADS));
        if !self.enabled(record.metadata()) || !is_of_device {
            return;
        }
        let text = record.args().to_string();
        if let Some((name, source)) = text.strip_prefix(LOGGED).and_then(|rest| rest.split_once("`\n")) {
            let mut collected = COLLECTED.lock().unwrap_or_else(PoisonError::into_inner);
            collected.insert(source.to_owned(), name.to_owned());
        }
    }

    fn flush(&self) {}
}

/// Collects from now on what this process compiles.
pub fn collect() {
    static COLLECTING: OnceLock<()> = OnceLock::new();
    COLLECTING.get_or_init(|| {
        log::set_logger(&Collector).expect("no other logger in a test");
        log::set_max_level(log::LevelFilter::Trace);
    });
}

/// A device with hardly more than WebGPU promises everywhere, and with nothing compiled yet. `None`, and a line that says so,
/// where there is no GPU.
///
/// # Panics
///
/// If there is none and `GEMMA3_REQUIRE` names `wgpu`.
pub fn device() -> Option<Device> {
    let device = open();
    if device.is_none() {
        let required = std::env::var("GEMMA3_REQUIRE").unwrap_or_default();
        assert!(
            required.split(',').all(|name| name.trim() != "wgpu"),
            "GEMMA3_REQUIRE names `wgpu`, and there is none"
        );
        println!("skipped: wgpu: no adapter");
    }
    device
}

fn open() -> Option<Device> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = wait(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).ok()?;
    let limits = adapter.limits();
    let wanted = wgpu::DeviceDescriptor {
        required_features: adapter.features() & (wgpu::Features::SUBGROUP | wgpu::Features::SHADER_INT64),
        // cubecl asks the adapter how large workgroups may be, and a browser for no less.
        required_limits: wgpu::Limits {
            max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
            max_compute_workgroup_size_x: limits.max_compute_workgroup_size_x,
            max_compute_workgroup_size_y: limits.max_compute_workgroup_size_y,
            max_compute_workgroup_size_z: limits.max_compute_workgroup_size_z,
            max_storage_buffers_per_shader_stage: STORAGE_BUFFERS,
            ..wgpu::Limits::default()
        },
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) = wait(adapter.request_device(&wanted)).expect("a device with WebGPU's limits");
    let backend = adapter.get_info().backend;
    let setup = WgpuSetup { instance, adapter, device, queue, backend };
    Some(Device::wgpu_options().setup(setup).init().expect("a device for burn"))
}

/// Waits for a future that needs no executor.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::yield_now();
    }
}

/// Checks all shaders collected so far and gives their number.
pub fn check_all() -> usize {
    let collected = COLLECTED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let folder = std::env::var_os("GEMMA3_WGSL");
    let mut wrong = Vec::new();
    for (index, (source, name)) in collected.iter().enumerate() {
        match Shader::new(source) {
            Ok(shader) => {
                if let Some(folder) = &folder {
                    let file = format!("{name}-{:x}.wgsl", hash(source));
                    std::fs::write(Path::new(folder).join(file), &shader.source).expect("a file");
                }
                wrong.extend(shader.check().into_iter().map(|problem| format!("{index} {name}: {problem}")));
            }
            Err(error) => wrong.push(format!("{index} {name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "of {} shaders:\n{}", collected.len(), wrong.join("\n"));
    collected.len()
}

fn hash(source: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    hasher.finish()
}

/// A shader as a browser gets it.
pub struct Shader {
    pub source: String,
    module: Module,
    info: ModuleInfo,
}

impl Shader {
    /// Rewrites what cubecl writes here into what it writes in a browser.
    ///
    /// # Errors
    ///
    /// What naga says of a shader that breaks the rules of WebGPU.
    pub fn new(native: &str) -> Result<Self, String> {
        // Where a device has whole numbers of 64 bits, cubecl takes the upper half of a product from them. Browsers have
        // none, so that halves of 32 bits stand in for them here; what else the kernel does is the same.
        let mut source = native.replace("u64(32)", "u32(16)").replace("u64", "u32");
        let (module, info) = validate(&source)?;
        // A buffer that the kernel does not write is declared so.
        for (handle, variable) in module.global_variables.iter() {
            let is_written = info.get_entry_point(0)[handle].contains(GlobalUse::WRITE);
            let Some(name) = &variable.name else { continue };
            if matches!(variable.space, AddressSpace::Storage { .. }) && !is_written {
                let declared = format!("var<storage, read_write> {name}:");
                source = source.replace(&declared, &format!("var<storage, read> {name}:"));
            }
        }
        let (module, info) = validate(&source)?;
        // naga's own language has these without asking.
        if source.contains("subgroup") {
            source.insert_str(0, "enable subgroups;\n");
        }
        Ok(Self { source, module, info })
    }

    /// What naga has no rules for, and what is more than WebGPU promises.
    pub fn check(&self) -> Vec<String> {
        let limits = wgpu::Limits::default();
        let mut problems = Vec::new();
        let (mut storage_buffers, mut workgroup_bytes) = (0, 0);
        for (handle, variable) in self.module.global_variables.iter() {
            let name = variable.name.as_deref().unwrap_or("?");
            match variable.space {
                AddressSpace::Storage { access } => {
                    storage_buffers += 1;
                    if !access.contains(StorageAccess::STORE) && self.has_atomics(variable.ty) {
                        problems.push(format!(
                            "`{name}` holds atomics and is only read: atomics have to be in buffers that are written"
                        ));
                    }
                }
                AddressSpace::WorkGroup if !self.info.get_entry_point(0)[handle].is_empty() => {
                    workgroup_bytes += self.module.types[variable.ty].inner.size(self.module.to_ctx());
                }
                _ => {}
            }
        }
        let units: u32 =
            self.module.entry_points.iter().map(|entry| entry.workgroup_size.iter().product::<u32>()).sum();
        let most = [
            ("storage buffers", storage_buffers, STORAGE_BUFFERS),
            ("bytes of workgroup memory", workgroup_bytes, limits.max_compute_workgroup_storage_size),
            ("units of a workgroup", units, WORKGROUP_UNITS),
        ];
        for (what, found, most) in most {
            if found > most {
                problems.push(format!("{found} {what}, but no more than {most} are there"));
            }
        }
        problems
    }

    fn has_atomics(&self, ty: naga::Handle<naga::Type>) -> bool {
        match &self.module.types[ty].inner {
            TypeInner::Atomic(_) => true,
            TypeInner::Array { base, .. } => self.has_atomics(*base),
            TypeInner::Struct { members, .. } => members.iter().any(|member| self.has_atomics(member.ty)),
            _ => false,
        }
    }
}

/// Parses and validates with the rules of WebGPU.
fn validate(source: &str) -> Result<(Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|error| error.emit_to_string(source))?;
    // Both are of the language, the first where a browser has subgroups.
    let capabilities = Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module);
    let info = info.map_err(|error| error.emit_to_string(source))?;
    Ok((module, info))
}
