//! Which keys a query sees.
//!
//! Key `k` is visible from query `q` on a global layer iff `k <= q`, or both are soft tokens of the
//! same image; on a sliding-window layer it must also hold that `k > q - window`: the window counts the
//! query itself.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};

use crate::config::LayerType;

/// The part of the sequence that one forward pass attends over, for one layer type.
#[derive(Debug, Clone)]
pub(super) struct Visibility {
    /// Positions of the keys: from the oldest that the first query sees, to the last token.
    pub(super) keys: Range<usize>,
    /// Added to the scores \[queries, keys\]: 0 where visible, -∞ where not. `None` where every query
    /// sees every key.
    pub(super) mask: Option<Tensor<2>>,
}

impl Visibility {
    /// For queries at positions `queries` (all new tokens of the pass), with images occupying the
    /// position ranges `images`.
    pub(super) fn new(
        kind: LayerType,
        queries: Range<usize>,
        window: usize,
        images: &[Range<usize>],
        device: &Device,
    ) -> Self {
        let first_key = |query: usize| match kind {
            LayerType::FullAttention => 0,
            LayerType::SlidingAttention => (query + 1).saturating_sub(window),
        };
        let keys = first_key(queries.start)..queries.end;
        if queries.len() == 1 {
            // The newest token sees everything in `keys`.
            return Self { keys, mask: None };
        }
        let mut mask = vec![f32::NEG_INFINITY; queries.len() * keys.len()];
        for (row, query) in mask.chunks_exact_mut(keys.len()).zip(queries.clone()) {
            // Soft tokens see their whole image: keys up to its end.
            let image = images.iter().find(|image| image.contains(&query));
            let visible = first_key(query)..image.map_or(query + 1, |image| image.end.max(query + 1));
            let end = visible.end.min(keys.end);
            row[visible.start - keys.start..end - keys.start].fill(0.0);
        }
        let shape = [queries.len(), keys.len()];
        Self { keys, mask: Some(Tensor::from_data(TensorData::new(mask, shape), device)) }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    /// The visible keys of each query.
    fn visible(
        kind: LayerType,
        queries: Range<usize>,
        window: usize,
        images: &[Range<usize>],
    ) -> Vec<Vec<usize>> {
        let visibility = Visibility::new(kind, queries, window, images, &Device::flex());
        let keys: Vec<usize> = visibility.keys.collect();
        let mask =
            visibility.mask.expect("more than one query").into_data().try_into_vec::<f32>().expect("f32");
        mask.chunks_exact(keys.len())
            .map(|row| row.iter().zip(&keys).filter(|(m, _)| **m == 0.0).map(|(_, k)| *k).collect())
            .collect()
    }

    #[test]
    fn a_global_layer_is_causal() {
        assert_eq!(visible(LayerType::FullAttention, 2..4, 2, &[]), [vec![0, 1, 2], vec![0, 1, 2, 3]]);
    }

    #[test]
    fn a_window_counts_the_query_itself() {
        assert_eq!(
            visible(LayerType::SlidingAttention, 0..4, 3, &[]),
            [vec![0], vec![0, 1], vec![0, 1, 2], vec![1, 2, 3]]
        );
        assert_eq!(visible(LayerType::SlidingAttention, 7..9, 3, &[]), [vec![5, 6, 7], vec![6, 7, 8]]);
    }

    #[test]
    fn tokens_of_an_image_see_each_other_and_not_another_image() {
        assert_eq!(
            visible(LayerType::FullAttention, 0..6, 9, &[1..3, 4..6]),
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
            visible(LayerType::SlidingAttention, 0..4, 2, std::slice::from_ref(&(1..4))),
            [vec![0], vec![0, 1, 2, 3], vec![1, 2, 3], vec![2, 3]]
        );
    }
}
