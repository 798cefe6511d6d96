//! How sampling is divided among cubes, and where its kernels leave what for each other.

use cubecl::client::Client;

use crate::ops::cube::matvec::Hardware;
use crate::ops::cube::reduce::Groups;

/// Pieces of the range of logits whose tokens have any weight.
pub(crate) const BINS: usize = 1024;
/// Pieces of a logit: a few less than [`BINS`] cover the range.
pub(crate) const BINS_PER_LOGIT: f32 = 33.0;
/// Digits by which exact thresholds are found.
pub(crate) const DIGITS: usize = 256;
/// Units of the cubes that the vocabulary is divided among, and the most of these cubes.
const UNITS: usize = 256;
/// Cubes of a sequence to aim at: about as many as large devices have multiprocessors.
const CUBES: usize = 128;
/// The largest vocabulary: weights of so many tokens add up in 64 bits.
const MAX_VOCABULARY: usize = 1 << 19;

/// The shape of a step's sampling, a constant of its kernels: everything that a recorded step can't change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sampling {
    /// Sequences that are decoded together.
    pub sequences: usize,
    /// Logits of a sequence.
    pub vocabulary: usize,
    /// Whether tokens can be drawn; without, options are taken as greedy.
    pub draws: bool,
    /// Whether logits are adjusted by token: suppressed ids, penalties, biases.
    pub adjusts: bool,
    /// Biases that a sequence has room for; a power of two.
    pub biases: usize,
    /// Tokens that the journal of a sequence keeps.
    pub journal: usize,
    /// Logits of a cube.
    pub(crate) block: usize,
    /// Logits of a load.
    pub(crate) vector: usize,
    /// Units of the cubes of the first kernels.
    pub(crate) groups: Groups,
    /// Units of the cube that chooses.
    pub(crate) choosing: Groups,
}

impl Sampling {
    /// A division for the client's device, or `None` for a vocabulary that is empty or larger than 2^19.
    pub fn new(client: &Client, sequences: usize, vocabulary: usize) -> Option<Self> {
        if vocabulary == 0 || vocabulary > MAX_VOCABULARY || sequences == 0 {
            return None;
        }
        let hardware = Hardware::of(client);
        let vector = if vocabulary.is_multiple_of(4) { 4 } else { 1 };
        let least = UNITS * 4;
        let mut block = least * ((vocabulary + CUBES * least / 2) / (CUBES * least)).max(1);
        while vocabulary.div_ceil(block) > UNITS {
            block += least;
        }
        let most_units = client.properties().hardware.max_units_per_cube;
        let choosing = if most_units >= 1024 && hardware.plane_operations { 512 } else { UNITS };
        let groups = |units: usize| Groups {
            plane_units: hardware.lanes,
            lanes: hardware.lanes,
            planes: units / hardware.lanes,
            groups: 1,
            plane_operations: hardware.plane_operations,
        };
        Some(Self {
            sequences,
            vocabulary,
            draws: true,
            adjusts: true,
            biases: 512,
            journal: 64,
            block,
            vector,
            groups: groups(UNITS),
            choosing: groups(choosing),
        })
    }

    /// Whether steps of this shape also do what those of another are for: one that can draw takes the largest, too.
    pub fn serves(&self, other: &Self) -> bool {
        let able = Self { draws: self.draws, adjusts: self.adjusts, ..*other };
        *self == able && self.draws >= other.draws && self.adjusts >= other.adjusts
    }

    /// Cubes of a sequence.
    pub(crate) const fn blocks(&self) -> usize {
        self.vocabulary.div_ceil(self.block)
    }

    /// Loads of a unit of the first kernels.
    pub(crate) const fn loads(&self) -> usize {
        self.block / (UNITS * self.vector)
    }

    /// Words of the buffer of [`Buffers::adjustments`](super::Buffers::adjustments).
    pub const fn adjustment_words(&self) -> usize {
        if self.adjusts { self.sequences * self.vocabulary } else { 4 }
    }

    /// Words of the buffer of biases.
    pub const fn bias_words(&self) -> usize {
        if self.adjusts { self.sequences * 2 * self.biases } else { 4 }
    }

    /// Numbers of the buffer of scores.
    pub const fn score_floats(&self) -> usize {
        if self.draws { self.sequences * self.vocabulary } else { 4 }
    }

    /// Words of the journal of all sequences.
    pub const fn journal_words(&self) -> usize {
        self.sequences * (JOURNAL_HEAD + self.journal)
    }

    /// Words of the scratch.
    pub const fn work_words(&self) -> usize {
        self.sequences * self.work_of_sequence()
    }

    pub(crate) const fn work_of_sequence(&self) -> usize {
        if self.draws { self.list_at() + 2 * self.vocabulary } else { self.sums_at() }
    }

    // Of each block: ordered bits of the largest score, its id, its fault.
    /// Weight of the tokens of each block that are kept for sure.
    pub(crate) const fn sums_at(&self) -> usize {
        3 * self.blocks()
    }

    /// The random number.
    pub(crate) const fn random_at(&self) -> usize {
        self.sums_at() + 2 * self.blocks()
    }

    /// Tokens and weight of each bin.
    pub(crate) const fn bins_at(&self) -> usize {
        self.random_at() + 2
    }

    /// Length of the list.
    pub(crate) const fn cursor_at(&self) -> usize {
        self.bins_at() + 3 * BINS
    }

    /// Score (as ordered bits) and id of the tokens of whom the bins don't decide.
    pub(crate) const fn list_at(&self) -> usize {
        self.cursor_at() + 1
    }
}

/// Words of a journal in front of its ring: steps, and the lowest fault.
pub(crate) const JOURNAL_HEAD: usize = 2;
