//! Text out of a stream equals text out of the whole list, whatever the ids.

mod common;

use common::*;
use proptest::prelude::*;

#[test]
fn half_a_character_is_never_given_out() {
    let tokenizer = tiny();
    let mut stream = tokenizer.stream_decoder(false);
    for byte in [0xf0, 0x9f, 0x98, 0x80] {
        assert_eq!(stream.push(8 + byte), None);
    }
    assert_eq!(stream.push(280).as_deref(), Some("😀the"));
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn an_invalid_byte_makes_replacement_characters_of_its_run_at_once() {
    let mut stream = tiny().stream_decoder(false);
    assert_eq!(stream.push(8 + 0x41), None);
    assert_eq!(stream.push(8 + 0xff).as_deref(), Some("\u{fffd}\u{fffd}"));
    assert_eq!(stream.push(8 + 0x41).as_deref(), Some("\u{fffd}"));
    assert_eq!(stream.push(280).as_deref(), Some("the"));
    assert_eq!(stream.push(8 + 0x41), None);
    assert_eq!(stream.finish().unwrap(), "A", "the next run starts afresh");
}

#[test]
fn an_unfinished_character_at_the_end_is_not_lost() {
    let mut stream = tiny().stream_decoder(false);
    assert_eq!(stream.push(8 + 0xe4), None);
    assert_eq!(stream.push(8 + 0xbd), None);
    assert_eq!(stream.finish().unwrap(), "\u{fffd}\u{fffd}");
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn a_stream_can_be_sent_to_another_thread() {
    let mut stream = tiny().stream_decoder(true);
    let text = std::thread::spawn(move || stream.push(280)).join().unwrap();
    assert_eq!(text.as_deref(), Some("the"));
}

fn ids() -> impl Strategy<Value = Vec<u32>> {
    let byte = |byte: u8| 8 + u32::from(byte);
    let id = prop_oneof![
        3 => 0u32..285,
        4 => any::<u8>().prop_map(byte),
        4 => (0x80..=0xbfu8).prop_map(byte),
        1 => any::<u32>(),
    ];
    let character =
        any::<char>().prop_map(move |character| character.to_string().bytes().map(byte).collect::<Vec<_>>());
    let chunk = prop_oneof![id.prop_map(|id| vec![id]), character];
    prop::collection::vec(chunk, 0..40).prop_map(|chunks| chunks.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn a_stream_gives_what_the_reference_decodes(ids in ids(), skip_special: bool) {
        let path = workspace().join("tests/fixtures/tiny-text/tokenizer.json");
        let reference = tokenizers::Tokenizer::from_file(path).unwrap();
        let expected = reference.decode(&ids, skip_special).unwrap();
        let tokenizer = tiny();
        prop_assert_eq!(&tokenizer.decode(&ids, skip_special).unwrap(), &expected);
        prop_assert_eq!(streamed(tokenizer.stream_decoder(skip_special), &ids), expected);
    }
}
