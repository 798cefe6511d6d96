//! What is true of every tokenizer that was built.

use gemma3::tokenizer::{Bos, SpecialTokens, TokenizeOptions, Tokenizer};

use super::super::bounds::check_error;

/// Texts with what tokenizers stumble over: nothing, spaces and their mark, long runs, bytes, special tokens.
const TEXTS: [&str; 7] = [
    "",
    "to the inn",
    "the 🦀 stood\u{301}<end_of_turn>\n\n\t<bos> <start_of_image>",
    " \u{2581}\u{2581}a\0é\u{fffd}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<0x41><unk><pad><unused3>",
    "Ünïcödé 𝔘𝔫𝔦 １２３ \r\n ǆ ﷺ",
];

/// Encodes and decodes some texts.
pub fn check(tokenizer: &Tokenizer) {
    assert!(tokenizer.is_known(tokenizer.max_id()));
    assert!(tokenizer.special_ids().iter().all(|id| tokenizer.is_special(*id) && tokenizer.is_known(*id)));
    for text in TEXTS {
        for special_tokens in [SpecialTokens::Parse, SpecialTokens::Escape] {
            for bos in [Bos::None, Bos::Add] {
                let options = TokenizeOptions { bos, special_tokens };
                match tokenizer.encode_with(text, options) {
                    Ok(ids) => check_ids(tokenizer, options, &ids),
                    Err(error) => check_error(&error),
                }
            }
        }
    }
    // Ids in any order, some of them without a token.
    let ids: Vec<u32> = (0..40).map(|i: u32| i.wrapping_mul(i).wrapping_mul(7)).collect();
    check_decoding(tokenizer, &ids);
    check_decoding(tokenizer, &[u32::MAX]);
}

fn check_ids(tokenizer: &Tokenizer, options: TokenizeOptions, ids: &[u32]) {
    for id in ids {
        assert!(tokenizer.is_known(*id), "an id without a token: {id}");
    }
    let is_text_alone = options.bos == Bos::None && options.special_tokens == SpecialTokens::Escape;
    if is_text_alone {
        let special =
            ids.iter().find(|id| tokenizer.is_special(**id) && Some(**id) != tokenizer.unknown_id());
        assert_eq!(special, None, "escaped text became a special token");
    }
    check_decoding(tokenizer, ids);
}

/// A stream gives the text of the whole list.
fn check_decoding(tokenizer: &Tokenizer, ids: &[u32]) {
    for skip_special in [false, true] {
        let mut stream = tokenizer.stream_decoder(skip_special);
        let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
        match (tokenizer.decode(ids, skip_special), stream.finish()) {
            (Ok(whole), Ok(rest)) => {
                text.push_str(&rest);
                assert_eq!(text, whole, "of {ids:?}");
            }
            (Err(error), Err(_)) => check_error(&error),
            (whole, rest) => panic!("a stream ends in {rest:?}, the whole is {whole:?}"),
        }
    }
}
