//! Changes to the JSON header of a safetensors file, whose length is kept right.

use super::Random;
use super::bytes::bytes;
use super::json::{change, json};

/// Makes one change: half of the time to the header's values. An index is JSON as a whole.
pub fn safetensors(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    if input.first() == Some(&b'{') {
        return json(random, input, other);
    }
    let Some((mut header, data)) = parts(input).filter(|_| random.once_in(2)) else {
        return bytes(random, input, other);
    };
    let foreign = parts(other).map_or_else(Default::default, |(header, _)| header);
    change(random, &mut header, &foreign);
    *input = file(&header, data);
}

/// Header and data.
fn parts(file: &[u8]) -> Option<(serde_json::Value, &[u8])> {
    let (length, rest) = file.split_first_chunk()?;
    let (header, data) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some((serde_json::from_slice(header).ok()?, data))
}

/// The file of a header and data.
pub fn file(header: &serde_json::Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}
