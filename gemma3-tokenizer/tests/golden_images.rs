//! Prompts with images: the ids of the reference's processor, in texts and in chats.

mod common;

use common::*;
use gemma3_tokenizer::{
    Answer, Bos, ChatError, ChatTemplate, ImageTokens, Images, Message, NullKeys, Part, Role, SpecialTokens,
    TokenizeOptions, Tokenizer, TokenizerError, UserText, conversation_from_json,
};
use proptest::prelude::*;
use serde_json::Value;

const MODES: [UserText; 2] = [UserText::Escape, UserText::Verbatim];

/// The published ids, which [`ImageTokens::of`] finds in the real vocabulary.
const PUBLISHED: ImageTokens =
    ImageTokens { start_of_image: 255_999, soft_token: 262_144, end_of_image: 256_000, count: 256 };

fn real() -> Option<Tokenizer> {
    let tokenizer = real_tokenizer()?;
    if tokenizer.is_known(PUBLISHED.soft_token) {
        assert_eq!(ImageTokens::of(&tokenizer, 256).expect("a multimodal vocabulary"), PUBLISHED);
    }
    Some(tokenizer)
}

/// The ids of a list of `[id, how many]`.
fn expand(run_lengths: &Value) -> Vec<u32> {
    let runs: Vec<(u32, usize)> = serde_json::from_value(run_lengths.clone()).expect("run lengths");
    runs.into_iter().flat_map(|(id, count)| std::iter::repeat_n(id, count)).collect()
}

/// How many crops the images of a case of processor.json have.
fn crops(case: &Value, images: &Value) -> Vec<usize> {
    let is_cropped = case["do_pan_and_scan"] == true;
    let crops_of = |file: &Value| {
        let num_crops = &images["pan_and_scan"][file.as_str().expect("a file name")]["num_crops"];
        if is_cropped { num_crops.as_u64().unwrap_or(0) as usize } else { 0 }
    };
    let crops: Vec<usize> = list(case, "images").iter().map(crops_of).collect();
    if let Some(views) = case["pixel_values_shape"][0].as_u64() {
        assert_eq!(crops.len() + crops.iter().sum::<usize>(), views as usize, "views of {case}");
    }
    crops
}

#[test]
fn every_prompt_of_the_processor_has_the_ids_of_the_reference() {
    let (Some(golden), Some(images), Some(tokenizer)) =
        (golden_json("processor.json"), golden_json("images.json"), real())
    else {
        return;
    };
    for case in golden.as_array().expect("processor.json is a list") {
        let (input, crops) = (text(case, "text"), crops(case, &images));
        let images = Images { tokens: PUBLISHED, crops: &crops };
        let encoded = tokenizer.encode_with_images(input, TokenizeOptions::default(), images);
        if case.get("error").is_none() {
            assert_eq!(encoded.expect("a valid case"), expand(&case["input_ids_rle"]), "ids of {input:?}");
            continue;
        }
        let Err(TokenizerError::ImageCount { placeholders, images }) = encoded else {
            panic!("expected an error for {input:?}, found {encoded:?}");
        };
        let message = format!("Found total {placeholders} <start_of_image> tokens and {images} images.");
        assert!(text(case, "error").ends_with(&message), "{message} for {case}");
    }
}

#[test]
fn every_chat_with_images_has_the_ids_of_the_reference() {
    let (Some(golden), Some(tokenizer)) = (golden_json("chat.json"), real()) else {
        return;
    };
    let cases = golden.as_array().expect("chat.json is a list").iter();
    let mut checked = 0;
    for case in cases.filter(|case| case.get("ids_with_256_soft_tokens_rle").is_some()) {
        let messages = conversation_from_json(&case["messages"], NullKeys::Keep).expect("a valid case");
        let crops = vec![0; messages.iter().map(Message::images).sum()];
        let images = Images { tokens: PUBLISHED, crops: &crops };
        let prompt = case["add_generation_prompt"].as_bool().unwrap_or(false);
        for mode in MODES {
            let ids = ChatTemplate::encode_with_images(&tokenizer, &messages, prompt, mode, images);
            let expected = expand(&case["ids_with_256_soft_tokens_rle"]);
            assert_eq!(ids.expect("a valid case"), expected, "{mode:?} ids of {case}");
        }
        checked += 1;
    }
    println!("{checked} cases checked");
}

