//! Images in prompts and conversations, on the tiny checkpoint that sees.

#[path = "../gemma3-core/tests/build_gguf/mod.rs"]
mod build_gguf;
#[path = "../gemma3-core/tests/common/mod.rs"]
mod common;

use build_gguf::{GgufBuilder, f32_value, string_value, u32_value};
use gemma3::core::checkpoint::{Checkpoint, TextTensor};
use gemma3::vision::weights::{EncoderTensor, VisionTensor};
use gemma3::vision::{VisionError, VisionWeights};
use gemma3::{
    Alpha, CacheOptions, CancelHandle, EncodeOptions, EncodedImage, Error, Gemma3, GenerateOptions, Image,
    LoadOptions, Message, PanAndScan, Part, Question, SessionOptions, WhenFull,
};

fn tiny() -> Option<Gemma3> {
    let folder = common::golden("tiny-multimodal")?;
    let (_, device) = common::devices().swap_remove(0);
    Some(Gemma3::loader(folder).device(&device).options(common::exact()).load().expect("the tiny model"))
}

fn text_only() -> Option<Gemma3> {
    let folder = common::golden("tiny-text")?;
    let (_, device) = common::devices().swap_remove(0);
    Some(Gemma3::loader(folder).device(&device).options(common::exact()).load().expect("the tiny text model"))
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens: Some(max_new_tokens), ..GenerateOptions::greedy() }
}

fn context(capacity: usize) -> SessionOptions {
    SessionOptions {
        cache: CacheOptions { capacity: Some(capacity), chunk: 16, ..CacheOptions::default() },
        sequence: 0,
    }
}

/// A picture that differs with its seed.
fn picture(width: u32, height: u32, seed: u32) -> Image {
    let value = |i: u32| ((i / 3 % width * (3 + seed) + i / 3 / width * 5 + i % 3 * 70 * seed) % 256) as u8;
    let pixels: Vec<u8> = (0..width * height * 3).map(value).collect();
    Image::from_rgb8(width, height, pixels).expect("a picture")
}

fn encode(gemma: &Gemma3, image: &Image) -> EncodedImage {
    gemma.encode_image(image, &EncodeOptions::default()).expect("soft tokens")
}

/// The vectors of all views.
fn vectors(image: &EncodedImage) -> Vec<f32> {
    let values = |view: &gemma3::vision::SoftTokens| view.to_vec().expect("soft tokens");
    image.views().iter().flat_map(values).collect()
}

fn ids_of(generation: &gemma3::Generation) -> Vec<u32> {
    generation.tokens.iter().map(|token| token.id).collect()
}

#[test]
fn a_file_its_bytes_and_its_pixels_are_the_same_image() {
    let (Some(gemma), Some(path)) = (tiny(), common::golden("images/rgb_137x91.png")) else { return };
    let file = Image::open(&path).expect("an image");
    let bytes = Image::decode(&std::fs::read(&path).expect("bytes")).expect("an image");
    let (width, height) = (file.width(), file.height());
    let pixels = Image::from_rgb8(width, height, file.pixels().to_vec()).expect("an image");
    let with_alpha: Vec<u8> = file.pixels().chunks(3).flat_map(|rgb| [rgb[0], rgb[1], rgb[2], 9]).collect();
    let rgba = Image::from_rgba8(width, height, &with_alpha, Alpha::Drop).expect("an image");
    let expected = vectors(&encode(&gemma, &file));
    assert_eq!(expected.len(), 4 * 64);
    for same in [bytes, pixels, rgba] {
        assert_eq!(vectors(&encode(&gemma, &same)), expected);
    }
    let on_white = Image::from_rgba8(width, height, &with_alpha, Alpha::ON_WHITE).expect("an image");
    assert_ne!(vectors(&encode(&gemma, &on_white)), expected);
}

