//! Many vectors times weights, as the processing of a prompt asks for: what every kernel here shares.
//!
//! A thread takes two panels (sixteen outputs) at a time, and of these so many columns that they stay in
//! the first-level cache once expanded to what the inner loop multiplies: bytes ([`super::many_bytes`]),
//! f32 or bf16 ([`super::many_floats`]). All tiles of `x` then pass by, each a stream from the second-level
//! cache or memory. So weights are expanded once for all rows.

use super::activations::Activations;
use super::lanes::{Kernel, Lanes};
use super::layout::PANEL_ROWS;
use super::strips::Strip;

/// Panels that are multiplied at once.
pub(super) const PANELS: usize = 2;

/// Outputs that are multiplied at once.
pub(super) const OUTPUTS: usize = PANELS * PANEL_ROWS;

/// The sums of a tile: per row of it, per panel.
pub(super) type Sums<L, const T: usize> = [[<L as Lanes>::Floats; PANELS]; T];

/// Weights that can be expanded, and multiplied in that form with tiles of `T` rows.
pub(super) trait Expand<const T: usize> {
    /// Columns that are expanded together at least; whole numbers of them make up a row.
    const COLUMNS: usize;
    /// Columns that are expanded at once at most.
    const MAX_COLUMNS: usize;
    /// What holds both panels' weights in [`Expand::UNIT`] columns.
    type Expanded: Clone + Default;
    /// Columns in one [`Expand::Expanded`].
    const UNIT: usize;

    /// Expands columns `start..` of eight outputs into part `half` of all units of `out`. There may be
    /// fewer than eight left; what is made of the others doesn't matter.
    fn expand<L: Lanes>(&self, l: L, panel: usize, start: usize, half: usize, out: &mut [Self::Expanded]);

    /// The expanded weights times the columns from `start` on of the tile whose first row is `row`.
    fn multiply<L: Lanes>(
        l: L,
        weights: &[Self::Expanded],
        x: &Activations<'_>,
        row: usize,
        start: usize,
    ) -> Sums<L, T>;
}

/// Multiplies weights, of which `strip` are the outputs.
pub(super) struct ManyRows<'a, 'b, E, const T: usize> {
    pub(super) x: &'a Activations<'b>,
    pub(super) weights: E,
    pub(super) strip: Strip<'a>,
}

impl<const T: usize, E: Expand<T>> Kernel for ManyRows<'_, '_, E, T> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let in_features = self.x.in_features;
        // Equal pieces, not a small one at the end.
        let pieces = in_features.div_ceil(E::MAX_COLUMNS);
        let columns = in_features.div_ceil(pieces).next_multiple_of(E::COLUMNS);
        let mut expanded = vec![E::Expanded::default(); columns.div_ceil(E::UNIT)];
        for output in (0..self.strip.columns()).step_by(OUTPUTS) {
            for start in (0..in_features).step_by(columns) {
                let units = columns.min(in_features - start).div_ceil(E::UNIT);
                let expanded = &mut expanded[..units];
                for half in 0..PANELS {
                    if output + half * PANEL_ROWS < self.strip.columns() {
                        self.weights.expand(l, output / PANEL_ROWS + half, start, half, expanded);
                    }
                }
                for row in (0..self.x.rows).step_by(T) {
                    let sums = E::multiply(l, expanded, self.x, row, start);
                    self.put(l, sums, row, output, start > 0);
                }
            }
        }
    }
}

impl<const T: usize, E: Expand<T>> ManyRows<'_, '_, E, T> {
    /// Writes the sums of a tile, or adds them to those of the columns before.
    #[inline(always)]
    fn put<L: Lanes>(&mut self, l: L, sums: Sums<L, T>, row: usize, output: usize, accumulate: bool) {
        let rows = self.x.rows - row;
        for (t, sums) in sums.into_iter().enumerate().take(rows) {
            for (half, sums) in sums.into_iter().enumerate() {
                let column = output + half * PANEL_ROWS;
                if column < self.strip.columns() {
                    let mut values = [0.0; 8];
                    l.store_floats(sums, &mut values);
                    self.strip.put(row + t, column, values, accumulate);
                }
            }
        }
    }
}
