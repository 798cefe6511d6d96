//! Stop strings in a stream of text whose pieces may cut a stop string anywhere.

/// Looks for stop strings in text that arrives in pieces, and holds back the end of the text as long as
/// it could be the beginning of one.
#[derive(Debug, Clone)]
pub(crate) struct StopStrings {
    stops: Vec<String>,
    held: String,
}

/// What became of a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scan {
    /// This much text is safe to show (it may be empty).
    Text(String),
    /// A stop string was found; this is the text before it.
    Stop(String),
}

impl StopStrings {
    /// Empty strings stop nothing.
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &str) -> Scan {
        if self.stops.is_empty() {
            return Scan::Text(piece.to_owned());
        }
        self.held.push_str(piece);
        // The stop string that begins first wins, whichever was asked for first.
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Scan::Stop(text);
        }
        let keep = self.stops.iter().map(|stop| partial_match(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Scan::Text(std::mem::replace(&mut self.held, rest))
    }

    /// The text that was held back, when no more will come.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
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

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut scanner = StopStrings::new(&stops);
        let mut shown = String::new();
        for piece in pieces {
            match scanner.push(piece) {
                Scan::Text(text) => shown += &text,
                Scan::Stop(text) => return (shown + &text, true),
            }
        }
        (shown + &scanner.finish(), false)
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
    }

    #[test]
    fn the_stop_string_that_begins_first_wins() {
        assert_eq!(run(&["late", "or"], &["sooner or later"]), ("sooner ".to_owned(), true));
    }

    #[test]
    fn nothing_is_held_back_without_stop_strings() {
        let mut scanner = StopStrings::new(&[String::new()]);
        assert_eq!(scanner.push("text"), Scan::Text("text".to_owned()));
    }

    #[test]
    fn characters_of_several_bytes_are_never_cut() {
        // "é" is C3 A9; "Ã" begins with C3 as well.
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), ("café?".to_owned(), false));
        assert_eq!(run(&["é!"], &["Ã", "é", "!"]), ("Ã".to_owned(), true));
    }
}