#[test]
fn images_stand_anywhere_in_a_question() {
    let Some(gemma) = tiny() else { return };
    let (first, second) = (picture(60, 50, 1), picture(40, 70, 2));
    let mut chat = gemma.chat().options(greedy(6)).session(context(300)).start().expect("a chat");
    let question =
        Question::new().text("compare").image(&first).text("with").image(encode(&gemma, &second)).text("now");
    let answer = chat.answer(question).expect("an answer");
    let ids = chat.tokens().ids();
    let prompt = &ids[..answer.prompt_tokens];
    let tokens = gemma.model().config().image_tokens.expect("image tokens");
    let image = [vec![tokens.boi], vec![tokens.image; 4], vec![tokens.eoi]].concat();
    let starts: Vec<usize> = (0..prompt.len()).filter(|start| prompt[*start..].starts_with(&image)).collect();
    assert_eq!(starts.len(), 2);
    let decode = |ids: &[u32]| gemma.tokenizer().decode(ids, true).expect("text");
    assert_eq!(decode(&prompt[..starts[0]]), "user\ncompare\n\n");
    assert_eq!(decode(&prompt[starts[0] + 6..starts[1]]), "\n\nwith\n\n");
    assert_eq!(decode(&prompt[starts[1] + 6..]), "\n\nnow\nmodel\n");
    let sizes: Vec<_> = chat.images().map(|image| (image.width(), image.height())).collect();
    assert_eq!(sizes, [(60, 50), (40, 70)]);
    let last = chat.messages().next().expect("a question");
    assert_eq!(last.images(), 2);
}

#[test]
fn a_conversation_with_images_equals_one_that_starts_anew() {
    let Some(gemma) = tiny() else { return };
    let start = || gemma.chat().options(greedy(7)).session(context(400)).start().expect("a chat");
    let mut chat = start();
    let images = [encode(&gemma, &picture(60, 50, 1)), encode(&gemma, &picture(60, 50, 2))];
    let (mut messages, mut shown) = (Vec::new(), Vec::new());
    for (turn, image) in images.iter().enumerate() {
        let computed = chat.tokens().computed();
        let answer =
            chat.answer(Question::new().image(image).text(format!("question {turn}"))).expect("an answer");
        assert!(chat.tokens().computed() > computed);
        messages.push(Message::user("").with(Part::Image).with(Part::Text(format!("question {turn}"))));
        shown.push(image.clone());
        if turn == 0 {
            // The model's own spelling of its first answer may differ from its text's; compare there only.
            let fresh = gemma.respond_with_images(&[messages.clone()], &[shown.clone()], &greedy(7));
            assert_eq!(ids_of(&fresh.expect("an answer")[0]), ids_of(&answer));
        }
        // All tokens of the conversation at once, with the images in their places.
        let prompt = &chat.tokens().ids()[..answer.prompt_tokens];
        let views: Vec<_> = shown.iter().flat_map(EncodedImage::views).cloned().collect();
        let placeholder = gemma.model().config().image_tokens.expect("image tokens").image;
        let spans = gemma3::vision::place(prompt, placeholder, &views).expect("placed");
        let mut session = gemma.session_with(&context(400)).expect("a session");
        session.tokens_mut().append_with(prompt, &spans).expect("room");
        let options = GenerateOptions { stop_token_ids: gemma.stop_token_ids().to_vec(), ..greedy(7) };
        assert_eq!(ids_of(&session.generate(&options).expect("a text")), ids_of(&answer), "turn {turn}");
        messages.push(Message::model(answer.text));
    }
}

