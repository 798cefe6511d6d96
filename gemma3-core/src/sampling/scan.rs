//! The passes over all logits that every way of choosing needs: are they numbers, and which is the
//! largest. They run at every token over the whole vocabulary, so the loops are made of blocks
//! without a branch, which the compiler turns into vector instructions.

use super::SamplingError;

/// Stage of an error: the logits as they came.
pub(super) const RAW: &str = "as the model gave it";
/// Stage of an error: the logits after penalties, bias or temperature.
pub(super) const PROCESSED: &str = "after the sampling options";

const BLOCK: usize = 256;

/// Refuses an empty list, NaN and +infinity; -infinity is a token that cannot be chosen.
pub(super) fn check(logits: &[f32], stage: &'static str) -> Result<(), SamplingError> {
    if logits.is_empty() {
        return Err(SamplingError::NoLogits);
    }
    for (block_index, block) in logits.chunks(BLOCK).enumerate() {
        // False for NaN as well as for +infinity.
        let all_below_infinity = block.iter().fold(true, |all, &logit| all & (logit < f32::INFINITY));
        if !all_below_infinity {
            return Err(first_fault(block, block_index * BLOCK, stage));
        }
    }
    Ok(())
}

/// The largest logit and its id, the lowest on ties.
///
/// # Errors
/// Those of [`check`], and [`SamplingError::NothingLeft`] if all logits are -infinity.
pub(super) fn largest(logits: &[f32], stage: &'static str) -> Result<(u32, f32), SamplingError> {
    check(logits, stage)?;
    let max = logits
        .chunks(BLOCK)
        .map(block_max)
        .fold(f32::NEG_INFINITY, |max, block| if block > max { block } else { max });
    (0u32..)
        .zip(logits)
        .find(|&(_, &logit)| logit == max)
        .map(|(id, &logit)| (id, logit))
        .filter(|&(_, logit)| logit > f32::NEG_INFINITY)
        .ok_or(SamplingError::NothingLeft { vocab_size: logits.len() })
}

/// The maximum of numbers that are not NaN, over eight independent lanes so that no comparison
/// waits for the one before.
fn block_max(block: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 8];
    let (eights, rest) = block.as_chunks::<8>();
    for eight in eights {
        for (lane, &logit) in lanes.iter_mut().zip(eight) {
            *lane = greater(*lane, logit);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, greater)
}

#[cold]
fn first_fault(block: &[f32], first_id: usize, stage: &'static str) -> SamplingError {
    let fault = (first_id..).zip(block).find(|&(_, &logit)| logit.is_nan() || logit == f32::INFINITY);
    match fault {
        Some((id, logit)) if logit.is_nan() => SamplingError::NanLogit { id: id as u32 },
        Some((id, _)) => SamplingError::InfiniteLogit { id: id as u32, stage },
        None => SamplingError::NoLogits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: f32 = f32::NEG_INFINITY;

    #[test]
    fn the_largest_logit_is_the_lowest_id_on_ties() {
        assert_eq!(largest(&[-2.0, 0.0, -0.0, 0.0], RAW), Ok((1, 0.0)));
        assert_eq!(largest(&[NONE, -1e38], RAW), Ok((1, -1e38)));
    }

    #[test]
    fn the_largest_logit_is_found_at_every_place_of_a_block() {
        for length in [1, 7, 8, 9, BLOCK, BLOCK + 1, 3 * BLOCK + 13] {
            for id in 0..length {
                let mut logits = vec![-5.0; length];
                logits[id] = -4.0;
                assert_eq!(largest(&logits, RAW), Ok((id as u32, -4.0)));
            }
        }
    }

    #[test]
    fn the_first_fault_is_named_wherever_it_stands() {
        for id in [0, 5, BLOCK - 1, BLOCK, 2 * BLOCK + 3] {
            let mut logits = vec![1.0; 3 * BLOCK];
            logits[id] = f32::NAN;
            logits[3 * BLOCK - 1] = f32::INFINITY;
            let id = id as u32;
            assert_eq!(check(&logits, RAW), Err(SamplingError::NanLogit { id }));
            logits[id as usize] = f32::INFINITY;
            let stage = RAW;
            let infinite = Err(SamplingError::InfiniteLogit { id, stage });
            assert_eq!(check(&logits, RAW), infinite);
        }
    }
}
