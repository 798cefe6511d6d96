//! Random numbers without state: each is a function of what it is for.

use std::hash::{BuildHasher, Hasher, RandomState};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a random number is for. Equal keys give equal numbers, on every machine and in every
/// release of this crate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RandomKey {
    /// The user's seed.
    pub seed: u64,
    /// Which sequence: its index in a batch, or any number that tells sessions of one seed apart.
    pub sequence: u64,
    /// Position of the token that is drawn, counted from the start of the sequence's context.
    pub position: u64,
}

/// A number in [0, 1), uniform, of 53 random bits.
///
/// ChaCha with 8 rounds: the key is the seed (little endian, then 24 zero bytes), the stream is
/// the sequence, and the number is made of the words `2 * position` and `2 * position + 1` of that
/// stream (first word low). So it can be computed anywhere, in any order, without a generator that
/// advances.
pub fn uniform(key: RandomKey) -> f64 {
    let mut chacha_key = [0u8; 32];
    chacha_key[..8].copy_from_slice(&key.seed.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(chacha_key);
    generator.set_stream(key.sequence);
    generator.set_word_pos(2 * u128::from(key.position));
    // The upper 53 bits: every value is exact in f64, and 1.0 cannot be reached by rounding.
    (generator.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A seed that differs from run to run, for callers that were given none. It is drawn from the
/// operating system through the standard library's hash keys.
pub fn fresh_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seed: u64, sequence: u64, position: u64) -> f64 {
        uniform(RandomKey { seed, sequence, position })
    }

    /// The values come from a separate implementation of ChaCha8, written from the definition. They
    /// are a promise: a saved game must go on as it would have.
    #[test]
    fn a_key_gives_the_same_number_for_ever() {
        assert_eq!(at(0, 0, 0), 0.8369197568826472);
        assert_eq!(at(0, 0, 1), 0.6314244940665231);
        assert_eq!(at(42, 0, 7), 0.2665208597814436);
        assert_eq!(at(42, 3, 7), 0.6692404300189361);
        assert_eq!(at(42, 3, 8), 0.491887323133697);
        assert_eq!(at(0xdead_beef_cafe_f00d, u64::MAX, 131_071), 0.9836729511527477);
        assert_eq!(at(1, 2, u64::MAX), 0.15143122153634125);
    }

    /// Mean and mean square of 10,000 numbers along each part of the key. 0.01 and 0.012 are about
    /// 3.5 and 4 standard errors of the two; the keys are fixed, so the test cannot flicker.
    #[test]
    fn numbers_are_uniform_along_every_part_of_the_key() {
        let along: [(_, fn(u64) -> _); 3] =
            [("seed", |i| at(i, 0, 0)), ("sequence", |i| at(0, i, 0)), ("position", |i| at(0, 0, i))];
        for (name, number) in along {
            let numbers: Vec<f64> = (0..10_000).map(number).collect();
            assert!(numbers.iter().all(|u| (0.0..1.0).contains(u)));
            let mean = numbers.iter().sum::<f64>() / 10_000.0;
            let square = numbers.iter().map(|u| u * u).sum::<f64>() / 10_000.0;
            assert!((mean - 0.5).abs() < 0.01, "{name}: mean {mean}");
            assert!((square - 1.0 / 3.0).abs() < 0.012, "{name}: {square}");
        }
    }

    #[test]
    fn fresh_seeds_differ() {
        assert_ne!(fresh_seed(), fresh_seed());
    }
}
