//! Which keys a query sees.
//!
//! Key `k` is visible from query `q` on a global layer iff `k <= q`, or both are soft tokens of the
//! same image; on a sliding-window layer it must also hold that `k > q - window`: the window counts the
//! query itself. So every query sees one run of keys.

use std::ops::Range;
use std::sync::OnceLock;

use burn::tensor::{Device, Tensor, TensorData};

/// What the keys visible from a query depend on, other than its position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VisibleKeys<'a> {
    /// Keys that a query of a sliding-window layer sees, itself among them: at least 1. `None` on global
    /// layers.
    pub(crate) window: Option<usize>,
    /// Positions that images occupy, in order.
    pub(crate) images: &'a [Range<usize>],
}

impl VisibleKeys<'_> {
    /// Positions of the keys that the query at a position sees. Neither end moves back from one query to the next.
    pub(crate) fn of(&self, query: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
        let image = self.images.iter().find(|image| image.contains(&query));
        first..image.map_or(query + 1, |image| image.end)
    }
}

/// What the queries of one forward pass, the newest positions of a sequence, see of it on layers of one type.
#[derive(Debug, Clone)]
pub struct Visibility {
    queries: Range<usize>,
    /// Positions that a query sees at most, itself included; `None` for all before it.
    window: Option<usize>,
    /// Positions of the soft tokens of each image.
    images: Vec<Range<usize>>,
    /// Made when it is first asked for: not every implementation needs it.
    mask: OnceLock<Tensor<2>>,
}

impl Visibility {
    /// For queries at positions `queries`, with images occupying the position ranges `images`.
    pub fn new(queries: Range<usize>, window: Option<usize>, images: Vec<Range<usize>>) -> Self {
        Self { queries, window, images, mask: OnceLock::new() }
    }

    /// Positions of the queries.
    pub fn queries(&self) -> Range<usize> {
        self.queries.clone()
    }

    /// Positions that a query sees at most, itself included; `None` for all before it.
    pub fn window(&self) -> Option<usize> {
        self.window
    }

    /// Positions of the soft tokens of each image.
    pub fn images(&self) -> &[Range<usize>] {
        &self.images
    }

    /// Positions of the keys: from the oldest that the first query sees, to the last token.
    pub fn keys(&self) -> Range<usize> {
        self.of(self.queries.start).start..self.queries.end
    }

    /// The keys that the query at a position sees.
    pub fn of(&self, query: usize) -> Range<usize> {
        let keys = self.visible_keys().of(query);
        keys.start..keys.end.min(self.queries.end)
    }

    pub(crate) fn visible_keys(&self) -> VisibleKeys<'_> {
        VisibleKeys { window: self.window, images: &self.images }
    }

    /// What is added to the scores \[queries, keys\]: 0 where visible, -∞ where not. `None` where every query
    /// sees every key.
    pub fn mask(&self, device: &Device) -> Option<Tensor<2>> {
        if self.queries.len() == 1 {
            return None; // The newest token sees everything in `keys`.
        }
        let mask = self.mask.get_or_init(|| {
            let keys = self.keys();
            let mut mask = vec![f32::NEG_INFINITY; self.queries.len() * keys.len()];
            for (row, query) in mask.chunks_exact_mut(keys.len()).zip(self.queries.clone()) {
                let visible = self.of(query);
                row[visible.start - keys.start..visible.end - keys.start].fill(0.0);
            }
            let shape = [self.queries.len(), keys.len()];
            Tensor::from_data(TensorData::new(mask, shape), device)
        });
        Some(mask.clone())
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    /// The visible keys of each query.
    fn visible(queries: Range<usize>, window: Option<usize>, images: &[Range<usize>]) -> Vec<Vec<usize>> {
        let visibility = Visibility::new(queries, window, images.to_vec());
        let keys: Vec<usize> = visibility.keys().collect();
        let mask = visibility.mask(&Device::flex()).expect("more than one query");
        let mask = mask.into_data().try_into_vec::<f32>().expect("f32");
        mask.chunks_exact(keys.len())
            .map(|row| row.iter().zip(&keys).filter(|(m, _)| **m == 0.0).map(|(_, k)| *k).collect())
            .collect()
    }

    #[test]
    fn a_global_layer_is_causal() {
        assert_eq!(visible(2..4, None, &[]), [vec![0, 1, 2], vec![0, 1, 2, 3]]);
    }

    #[test]
    fn a_window_counts_the_query_itself() {
        assert_eq!(visible(0..4, Some(3), &[]), [vec![0], vec![0, 1], vec![0, 1, 2], vec![1, 2, 3]]);
        assert_eq!(visible(7..9, Some(3), &[]), [vec![5, 6, 7], vec![6, 7, 8]]);
    }

    #[test]
    fn tokens_of_an_image_see_each_other_and_not_another_image() {
        assert_eq!(
            visible(0..6, None, &[1..3, 4..6]),
            [
                vec![0],
                vec![0, 1, 2],
                vec![0, 1, 2],
                vec![0, 1, 2, 3],
                vec![0, 1, 2, 3, 4, 5],
                vec![0, 1, 2, 3, 4, 5]
            ]
        );
        // The window cuts the past of a query, also inside its image.
        assert_eq!(
            visible(0..4, Some(2), std::slice::from_ref(&(1..4))),
            [vec![0], vec![0, 1, 2, 3], vec![1, 2, 3], vec![2, 3]]
        );
    }
}
