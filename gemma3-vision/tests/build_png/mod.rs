//! PNGs built byte by byte, so that tests can lie in every field. The pixels are stored without compression.
#![allow(dead_code)] // Each test file uses a part.

/// Colour types of the PNG specification.
pub const GRAY: u8 = 0;
pub const RGB: u8 = 2;
pub const PALETTE: u8 = 3;
pub const GRAY_ALPHA: u8 = 4;
pub const RGBA: u8 = 6;

/// A PNG of given size whose pixel data is `rows`, each of which is packed as its colour type and bits ask for.
pub fn png(
    width: u32,
    height: u32,
    bits: u8,
    colour_type: u8,
    chunks: &[([u8; 4], Vec<u8>)],
    rows: &[&[u8]],
) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([bits, colour_type, 0, 0, 0]);
    chunk(&mut bytes, b"IHDR", &header);
    for (name, data) in chunks {
        chunk(&mut bytes, name, data);
    }
    let filtered: Vec<u8> = rows.iter().flat_map(|row| [&[0], *row].concat()).collect();
    chunk(&mut bytes, b"IDAT", &stored(&filtered));
    chunk(&mut bytes, b"IEND", &[]);
    bytes
}

fn chunk(bytes: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    bytes.extend((data.len() as u32).to_be_bytes());
    let checked = [name, data].concat();
    bytes.extend(&checked);
    bytes.extend(crc32(&checked).to_be_bytes());
}

/// A zlib stream of stored blocks.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let blocks: Vec<&[u8]> = data.chunks(65_535).collect();
    for (index, block) in blocks.iter().enumerate() {
        let length = block.len() as u16;
        stream.push(u8::from(index + 1 == blocks.len()));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(*block);
    }
    let sums = data.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    stream.extend((sums.1 << 16 | sums.0).to_be_bytes());
    stream
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}