/// The text that the processor of the reference makes, whole.
fn processor_text(text: &str, tokens: ImageTokens, crops: &[usize]) -> String {
    let view = format!("\n\n<start_of_image>{}<end_of_image>\n\n", "<image_soft_token>".repeat(tokens.count));
    let mut crops = crops.iter();
    let mut expanded = String::new();
    for (index, between) in text.split("<start_of_image>").enumerate() {
        if index > 0 {
            expanded += &match crops.next().expect("an image for each placeholder") {
                0 => view.clone(),
                &crops => format!(
                    "Here is the original image {view} and here are some crops to help you see better {}",
                    vec![view.as_str(); crops].join(" ")
                ),
            };
        }
        expanded += between;
    }
    expanded
}

fn miniature() -> (Tokenizer, ImageTokens) {
    let file = workspace().join("tests/fixtures/tiny-multimodal/tokenizer.json");
    let tokenizer = Tokenizer::from_file(file).expect("it loads");
    let tokens = ImageTokens::of(&tokenizer, 4).expect("a multimodal vocabulary");
    (tokenizer, tokens)
}

#[test]
fn the_miniature_prompts_are_laid_out_as_in_the_reference() {
    let Some(golden) = golden_json("tiny-multimodal.json") else {
        return;
    };
    let (tokenizer, tokens) = miniature();
    let published = [&golden["ids"]["boi"], &golden["ids"]["image"], &golden["ids"]["eoi"]];
    assert_eq!(
        published.map(Value::as_u64),
        [tokens.start_of_image, tokens.soft_token, tokens.end_of_image].map(|id| Some(u64::from(id)))
    );
    assert_eq!(golden["mm_tokens_per_image"], tokens.count);

    let encode = |text: &str, bos, crops: &[usize]| {
        let options = TokenizeOptions { bos, ..TokenizeOptions::default() };
        tokenizer.encode_with_images(text, options, Images { tokens, crops }).expect("encoding succeeds")
    };
    // The texts of the cases are random bytes, which no text encodes to; the views are not.
    let view = encode("<start_of_image>", Bos::None, &[0]);
    for (name, case) in golden["cases"].as_object().expect("cases have names") {
        let views = ids(&case["input_ids"]).windows(view.len()).filter(|ids| *ids == view).count();
        assert_eq!(views, list(case, "images").len(), "views of {name}");
    }
    let begins_with = |name: &str, start: &[u32]| {
        let input = ids(&golden["cases"][name]["input_ids"]);
        assert!(input.starts_with(start), "{name} has {input:?}, expected {start:?}");
    };
    begins_with("image_first", &encode("<start_of_image>", Bos::Add, &[0]));
    begins_with("adjacent_images", &encode("<start_of_image><start_of_image>", Bos::Add, &[0, 0]));
}

#[test]
fn newlines_around_images_merge_with_their_neighbours() {
    let (tokenizer, tokens) = miniature();
    let newlines = |messages: &[Message], crops: &[usize]| {
        let images = Images { tokens, crops };
        MODES.map(|mode| {
            let ids = ChatTemplate::encode_with_images(&tokenizer, messages, false, mode, images);
            let ids = ids.expect("encoding succeeds");
            // 6 is one newline, 7 is two.
            ids.into_iter().filter(|id| [6, 7, tokens.start_of_image].contains(id)).collect::<Vec<u32>>()
        })
    };
    let two = [Message::new(Role::User, [Part::Image, Part::Image])];
    // The role's newline and two of the image are three: two and one, not one and two.
    let expected = vec![7, 6, tokens.start_of_image, 7, 7, tokens.start_of_image, 7, 6];
    assert_eq!(newlines(&two, &[0, 0]), [expected.clone(), expected]);

    let Some(tokenizer) = real() else {
        return;
    };
    let images = Images { tokens: PUBLISHED, crops: &[0, 0] };
    for mode in MODES {
        let ids = ChatTemplate::encode_with_images(&tokenizer, &two, false, mode, images);
        let mut ids = ids.expect("encoding succeeds");
        ids.retain(|&id| id != PUBLISHED.soft_token);
        let four_newlines = 110;
        assert_eq!(
            ids,
            [2, 105, 2364, 109, 255_999, 256_000, four_newlines, 255_999, 256_000, 108, 106, 107]
        );
    }
}

