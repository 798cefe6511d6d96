//! Vocabularies of GGUF files: equal to tokenizer.json, and hostile ones.

use gemma3_tokenizer::{Bos, GgufVocabulary, SpecialTokens, TokenizeOptions, Tokenizer, TokenizerError};
use proptest::prelude::*;

/// The vocabulary that llama.cpp's converter would make of a small SentencePiece model.
fn small() -> GgufVocabulary {
    let mut vocabulary =
        GgufVocabulary { model: "llama".into(), add_bos: true, bos: Some(2), ..GgufVocabulary::default() };
    let mut add = |token: &str, score: f32, token_type: i32| {
        vocabulary.tokens.push(token.into());
        vocabulary.scores.push(score);
        vocabulary.token_types.push(token_type);
    };
    for control in
        ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>"]
    {
        add(control, -1000.0, 3);
    }
    for user_defined in ["\n", "\n\n", "  ", "   ", "<start_of_image>"] {
        add(user_defined, -1000.0, 4);
    }
    for byte in 0..=u8::MAX {
        add(&format!("<0x{byte:02X}>"), 0.0, 6);
    }
    let pieces = ["▁t", "th", "the", "▁the", "▁", "t", "h", "e", "a"];
    for (rank, piece) in pieces.into_iter().enumerate() {
        add(piece, -(rank as f32), 1);
    }
    vocabulary
}

fn load(change: impl FnOnce(&mut GgufVocabulary)) -> Result<Tokenizer, TokenizerError> {
    let mut vocabulary = small();
    change(&mut vocabulary);
    Tokenizer::from_gguf(vocabulary)
}

fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, Bos::None).unwrap();
    ids.into_iter().map(|id| tokenizer.id_to_token(id).unwrap()).collect()
}

#[test]
fn the_better_score_is_merged_first() {
    let tokenizer = Tokenizer::from_gguf(small()).unwrap();
    assert_eq!(tokens(&tokenizer, "the"), ["the"]);
    // "▁t" is better than "th", and nothing leads from "▁t" to "▁the".
    assert_eq!(tokens(&tokenizer, " the"), ["▁t", "h", "e"]);
}

#[test]
fn runs_of_spaces_are_merged_and_runs_of_newlines_are_cut() {
    let tokenizer = Tokenizer::from_gguf(small()).unwrap();
    assert_eq!(tokens(&tokenizer, "     a"), ["▁▁▁", "▁▁", "a"]);
    assert_eq!(tokens(&tokenizer, "\n\n\na"), ["\n\n", "\n", "a"]);
    assert_eq!(tokens(&tokenizer, "é"), ["<0xC3>", "<0xA9>"]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("  a é\n", Bos::Add).unwrap(), true).unwrap(), "  a é\n");
}

#[test]
fn tokens_are_special_where_tokenizer_json_says_so() {
    let tokenizer = Tokenizer::from_gguf(small()).unwrap();
    let special: Vec<String> =
        tokenizer.special_ids().iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect();
    assert_eq!(
        special,
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
    );
}

#[test]
fn bos_is_added_if_the_file_says_so() {
    let text = |add_bos| load(|file| file.add_bos = add_bos).unwrap().encode("the", Bos::Add).unwrap();
    assert_eq!(text(true).len(), 2);
    assert_eq!(text(false).len(), 1);
}

#[test]
fn the_ids_and_the_template_of_the_file_are_kept() {
    let tokenizer = load(|file| {
        file.eos = Some(7);
        file.chat_template = Some("{{ messages }}".into());
    })
    .unwrap();
    assert_eq!(tokenizer.eos_id(), Some(7));
    assert_eq!(tokenizer.chat_template(), Some("{{ messages }}"));
}

#[test]
fn an_unused_token_is_decoded_and_never_produced() {
    let last = small().tokens.len() as u32 - 1;
    let tokenizer = load(|file| file.token_types[last as usize] = 5).unwrap();
    assert_eq!(tokenizer.decode(&[last], false).unwrap(), "a");
    assert!(!tokenizer.encode("a", Bos::None).unwrap().contains(&last));
}

#[test]
fn a_user_defined_token_with_spaces_matches_the_text() {
    let tokenizer = load(|file| {
        file.tokens.push("a the".into());
        file.scores.push(-1000.0);
        file.token_types.push(4);
    })
    .unwrap();
    assert_eq!(tokens(&tokenizer, "a thea"), ["a the", "a"]);
}

#[test]
fn another_tokenizer_model_is_an_error() {
    let error = load(|file| file.model = "gpt2".into()).unwrap_err();
    assert!(matches!(&error, TokenizerError::Unsupported { found, .. } if found == "gpt2"), "{error}");
}

