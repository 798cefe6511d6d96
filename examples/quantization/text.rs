//! Cutting a text into windows that are computed independently.

/// The tokens that one forward pass after the other reads from an empty cache, and those that follow each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window<'a> {
    /// `<bos>` and the window's tokens but the last.
    pub inputs: Vec<u32>,
    /// The window's tokens: the one that follows each of `inputs`.
    pub next: &'a [u32],
}

/// Whole windows of `window` tokens, spread evenly over the text, until they hold `tokens` or it has no more. A
/// text shorter than a window is one.
///
/// `ids` are `<bos>` and the text; nothing comes of a text without tokens.
pub fn windows(ids: &[u32], tokens: usize, window: usize) -> Vec<Window<'_>> {
    let Some((bos, text)) = ids.split_first() else { return Vec::new() };
    let window = window.min(text.len());
    if window == 0 {
        return Vec::new();
    }
    let count = tokens.div_ceil(window).min(text.len() / window);
    (0..count)
        .map(|index| {
            let start = (text.len() - window) * index / (count - 1).max(1);
            let next = &text[start..start + window];
            Window { inputs: [&[*bos], &next[..window - 1]].concat(), next }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_reach_from_the_beginning_to_the_end_and_do_not_overlap() {
        let ids: Vec<u32> = (0..=100).collect(); // <bos> is 0.
        let windows = windows(&ids, 30, 10);
        let starts: Vec<u32> = windows.iter().map(|window| window.next[0]).collect();
        assert_eq!(starts, [1, 46, 91]);
        assert_eq!(windows[1].inputs, [0, 46, 47, 48, 49, 50, 51, 52, 53, 54]);
        assert_eq!(windows[1].next, [46, 47, 48, 49, 50, 51, 52, 53, 54, 55]);
    }

    #[test]
    fn every_token_is_scored_when_the_text_is_the_windows() {
        let ids: Vec<u32> = (0..=40).collect();
        let next: Vec<u32> = windows(&ids, 1000, 10).iter().flat_map(|window| window.next.to_vec()).collect();
        assert_eq!(next, &ids[1..]);
    }

    #[test]
    fn a_text_shorter_than_a_window_is_one() {
        assert_eq!(windows(&[2, 7, 8], 4096, 512), [Window { inputs: vec![2, 7], next: &[7, 8] }]);
        assert_eq!(windows(&[2], 4096, 512), []);
    }
}
