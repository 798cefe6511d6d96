//! What the decoders don't check of the file around the pixels.
//!
//! The decoders of JPEG and WebP are lenient: where bytes are missing they fill the rest of the image with gray
//! or with what lies in their buffers, without an error. A model would describe such an image with confidence.
//! PNG needs no check: its decoder reports an end that comes too early.

use super::ImageError;

/// Checks that a JPEG has its end marker after its last scan, as Pillow does.
///
/// Walks the segments by their lengths, so that the end marker of a thumbnail in the EXIF data doesn't count.
pub(super) fn check_jpeg(encoded: &[u8]) -> Result<(), ImageError> {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;
    let mut rest = encoded;
    let mut problem = "it ends before its pixels";
    while let Some((marker, after)) = next_marker(rest) {
        rest = after;
        match marker {
            END_OF_IMAGE => return Ok(()),
            // Markers that stand alone: start of image, restarts within a scan, and a leftover of arithmetic coding.
            0xd8 | 0xd0..=0xd7 | 0x01 => continue,
            START_OF_SCAN => problem = "it ends within its pixels, without an end marker",
            _ => {}
        }
        let Some((length, _)) = rest.split_first_chunk::<2>() else { break };
        let Some(after) = rest.get(usize::from(u16::from_be_bytes(*length)).max(2)..) else { break };
        rest = after;
    }
    Err(ImageError::Truncated { format: "JPEG", problem: problem.to_owned() })
}

/// The next marker and what follows it. Skips the compressed pixels of a scan, in which 0xff is followed by
/// 0, and fill bytes.
fn next_marker(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let mut rest = bytes;
    loop {
        let at = rest.iter().position(|byte| *byte == 0xff)?;
        rest = rest.get(at + 1..)?;
        let (code, after) = rest.split_first()?;
        match code {
            0x00 => rest = after,
            0xff => {}
            code => return Some((*code, after)),
        }
    }
}

/// Checks that a WebP is as long as its header says, that its chunks lie inside of it, and that its bitstreams have the
/// sizes that are promised for them. Returns it without what follows it in the file.
///
/// The decoder (image-webp 0.2.4) would allocate as much as a chunk claims to be long before reading it, and as much as
/// a bitstream claims to be large before comparing that with the promised size.
pub(super) fn check_webp(encoded: &[u8]) -> Result<&[u8], ImageError> {
    const HEADER: usize = 12; // RIFF, length, WEBP
    let cut_short = |expected: u64| ImageError::Truncated {
        format: "WebP",
        problem: format!("its header asks for {expected} bytes, found {}", encoded.len()),
    };
    let length = length_at(encoded, 4).ok_or_else(|| cut_short(HEADER as u64))?;
    let file_bytes = u64::from(length) + 8;
    let file = usize::try_from(file_bytes).ok().and_then(|end| encoded.get(..end));
    let file = file.ok_or_else(|| cut_short(file_bytes))?;
    let mut canvas = None;
    let mut at = HEADER;
    while let Some(length) = length_at(file, at.saturating_add(4)) {
        let end = (at as u64) + 8 + u64::from(length);
        if end > file_bytes {
            return Err(cut_short(end));
        }
        match file.get(at..).unwrap_or_default() {
            [b'V', b'P', b'8', b'X', _, _, _, _, extended @ ..] => canvas = size_less_1(extended, 4),
            [b'V', b'P', b'8', b' ', _, _, _, _, bits @ ..] if canvas.is_some() => {
                check_webp_size(canvas, bits)?;
            }
            [b'A', b'N', b'M', b'F', _, _, _, _, frame @ ..] => check_webp_frame(frame)?,
            _ => {}
        }
        // Chunks begin at even places.
        at = usize::try_from(end + end % 2).unwrap_or(usize::MAX);
    }
    Ok(file)
}

/// Checks the lossy bitstream of an animation's frame, before which an alpha channel may stand. With one of another size
/// the decoder would index out of bounds.
fn check_webp_frame(frame: &[u8]) -> Result<(), ImageError> {
    const CHUNKS: usize = 16; // After place, size, duration and flags.
    let promised = size_less_1(frame, 6);
    let chunks = frame.get(CHUNKS..).unwrap_or_default();
    let colours = match chunks {
        [b'A', b'L', b'P', b'H', ..] => length_at(chunks, 4).and_then(|length| {
            let length = usize::try_from(length).ok()?;
            chunks.get(8..)?.get(length.checked_add(length % 2)?..)
        }),
        [b'V', b'P', b'8', b' ', ..] => Some(chunks),
        // Lossless: decoded into the promised size.
        _ => return Ok(()),
    };
    check_webp_size(promised, colours.and_then(|chunk| chunk.get(8..)).unwrap_or_default())
}

/// Compares the size in a lossy bitstream with the one that is promised.
fn check_webp_size(promised: Option<(u32, u32)>, bits: &[u8]) -> Result<(), ImageError> {
    let side =
        |at: usize| bits.get(at..)?.first_chunk().map(|side| u32::from(u16::from_le_bytes(*side) & 0x3fff));
    // After 3 bytes of flags and 3 of magic.
    let found = side(6).zip(side(8));
    if found.is_none() || found != promised {
        let problem = "the size of its pixels differs from the one in its header".to_owned();
        return Err(ImageError::Damaged { format: "WebP", problem });
    }
    Ok(())
}

/// Width and height of 3 bytes each, stored less 1.
fn size_less_1(bytes: &[u8], at: usize) -> Option<(u32, u32)> {
    let side =
        |at: usize| bytes.get(at..)?.first_chunk().map(|[a, b, c]| u32::from_le_bytes([*a, *b, *c, 0]) + 1);
    side(at).zip(side(at + 3))
}

fn length_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|length| u32::from_le_bytes(*length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start of image, a segment that holds a thumbnail's end marker, a scan with a zero-stuffed 0xff and a
    /// restart, the end.
    const JPEG: [u8; 24] = [
        0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 1, 2, 0xff, 0xda, 0, 3, 9, 0xff, 0x00, 7, 0xff, 0xd0, 5,
        0xff, 0xff, 0xd9,
    ];

    #[test]
    fn a_jpeg_ends_at_the_end_marker_after_its_pixels() {
        check_jpeg(&JPEG).expect("a whole JPEG");
        for length in 0..JPEG.len() {
            let error = check_jpeg(&JPEG[..length]).expect_err("a part of a JPEG");
            assert!(matches!(error, ImageError::Truncated { format: "JPEG", .. }), "{length}: {error}");
        }
    }

    #[test]
    fn a_webp_is_cut_to_the_length_in_its_header() {
        let mut webp = b"RIFF\x0e\0\0\0WEBPVP8 \x01\0\0\0ab".to_vec();
        assert_eq!(check_webp(&webp).expect("a whole WebP").len(), 22);
        webp.extend(b"trailing");
        assert_eq!(check_webp(&webp).expect("a WebP with something behind it").len(), 22);
        for length in 12..22 {
            assert!(check_webp(&webp[..length]).is_err(), "{length}");
        }
        webp[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(check_webp(&webp).is_err(), "a chunk beyond the file");
    }
}
