//! From token ids to text that can be shown: stop strings are looked for in the text with its special tokens,
//! and the text without them is shown.

use std::collections::VecDeque;

use gemma3_tokenizer::{StreamDecoder, Tokenizer};

use crate::Error;
use crate::stop_strings::{Scan, StopStrings};

/// Makes a text of ids that arrive one by one, up to a stop string.
///
/// What is shown, all pieces together, is what [`Tokenizer::decode`] makes of the ids without special tokens, or
/// of those before a stop string. A stop string is found wherever the text *with* special tokens has it, as
/// transformers does: it may be a special token (`<end_of_turn>`), begin or end in one, or span several.
#[derive(Debug)]
pub(crate) struct TextDecoder {
    /// The text without special tokens.
    shown: StreamDecoder,
    /// `None` where there is nothing to stop at.
    search: Option<Search>,
}

/// The search for stop strings.
#[derive(Debug)]
struct Search {
    tokenizer: Tokenizer,
    stops: StopStrings,
    /// The text with special tokens, which is searched.
    searched: StreamDecoder,
    /// All ids so far.
    ids: Vec<u32>,
    /// How far the two texts were after each token, but for those whose text was given out.
    marks: VecDeque<Mark>,
    /// The searched text since the first mark.
    unsettled: String,
    /// What was decoded for showing and may still turn out to be part of a stop string.
    held: String,
    /// Bytes of the text without special tokens that were given out.
    given: usize,
}

/// A place between two tokens in both texts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Mark {
    /// Tokens before it.
    ids: usize,
    /// Bytes of the searched text before it.
    searched: usize,
    /// Bytes before it of the text to show, as far as that was known.
    shown: usize,
    /// Whether both texts are the same since the mark before.
    is_same: bool,
}

impl TextDecoder {
    pub(crate) fn new(tokenizer: &Tokenizer, stop: &[String]) -> Self {
        let stops = StopStrings::new(stop);
        let search = (!stops.is_empty()).then(|| Search::new(tokenizer, stops));
        Self { shown: tokenizer.stream_decoder(true), search }
    }

    /// The text that can be shown after a token, and whether a stop string came up.
    ///
    /// # Errors
    ///
    /// Only with custom decoders.
    pub(crate) fn push(&mut self, id: u32) -> Result<(String, bool), Error> {
        let shown = self.shown.push(id).unwrap_or_default();
        match &mut self.search {
            None => Ok((shown, false)),
            Some(search) => search.push(id, &shown),
        }
    }

    /// What was held back, and whether a stop string came up in it.
    ///
    /// # Errors
    ///
    /// Only with custom decoders.
    pub(crate) fn finish(&mut self) -> Result<(String, bool), Error> {
        let shown = self.shown.finish()?;
        match &mut self.search {
            None => Ok((shown, false)),
            Some(search) => search.finish(&shown),
        }
    }
}

