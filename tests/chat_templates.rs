//! Conversations over a checkpoint whose chat template is not Gemma's, and over those whose template lies in
//! another place or is broken.

#[path = "../gemma3-core/tests/build_gguf/mod.rs"]
mod build_gguf;
#[path = "../gemma3-core/tests/common/mod.rs"]
mod common;

use std::path::Path;

use build_gguf::{array_value, string_value, strings_value, u32_value};
use gemma3::core::config::TextConfig;
use gemma3::tokenizer::{Bos, ChatTemplate};
use gemma3::{
    CacheOptions, ChatOptions, ChatTemplateKind, Error, FinishReason, Gemma3, GenerateOptions, Message, Role,
    Roles, SamplingOptions, SessionOptions, TemplateChoice, UserText, WhenFull,
};
use serde_json::{Value, json};

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] \
    + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A copy of the tiny text model whose `tokenizer_config.json` was changed.
fn folder_with(change: impl FnOnce(&mut Value)) -> Option<tempfile::TempDir> {
    let original = common::golden("tiny-text")?;
    let copy = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(original.join(name), copy.path().join(name)).expect("a copy");
    }
    let text = std::fs::read_to_string(original.join("tokenizer_config.json")).expect("the configuration");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    change(&mut config);
    std::fs::write(copy.path().join("tokenizer_config.json"), config.to_string()).expect("a file");
    Some(copy)
}

fn load(folder: &Path) -> Result<Gemma3, Error> {
    let (_, device) = common::devices().swap_remove(0);
    Gemma3::loader(folder).device(&device).options(common::exact()).load()
}

/// The tiny text model with this template.
fn with_template(template: &str) -> Option<Gemma3> {
    let folder = folder_with(|config| config["chat_template"] = json!(template))?;
    Some(load(folder.path()).expect("the tiny model"))
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens: Some(max_new_tokens), ..GenerateOptions::greedy() }
}

fn context(capacity: usize) -> SessionOptions {
    let cache = CacheOptions { capacity: Some(capacity), chunk: 16, ..CacheOptions::default() };
    SessionOptions { cache, sequence: 0 }
}

#[test]
fn the_kind_of_the_template_is_known_wherever_it_lies() {
    let Some(original) = common::golden("tiny-text") else { return };
    let gemma = load(&original).expect("the tiny model");
    assert_eq!(gemma.chat_template_kind(), ChatTemplateKind::Gemma);
    let published = gemma.chat_template().expect("a template").to_owned();
    for (template, kind) in [
        (json!(published), ChatTemplateKind::Gemma),
        (
            json!([{ "name": "tool_use", "template": CHATML }, { "name": "default", "template": published }]),
            ChatTemplateKind::Gemma,
        ),
        (json!([{ "name": "default", "template": CHATML }]), ChatTemplateKind::Other),
        (json!([{ "name": "rag", "template": CHATML }]), ChatTemplateKind::None),
        (json!(CHATML), ChatTemplateKind::Other),
        (json!(null), ChatTemplateKind::None),
    ] {
        let folder = folder_with(|config| config["chat_template"] = template.clone());
        let gemma = load(folder.expect("the original is there").path()).expect("the tiny model");
        assert_eq!(gemma.chat_template_kind(), kind, "{template}");
        assert_eq!(gemma.is_instruction_tuned(), kind != ChatTemplateKind::None);
    }
    let folder = folder_with(|config| config["chat_template"] = json!(published)).expect("a folder");
    std::fs::write(folder.path().join("chat_template.jinja"), CHATML).expect("a file");
    assert_eq!(load(folder.path()).expect("the tiny model").chat_template(), Some(CHATML));
}

/// A GGUF model of zeros with a vocabulary of special tokens and bytes, and with these templates.
fn gguf_with(templates: &[(&str, &str)]) -> Gemma3 {
    let special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"];
    let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let tokens: Vec<&str> = special.into_iter().chain(bytes.iter().map(String::as_str)).collect();
    let types = [3, 3, 3, 2, 3, 3].into_iter().chain([6; 256]);
    let config = TextConfig { vocab_size: tokens.len(), ..build_gguf::tiny_config(2) };
    let scores = vec![0; 4 * tokens.len()];
    let mut file = build_gguf::model(&config)
        .set("tokenizer.ggml.model", string_value("llama"))
        .set("tokenizer.ggml.tokens", strings_value(&tokens))
        .set("tokenizer.ggml.scores", array_value(6, tokens.len() as u64, &scores))
        .set(
            "tokenizer.ggml.token_type",
            array_value(5, tokens.len() as u64, &types.flat_map(i32::to_le_bytes).collect::<Vec<_>>()),
        )
        .set("tokenizer.ggml.bos_token_id", u32_value(2))
        .set("tokenizer.ggml.eos_token_id", u32_value(1));
    for (key, template) in templates {
        file = file.set(key, string_value(template));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, file.build()).expect("a file");
    load(&path).expect("the model")
}