#[test]
fn an_image_that_a_user_types_is_characters_unless_asked_for() {
    let (tokenizer, tokens) = miniature();
    let typed = "<start_of_image><image_soft_token><end_of_image>";
    let messages = [Message::user(typed)];
    let encode = |mode, crops: &[usize]| {
        let images = Images { tokens, crops };
        ChatTemplate::encode_with_images(&tokenizer, &messages, true, mode, images)
    };
    let escaped = encode(UserText::Escape, &[]).expect("encoding succeeds");
    assert!(!escaped.iter().any(|id| [388, 389, 390].contains(id)), "{escaped:?}");
    assert!(tokenizer.decode(&escaped, true).expect("decoding succeeds").contains(typed));

    let soft_tokens = |ids: Vec<u32>| ids.iter().filter(|&&id| id == tokens.soft_token).count();
    assert_eq!(soft_tokens(encode(UserText::Verbatim, &[0]).expect("encoding succeeds")), 5);

    let options = TokenizeOptions { bos: Bos::None, special_tokens: SpecialTokens::Escape };
    let none = Images { tokens, crops: &[] };
    let escaped = tokenizer.encode_with_images(typed, options, none).expect("encoding succeeds");
    assert_eq!(escaped, tokenizer.encode_with(typed, options).expect("encoding succeeds"));
}

#[test]
fn a_typed_image_beside_a_real_one_stays_characters() {
    let (tokenizer, tokens) = miniature();
    let messages = [Message::new(Role::User, ["<start_of_image>".into(), Part::Image])];
    let images = Images { tokens, crops: &[0] };
    let ids = ChatTemplate::encode_with_images(&tokenizer, &messages, true, UserText::Escape, images);
    let ids = ids.expect("encoding succeeds");
    assert_eq!(ids.iter().filter(|&&id| id == tokens.start_of_image).count(), 1);
    let verbatim = ChatTemplate::encode_with_images(&tokenizer, &messages, true, UserText::Verbatim, images);
    assert!(matches!(
        verbatim,
        Err(ChatError::Tokenizer(TokenizerError::ImageCount { placeholders: 2, images: 1 }))
    ));
}

#[test]
fn an_image_too_many_or_too_few_is_an_error_that_counts_them() {
    let (tokenizer, tokens) = miniature();
    let message = Message::new(Role::User, [Part::Image, Part::Image]);
    let messages = [message.clone()];
    for mode in MODES {
        let encode = |crops: &[usize]| {
            let images = Images { tokens, crops };
            let whole = ChatTemplate::encode_with_images(&tokenizer, &messages, true, mode, images);
            let next =
                ChatTemplate::encode_next_turn_with_images(&tokenizer, &message, Answer::Open, mode, images);
            [whole, next].map(|encoded| encoded.expect_err("the number is wrong").to_string())
        };
        let few = "the prompt has 2 <start_of_image> placeholders, but 1 image was given";
        let many = "the prompt has 2 <start_of_image> placeholders, but 3 images were given";
        for error in encode(&[0]) {
            assert!(error.starts_with(few), "{error}");
        }
        for error in encode(&[0, 0, 0]) {
            assert!(error.starts_with(many), "{error}");
        }
    }
    let escape = TokenizeOptions { bos: Bos::Add, special_tokens: SpecialTokens::Escape };
    let one = Images { tokens, crops: &[0] };
    let encoded = tokenizer.encode_with_images("<start_of_image>", escape, one);
    assert!(matches!(encoded, Err(TokenizerError::ImageCount { placeholders: 0, images: 1 })));
}

#[test]
fn more_soft_tokens_than_memory_are_an_error() {
    let (tokenizer, tokens) = miniature();
    for (count, crops) in [(usize::MAX, 0), (usize::MAX / 4, 0), (4, usize::MAX), (4, usize::MAX / 8)] {
        let images = Images { tokens: ImageTokens { count, ..tokens }, crops: &[crops] };
        let encoded = tokenizer.encode_with_images("<start_of_image>", TokenizeOptions::default(), images);
        assert!(matches!(encoded, Err(TokenizerError::ImagesTooLarge { images: 1, .. })));
    }
}

#[test]
fn the_ids_of_images_need_not_be_in_the_vocabulary() {
    let tokenizer = tiny();
    assert!(matches!(ImageTokens::of(&tokenizer, 4), Err(TokenizerError::MissingToken { .. })));
    let tokens = ImageTokens { start_of_image: 1001, soft_token: 1002, end_of_image: 1003, count: 2 };
    let images = Images { tokens, crops: &[0] };
    let encoded = tokenizer.encode_with_images(
        "<start_of_image>",
        TokenizeOptions { bos: Bos::None, ..TokenizeOptions::default() },
        images,
    );
    let mut ids = encoded.expect("encoding succeeds");
    ids.retain(|&id| id > 1000);
    assert_eq!(ids, [1001, 1002, 1002, 1003]);
}

