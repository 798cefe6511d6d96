//! Changes to chat templates: whole words of Jinja go in and out. A conversation is JSON.

use super::Random;
use super::bytes::bytes;
use super::json::json;

/// What templates are made of.
const WORDS: [&str; 48] = [
    "{{ ",
    " }}",
    "{% ",
    " %}",
    "{%- ",
    " -%}",
    "{# ",
    " #}",
    "if ",
    "elif ",
    "else",
    "endif",
    "for m in ",
    "endfor",
    "set x = ",
    "set ns = namespace(x='')",
    "macro f(x)",
    "endmacro",
    "f(f)",
    "f(1)",
    "messages",
    "messages[0]",
    "m['content']",
    "['role']",
    "[::-1]",
    "loop.index0",
    "x ~ x",
    "x + x",
    "x // 3",
    "'ab' ",
    "range(100000)",
    "[1] ",
    "| trim",
    "| join(x)",
    "| upper",
    "| tojson(indent=9999)",
    "| replace('a', x)",
    "| batch(1)",
    "| format",
    "| indent(99999)",
    "| sort",
    ".split('a')",
    ".items()",
    ".strip()",
    "raise_exception(x)",
    "is iterable",
    "not ",
    "1 // 0 - -1 % 0",
];

/// Makes one change.
pub fn template(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    if matches!(input.first(), Some(b'[')) {
        return json(random, input, other);
    }
    if random.once_in(3) {
        return bytes(random, input, other);
    }
    let at = random.below(input.len() + 1);
    let removed = if random.once_in(3) { random.length(16).min(input.len() - at) } else { 0 };
    input.splice(at..at + removed, random.choose(&WORDS).bytes());
}