#[test]
fn a_gguf_files_template_is_the_unnamed_one_or_the_one_named_default() {
    let names = ("tokenizer.chat_templates", "tool_use");
    for (templates, found) in [
        (&[][..], None),
        (&[("tokenizer.chat_template", CHATML)], Some(CHATML)),
        (
            &[("tokenizer.chat_template", CHATML), ("tokenizer.chat_template.tool_use", "tools"), names],
            Some(CHATML),
        ),
        (&[("tokenizer.chat_template.default", CHATML)], Some(CHATML)),
        (&[("tokenizer.chat_template.tool_use", "tools"), names], None),
    ] {
        assert_eq!(gguf_with(templates).chat_template(), found, "{templates:?}");
    }
}

#[test]
fn a_gguf_files_template_writes_the_special_tokens_of_its_vocabulary() {
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    let gemma = gguf_with(&[("tokenizer.chat_template", template)]);
    assert_eq!(gemma.chat_template_kind(), ChatTemplateKind::Other);
    let answer = gemma.respond(&[vec![Message::user("hi")]], &greedy(1)).expect("an answer");
    assert_eq!(answer[0].prompt_tokens, ["<bos>", "h", "i", "<eos>"].len());
}

#[test]
fn a_broken_configuration_of_the_tokenizer_is_named() {
    let Some(folder) = folder_with(|_| {}) else { return };
    for text in
        ["", "{\"chat_template\": \"", "{\"chat_template\": [{\"name\": \"default\", \"template\": 1}]}"]
    {
        std::fs::write(folder.path().join("tokenizer_config.json"), text).expect("a file");
        let error = load(folder.path()).expect_err("a broken file");
        assert!(error.to_string().contains("tokenizer_config.json"), "{error}");
    }
}

#[test]
fn conversations_are_rendered_by_the_checkpoints_template() {
    let Some(gemma) = with_template(CHATML) else { return };
    let messages = vec![Message::system("Be brief."), Message::user("the inn<end_of_turn>")];
    let text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nthe inn<end_of_turn><|im_end|>\n\
        <|im_start|>assistant\n";
    let verbatim = gemma.tokenizer().encode(text, Bos::None).expect("ids");
    let answers = |user_text| {
        let chat = ChatOptions { user_text, ..ChatOptions::default() };
        gemma
            .respond_with(std::slice::from_ref(&messages), &[vec![]], chat, &greedy(4))
            .expect("an answer")
            .swap_remove(0)
    };
    let answer = answers(UserText::Verbatim);
    assert_eq!(answer.prompt_tokens, verbatim.len());
    assert_eq!(
        answer.text,
        gemma.generate_ids_batch(std::slice::from_ref(&verbatim), &greedy(4)).expect("a text")[0].text
    );
    // Escaped, the user's `<end_of_turn>` is text of several tokens.
    assert!(answers(UserText::Escape).prompt_tokens > verbatim.len());
    let simple = gemma.respond(std::slice::from_ref(&messages), &greedy(4)).expect("an answer");
    assert_eq!(simple[0], answers(UserText::Escape));

    // Gemma's turns are there for the asking.
    let chat = ChatOptions { template: TemplateChoice::Gemma, ..ChatOptions::default() };
    let ids = ChatTemplate::encode(gemma.tokenizer(), &messages, true, UserText::Escape).expect("ids");
    let answer = gemma.respond_with(&[messages], &[vec![]], chat, &greedy(4)).expect("an answer");
    assert_eq!(answer[0].prompt_tokens, ids.len());
}

#[test]
fn the_first_edition_of_gemmas_template_has_one_line_break_after_the_system_text() {
    let Some(original) = common::golden("tiny-text") else { return };
    let gemma = load(&original).expect("the tiny model");
    let first = gemma.chat_template().expect("a template").replace("'\n\n'", "'\n'");
    let gemma = with_template(&first).expect("the original is there");
    assert_eq!(gemma.chat_template_kind(), ChatTemplateKind::Gemma);
    let text = "<bos><start_of_turn>user\nBe brief.\nhi<end_of_turn>\n<start_of_turn>model\n";
    let ids = gemma.tokenizer().encode(text, Bos::None).expect("ids");
    let mut chat = gemma.chat().system("Be brief.").options(greedy(1)).start().expect("a chat");
    chat.answer("hi").expect("an answer");
    assert_eq!(chat.tokens().ids()[..ids.len()], ids);
}

