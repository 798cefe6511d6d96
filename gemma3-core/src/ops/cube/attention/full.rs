//! Attention of an image encoder: every position of a sequence attends to all of it.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::cache::{CacheFormat, CacheLayout, slot_start, store};
use super::prefill::{
    KeyRows, PlainShape, PrefillAttention, PrefillPath, plain_full_kernel, tensor_full_attention,
};
use crate::ops::cube::packed::Quad;

/// The shape of full attention, a constant of its kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FullAttention {
    /// Images.
    pub sequences: usize,
    /// Positions of an image.
    pub tokens: usize,
    /// Heads of queries, and as many of keys.
    pub heads: usize,
    /// Width of a head; a multiple of 8.
    pub head_dim: usize,
}

/// Buffers of full attention; all but the scratch f32 \[sequences * tokens, heads * head_dim\].
#[derive(Debug, Clone, Copy)]
pub struct FullBuffers<'a> {
    /// Queries.
    pub queries: &'a Handle,
    /// Keys.
    pub keys: &'a Handle,
    /// Values.
    pub values: &'a Handle,
    /// Scratch for keys as halves, of [`FullAttention::scratch_bytes`]. Not used by the plain path.
    pub half_keys: &'a Handle,
    /// The same for values.
    pub half_values: &'a Handle,
    /// Receives the attended values.
    pub out: &'a Handle,
}

impl FullAttention {
    /// Keys and values as halves, as if cached: bf16, since values of an encoder may exceed f16's.
    const fn halves(&self) -> PrefillAttention {
        let cache = CacheLayout {
            sequences: self.sequences,
            kv_heads: self.heads,
            slots: self.tokens,
            head_dim: self.head_dim,
            format: CacheFormat::BF16,
        };
        PrefillAttention { cache, heads: self.heads }
    }

    /// Bytes of each of the two scratch buffers of the tensor path.
    pub const fn scratch_bytes(&self) -> usize {
        self.halves().cache.bytes()
    }

    /// The fastest path of a device.
    pub fn path(&self, client: &Client) -> PrefillPath {
        PrefillPath::choose(client, &self.halves())
    }
}

/// `softmax(factor * q kᵀ) v` of each sequence and head.
///
/// On tensor cores queries, keys, values and weights are rounded to bf16: a score is off by at most `2^-7` of
/// `factor * sum |q_i k_i|`, and a result by about as much of `sum weight |v|` again.
pub fn full_attention(
    client: &Client,
    attention: FullAttention,
    factor: f32,
    buffers: FullBuffers<'_>,
    path: PrefillPath,
) {
    let FullAttention { sequences, tokens, heads, head_dim } = attention;
    let quads = sequences * tokens * heads * head_dim / 4;
    // SAFETY: the lengths are those of the shapes.
    let rows = |handle: &Handle| unsafe { BufferArg::from_raw_parts(handle.clone(), quads) };
    match path {
        PrefillPath::Plain => {
            let keys = KeyRows::of_rows(tokens, heads, head_dim);
            let shape = PlainShape { heads, kv_heads: heads, keys };
            // SAFETY: the kernel keeps rows and slots below the tokens.
            unsafe {
                plain_full_kernel::launch_unchecked(
                    client,
                    shape.cubes(tokens, sequences),
                    shape.dim(),
                    4,
                    rows(buffers.queries),
                    BufferArg::from_raw_parts(buffers.keys.clone(), quads),
                    BufferArg::from_raw_parts(buffers.values.clone(), quads),
                    rows(buffers.out),
                    tokens as u32,
                    factor,
                    shape,
                );
            }
        }
        PrefillPath::Tensor(tile) => {
            let halves = attention.halves();
            let words = halves.cache.format.quad_words();
            for (from, to) in [(buffers.keys, buffers.half_keys), (buffers.values, buffers.half_values)] {
                // SAFETY: each unit that is below the number of quads reads and writes its own.
                unsafe {
                    halves_kernel::launch_unchecked(
                        client,
                        CubeCount::Static(
                            (tokens * heads * head_dim / 4).div_ceil(256) as u32,
                            sequences as u32,
                            1,
                        ),
                        CubeDim::new_1d(256),
                        words,
                        rows(from),
                        BufferArg::from_raw_parts(to.clone(), quads),
                        halves.cache,
                    );
                }
            }
            let of = [buffers.queries, buffers.half_keys, buffers.half_values, buffers.out];
            tensor_full_attention(client, halves, of, factor, tile);
        }
    }
}

