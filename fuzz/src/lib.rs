//! The libFuzzer side of fuzzing: [`targets`] has the entry points, `fuzz_targets/` a binary for each.

pub mod targets;

/// Makes a libFuzzer target of a [`Target`].
#[macro_export]
macro_rules! fuzz {
    ($target:expr) => {
        libfuzzer_sys::fuzz_target!(init: $crate::targets::explore::write_seeds(&$target), |input: &[u8]| {
            ($target.run)(input)
        });
        libfuzzer_sys::fuzz_mutator!(|input: &mut [u8], size: usize, max_size: usize, seed: u32| {
            // Every other mutation is libFuzzer's own, which knows what its coverage has taught it.
            if seed.is_multiple_of(2) {
                libfuzzer_sys::fuzzer_mutate(input, size, max_size)
            } else {
                $crate::targets::explore::mutate_in_place(&$target, input, size, max_size, seed)
            }
        });
    };
}