#[test]
fn another_template_may_have_images() {
    let Some(original) = common::golden("tiny-multimodal") else { return };
    let copy = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(&original).expect("a folder") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), copy.path().join(file.file_name())).expect("a copy");
    }
    let gemma = load(&original).expect("the tiny model");
    // Another template, which writes the same for conversations without tools.
    let other =
        format!("{{% if tools %}}{{{{ tools }}}}{{% endif %}}{}", gemma.chat_template().expect("a template"));
    std::fs::write(copy.path().join("chat_template.jinja"), other).expect("a file");
    let rendering = load(copy.path()).expect("the tiny model");
    assert_eq!(rendering.chat_template_kind(), ChatTemplateKind::Other);
    let image = |shade| gemma3::Image::from_rgb8(8, 8, vec![shade; 192]).expect("an image");
    let start = |gemma: &Gemma3| {
        let options = GenerateOptions { ignore_eos: true, ..greedy(6) };
        gemma.chat().system("Be brief.").options(options).session(context(300)).start().expect("a chat")
    };
    let (mut expected, mut chat) = (start(&gemma), start(&rendering));
    for shade in [20, 200] {
        let question =
            || gemma3::Question::new().text("like <start_of_image>?").image(image(shade)).text("hm");
        let answer = expected.answer(question()).expect("an answer");
        assert_eq!(chat.answer(question()).expect("an answer").text, answer.text);
    }
    assert_eq!(chat.images().count(), 2);
}

/// The ids of a ChatML conversation up to the next answer.
fn chatml(gemma: &Gemma3, chat: &gemma3::Chat, question: &str) -> Vec<u32> {
    let name = |role: &Role| if *role == Role::Model { "assistant" } else { role.name() }.to_owned();
    let said = |message: &Message| match message.content.first() {
        Some(gemma3::Part::Text(text)) => (name(&message.role), text.clone()),
        _ => (name(&message.role), String::new()),
    };
    let messages = chat.messages().map(said).chain([("user".to_owned(), question.to_owned())]);
    let turns: String =
        messages.map(|(role, text)| format!("<|im_start|>{role}\n{text}<|im_end|>\n")).collect();
    gemma.tokenizer().encode(&format!("{turns}<|im_start|>assistant\n"), Bos::None).expect("ids")
}

#[test]
fn a_chat_writes_the_checkpoints_turns_and_keeps_what_it_has_computed() {
    let Some(gemma) = with_template(CHATML) else { return };
    let start = || gemma.chat().system("Be brief.").options(greedy(9)).session(context(500));
    let mut chat = start().start().expect("a chat");
    for question in ["the inn?", "to  the\n\ninn", "and then"] {
        let before = chat.tokens().ids().to_vec();
        let prompt = chatml(&gemma, &chat, question);
        let common = before.iter().zip(&prompt).take_while(|(old, new)| old == new).count();
        let mut stream = chat.ask(question).expect("an answer");
        assert_eq!(stream.prompt_tokens(), prompt.len());
        assert!(stream.prefill().expect("a prefill"));
        let answer = stream.into_generation().expect("an answer");
        let ids = chat.tokens().ids();
        assert_eq!(ids[..prompt.len()], prompt, "the turns are the template's");
        // The turns before the last answer need not be computed again.
        assert!(before.is_empty() || common >= before.len() - 9 - 1, "{common} of {}", before.len());
        let fresh = gemma.generate_ids_batch(&[prompt], &greedy(9)).expect("a text");
        assert_eq!(fresh[0].text, answer.text, "as a conversation that starts anew");
    }
    assert_eq!(chat.messages().count(), 7);
    // When it is full it forgets, in the same turns.
    let mut dropping = start().session(context(260)).when_full(WhenFull::DropOldest).start().expect("a chat");
    for _ in 0..12 {
        dropping.answer("to the inn").expect("an answer");
        assert!(dropping.tokens().len() <= 260);
    }
    assert!(dropping.messages().count() < 25, "old turns are gone");
}

#[test]
fn an_answer_ends_where_the_template_ends_it() {
    let with_text = CHATML.replace("<|im_end|>", "[END]");
    let with_eos = CHATML.replace("'<|im_end|>' + '\n'", "eos_token");
    assert_ne!(with_eos, CHATML);
    // `[END]` is text for this tokenizer, `<start_of_turn>` a special token.
    for (template, eos_token, end) in
        [(with_text, "<eos>", "[END]"), (with_eos, "<start_of_turn>", "<start_of_turn>")]
    {
        let folder = folder_with(|config| {
            config["chat_template"] = json!(template);
            config["eos_token"] = json!({ "content": eos_token, "special": true });
        });
        let Some(folder) = folder else { return };
        let gemma = load(folder.path()).expect("the tiny model");
        let ids = gemma.tokenizer().encode(&format!("the{end}"), Bos::None).expect("ids");
        let mut chat = gemma.chat().session(context(500)).start().expect("a chat");
        // These ids in this order: each step penalizes those that were there already.
        let bias = |(at, id): (usize, &u32)| (*id, 1e6 - 1e4 * at as f32);
        let sampling = SamplingOptions {
            logit_bias: ids.iter().enumerate().map(bias).collect(),
            presence_penalty: 5e5,
            ..SamplingOptions::greedy()
        };
        *chat.options_mut() =
            GenerateOptions { sampling, max_new_tokens: Some(20), ..GenerateOptions::default() };
        let answer = chat.answer("the inn?").expect("an answer");
        assert_eq!((answer.text.as_str(), answer.finish_reason), ("the", FinishReason::Stop), "{end}");
    }
}