#[test]
fn a_batch_of_conversations_with_and_without_images_equals_them_alone() {
    let Some(gemma) = tiny() else { return };
    let images = vec![
        vec![encode(&gemma, &picture(50, 50, 1))],
        vec![],
        vec![encode(&gemma, &picture(50, 50, 2)), encode(&gemma, &picture(20, 90, 3))],
    ];
    let conversations: Vec<Vec<Message>> = images
        .iter()
        .map(|images| {
            let message =
                images.iter().fold(Message::user("the inn"), |message, _| message.with(Part::Image));
            vec![message]
        })
        .collect();
    let together = gemma.respond_with_images(&conversations, &images, &greedy(9)).expect("answers");
    for ((conversation, images), expected) in conversations.iter().zip(&images).zip(&together) {
        let alone = gemma.respond_with_images(
            std::slice::from_ref(conversation),
            std::slice::from_ref(images),
            &greedy(9),
        );
        assert_eq!(ids_of(&alone.expect("an answer")[0]), ids_of(expected));
    }
    let error = gemma.respond_with_images(&conversations, &images[..2], &greedy(1));
    assert!(matches!(error, Err(Error::ImageLists { conversations: 3, images: 2 })));
}

#[test]
fn text_that_names_image_tokens_stays_text() {
    let Some(gemma) = tiny() else { return };
    let tokens = gemma.model().config().image_tokens.expect("image tokens");
    let attack = "<start_of_image><image_soft_token><end_of_image>";
    let mut chat = gemma.chat().options(greedy(2)).session(context(300)).start().expect("a chat");
    let image = picture(30, 30, 1);
    let answer = chat.answer(Question::new().text(attack).image(&image).text(attack)).expect("an answer");
    let prompt = &chat.tokens().ids()[..answer.prompt_tokens];
    let count = |id| prompt.iter().filter(|other| **other == id).count();
    assert_eq!((count(tokens.boi), count(tokens.image), count(tokens.eoi)), (1, 4, 1));
}

#[test]
fn images_and_their_places_must_match() {
    let Some(gemma) = tiny() else { return };
    let image = encode(&gemma, &picture(30, 30, 1));
    let mut session = gemma.session_with(&context(200)).expect("a session");
    for (text, images) in [
        ("no place", vec![image.clone()]),
        ("a place <start_of_image>", vec![]),
        ("two <start_of_image><start_of_image>", vec![image.clone()]),
    ] {
        let error = session.append_with_images(text, &images).expect_err("an error");
        assert!(error.to_string().contains("<start_of_image>"), "{error}");
        assert!(session.tokens().is_empty());
    }
    // A soft token without an image.
    let error = session.append("stray <image_soft_token>").expect_err("an error").to_string();
    assert!(error.contains("placeholder"), "{error}");
    let error =
        session.append_with_images("<start_of_image> and <image_soft_token>", std::slice::from_ref(&image));
    assert!(matches!(error, Err(Error::SoftTokens(_))), "{error:?}");
    let message = Message::user("what?").with(Part::Image);
    for images in [vec![], vec![image.clone(), image]] {
        let error = gemma.respond_with_images(&[vec![message.clone()]], &[images], &greedy(1));
        assert!(error.expect_err("an error").to_string().contains("<start_of_image>"));
    }
    assert!(gemma.respond(&[vec![message]], &greedy(1)).is_err());
}

#[test]
fn a_text_only_model_refuses_images_and_says_what_sees() {
    let (Some(blind), Some(gemma)) = (text_only(), tiny()) else { return };
    let image = picture(30, 30, 1);
    assert!(blind.vision().is_none());
    let errors = [
        blind.encode_image(&image, &EncodeOptions::default()).map(|_| ()).expect_err("an error"),
        blind.image_cache(1 << 20).map(|_| ()).expect_err("an error"),
        blind
            .session()
            .expect("a session")
            .append_with_images("x", &[encode(&gemma, &image)])
            .expect_err("an error"),
        blind
            .chat()
            .start()
            .expect("a chat")
            .answer(Question::new().image(&image))
            .map(|_| ())
            .expect_err("an error"),
        blind
            .respond(&[vec![Message::user("x").with(Part::Image)]], &greedy(1))
            .map(|_| ())
            .expect_err("an error"),
    ];
    for error in errors {
        assert!(matches!(error, Error::ImagesUnsupported), "{error}");
        assert!(error.to_string().contains("mmproj"), "{error}");
    }
}

