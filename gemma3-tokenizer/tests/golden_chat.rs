//! The reference's chat template: texts, errors, ids, and the same through Jinja.

mod common;

use common::*;
use gemma3_tokenizer::{ChatError, ChatTemplate, NullKeys, conversation_from_json};
use serde_json::Value;

fn render(case: &Value, nulls: NullKeys) -> Result<String, ChatError> {
    let prompt = case["add_generation_prompt"].as_bool().unwrap_or(false);
    ChatTemplate::render(&conversation_from_json(&case["messages"], nulls)?, prompt)
}

/// `expected` has a text or an error.
fn check(rendered: Result<String, String>, expected: &Value, case: &Value) {
    match (rendered, expected["text"].as_str()) {
        (Ok(rendered), Some(text)) => assert_eq!(rendered, text, "text of {case}"),
        (Ok(rendered), None) => panic!("expected {expected}, found {rendered:?} for {case}"),
        (Err(error), Some(_)) => panic!("{error} for {case}"),
        (Err(_), None) => assert!(expected["error"].is_string(), "{case} has neither text nor error"),
    }
}

fn cases(golden: &Value) -> &[Value] {
    golden.as_array().expect("chat.json is a list")
}

#[test]
fn every_conversation_renders_or_fails_as_in_the_template() {
    let Some(golden) = golden_json("chat.json") else {
        return;
    };
    for case in cases(&golden) {
        check(render(case, NullKeys::Keep).map_err(|error| error.to_string()), case, case);
    }
}

#[test]
fn every_conversation_renders_or_fails_as_in_transformers() {
    let Some(golden) = golden_json("chat.json") else {
        return;
    };
    for case in cases(&golden) {
        let expected = case.get("transformers").unwrap_or(case);
        check(render(case, NullKeys::Drop).map_err(|error| error.to_string()), expected, case);
    }
}

#[test]
fn every_conversation_has_the_ids_of_the_reference() {
    let (Some(golden), Some(tokenizer)) = (golden_json("chat.json"), real_tokenizer()) else {
        return;
    };
    println!("{} cases checked", check_chat_goldens(&tokenizer, &golden));
}

#[cfg(feature = "jinja")]
#[test]
fn gemmas_own_jinja_template_gives_the_same() {
    use gemma3_tokenizer::{JinjaLimits, JinjaTemplate};

    let Some(golden) = golden_json("chat.json") else {
        return;
    };
    for (name, _) in miniature_tokenizers() {
        let file = goldens().join(&name).join("tokenizer_config.json");
        if !file.exists() {
            println!("skipped: {} is not in this set", file.display());
            continue;
        }
        let config = read_json(&file);
        let template = JinjaTemplate::new(text(&config, "chat_template"), JinjaLimits::default());
        let template = template.expect("Gemma's template compiles");
        for case in cases(&golden) {
            let prompt = case["add_generation_prompt"].as_bool().unwrap_or(false);
            let rendered = template.render(&case["messages"], prompt, &[("bos_token", "<bos>")]);
            check(rendered.map_err(|error| error.to_string()), case, case);
        }
    }
}
