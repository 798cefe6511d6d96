//! Options and histories as the words that the kernels read.

use crate::ops::machine::Fault;
use crate::sampling::{SamplingOptions, TokenHistory};

use super::plan::Sampling;

/// Words of the parameters of a sequence.
pub const PARAMETER_WORDS: usize = 16;

pub(crate) const FLAGS: usize = 0;
pub(crate) const TEMPERATURE: usize = 1;
pub(crate) const TOP_K: usize = 2;
pub(crate) const TOP_P: usize = 3;
pub(crate) const MIN_P: usize = 5;
pub(crate) const REPETITION: usize = 6;
pub(crate) const PRESENCE: usize = 7;
pub(crate) const FREQUENCY: usize = 8;
pub(crate) const IMPOSSIBLE: usize = 9;
pub(crate) const ZERO: usize = 10;
pub(crate) const SEED: usize = 11;
pub(crate) const SEQUENCE: usize = 13;

pub(crate) const GREEDY: u32 = 1;
pub(crate) const HAS_TOP_K: u32 = 2;
pub(crate) const HAS_TOP_P: u32 = 4;

/// A token that is never chosen.
pub(crate) const SUPPRESSED: u32 = 1 << 31;
/// A token of the prompt or the generated text.
pub(crate) const SEEN: u32 = 1 << 30;
/// A token with an entry in the list of biases.
pub(crate) const BIASED: u32 = 1 << 29;
/// How often the token was generated.
pub(crate) const COUNT: u32 = BIASED - 1;

impl Sampling {
    /// Whether this shape does what the options ask for; where not, the host has to sample.
    ///
    /// `suppresses`: whether any id is suppressed.
    pub fn supports(&self, options: &SamplingOptions, suppresses: bool) -> bool {
        let adjusts = suppresses || options.uses_history() || !options.logit_bias.is_empty();
        // Devices may take subnormal numbers for 0.
        let normal = |value: f32| value == 0.0 || value.is_normal();
        options.validate().is_ok()
            && (self.draws || options.is_greedy())
            && (self.adjusts || !adjusts)
            && options.logit_bias.len() <= self.biases
            && options.logit_bias.keys().all(|id| (*id as usize) < self.vocabulary)
            && [options.repetition_penalty, options.presence_penalty, options.frequency_penalty]
                .into_iter()
                .all(normal)
    }

    /// The parameters of one sequence, [`PARAMETER_WORDS`] long: `seed` and `sequence` are those of the host's
    /// [`RandomKey`](crate::sampling::RandomKey); its position is that of the buffers plus 1.
    pub fn parameters(&self, options: &SamplingOptions, seed: u64, sequence: u64) -> Vec<u32> {
        let mut words = vec![0; PARAMETER_WORDS];
        let greedy = options.is_greedy() || !self.draws;
        // What only drawing uses may be anything where there is none.
        let top_k = !greedy && options.top_k > 0 && options.top_k < self.vocabulary;
        let top_p = !greedy && options.top_p < 1.0;
        for (flag, set) in [(GREEDY, greedy), (HAS_TOP_K, top_k), (HAS_TOP_P, top_p)] {
            words[FLAGS] |= if set { flag } else { 0 };
        }
        words[TEMPERATURE] = if greedy { 1.0_f32 } else { options.temperature }.to_bits();
        words[TOP_K] = u32::try_from(options.top_k).unwrap_or(u32::MAX);
        // Exact unless top_p is so small that it keeps one token anyway.
        let fraction = (f64::from(options.top_p) * 2f64.powi(64)) as u64;
        let lowest =
            if !greedy && options.min_p > 0.0 { -f64::from(options.min_p).ln() } else { f64::from(f32::MAX) };
        words[MIN_P] = (lowest as f32).to_bits();
        words[REPETITION] = options.repetition_penalty.to_bits();
        words[PRESENCE] = options.presence_penalty.to_bits();
        words[FREQUENCY] = options.frequency_penalty.to_bits();
        words[IMPOSSIBLE] = f32::NEG_INFINITY.to_bits();
        for (at, number) in [(TOP_P, fraction), (SEED, seed), (SEQUENCE, sequence)] {
            words[at] = number as u32;
            words[at + 1] = (number >> 32) as u32;
        }
        words
    }

    /// What is known of each token of one sequence, as long as the vocabulary. Ids beyond it are passed over.
    pub fn adjustments(
        &self,
        options: &SamplingOptions,
        history: &TokenHistory,
        suppressed: &[u32],
    ) -> Vec<u32> {
        let mut words = vec![0_u32; self.vocabulary];
        let mut set = |id: u32, bits: u32| {
            if let Some(word) = words.get_mut(id as usize) {
                *word |= bits;
            }
        };
        suppressed.iter().for_each(|id| set(*id, SUPPRESSED));
        history.iter().for_each(|(id, count)| set(id, SEEN | count.min(COUNT)));
        options.logit_bias.keys().for_each(|id| set(*id, BIASED));
        words
    }

    /// The biases of one sequence by ascending id, [`Self::biases`] pairs long.
    pub fn bias_list(&self, options: &SamplingOptions) -> Vec<u32> {
        let pairs = options.logit_bias.iter().flat_map(|(id, bias)| [*id, bias.to_bits()]);
        let mut words: Vec<u32> = pairs.take(2 * self.biases).collect();
        words.resize(2 * self.biases, u32::MAX);
        words
    }
}

/// No fault.
pub(crate) const SOUND: u32 = u32::MAX;
/// Faults of the options; those of the model come first.
pub(crate) const OF_OPTIONS: u32 = 1 << 30;
pub(crate) const NOTHING_LEFT: u32 = 1 << 31;

/// The fault that kernels mean with a word, if any.
pub(crate) fn fault_of_word(word: u32) -> Option<Fault> {
    let processed = word & OF_OPTIONS != 0;
    let id = (word & (OF_OPTIONS - 1)) >> 1;
    match word {
        SOUND => None,
        word if word & NOTHING_LEFT != 0 => Some(Fault::NothingLeft),
        word if word & 1 == 0 => Some(Fault::Nan { id, processed }),
        _ => Some(Fault::Infinite { id, processed }),
    }
}

/// What the journal of a sequence says: the steps made, and the tokens of the last of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// Steps since the journal was cleared.
    pub steps: u32,
    /// The first fault in the order of [`Fault`]'s words, of all steps since.
    pub fault: Option<Fault>,
    /// Tokens by `step % len`; `u32::MAX` for a step with a fault.
    pub ring: Vec<u32>,
}

impl Journal {
    /// The words of an empty journal.
    pub fn cleared(shape: &Sampling) -> Vec<u32> {
        let mut words = vec![SOUND; super::plan::JOURNAL_HEAD + shape.journal];
        words[0] = 0;
        words
    }

    /// Of the words of one sequence.
    pub fn of_words(words: &[u32]) -> Option<Self> {
        let [steps, fault, ring @ ..] = words else { return None };
        Some(Self { steps: *steps, fault: fault_of_word(*fault), ring: ring.to_vec() })
    }

    /// The token of a step that is among the last of the ring's length.
    pub fn token(&self, step: u32) -> Option<u32> {
        let token = *self.ring.get(step as usize % self.ring.len().max(1))?;
        (step < self.steps && token != u32::MAX).then_some(token)
    }
}
