//! In which numbers keys and values are kept.

use burn::tensor::Device;

/// The dtype of cache entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CacheDtype {
    /// 4 bytes, as computed: what exact mode uses, and every device has.
    #[default]
    F32,
    /// 2 bytes with 8 significant bits and the range of f32.
    BF16,
    /// 2 bytes with 11 significant bits, up to 65,504 in size; larger values are stored as that.
    F16,
}

impl CacheDtype {
    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
        }
    }

    /// Whether caches of this dtype can be used on a device.
    pub fn is_supported(self, device: &Device) -> bool {
        self == Self::F32 || crate::device::is_flex(device) || crate::device::is_gpu(device)
    }
}