impl Search {
    fn new(tokenizer: &Tokenizer, stops: StopStrings) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            stops,
            searched: tokenizer.stream_decoder(false),
            ids: Vec::new(),
            marks: VecDeque::from([Mark::default()]),
            unsettled: String::new(),
            held: String::new(),
            given: 0,
        }
    }

    fn push(&mut self, id: u32, shown: &str) -> Result<(String, bool), Error> {
        let before = self.ids.len();
        self.ids.push(id);
        self.held.push_str(shown);
        let Some(piece) = self.searched.push(id) else { return Ok((String::new(), false)) };
        if self.tokenizer.is_special(id) {
            // The bytes before a special token, which may have been held back until now, are no part of it.
            let name = self.tokenizer.decode(&[id], false)?;
            self.mark(before, piece.len().saturating_sub(name.len()), false);
            self.mark(before + 1, name.len().min(piece.len()), false);
        } else {
            self.mark(before + 1, piece.len(), piece == shown);
        }
        self.scan(&piece)
    }

    fn finish(&mut self, shown: &str) -> Result<(String, bool), Error> {
        self.held.push_str(shown);
        let piece = self.searched.finish()?;
        self.mark(self.ids.len(), piece.len(), piece == shown);
        let (mut text, is_stopped) = self.scan(&piece)?;
        if !is_stopped {
            text += &std::mem::take(&mut self.held);
        }
        Ok((text, is_stopped))
    }

    /// Notes that the searched text went on by `len` bytes, with the first `ids` ids.
    fn mark(&mut self, ids: usize, len: usize, is_same: bool) {
        let searched = self.last_mark().searched + len;
        let shown = self.given + self.held.len();
        self.marks.push_back(Mark { ids, searched, shown, is_same });
    }

    fn first_mark(&self) -> Mark {
        self.marks.front().copied().unwrap_or_default()
    }

    fn last_mark(&self) -> Mark {
        self.marks.back().copied().unwrap_or_default()
    }

    fn scan(&mut self, piece: &str) -> Result<(String, bool), Error> {
        self.unsettled.push_str(piece);
        match self.stops.push(piece) {
            Scan::Safe(place) => Ok((self.release(place), false)),
            Scan::Stop(place) => Ok((self.text_before(place)?, true)),
        }
    }

    /// Gives out what is shown of the searched text up to a place.
    fn release(&mut self, place: usize) -> String {
        let begin = self.first_mark().searched;
        while self.marks.get(1).is_some_and(|next| next.searched <= place) {
            self.marks.pop_front();
        }
        let mark = self.first_mark();
        self.unsettled.drain(..mark.searched - begin);
        let is_same = self.marks.get(1).is_some_and(|next| next.is_same);
        let end = if is_same { mark.shown + (place - mark.searched) } else { mark.shown };
        let len = end.saturating_sub(self.given);
        let rest = self.held.split_off(len.min(self.held.len()));
        let text = std::mem::replace(&mut self.held, rest);
        self.given += text.len();
        text
    }

    /// What is still to be shown of the text before a stop string: the tokens before it, and the beginning of the
    /// token in which it begins.
    fn text_before(&self, place: usize) -> Result<String, Error> {
        let next = self.marks.iter().position(|mark| mark.searched > place).unwrap_or(self.marks.len());
        let mark = self.marks.get(next.saturating_sub(1)).copied().unwrap_or_default();
        let end = self.marks.get(next).map_or(self.ids.len(), |mark| mark.ids);
        let (before, within) = self.ids.split_at(mark.ids.min(self.ids.len()));
        let begin = self.first_mark().searched;
        let beginning = self.unsettled.get(mark.searched - begin..place - begin).unwrap_or_default();
        let mut text = self.tokenizer.decode(before, true)?;
        text += &self.without_special(beginning, &within[..end - before.len()])?;
        Ok(text.get(self.given..).unwrap_or_default().to_owned())
    }

    /// The beginning of the text of `ids`, without what special tokens among them wrote.
    fn without_special(&self, text: &str, ids: &[u32]) -> Result<String, Error> {
        if let [id] = ids
            && self.tokenizer.is_special(*id)
        {
            return Ok(String::new());
        }
        // Several ids with special ones among them come together only from a decoder that needs the whole list.
        let mut text = text.to_owned();
        for &id in ids.iter().filter(|id| self.tokenizer.is_special(**id)) {
            text = text.replacen(&self.tokenizer.decode(&[id], false)?, "", 1);
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemma3_tokenizer::Bos;

    fn tokenizer() -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-text/tokenizer.json");
        Tokenizer::from_file(path).expect("the miniature tokenizer")
    }

    /// What is shown of ids, and whether a stop string ended it.
    fn run(tokenizer: &Tokenizer, ids: &[u32], stop: &[&str]) -> (String, bool) {
        let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let mut decoder = TextDecoder::new(tokenizer, &stop);
        let mut shown = String::new();
        for &id in ids {
            let (text, is_stopped) = decoder.push(id).expect("a piece");
            shown += &text;
            if is_stopped {
                return (shown, true);
            }
        }
        let (text, is_stopped) = decoder.finish().expect("the rest");
        (shown + &text, is_stopped)
    }

    /// Every way to cut a text in two, outside of special tokens, as ids.
    fn spellings(tokenizer: &Tokenizer, text: &str) -> Vec<Vec<u32>> {
        let encode = |text: &str| tokenizer.encode(text, Bos::None).expect("ids");
        let whole = encode(text);
        // A name that is cut is text, and shown.
        let decode = |ids: &[u32]| tokenizer.decode(ids, true).expect("text");
        let is_same = |ids: &Vec<u32>| decode(ids) == decode(&whole);
        let cuts = (0..=text.len()).filter(|&cut| text.is_char_boundary(cut));
        cuts.map(|cut| [encode(&text[..cut]), encode(&text[cut..])].concat()).filter(is_same).collect()
    }

    #[test]
    fn stop_strings_with_special_tokens_match_and_nothing_of_them_is_shown() {
        let tokenizer = tokenizer();
        for (text, stop, shown) in [
            ("the inn<end_of_turn>\nthe", "<end_of_turn>", "the inn"),
            ("<end_of_turn>", "<end_of_turn>", ""),
            ("the<eos><eos>", "<eos>", "the"),
            ("the inn\n<end_of_turn>", "\n<end_of_turn>", "the inn"),
            ("the inn\n\n<end_of_turn>", "\n<end_of_turn>", "the inn\n"),
            ("the inn<end_of_turn>\nthe", "<end_of_turn>\n", "the inn"),
            ("a foo<start_of_turn>user\nhi", "foo<start_of_turn>user", "a "),
            ("é€<start_of_turn>user", "€<start_of_turn>u", "é"),
            ("ab<end_of_turn>\n<start_of_turn>model", "<end_of_turn>\n<start_of_turn>", "ab"),
            // A stop string may begin or end within the name of a special token.
            ("the inn<end_of_turn>", "of_turn>", "the inn"),
            ("the inn<end_of_turn>", "inn<end", "the "),
            // An earlier special token is not shown, and does not take text with it.
            ("a<start_of_turn>b<end_of_turn>", "<end_of_turn>", "ab"),
            ("a<start_of_turn>bcd", "cd", "ab"),
        ] {
            let spellings = spellings(&tokenizer, text);
            assert!(!spellings.is_empty());
            for ids in spellings {
                assert_eq!(run(&tokenizer, &ids, &[stop]), (shown.to_owned(), true), "{stop:?} in {ids:?}");
                assert_eq!(run(&tokenizer, &ids, &["never", stop]), (shown.to_owned(), true));
            }
        }
    }

    #[test]
    fn what_does_not_match_is_shown_without_its_special_tokens() {
        let tokenizer = tokenizer();
        for (text, stop, shown) in [
            ("the inn<end_of_turn>\n", "<end_of_turn>\n\n", "the inn\n"),
            ("a\n<start_of_turn>b", "\n<end_of_turn>", "a\nb"),
            ("fo<start_of_turn>o", "foo", "foo"),
            ("the inn <end", "<end_of_turn>", "the inn <end"),
        ] {
            for ids in spellings(&tokenizer, text) {
                assert_eq!(run(&tokenizer, &ids, &[stop]), (shown.to_owned(), false), "{stop:?} in {ids:?}");
            }
        }
    }

    #[test]
    fn the_text_is_held_back_no_longer_than_it_could_be_a_stop_string() {
        let tokenizer = tokenizer();
        let mut decoder = TextDecoder::new(&tokenizer, &["\n<end_of_turn>".to_owned()]);
        let mut push =
            |token: &str| decoder.push(tokenizer.token_to_id(token).expect("an id")).expect("a piece");
        assert_eq!(push("the"), ("the".to_owned(), false));
        assert_eq!(push("\n"), (String::new(), false));
        assert_eq!(push("in"), ("\nin".to_owned(), false));
        assert_eq!(push("\n"), (String::new(), false));
        assert_eq!(push("<start_of_turn>"), ("\n".to_owned(), false));
        assert_eq!(push("\n"), (String::new(), false));
        assert_eq!(push("<end_of_turn>"), (String::new(), true));
    }

    /// A stream of pseudo-random numbers (xorshift).
    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    #[test]
    fn any_ids_are_shown_as_they_decode_and_stop_where_the_text_has_the_string() {
        let tokenizer = tokenizer();
        let mut seed = 88_172_645_463_325_252;
        for _ in 0..3000 {
            // Bytes, valid or not, special tokens and words, in runs that special tokens interrupt.
            let length = 1 + random(&mut seed) % 12;
            let ids: Vec<u32> = (0..length)
                .map(|_| match random(&mut seed) % 4 {
                    0 => (random(&mut seed) % 8) as u32,
                    1 => 264 + (random(&mut seed) % 21) as u32,
                    2 => 8 + (random(&mut seed) % 256) as u32,
                    _ => 8 + u32::from(b"abc\n"[(random(&mut seed) % 4) as usize]),
                })
                .collect();
            let whole = tokenizer.decode(&ids, true).expect("text");
            assert_eq!(run(&tokenizer, &ids, &[]), (whole.clone(), false), "{ids:?}");
            assert_eq!(run(&tokenizer, &ids, &["never to be seen"]), (whole.clone(), false), "{ids:?}");
            // A stop string that is there: cut out of the text with its special tokens.
            let searched: Vec<char> = tokenizer.decode(&ids, false).expect("text").chars().collect();
            let from = random(&mut seed) as usize % searched.len();
            let to = (from + 1 + random(&mut seed) as usize % 4).min(searched.len());
            let stop: String = searched[from..to].iter().collect();
            let (shown, is_stopped) = run(&tokenizer, &ids, &[&stop]);
            assert!(is_stopped, "{stop:?} in {ids:?}");
            // A broken character before the stop string may read otherwise than in the whole.
            if !whole.contains(char::REPLACEMENT_CHARACTER) {
                assert!(whole.starts_with(&shown), "{shown:?} of {whole:?} before {stop:?} in {ids:?}");
            }
        }
    }
}
