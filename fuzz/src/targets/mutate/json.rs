//! Changes to JSON that leave it JSON, so that they get past the parser.

use serde_json::{Map, Value, json};

use super::Random;
use super::bytes::bytes;

/// Makes one change: three times of four to the values, else to the bytes.
pub fn json(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    let value = serde_json::from_slice(input).ok().filter(|_| !random.once_in(4));
    let Some(mut value) = value else { return bytes(random, input, other) };
    change(random, &mut value, &serde_json::from_slice(other).unwrap_or_default());
    *input = value.to_string().into_bytes();
}

/// Changes one node of `value`; `other` is where foreign nodes come from.
pub fn change(random: &mut Random, value: &mut Value, other: &Value) {
    let source = if random.once_in(4) { other.clone() } else { value.clone() };
    let donor = nth(&source, &mut random.below(count(&source))).cloned().unwrap_or_default();
    let mut at = random.below(count(value));
    let Some(node) = nth_mut(value, &mut at) else { return };
    match random.below(6) {
        0 | 1 => *node = odd_value(random),
        2 => *node = donor,
        _ => match node {
            Value::Object(map) => change_map(random, map, donor),
            Value::Array(list) => change_list(random, list, donor),
            Value::String(text) => change_text(random, text),
            Value::Number(number) => *node = change_number(random, number.as_f64().unwrap_or_default()),
            other => *other = odd_value(random),
        },
    }
}

/// Values that files should not have.
fn odd_value(random: &mut Random) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(1),
        json!(0.5),
        json!(-0.0),
        json!(1e-320),
        json!(1e308),
        json!(u32::MAX),
        json!(1_u64 << 32),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!(" "),
        json!("\u{2581}"),
        json!("\0\u{1b}[2J"),
        json!("../../etc/passwd"),
        json!("a".repeat(5000)),
        json!([]),
        json!({}),
        json!([[[]]]),
        json!([0, 0, 0]),
        json!({ "type": "BPE" }),
        json!({ "String": "" }),
        json!({ "Regex": "(a*)*b" }),
    ];
    random.choose(&values).clone()
}

fn change_map(random: &mut Random, map: &mut Map<String, Value>, donor: Value) {
    let keys: Vec<String> = map.keys().cloned().collect();
    if keys.is_empty() {
        map.insert("a".to_owned(), donor);
        return;
    }
    let [key, other] = [random.choose(&keys), random.choose(&keys)];
    match random.below(4) {
        0 => {
            map.remove(key);
        }
        1 => {
            let value = map.remove(key).unwrap_or_default();
            let mut renamed = key.clone();
            change_text(random, &mut renamed);
            map.insert(renamed, value);
        }
        2 => {
            let value = map[other].clone();
            map.insert(key.clone(), value);
        }
        _ => {
            map.insert(key.clone(), donor);
        }
    }
}

fn change_list(random: &mut Random, list: &mut Vec<Value>, donor: Value) {
    let at = random.below(list.len());
    match random.below(5) {
        0 if !list.is_empty() => {
            list.remove(at);
        }
        1 if !list.is_empty() => {
            let copies = random.length(64);
            let value = list[at].clone();
            list.extend(std::iter::repeat_n(value, copies));
        }
        2 => list.truncate(at),
        3 => list.reverse(),
        _ => list.insert(at, donor),
    }
}

fn change_text(random: &mut Random, text: &mut String) {
    let mut characters: Vec<char> = text.chars().collect();
    let at = random.below(characters.len());
    match random.below(5) {
        0 => characters.truncate(at),
        1 if !characters.is_empty() => {
            characters.remove(at);
        }
        2 => characters.insert(at, *random.choose(&['a', ' ', '\u{2581}', '\0', '\u{301}', '🦀', '<'])),
        3 => characters = characters.repeat(1 + random.length(8)),
        _ => characters.reverse(),
    }
    *text = characters.into_iter().collect();
}

fn change_number(random: &mut Random, number: f64) -> Value {
    match random.below(6) {
        0 => json!(number + 1.0),
        1 => json!((number - 1.0) as i64),
        2 => json!(-number),
        3 => json!(number * 2.0),
        4 => json!((number as u64).saturating_add(1)),
        _ => json!(random.length(1 << 40)),
    }
}

/// The number of nodes, the value itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum::<usize>(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The node that comes `at` places after this one in reading order; takes off `at` what it passes.
fn nth<'a>(value: &'a Value, at: &mut usize) -> Option<&'a Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(list) => list.iter().find_map(|child| nth(child, at)),
        Value::Object(map) => map.values().find_map(|child| nth(child, at)),
        _ => None,
    }
}

fn nth_mut<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|child| nth_mut(child, at)),
        Value::Object(map) => map.values_mut().find_map(|child| nth_mut(child, at)),
        _ => None,
    }
}
