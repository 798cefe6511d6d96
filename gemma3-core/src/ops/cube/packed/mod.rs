//! Weight matrices in device memory, in the format of their file.

mod decode;
mod layout;
mod power;
mod relayout;
mod rows;

pub(crate) use layout::Scales;
pub use layout::{Layout, PackError};
use power::{finite, power_for};
use relayout::PackedWords;
pub(crate) use rows::rows;

use crate::formats::blocks::BlockError;

pub(crate) use decode::{
    HalfPair, Quad, fetch_side, half_quad, half_to_f32, has_half_quads, integer_factor, integer_octet, quad,
    quads_of_span, scale_pair, side_words_of_item,
};

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::server::Handle;
use half::f16;

use crate::formats::TensorFormat;
use crate::ops::cube::commands::waiting;

/// A matrix \[rows, cols\] on a device.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    /// Format, shape and offsets.
    pub layout: Layout,
    /// The weights, [`Layout::row_words`] a row.
    pub quants: Handle,
    /// What blocks share, [`Layout::side_words`] a row; at least one word.
    pub side: Handle,
    /// The power of two that weights are multiplied by where they become f16: it brings the largest below 2^15. Those of
    /// F16 lie multiplied.
    pub power: f32,
    /// The same of the weights as they lie, those of F16 too.
    pub stored_power: f32,
    /// The largest sum of the sizes of a row's weights: an output is no larger than this times the largest input.
    /// Infinity where nobody has added them up.
    pub row_size: f32,
}

/// Bytes that are laid out and copied at a time.
const STRIP_BYTES: usize = 64 << 20;
/// Bytes of strips after which loading waits for their copies: what it needs of the host's memory beside the file.
const UNDER_WAY_BYTES: usize = 256 << 20;

impl PackedMatrix {
    /// Copies matrices of one format and width to a device, one after the other: several products with the same
    /// input become one. Works on the current thread pool, and strip by strip.
    ///
    /// # Errors
    /// [`PackError`] if a part isn't whole rows of whole blocks.
    pub fn upload(
        client: &Client,
        format: TensorFormat,
        cols: usize,
        parts: &[&[u8]],
    ) -> Result<Self, PackError> {
        let row_bytes = format.row_bytes(cols).map_err(BlockError::from)?.max(1);
        let rows = parts.iter().map(|part| part.len() / row_bytes).sum();
        let layout = Layout::new(format, rows, cols)?;
        let quants = client.empty((rows * layout.row_words()).max(1) * size_of::<u32>());
        let side = client.empty(layout.side_len() * size_of::<u32>());
        let strip = (STRIP_BYTES / row_bytes).max(1) * row_bytes;
        let (mut row, mut under_way, mut largest) = (0, 0, 0.0_f32);
        for bytes in parts.iter().flat_map(|part| part.chunks(strip)) {
            let words = PackedWords::stack(format, cols, &[bytes])?;
            put(client, &quants, row * layout.row_words(), words.quants);
            put(client, &side, row * layout.side_words(), words.side);
            row += words.layout.rows;
            largest = largest.max(words.largest);
            under_way += bytes.len();
            if under_way >= UNDER_WAY_BYTES {
                wait(client);
                under_way = 0;
            }
        }
        if under_way >= STRIP_BYTES {
            wait(client);
        }
        let stored_power = power_for(largest);
        let power = if format == TensorFormat::F16 { 1.0 } else { stored_power };
        Ok(Self { layout, quants, side, power, stored_power, row_size: f32::INFINITY })
    }
}

impl PackedMatrix {
    /// Floats \[rows, cols\] as F16, multiplied by their [power](Self::power): for products of f16 alone, since all others
    /// take weights for what they are.
    ///
    /// # Errors
    /// [`PackError`] if they aren't whole rows.
    pub fn upload_as_halves(client: &Client, cols: usize, weights: &[f32]) -> Result<Self, PackError> {
        let largest = weights.iter().copied().map(finite).fold(0.0, f32::max);
        let power = power_for(largest);
        let bytes: Vec<u8> = weights.iter().flat_map(|w| f16::from_f32(w * power).to_le_bytes()).collect();
        let size = |row: &[f32]| row.iter().copied().map(finite).sum::<f32>();
        let row_size = weights.chunks(cols.max(1)).map(size).fold(0.0, f32::max);
        Ok(Self { power, row_size, ..Self::upload(client, TensorFormat::F16, cols, &[&bytes])? })
    }
}

/// Waits for copies. A device that fails says so again where something is read from it.
fn wait(client: &Client) {
    let _ = waiting(|| cubecl::future::block_on(client.sync()));
}

/// Writes words from word `start` of a buffer on.
fn put(client: &Client, buffer: &Handle, start: usize, words: Vec<u32>) {
    if words.is_empty() {
        return;
    }
    let start = (start * size_of::<u32>()) as u64;
    let end = buffer.size_in_used() - start - (words.len() * size_of::<u32>()) as u64;
    let part = buffer.clone().offset_start(start).offset_end(end);
    client.write(&part, Bytes::from_elems(words));
}