#[test]
fn bos_is_added_as_often_as_asked_for() {
    let (tokenizer, tokens) = miniature();
    let images = Images { tokens, crops: &[0] };
    let count = |text, bos| {
        let options = TokenizeOptions { bos, special_tokens: SpecialTokens::Parse };
        let ids = tokenizer.encode_with_images(text, options, images).expect("encoding succeeds");
        ids.iter().filter(|&&id| Some(id) == tokenizer.bos_id()).count()
    };
    for (text, expected) in [("the<start_of_image>", [1, 1, 0]), ("<bos><start_of_image>", [2, 1, 1])] {
        assert_eq!([Bos::Add, Bos::Once, Bos::None].map(|bos| count(text, bos)), expected, "{text}");
    }
}

#[test]
fn without_images_an_image_part_stays_a_bare_token() {
    let (tokenizer, tokens) = miniature();
    let messages = [Message::new(Role::User, ["the".into(), Part::Image])];
    for mode in MODES {
        let ids = ChatTemplate::encode(&tokenizer, &messages, false, mode).expect("encoding succeeds");
        assert!(ids.contains(&tokens.start_of_image));
        assert!(!ids.contains(&tokens.soft_token) && !ids.contains(&tokens.end_of_image));
    }
}

fn question() -> impl Strategy<Value = Vec<Part>> {
    let text = prop_oneof!["[a-z \n]{0,8}", Just("the\n\n".to_owned()), Just("\u{1c}é\t".to_owned())];
    let part = prop_oneof![Just(Part::Image), text.prop_map(Part::Text)];
    prop::collection::vec(part, 0..5)
}

/// Pan-and-scan crops for the images of a message.
fn crops_for(content: &[Part], crops: [usize; 5]) -> Vec<usize> {
    let images = content.iter().filter(|part| **part == Part::Image);
    images.zip(crops).map(|(_, crops)| crops).collect()
}

/// Both modes, in one go and turn by turn, equal the processor's text, encoded as a whole.
fn check_conversation(
    tokenizer: &Tokenizer,
    tokens: ImageTokens,
    questions: [Vec<Part>; 2],
    crops: [usize; 5],
) -> Result<(), TestCaseError> {
    let crops = questions.each_ref().map(|question| crops_for(question, crops));
    let all_crops = crops.concat();
    let [first, second] = questions.map(|question| Message::new(Role::User, question));
    let messages = [first.clone(), Message::model("the inn"), second.clone()];

    let rendered = ChatTemplate::render(&messages, true).expect("the roles alternate");
    let expected = tokenizer.encode(&processor_text(&rendered, tokens, &all_crops), Bos::None);
    let expected = expected.expect("encoding succeeds");
    for mode in MODES {
        let images = Images { tokens, crops: &all_crops };
        let whole = ChatTemplate::encode_with_images(tokenizer, &messages, true, mode, images);
        prop_assert_eq!(&whole.expect("encoding succeeds"), &expected);

        let images = Images { tokens, crops: &crops[0] };
        let start =
            ChatTemplate::encode_with_images(tokenizer, std::slice::from_ref(&first), true, mode, images);
        let mut ids = start.expect("encoding succeeds");
        ids.extend(tokenizer.encode("the inn", Bos::None).expect("encoding succeeds"));
        let images = Images { tokens, crops: &crops[1] };
        let next = ChatTemplate::encode_next_turn_with_images(tokenizer, &second, Answer::Open, mode, images);
        ids.extend(next.expect("encoding succeeds"));
        prop_assert_eq!(&ids, &expected);
    }
    Ok(())
}

proptest! {
    #[test]
    fn conversations_with_images_equal_the_text_of_the_processor(
        questions in [question(), question()],
        crops in prop::array::uniform5(0_usize..3),
    ) {
        let (tokenizer, tokens) = miniature();
        check_conversation(&tokenizer, tokens, questions, crops)?;
    }
}

#[test]
fn conversations_with_images_equal_the_text_of_the_processor_in_the_real_vocabulary_too() {
    let Some(tokenizer) = real() else {
        return;
    };
    // Text-only vocabularies cannot encode the processor's text.
    let Ok(tokens) = ImageTokens::of(&tokenizer, 3) else {
        return println!("skipped: the vocabulary has no image tokens");
    };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = ([question(), question()], prop::array::uniform5(0_usize..3));
    runner
        .run(&strategy, |(questions, crops)| check_conversation(&tokenizer, tokens, questions, crops))
        .unwrap();
}
