//! Changes to images. A PNG's checksums are put right again, because its decoder refuses chunks with wrong ones.

use super::Random;
use super::bytes::bytes;

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Makes one change.
pub fn image(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    bytes(random, input, other);
    if !random.once_in(8) {
        correct_checksums(input);
    }
}

/// Corrects the checksums of a PNG's chunks, as far as there are chunks.
fn correct_checksums(file: &mut [u8]) {
    if !file.starts_with(PNG_SIGNATURE) {
        return;
    }
    let (_, mut rest) = file.split_at_mut(PNG_SIGNATURE.len());
    while let Some((length, after)) = rest.split_first_chunk_mut() {
        let named = usize::try_from(u32::from_be_bytes(*length)).ok().and_then(|data| data.checked_add(4));
        let Some((named, after)) = named.and_then(|named| after.split_at_mut_checked(named)) else { return };
        let Some((checksum, after)) = after.split_first_chunk_mut::<4>() else { return };
        *checksum = crc32(named).to_be_bytes();
        rest = after;
    }
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}