#[test]
fn pan_and_scan_shows_crops_and_reports_them() {
    let (Some(gemma), Some(path)) = (tiny(), common::golden("images/wide_1100x300.jpg")) else { return };
    let image = Image::open(path).expect("an image");
    let plain = encode(&gemma, &image);
    assert_eq!((plain.crops().len(), plain.views().len(), plain.soft_token_count()), (0, 1, 4));
    let options = EncodeOptions { pan_and_scan: Some(PanAndScan::default()), ..EncodeOptions::default() };
    let encoded = gemma.encode_image(&image, &options).expect("soft tokens");
    assert_eq!((encoded.crops().len(), encoded.views().len(), encoded.soft_token_count()), (4, 5, 20));
    let xs: Vec<u32> = encoded.crops().iter().map(|crop| crop.x).collect();
    assert_eq!(xs, [0, 275, 550, 825]);
    // The whole image is the first view, and each crop what encoding it alone gives.
    common::assert_close("the whole", &vectors(&encoded)[..256], &vectors(&plain), 2e-5);
    let crop = image.crop(encoded.crops()[2]).expect("a crop");
    common::assert_close(
        "a crop",
        &vectors(&encoded)[3 * 256..4 * 256],
        &vectors(&encode(&gemma, &crop)),
        2e-5,
    );

    let mut session = gemma.session_with(&context(300)).expect("a session");
    session.append_with_images("<start_of_image> so?", std::slice::from_ref(&encoded)).expect("room");
    let text = gemma.tokenizer().decode(session.tokens().ids(), true).expect("text");
    assert!(text.starts_with("Here is the original image \n\n"), "{text}");
    assert!(text.contains("and here are some crops to help you see better"), "{text}");
    session.generate(&greedy(3)).expect("a text");
    // Crops within a bound of memory that takes one view at a time.
    let frugal = EncodeOptions { working_bytes: 0, ..options };
    let one_by_one = gemma.encode_image(&image, &frugal).expect("soft tokens");
    common::assert_close("one by one", &vectors(&one_by_one), &vectors(&encoded), 2e-5);

    let mut chat =
        gemma.chat().options(greedy(2)).images(frugal).session(context(300)).start().expect("a chat");
    chat.answer(Question::new().image(&image)).expect("an answer");
    assert_eq!(chat.images().next().expect("an image").crops().len(), 4);
}

#[test]
fn a_cache_knows_images_by_their_pixels_and_settings() {
    let Some(gemma) = tiny() else { return };
    let one = encode(&gemma, &picture(30, 30, 1)).bytes();
    let cache = gemma.image_cache(3 * one).expect("a cache");
    let plain = EncodeOptions::default();
    let encode = |image: &Image, options: &EncodeOptions| {
        cache.encode(std::slice::from_ref(image), options).expect("soft tokens").remove(0)
    };
    let first = encode(&picture(30, 30, 1), &plain);
    assert_eq!((cache.len(), cache.bytes()), (1, one));
    // Another object with the same pixels.
    assert_eq!(vectors(&encode(&picture(30, 30, 1), &plain)), vectors(&first));
    assert_eq!(cache.len(), 1);
    // The same bytes in another shape, and the same image with other settings, are other entries.
    let pixels = picture(30, 30, 1).pixels().to_vec();
    encode(&Image::from_rgb8(15, 60, pixels).expect("an image"), &plain);
    assert_eq!(cache.len(), 2);
    encode(
        &picture(30, 30, 1),
        &EncodeOptions { pan_and_scan: Some(PanAndScan::default()), ..plain.clone() },
    );
    assert_eq!(cache.len(), 3);
    // Full: what was unused for longest goes.
    encode(&picture(30, 30, 1), &plain);
    encode(&picture(30, 30, 2), &plain);
    assert_eq!((cache.len(), cache.bytes()), (3, 3 * one));
    // Several at once, one of them twice: in order, encoded once.
    cache.clear();
    assert!(cache.is_empty());
    let images = [picture(30, 30, 2), picture(30, 30, 1), picture(30, 30, 2)];
    let encoded = cache.encode(&images, &plain).expect("soft tokens");
    assert_eq!(cache.len(), 2);
    assert_eq!(vectors(&encoded[0]), vectors(&encoded[2]));
    common::assert_close("the same", &vectors(&encoded[1]), &vectors(&first), 2e-5);
    // What is larger than the whole cache is encoded and not kept.
    let small = gemma.image_cache(one - 1).expect("a cache");
    small.encode(&images[..1], &plain).expect("soft tokens");
    assert!(small.is_empty());

    let mut chat = gemma.chat().options(greedy(2)).image_cache(cache.clone()).start().expect("a chat");
    chat.answer(Question::new().image(picture(9, 9, 5))).expect("an answer");
    assert_eq!(cache.len(), 3);
}

