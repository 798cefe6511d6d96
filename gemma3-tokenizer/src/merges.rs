//! The merges of a vocabulary that has only scores: what SentencePiece keeps implicit and
//! tokenizer.json lists.
//!
//! A piece can be merged from every pair of pieces that spell it. Of two possible merges the better
//! is the one whose result has the higher score, then the longer left part, then the longer right
//! part, then the smaller id: the order in which Hugging Face's converter lists them. (Lengths
//! count characters.)
//!
//! The pairs are found in time linear in the text of all pieces, apart from two sorts: sorted
//! lexicographically, the pieces that are prefixes of a piece form a chain of ancestors; sorted by
//! their reversed text, so do its suffixes. Trying every split against a hash map would cost the
//! square of the longest piece.

/// A merge: ids of the left and of the right part.
pub(crate) type Merge = (u32, u32);

/// All merges of `pieces`, best first. `pieces[id]` is the text, `scores[id]` its score; empty pieces
/// take no part. Equal texts must not occur; scores must not be NaN; there must be a score per piece.
pub(crate) fn merges_from_scores(pieces: &[&str], scores: &[f32]) -> Vec<Merge> {
    // The two sorts are a good part of the time that a vocabulary takes to load.
    let (prefix_of, suffix_of) = std::thread::scope(|scope| {
        let prefix_of = scope.spawn(|| longest_affix(pieces, |piece| piece.bytes()));
        let suffix_of = longest_affix(pieces, |piece| piece.bytes().rev());
        (prefix_of.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), suffix_of)
    });

    let mut candidates = Vec::new();
    let mut suffixes = Vec::new();
    for (id, (piece, &score)) in pieces.iter().zip(scores).enumerate() {
        suffixes.clear();
        suffixes.extend(ancestors(&suffix_of, id));
        // Prefixes come longest first, so the rests that they need come shortest first.
        let mut rests = suffixes.iter().rev().copied().peekable();
        for left in ancestors(&prefix_of, id) {
            let rest_bytes = piece.len().saturating_sub(len_of(pieces, left));
            while rests.next_if(|&rest| len_of(pieces, rest) < rest_bytes).is_some() {}
            if let Some(&right) = rests.peek().filter(|&&rest| len_of(pieces, rest) == rest_bytes) {
                candidates.push(Candidate {
                    // Adding zero turns -0 into 0: they rank equal.
                    score: score + 0.0,
                    left_chars: chars_of(pieces, left),
                    right_chars: chars_of(pieces, right),
                    id,
                    merge: (left as u32, right as u32),
                });
            }
        }
    }
    candidates.sort_unstable_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then(b.left_chars.cmp(&a.left_chars))
            .then(b.right_chars.cmp(&a.right_chars))
            .then(a.id.cmp(&b.id))
    });
    candidates.into_iter().map(|candidate| candidate.merge).collect()
}

struct Candidate {
    score: f32,
    left_chars: usize,
    right_chars: usize,
    id: usize,
    merge: Merge,
}

fn len_of(pieces: &[&str], index: usize) -> usize {
    pieces.get(index).map_or(0, |piece| piece.len())
}

fn chars_of(pieces: &[&str], index: usize) -> usize {
    pieces.get(index).map_or(0, |piece| piece.chars().count())
}

/// For each piece the longest other piece that it begins with, in the reading direction of `bytes`.
fn longest_affix<'a, I>(pieces: &[&'a str], bytes: impl Fn(&'a str) -> I) -> Vec<Option<usize>>
where
    I: Iterator<Item = u8>,
{
    let mut sorted: Vec<(usize, &str)> =
        pieces.iter().copied().enumerate().filter(|(_, piece)| !piece.is_empty()).collect();
    sorted.sort_unstable_by(|(_, a), (_, b)| bytes(a).cmp(bytes(b)));

    let mut affixes = vec![None; pieces.len()];
    // The pieces seen last of which each begins with the one below.
    let mut chain: Vec<(usize, &str)> = Vec::new();
    for (index, piece) in sorted {
        while chain.pop_if(|(_, affix)| !bytes(piece).take(affix.len()).eq(bytes(affix))).is_some() {}
        if let Some(affix) = affixes.get_mut(index) {
            *affix = chain.last().map(|&(index, _)| index);
        }
        chain.push((index, piece));
    }
    affixes
}

/// The affixes of a piece, longest first.
fn ancestors(affixes: &[Option<usize>], index: usize) -> impl Iterator<Item = usize> {
    let next = |index: usize| affixes.get(index).copied().flatten();
    std::iter::successors(next(index), move |&index| next(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by trying every split.
    fn by_definition(pieces: &[&str], scores: &[f32]) -> Vec<Merge> {
        let id_of = |text: &str| pieces.iter().position(|piece| *piece == text);
        let mut merges = Vec::new();
        for (id, piece) in pieces.iter().enumerate() {
            for (split, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(split);
                if let (Some(l), Some(r)) = (id_of(left), id_of(right)) {
                    let key = (left.chars().count(), right.chars().count());
                    merges.push((scores[id], key, id, (l as u32, r as u32)));
                }
            }
        }
        merges.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
        merges.into_iter().map(|merge| merge.3).collect()
    }

    #[test]
    fn the_better_score_merges_first() {
        let pieces = ["a", "b", "ab", "ba", "aba"];
        let merges = merges_from_scores(&pieces, &[0.0, 0.0, -2.0, -1.0, -3.0]);
        assert_eq!(merges, [(1, 0), (0, 1), (2, 0), (0, 3)]);
    }

    #[test]
    fn minus_zero_ranks_as_zero() {
        let pieces = ["a", "b", "ab", "bb"];
        assert_eq!(merges_from_scores(&pieces, &[0.0, 0.0, -0.0, 0.0]), [(0, 1), (1, 1)]);
    }

    proptest! {
        #[test]
        fn the_chains_find_every_split(
            texts in prop::collection::btree_set("[abé]{0,6}", 0..60),
            seed in prop::collection::vec(0..4i32, 60),
        ) {
            let pieces: Vec<&str> = texts.iter().map(String::as_str).collect();
            let scores: Vec<f32> = seed.iter().take(pieces.len()).map(|&score| -(score as f32)).collect();
            prop_assert_eq!(merges_from_scores(&pieces, &scores), by_definition(&pieces, &scores));
        }
    }
}
