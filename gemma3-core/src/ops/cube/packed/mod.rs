//! Weight matrices in device memory, in the format of their file.

mod decode;
mod layout;
mod relayout;
mod rows;

pub use layout::Layout;
pub(crate) use layout::Scales;
pub use relayout::PackedWords;

pub(crate) use decode::{Quad, fetch_side, half_to_f32, quad, quads_of_span, scale_pair, side_words_of_item};

use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::server::Handle;

/// A matrix \[rows, cols\] on a device.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    /// Format, shape and offsets.
    pub layout: Layout,
    /// The weights, [`Layout::row_words`] a row.
    pub quants: Handle,
    /// What blocks share, [`Layout::side_words`] a row; at least one word.
    pub side: Handle,
}

impl PackedMatrix {
    /// Copies a matrix to a device.
    pub fn new(client: &Client, mut words: PackedWords) -> Self {
        if words.side.is_empty() {
            words.side.push(0); // No device binds an empty buffer.
        }
        Self {
            layout: words.layout,
            quants: client.create(Bytes::from_elems(words.quants)),
            side: client.create(Bytes::from_elems(words.side)),
        }
    }
}
