//! Many vectors times weights, as the processing of a prompt asks for: what every kernel here shares.
//!
//! A thread takes two panels (sixteen outputs) at a time, and of these so many columns that they stay in
//! the first-level cache once expanded to what the inner loop multiplies: bytes ([`super::many_bytes`]),
//! f32 or bf16 ([`super::many_floats`]). All tiles of `x` then pass by, each a stream from the second-level
//! cache or memory. So weights are expanded once for all rows.

use super::activations::{Activations, Tile, tiles};
use super::lanes::{Kernel, Lanes};
use super::layout::PANEL_ROWS;
use super::strips::Strip;

/// Panels that are multiplied at once.
pub(super) const PANELS: usize = 2;

/// Outputs that are multiplied at once.
pub(super) const OUTPUTS: usize = PANELS * PANEL_ROWS;

/// The sums of a tile: per row of it, per panel.
pub(super) type Sums<L, const T: usize> = [[<L as Lanes>::Floats; PANELS]; T];

/// Weights that can be expanded, and multiplied in that form.
pub(super) trait Expand {
    /// Columns that are expanded together at least; whole numbers of them make up a row.
    const COLUMNS: usize;
    /// Columns that are expanded at once at most.
    const MAX_COLUMNS: usize;
    /// Rows of a tile at most.
    const TILE_ROWS: usize;
    /// Elements of `x` in a unit of [`Expand::Expanded`].
    type Expanded: Clone + Default;
    /// Columns in a unit of [`Expand::Expanded`], which holds both panels.
    const UNIT: usize;

    /// Expands columns `start..` of eight outputs into part `half` of all units of `out`. There may be
    /// fewer than eight left; what is made of the others doesn't matter.
    fn expand<L: Lanes>(&self, l: L, panel: usize, start: usize, half: usize, out: &mut [Self::Expanded]);

    /// The expanded weights times the columns from `start` on of a tile of `T` rows.
    fn multiply<L: Lanes, const T: usize>(
        l: L,
        weights: &[Self::Expanded],
        x: &Activations<'_>,
        tile: Tile,
        start: usize,
    ) -> Sums<L, T>;
}

/// Multiplies weights, of which `strip` are the outputs.
pub(super) struct ManyRows<'a, 'b, E> {
    pub(super) x: &'a Activations<'b>,
    pub(super) weights: E,
    pub(super) strip: Strip<'a>,
}

impl<E: Expand> Kernel for ManyRows<'_, '_, E> {
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
                for tile in tiles(self.x.rows, E::TILE_ROWS) {
                    match tile.height {
                        1 => self.tile::<L, 1>(l, expanded, tile, output, start),
                        2 => self.tile::<L, 2>(l, expanded, tile, output, start),
                        4 => self.tile::<L, 4>(l, expanded, tile, output, start),
                        _ => self.tile::<L, 6>(l, expanded, tile, output, start),
                    }
                }
            }
        }
    }
}

impl<E: Expand> ManyRows<'_, '_, E> {
    #[inline(always)]
    fn tile<L: Lanes, const T: usize>(
        &mut self,
        l: L,
        weights: &[E::Expanded],
        tile: Tile,
        output: usize,
        start: usize,
    ) {
        let sums = E::multiply::<L, T>(l, weights, self.x, tile, start);
        for (t, sums) in sums.into_iter().enumerate() {
            for (half, sums) in sums.into_iter().enumerate() {
                let column = output + half * PANEL_ROWS;
                if column < self.strip.columns() {
                    let mut values = [0.0; 8];
                    l.store_floats(sums, &mut values);
                    self.strip.put(tile.row + t, column, values, start > 0);
                }
            }
        }
    }
}
