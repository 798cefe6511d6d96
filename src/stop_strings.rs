//! Stop strings in a stream of text whose pieces may cut a stop string anywhere.

/// Looks for stop strings in text that arrives in pieces, and says up to where the text can't be part of one.
///
/// Places are counted in bytes from the beginning of the whole text, and never lie within a character.
#[derive(Debug, Clone)]
pub(crate) struct StopStrings {
    stops: Vec<String>,
    /// The end of the text, as far as it could be the beginning of a stop string.
    held: String,
    /// Where `held` begins.
    begin: usize,
}

/// What became of a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scan {
    /// No stop string begins before this place, whatever follows.
    Safe(usize),
    /// A stop string was found; it begins at this place.
    Stop(usize),
}

impl StopStrings {
    /// Empty strings stop nothing.
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), begin: 0 }
    }

    /// Whether there is nothing to look for.
    pub(crate) fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &str) -> Scan {
        self.held.push_str(piece);
        // The stop string that begins first wins, whichever was asked for first.
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            return Scan::Stop(self.begin + at);
        }
        let keep = self.stops.iter().map(|stop| partial_match(&self.held, stop)).max().unwrap_or(0);
        let safe = self.held.len() - keep;
        self.held.drain(..safe);
        self.begin += safe;
        Scan::Safe(self.begin)
    }
}

/// Length in bytes of the longest end of `text` that is a beginning of `stop`, but not all of it.
fn partial_match(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|len| {
            text.as_bytes().ends_with(&stop.as_bytes()[..*len]) && text.is_char_boundary(text.len() - len)
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text before the first stop string, and whether there was one; what is safe is checked to stay so.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut scanner = StopStrings::new(&stops);
        let (mut text, mut shown) = (String::new(), 0);
        for piece in pieces {
            text += piece;
            match scanner.push(piece) {
                Scan::Safe(safe) => {
                    assert!(safe >= shown && text.is_char_boundary(safe));
                    shown = safe;
                }
                Scan::Stop(at) => {
                    assert!(at >= shown, "what was shown is not taken back");
                    return (text[..at].to_owned(), true);
                }
            }
        }
        (text, false)
    }

    #[test]
    fn a_stop_string_split_over_pieces_does_not_leak() {
        let text = "one two STOP three";
        for cut_a in 0..text.len() {
            for cut_b in cut_a..text.len() {
                let pieces = [&text[..cut_a], &text[cut_a..cut_b], &text[cut_b..]];
                assert_eq!(run(&["STOP"], &pieces), ("one two ".to_owned(), true));
            }
        }
    }

    #[test]
    fn a_false_beginning_is_shown_once_it_is_known_to_be_false() {
        assert_eq!(run(&["\n\nUser:"], &["a\n", "\nUs", "eful"]), ("a\n\nUseful".to_owned(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b", "c"]), ("a".to_owned(), true));
        assert_eq!(run(&["STOP"], &["end ST"]), ("end ST".to_owned(), false));
        let mut scanner = StopStrings::new(&["STOP".to_owned()]);
        assert_eq!(scanner.push("end ST"), Scan::Safe(4));
        assert_eq!(scanner.push("AY"), Scan::Safe(8));
    }

    #[test]
    fn the_stop_string_that_begins_first_wins() {
        assert_eq!(run(&["late", "or"], &["sooner or later"]), ("sooner ".to_owned(), true));
    }

    #[test]
    fn an_empty_string_stops_nothing() {
        let mut scanner = StopStrings::new(&[String::new()]);
        assert!(scanner.is_empty());
        assert_eq!(scanner.push("text"), Scan::Safe(4));
    }

    #[test]
    fn characters_of_several_bytes_are_never_cut() {
        // "é" is C3 A9; "Ã" begins with C3 as well.
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), ("café?".to_owned(), false));
        assert_eq!(run(&["é!"], &["Ã", "é", "!"]), ("Ã".to_owned(), true));
    }
}
