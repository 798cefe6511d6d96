//! How exact products are.

/// How exact the products of a model are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 activations and sums, on every device and with every weight format: what is compared with the
    /// reference.
    Exact,
    /// What the device does fastest. On flex, with weights in block formats, activations are rounded to 8 bits
    /// with a scale for every 32 of a row, as llama.cpp does (those of prompts to 14 bits with Q8_0 and
    /// Q6_K): about 0.5% of a product's size. With bf16 weights and many rows they are rounded to bf16 on
    /// processors that multiply bf16 faster than f32 (Zen 4). On GPUs activations are rounded to 8 bits in blocks of
    /// 32 where a single token meets block formats and the device sums up products of bytes (CUDA, Vulkan), and where
    /// many rows meet a matrix to bf16 (tensor cores through CUDA) or to f16 with a power of two for each row (Vulkan's
    /// own shaders, where a device has f16). Elsewhere products are those of [`Precision::Exact`].
    #[default]
    Fast,
}
