//! Scales stored as IEEE half precision.

use half::f16;

/// The half at the start of a block's two bytes, exactly.
#[inline(always)]
pub(super) fn half(bytes: [u8; 2]) -> f32 {
    // `to_f32_const` is plain integer arithmetic: inlined into the loops over blocks, where a
    // conversion that looks for processor features each time would cost a call.
    f16::from_le_bytes(bytes).to_f32_const()
}