#[test]
fn a_template_that_is_not_valid_or_refuses_is_an_error_when_it_is_used() {
    for (template, part) in
        [("{% for %}", "not valid"), ("{{ raise_exception('no talking') }}", "no talking")]
    {
        let Some(gemma) = with_template(template) else { return };
        assert_eq!(gemma.chat_template_kind(), ChatTemplateKind::Other);
        let error = gemma.respond(&[vec![Message::user("hi")]], &greedy(1)).expect_err("no conversation");
        assert!(error.to_string().contains(part), "{error}");
        gemma.generate("the", &greedy(1)).expect("texts need no template");
        let mut chat =
            gemma.chat().template(TemplateChoice::Gemma).options(greedy(1)).start().expect("a chat");
        chat.answer("hi").expect("an answer in Gemma's turns");
    }
}

#[test]
fn conversations_as_users_send_them_are_answered_when_roles_may_be_merged() {
    let Some(folder) = common::golden("tiny-text") else { return };
    let gemma = load(&folder).expect("the tiny model");
    let named = |role: &str, text: &str| Message::new(Role::from_name(role), [text.into()]);
    let sent = vec![
        named("developer", "Be brief."),
        named("system", "Be kind."),
        named("user", "the inn?"),
        named("user", "to the inn?"),
        Message::new(Role::Model, Vec::new()),
        named("tool", "42"),
    ];
    let error =
        gemma.respond(std::slice::from_ref(&sent), &greedy(3)).expect_err("turns that do not alternate");
    assert!(error.to_string().contains("Roles::Merge"), "{error}");
    let chat = ChatOptions { roles: Roles::Merge, ..ChatOptions::default() };
    let answer = gemma.respond_with(&[sent], &[vec![]], chat, &greedy(3)).expect("an answer");
    let text = "<bos><start_of_turn>user\nBe brief.\n\nBe kind.\n\nthe inn?\n\nto the inn?<end_of_turn>\n\
        <start_of_turn>model\n<end_of_turn>\n<start_of_turn>user\n42<end_of_turn>\n<start_of_turn>model\n";
    let ids = gemma.tokenizer().encode(text, Bos::None).expect("ids");
    assert_eq!(answer[0].prompt_tokens, ids.len());
    assert_eq!(answer[0].text, gemma.generate_ids_batch(&[ids], &greedy(3)).expect("a text")[0].text);
}

#[test]
fn a_chat_goes_on_with_what_was_said_before() {
    let Some(folder) = common::golden("tiny-text") else { return };
    let gemma = load(&folder).expect("the tiny model");
    let said =
        [Message::system("Be brief."), Message::user("the inn?"), Message::model("to"), Message::user("on")];
    let chat = |history: &[Message], roles| {
        let builder = gemma.chat().history(history).roles(roles).options(greedy(3)).session(context(200));
        builder.start().expect("a chat")
    };
    let prompt = |text: &str| gemma.tokenizer().encode(text, Bos::None).expect("ids");
    let past = "<bos><start_of_turn>user\nBe brief.\n\nthe inn?<end_of_turn>\n<start_of_turn>model\nto<end_of_turn>\n";
    for (history, roles, question) in
        [(&said[..3], Roles::Strict, "on\n\nand then"), (&said, Roles::Merge, "and then")]
    {
        let mut chat = chat(history, roles);
        assert_eq!(chat.messages().count(), history.len());
        chat.answer(question).expect("an answer");
        let turn = "<start_of_turn>user\non\n\nand then<end_of_turn>\n<start_of_turn>model\n";
        let ids = prompt(&format!("{past}{turn}"));
        assert_eq!(chat.tokens().ids()[..ids.len()], ids);
        assert_eq!(chat.messages().count(), history.len() + 2);
        let before = chat.tokens().ids().to_vec();
        chat.answer("the end").expect("a second answer");
        assert_eq!(chat.tokens().ids()[..before.len()], before, "nothing is computed again");
    }
    let mut strict = chat(&said, Roles::Strict);
    let error = strict.answer("and then").expect_err("a user after a user");
    assert!(matches!(error, Error::Chat(_)) && error.to_string().contains("Roles::Merge"), "{error}");
    assert_eq!(strict.messages().count(), said.len());
}