/// Rows \[sequences * tokens, heads * head_dim\] -> a cache that holds just them. Cube `[block, sequence]`.
#[cube(launch_unchecked)]
fn halves_kernel<N: Size>(from: &[Quad], to: &mut [Vector<u32, N>], #[comptime] layout: CacheLayout) {
    let quads = comptime!(layout.head_dim / 4);
    let row_quads = comptime!(layout.kv_heads * layout.head_dim / 4);
    let at = CUBE_POS_X as usize * 256 + UNIT_POS as usize;
    if at < comptime!(layout.slots * layout.kv_heads * layout.head_dim / 4) {
        let sequence = CUBE_POS_Y as usize;
        let token = at / row_quads;
        let head = at % row_quads / quads;
        let quad = from[sequence * comptime!(layout.slots * layout.kv_heads * layout.head_dim / 4) + at];
        let start = slot_start(sequence, head, token, layout);
        to[start + at % quads] = store::<N>(quad, comptime!(layout.format));
    }
}

#[cfg(test)]
mod tests {
    use super::super::prefill::attended;
    use super::*;
    use crate::ops::cube::testing::*;

    #[test]
    fn every_position_attends_to_all_of_its_sequence() {
        let Some(client) = client() else { return };
        // Two sequences whose tokens fill neither tiles nor blocks.
        let attention = FullAttention { sequences: 2, tokens: 37, heads: 2, head_dim: 72 };
        let FullAttention { sequences, tokens, heads, head_dim } = attention;
        let len = sequences * tokens * heads * head_dim;
        let mut random = Random::new(50);
        let [q, k, v] = [random.floats(len), random.floats(len), random.floats(len)];
        let mut paths = vec![PrefillPath::Plain];
        paths.extend(Some(attention.path(&client)).filter(|path| *path != PrefillPath::Plain));
        for path in paths {
            let halves = path != PrefillPath::Plain;
            let rounded = |x: &[f32]| -> Vec<f32> {
                x.iter().map(|x| if halves { half::bf16::from_f32(*x).to_f32() } else { *x }).collect()
            };
            let out = poisoned(&client, len);
            let buffers = FullBuffers {
                queries: &upload(&client, &q),
                keys: &upload(&client, &k),
                values: &upload(&client, &v),
                half_keys: &client.empty(attention.scratch_bytes()),
                half_values: &client.empty(attention.scratch_bytes()),
                out: &out,
            };
            full_attention(&client, attention, 0.5, buffers, path);
            let (keys, values) = (rounded(&k), rounded(&v));
            let mut expected = Vec::new();
            for (row, query) in rounded(&q).chunks_exact(head_dim).enumerate() {
                let (token, head) = (row / heads, row % heads);
                let query: Vec<f64> = query.iter().map(|q| 0.5 * f64::from(*q)).collect();
                let first = token / tokens * tokens;
                let starts = (first..first + tokens).map(|token| (token * heads + head) * head_dim);
                expected.extend(attended(&query, starts, &keys, &values));
            }
            // f32: weights differ by the rounding of scores up to 10. Halves: weights are rounded to 8 bits.
            let tolerance = if halves { 5e-3 } else { 1e-5 };
            assert_close(&download(&client, &out), &expected, tolerance, &format!("{path:?}"));
        }
    }
}
