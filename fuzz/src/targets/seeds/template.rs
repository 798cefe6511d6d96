//! Chat templates and conversations.

use serde_json::{Value, json};

use super::read;

/// Gemma's template and two of other models' kind; conversations as they are exchanged.
pub fn chat_template() -> Vec<Vec<u8>> {
    let settings: Value =
        serde_json::from_slice(&read("tests/fixtures/tiny-text/tokenizer_config.json")).expect("JSON");
    let gemma = settings["chat_template"].as_str().expect("a template").to_owned();
    let of_roles = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] if m['content'] is \
        string else m['content'] | map(attribute='text') | join(', ')) | trim + '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let of_macros = "{% macro turn(role, parts) %}[{{ role.upper() }}]{% for p in parts %}{{ p.get('text', '').strip() \
        | replace('a', 'b') }}{% if not loop.last %}{% continue %}{% endif %}{% endfor %}{% endmacro %}\
        {% set ns = namespace(count=0) %}{% for m in messages[1:] %}{% set ns.count = ns.count + 1 %}\
        {{ turn(m.role, [{'text': m.content}] if m.content is string else m.content) }}{% endfor %}\
        {{ ns.count }}{{ {'a': messages | length} | tojson }}{{ raise_exception('no') if ns.count > 9 }}";
    let conversations = [
        json!([
            { "role": "system", "content": [{ "type": "text", "text": "Be brief." }] },
            { "role": "user", "content": [{ "type": "image" }, { "type": "text", "text": " What? " }] },
            { "role": "assistant", "content": "A <b>\n" },
            { "role": "user", "content": null },
        ]),
        json!([{ "role": "user", "content": "Hi" }, { "role": "model", "content": [] }]),
    ];
    let texts = [gemma, of_roles.to_owned(), of_macros.to_owned()];
    let conversations = conversations.iter().map(|conversation| conversation.to_string().into_bytes());
    texts.map(String::into_bytes).into_iter().chain(conversations).collect()
}
