//! Where positions lie in a layer, and how far a cache can go back. What attention makes of it is in
//! `tests/invariants.rs`.

use super::{CacheDtype, CacheError, CacheOptions, KvCache};
use crate::config::TextConfig;

fn config() -> TextConfig {
    TextConfig { sliding_window: 4, ..TextConfig::gemma3_270m() }
}

#[test]
fn the_default_capacity_is_8192_or_the_models_context() {
    let options = CacheOptions::default();
    assert_eq!(options.resolve(&TextConfig::gemma3_27b()), Ok(8192));
    let short = TextConfig { max_position_embeddings: 100, ..config() };
    assert_eq!(options.resolve(&short), Ok(100));
}

#[test]
fn the_longest_contexts_of_the_released_models_are_reachable() {
    for (config, longest) in [
        (TextConfig::gemma3_270m(), 32_768),
        (TextConfig::gemma3_1b(), 32_768),
        (TextConfig::gemma3_4b(), 131_072),
        (TextConfig::gemma3_27b(), 131_072),
    ] {
        let options = CacheOptions { capacity: Some(longest), ..CacheOptions::default() };
        assert_eq!(options.resolve(&config), Ok(longest));
        let beyond = CacheOptions { capacity: Some(longest + 1), ..CacheOptions::default() };
        let capacity = longest + 1;
        assert_eq!(beyond.resolve(&config), Err(CacheError::BeyondTheModel { capacity, longest }));
    }
}

#[test]
fn the_1b_at_32k_needs_what_the_formula_says() {
    // 2 x 1 head x 256 x 4 bytes x (4 global layers x 32,768 + 22 local x (512 + 512)).
    let options = CacheOptions { capacity: Some(32_768), chunk: 512, ..CacheOptions::default() };
    assert_eq!(options.bytes(&TextConfig::gemma3_1b()), Ok(2 * 256 * 4 * (4 * 32_768 + 22 * 1024)));
}

#[cfg(feature = "flex")]
mod on_flex {
    use burn::tensor::Device;

    use super::*;

    /// A cache without memory: what is asked here is bookkeeping.
    fn cache(options: &CacheOptions, device: &Device) -> Result<KvCache, CacheError> {
        KvCache::new(&config(), options, device, |_| Box::new(()))
    }

    #[test]
    fn half_precision_takes_half_the_memory_and_stays_on_flex() {
        let options = CacheOptions { capacity: Some(100), ..CacheOptions::default() };
        let bytes = |dtype| CacheOptions { dtype, ..options }.bytes(&config()).expect("bytes");
        assert_eq!(bytes(None), bytes(Some(CacheDtype::F32)));
        for dtype in [CacheDtype::BF16, CacheDtype::F16] {
            assert_eq!(2 * bytes(Some(dtype)), bytes(None));
            let options = CacheOptions { dtype: Some(dtype), ..options };
            let cache = cache(&options, &Device::flex()).expect("a cache");
            assert_eq!((cache.dtype(), cache.bytes()), (dtype, bytes(Some(dtype))));
        }
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn a_dtype_that_a_device_does_not_read_is_an_error() {
        let device = crate::device::open("ndarray").expect("ndarray");
        let options = CacheOptions { dtype: Some(CacheDtype::F16), ..CacheOptions::default() };
        let error = cache(&options, &device).expect_err("no such cache");
        assert_eq!(error, CacheError::UnsupportedDtype { dtype: CacheDtype::F16 });
    }

    #[test]
    fn a_cache_goes_back_as_far_as_its_rings_hold() {
        let options = CacheOptions { capacity: Some(100), chunk: 3, ..CacheOptions::default() };
        let mut cache = cache(&options, &Device::flex()).expect("a cache");
        cache.advance(7);
        assert_eq!(cache.earliest_truncation(), 0, "the ring of 4 + 3 has not come around");
        cache.advance(5);
        // Positions 5 to 11 are held; the query at 8 needs 5, 6 and 7.
        assert_eq!(cache.earliest_truncation(), 8);
        let error = CacheError::CannotTruncate { requested: 7, len: 12, earliest: 8 };
        assert_eq!(cache.truncate(7), Err(error));
        assert_eq!(cache.len(), 12);
        assert_eq!(cache.truncate(8), Ok(()));
        assert_eq!((cache.len(), cache.remaining()), (8, 92));
        // What was taken back stays overwritten.
        assert_eq!(cache.earliest_truncation(), 8);
        assert!(cache.truncate(7).is_err());
        assert_eq!(cache.truncate(0), Ok(()));
        assert!(cache.is_empty());
        assert_eq!(cache.earliest_truncation(), 0);
    }

    #[test]
    fn a_cache_of_other_sizes_is_refused() {
        let options = CacheOptions { capacity: Some(64), chunk: 16, ..CacheOptions::default() };
        let (device, own) = (Device::flex(), config());
        let cache = cache(&options, &device).expect("a cache");
        assert_eq!(cache.check(&own, &device), Ok(()));
        let heads = TextConfig { head_dim: own.head_dim * 2, ..own.clone() };
        assert!(matches!(cache.check(&heads, &device), Err(CacheError::OtherHeads { .. })));
        let window = TextConfig { sliding_window: 2, ..own.clone() };
        let (layer, expected, found) = (0, 18, 20);
        assert_eq!(cache.check(&window, &device), Err(CacheError::OtherWindow { layer, expected, found }));
        let layers = TextConfig { layer_types: own.layer_types[1..].to_vec(), ..own };
        assert!(matches!(cache.check(&layers, &device), Err(CacheError::OtherModel { .. })));
    }

    #[test]
    fn a_cache_beyond_all_memory_is_refused_before_it_is_allocated() {
        let config = TextConfig { max_position_embeddings: 1 << 40, ..TextConfig::gemma3_27b() };
        let enormous = CacheOptions { capacity: Some(1 << 34), chunk: 512, ..CacheOptions::default() };
        let error = KvCache::new(&config, &enormous, &Device::flex(), |_| panic!("it is allocated"));
        assert!(matches!(error.expect_err("too large"), CacheError::OutOfMemory { .. }));
    }

    #[test]
    fn what_ran_ahead_is_forgotten_and_stays_written() {
        let options = CacheOptions { capacity: Some(100), chunk: 3, ..CacheOptions::default() };
        let mut cache = cache(&options, &Device::flex()).expect("a cache");
        cache.advance(9);
        for _ in 0..3 {
            cache.run_ahead();
        }
        cache.catch_up();
        assert_eq!((cache.len(), cache.ahead(), cache.earliest_truncation()), (10, 2, 8));
        cache.forget_ahead();
        assert_eq!((cache.len(), cache.ahead(), cache.earliest_truncation()), (10, 0, 8));
    }
}