#[test]
fn a_full_context_drops_old_turns_with_their_images() {
    let Some(gemma) = tiny() else { return };
    let builder = gemma.chat().options(greedy(5)).session(context(160)).when_full(WhenFull::DropOldest);
    let mut chat = builder.start().expect("a chat");
    for turn in 0..8 {
        let question = Question::new().image(picture(30, 30, turn)).text("what is it?");
        chat.answer(question).expect("an answer");
        let placeholders: usize = chat.messages().map(Message::images).sum();
        assert_eq!(placeholders, chat.images().count());
        assert!(chat.tokens().len() <= 160);
    }
    assert!(chat.messages().count() < 16, "old turns are gone");
    assert!(chat.images().count() >= 1);
}

#[test]
fn a_cancelled_encoding_leaves_the_conversation_as_it_was() {
    let Some(gemma) = tiny() else { return };
    let mut chat = gemma.chat().options(greedy(2)).start().expect("a chat");
    let cancel = CancelHandle::new();
    cancel.cancel();
    let question = Question::new().image(picture(30, 30, 1));
    let error = chat.ask_with(question.clone(), cancel).map(|_| ()).expect_err("an error");
    assert!(matches!(error, Error::Vision(VisionError::Cancelled)), "{error}");
    assert_eq!((chat.messages().count(), chat.tokens().len()), (0, 0));
    chat.answer(question).expect("an answer");
}

