//! Keeping what a GPU compiles on disk. cubecl does the keeping, in a database in a folder; where that is, is a
//! setting of the whole process, which is fixed when a GPU is first used. So an application decides it, once, and
//! nothing here does so unasked.

use std::path::Path;

use super::DeviceError;

/// Keeps the kernels that GPUs compile in `folder`, which is made if there is none, so that they are read and not
/// compiled the next time. For the whole process, so this is for applications, not for libraries, and comes before
/// the first GPU is opened. To ask again for the same folder changes nothing.
///
/// CUDA, ROCm and Vulkan have their kernels kept (`wgpu` too where the feature `vulkan` is built in and the device is
/// one of Vulkan's). Of shaders in WGSL and Metal's language, which the driver compiles and may keep itself, there is
/// nothing to keep but what burn tunes.
///
/// Kernels are those of one build of an application on one kind of device: another build compiles its own. Several
/// processes can share a folder. What can't be read or written there is compiled as before. Files are trusted: who can
/// write to the folder decides what the GPU runs.
///
/// Everything else stays as the application's `cubecl.toml` or `burn.toml` and the environment say.
///
/// # Errors
///
/// A build without the cargo feature `persistence` or without a GPU's backend; a folder that can't be made or
/// written to; a build that doesn't tell itself from others; and settings of cubecl that were fixed before, by the
/// application or by the use of a GPU, and say otherwise.
#[allow(unreachable_code, reason = "where kernels can be kept, it returns before")]
pub fn persist_kernels(folder: &Path) -> Result<(), DeviceError> {
    #[cfg(all(
        feature = "persistence",
        feature = "cube",
        any(target_os = "linux", target_os = "windows", target_os = "macos", target_os = "android")
    ))]
    return kept::persist(folder);
    let _ = folder;
    Err(DeviceError::PersistenceNotBuiltIn)
}

// The systems are those on which cubecl reads its settings from files.
#[cfg(all(
    feature = "persistence",
    feature = "cube",
    any(target_os = "linux", target_os = "windows", target_os = "macos", target_os = "android")
))]
mod kept {
    use std::fs;
    use std::path::{Path, PathBuf, absolute};

    use cubecl::config::cache::CacheConfig;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    use cubecl::environment;

    use crate::device::DeviceError;

    pub(super) fn persist(folder: &Path) -> Result<(), DeviceError> {
        // Where a build has no number of its own, kernels would be taken for those of the build before.
        if buildid::build_id().is_none() {
            return Err(DeviceError::NoBuildId);
        }
        let folder = usable(folder)
            .map_err(|reason| DeviceError::KernelFolder { folder: folder.to_owned(), reason })?;
        if fixed().is_none() {
            // What cubecl would have read by itself, and the folder.
            let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
            config.compilation.cache = true;
            config.environment.path = CacheConfig::Directory(folder.clone());
            // `false`: another thread was first.
            CubeClRuntimeConfig::try_set(config);
        }
        match fixed() {
            Some(kept) if kept.as_ref() == Some(&folder) => Ok(()),
            kept => Err(DeviceError::KernelsDecided { kept: kept.flatten() }),
        }
    }

    /// Where kernels are kept, if that is fixed; within it `None` where they aren't.
    fn fixed() -> Option<Option<PathBuf>> {
        let config = CubeClRuntimeConfig::storage().lock().clone()?;
        Some(config.compilation.cache.then(environment::root))
    }

    /// The folder as cubecl can use it: there, open for writing, with a name in UTF-8, and the same wherever the
    /// process goes. cubecl would say of another in the log only, and keep nothing.
    fn usable(folder: &Path) -> Result<PathBuf, String> {
        let folder = absolute(folder).map_err(|error| error.to_string())?;
        if folder.to_str().is_none() {
            return Err("its name is not UTF-8".to_owned());
        }
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let probe = folder.join(format!(".writable-{}", std::process::id()));
        fs::write(&probe, []).map_err(|error| error.to_string())?;
        fs::remove_file(&probe).map_err(|error| error.to_string())?;
        Ok(folder)
    }
}

#[cfg(all(test, not(feature = "persistence")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_keeps_nothing_says_so() {
        assert_eq!(persist_kernels(Path::new("kernels")), Err(DeviceError::PersistenceNotBuiltIn));
    }
}