#[test]
fn arrays_of_unequal_lengths_are_an_error() {
    assert!(matches!(
        load(|file| file.scores.truncate(3)),
        Err(TokenizerError::LengthMismatch { scores: 3, .. })
    ));
    assert!(matches!(load(|file| file.token_types.clear()), Err(TokenizerError::LengthMismatch { .. })));
}

#[test]
fn an_empty_vocabulary_is_an_error() {
    let empty = GgufVocabulary { model: "llama".into(), ..GgufVocabulary::default() };
    assert!(matches!(Tokenizer::from_gguf(empty), Err(TokenizerError::EmptyVocabulary)));
}

#[test]
fn a_duplicate_token_is_an_error_also_by_its_spelling_of_spaces() {
    let duplicate = |token: &str| {
        load(|file| {
            file.tokens.push(token.into());
            file.scores.push(0.0);
            file.token_types.push(1);
        })
    };
    assert!(matches!(duplicate("the"), Err(TokenizerError::DuplicateToken { .. })));
    assert!(matches!(duplicate("▁▁"), Err(TokenizerError::DuplicateToken { .. })));
    assert!(matches!(duplicate(" the"), Err(TokenizerError::DuplicateToken { .. })));
}

#[test]
fn a_score_that_is_not_a_number_is_an_error() {
    for score in [f32::NAN, f32::INFINITY] {
        assert!(matches!(
            load(|file| file.scores[270] = score),
            Err(TokenizerError::InvalidScore { id: 270, .. })
        ));
    }
}

#[test]
fn a_token_type_that_does_not_exist_is_an_error() {
    for found in [0, 7, -1, i32::MAX] {
        let loaded = load(|file| file.token_types[9] = found);
        assert!(matches!(loaded, Err(TokenizerError::InvalidTokenType { id: 9, .. })));
    }
}

#[test]
fn a_named_id_outside_of_the_vocabulary_is_an_error() {
    assert!(matches!(load(|file| file.bos = Some(u32::MAX)), Err(TokenizerError::IdOutOfRange { .. })));
    assert!(matches!(load(|file| file.padding = Some(1 << 20)), Err(TokenizerError::IdOutOfRange { .. })));
}

#[test]
fn without_byte_tokens_an_unknown_token_is_needed() {
    let without_bytes = |unknown| {
        load(move |file| {
            file.unknown = unknown;
            for token_type in &mut file.token_types {
                if *token_type == 6 {
                    *token_type = 5;
                }
            }
        })
    };
    assert!(matches!(without_bytes(None), Err(TokenizerError::NoFallback)));
    let tokenizer = without_bytes(Some(3)).unwrap();
    assert_eq!(tokenizer.encode("é", Bos::None).unwrap(), [3]);
}

#[test]
fn tokens_of_ten_megabytes_are_loaded_in_reasonable_time() {
    let start = std::time::Instant::now();
    let tokenizer = load(|file| {
        for (character, token_type) in [("t", 1), ("h", 4), ("th", 1)] {
            file.tokens.push(character.repeat(10_000_000));
            file.scores.push(-1.0);
            file.token_types.push(token_type);
        }
    })
    .unwrap();
    assert_eq!(tokens(&tokenizer, "the"), ["the"]);
    // A split of each token against a hash map would take hours.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

proptest! {
    #[test]
    fn any_vocabulary_is_an_error_or_a_tokenizer_that_keeps_its_promises(
        entries in prop::collection::vec(("[ab ▁\n<>]{0,4}", -3i32..3, 0i32..8), 0..24),
        ids in prop::collection::vec(prop::option::of(0u32..30), 4),
        has_bytes: bool,
        text in "[ab ▁\né<>]{0,20}",
    ) {
        let mut file = if has_bytes { small() } else { GgufVocabulary::default() };
        file.model = "llama".into();
        for (token, score, token_type) in entries {
            file.tokens.push(token);
            file.scores.push(score as f32);
            file.token_types.push(token_type);
        }
        (file.bos, file.eos, file.unknown, file.padding) = (ids[0], ids[1], ids[2], ids[3]);
        if let Ok(tokenizer) = Tokenizer::from_gguf(file) {
            let escape = TokenizeOptions { bos: Bos::None, special_tokens: SpecialTokens::Escape };
            let encoded = tokenizer.encode_with(&text, escape).unwrap();
            prop_assert!(encoded.iter().all(|&id| !tokenizer.is_special(id) || Some(id) == tokenizer.unknown_id()));
            for id in 0..30 {
                prop_assert_eq!(tokenizer.is_known(id), tokenizer.id_to_token(id).is_some());
            }
        }
    }
}