/// The tiny checkpoint as two GGUF files, language model and image encoder, with its tokenizer beside.
fn gguf_pair(folder: &std::path::Path) -> Option<(std::path::PathBuf, std::path::PathBuf)> {
    let source = common::golden("tiny-multimodal")?;
    let checkpoint = Checkpoint::open(&source).expect("the tiny checkpoint");
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let config = &checkpoint.config().text;
    let mut text = build_gguf::model(config);
    (text.tensors, text.data) = (Vec::new(), Vec::new());
    text = text
        .set("gemma3.rope.scaling.type", string_value("linear"))
        .set("gemma3.rope.scaling.factor", f32_value(8.0));
    for tensor in TextTensor::all(config) {
        let view = checkpoint.tensor(tensor).expect("a tensor");
        let mut values = floats(&view.bytes);
        if tensor.is_norm() {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        text = text.tensor_of(&build_gguf::gguf_name(tensor), &view.shape, &values);
    }
    let weights = VisionWeights::in_checkpoint(&checkpoint).expect("an encoder");
    let vision = weights.config();
    let number = |n: usize| u32_value(n as u32);
    let mut mmproj = GgufBuilder::default()
        .set("general.architecture", string_value("clip"))
        .set("clip.vision.projector_type", string_value("gemma3"))
        .set("clip.vision.embedding_length", number(vision.hidden_size))
        .set("clip.vision.feed_forward_length", number(vision.intermediate_size))
        .set("clip.vision.block_count", number(vision.num_hidden_layers))
        .set("clip.vision.attention.head_count", number(vision.num_attention_heads))
        .set("clip.vision.image_size", number(vision.image_size))
        .set("clip.vision.patch_size", number(vision.patch_size))
        .set("clip.vision.projector.scale_factor", u32_value(2));
    for tensor in VisionTensor::all(vision) {
        let view = weights.tensor(tensor).expect("a tensor");
        let mut values = floats(&view.bytes);
        if tensor == VisionTensor::SoftEmbNorm {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        mmproj = mmproj.tensor_of(&mmproj_name(tensor), &view.shape, &values);
    }
    let (text_path, mmproj_path) = (folder.join("tiny.gguf"), folder.join("mmproj.gguf"));
    std::fs::write(&text_path, text.build()).expect("a file");
    std::fs::write(&mmproj_path, mmproj.build()).expect("a file");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(source.join(name), folder.join(name)).expect("a copy");
    }
    Some((text_path, mmproj_path))
}

fn mmproj_name(tensor: VisionTensor) -> String {
    use gemma3::vision::weights::Parameter::Weight;
    let of =
        |name: &str, parameter| format!("{name}.{}", if parameter == Weight { "weight" } else { "bias" });
    match tensor {
        VisionTensor::PatchEmbedding(p) => of("v.patch_embd", p),
        VisionTensor::PositionEmbedding => "v.position_embd.weight".to_owned(),
        VisionTensor::PostLayernorm(p) => of("v.post_ln", p),
        VisionTensor::SoftEmbNorm => "mm.soft_emb_norm.weight".to_owned(),
        VisionTensor::InputProjection => "mm.input_projection.weight".to_owned(),
        VisionTensor::Layer(layer, tensor, p) => {
            let name = match tensor {
                EncoderTensor::LayerNorm1 => "ln1",
                EncoderTensor::QProj => "attn_q",
                EncoderTensor::KProj => "attn_k",
                EncoderTensor::VProj => "attn_v",
                EncoderTensor::OutProj => "attn_out",
                EncoderTensor::LayerNorm2 => "ln2",
                EncoderTensor::Fc1 => "ffn_up",
                EncoderTensor::Fc2 => "ffn_down",
            };
            of(&format!("v.blk.{layer}.{name}"), p)
        }
    }
}

#[test]
fn a_gguf_file_sees_with_its_mmproj_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (Some(gemma), Some((text, mmproj))) = (tiny(), gguf_pair(folder.path())) else { return };
    let (_, device) = common::devices().swap_remove(0);
    let mut reported = Vec::new();
    let mut progress = |progress: gemma3::LoadProgress| reported.push(progress);
    let options = LoadOptions { progress: Some(&mut progress), ..common::exact() };
    // The encoder is made for 56 pixels a side; the tiny folder says so, GGUF files carry it themselves and need no
    // neighbour for it.
    std::fs::write(folder.path().join("preprocessor_config.json"), "{").expect("a file");
    std::fs::write(folder.path().join("processor_config.json"), "{").expect("a file");
    let pair =
        Gemma3::loader(&text).mmproj(&mmproj).device(&device).options(options).load().expect("two files");
    let last = reported.last().expect("progress");
    assert_eq!(last.loaded_bytes, last.total_bytes);
    assert!(reported.windows(2).all(|pair| pair[0].loaded_bytes < pair[1].loaded_bytes));
    let image = picture(77, 44, 3);
    common::assert_close(
        "soft tokens",
        &vectors(&encode(&pair, &image)),
        &vectors(&encode(&gemma, &image)),
        1e-5, // 1 + w of the norm went through a file: one rounding, and what follows from it.
    );
    assert_eq!(pair.model().config().image_tokens, gemma.model().config().image_tokens);
    let mut chat = pair.chat().options(greedy(4)).start().expect("a chat");
    chat.answer(Question::new().image(&image).text("what?")).expect("an answer");
    // Without it, it is a text model; with something else, an error.
    let alone = Gemma3::load(&text, &device).expect("a text model");
    assert!(alone.vision().is_none());
    let error = Gemma3::loader(&text).mmproj(&text).device(&device).options(LoadOptions::default()).load();
    assert!(matches!(error, Err(Error::Mmproj(_))), "{error:?}");
}
