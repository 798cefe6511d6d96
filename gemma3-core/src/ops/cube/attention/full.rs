//! Attention of an image encoder: every position of a sequence attends to all of it.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::cache::{CacheFormat, CacheLayout};
use super::prefill::{
    KeyRows, PlainShape, PrefillAttention, PrefillPath, plain_full_kernel, tensor_full_attention,
};
use crate::ops::cube::gemm::{RowFormat, Rows};

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

/// Buffers of full attention, \[sequences * tokens, heads * head_dim\], in the format that
/// [`FullAttention::row_format`] asks for.
#[derive(Debug, Clone, Copy)]
pub struct FullBuffers<'a> {
    /// Queries.
    pub queries: &'a Rows,
    /// Keys.
    pub keys: &'a Rows,
    /// Values.
    pub values: &'a Rows,
    /// Receives the attended values.
    pub out: &'a Rows,
}

impl FullAttention {
    /// Keys and values as if cached: bf16, since values of an encoder may exceed f16's.
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

    /// The rows that the fastest kernel of a device takes: bf16 for tensor cores, if the products before it make
    /// such rows (`products`), f32 otherwise.
    pub fn row_format(&self, client: &Client, products: RowFormat) -> RowFormat {
        let path = PrefillPath::choose(client, &self.halves());
        path.row_format(products, self.heads * self.head_dim)
    }
}

/// `softmax(factor * q kᵀ) v` of each sequence and head.
///
/// On tensor cores queries, keys, values and weights are rounded to bf16: a score is off by at most `2^-7` of
/// `factor * sum |q_i k_i|`, and a result by about as much of `sum weight |v|` again.
///
/// # Panics
/// Rows of bf16 where [`FullAttention::row_format`] did not ask for them, and rows of different formats.
pub fn full_attention(client: &Client, attention: FullAttention, factor: f32, buffers: FullBuffers<'_>) {
    let FullAttention { sequences, tokens, heads, head_dim } = attention;
    let quads = sequences * tokens * heads * head_dim / 4;
    let FullBuffers { queries, keys, values, out } = buffers;
    let formats = [queries, keys, values, out].map(|rows| rows.format);
    assert!(formats.iter().all(|format| *format == formats[0]), "rows of one format: {formats:?}");
    if formats[0] == RowFormat::Bf16 {
        let halves = attention.halves();
        let PrefillPath::Tensor(tile) = PrefillPath::choose(client, &halves) else {
            panic!("rows of bf16 are for tensor cores");
        };
        let of = [queries, keys, values, out].map(|rows| &rows.handle);
        tensor_full_attention(client, halves, of, factor, tile);
        return;
    }
    let shape = PlainShape { heads, kv_heads: heads, keys: KeyRows::of_rows(tokens, heads, head_dim) };
    // SAFETY: the lengths are those of the shapes; the kernel keeps rows and slots below the tokens.
    unsafe {
        plain_full_kernel::launch_unchecked(
            client,
            shape.cubes(tokens, sequences),
            shape.dim(),
            4,
            BufferArg::from_raw_parts(queries.handle.clone(), quads),
            BufferArg::from_raw_parts(keys.handle.clone(), quads),
            BufferArg::from_raw_parts(values.handle.clone(), quads),
            BufferArg::from_raw_parts(out.handle.clone(), quads),
            tokens as u32,
            factor,
            shape,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::prefill::{CooperativeShape, CooperativeTile, attended, cooperative_full_attention};
    use super::*;
    use crate::ops::cube::gemm::write_rows;
    use crate::ops::cube::matvec::{Hardware, Input};
    use crate::ops::cube::testing::{values as values_of, *};

    #[test]
    fn every_position_attends_to_all_of_its_sequence() {
        let Some(client) = client() else { return };
        // Two sequences whose tokens fill neither tiles nor blocks; rows of whole tiles, as tensor cores ask for.
        let attention = FullAttention { sequences: 2, tokens: 37, heads: 8, head_dim: 72 };
        let FullAttention { sequences, tokens, heads, head_dim } = attention;
        let (rows, width) = (sequences * tokens, heads * head_dim);
        let mut random = Random::new(50);
        let numbers = [(); 3].map(|()| random.floats(rows * width));
        let mut formats = vec![RowFormat::F32];
        formats.extend(
            Some(attention.row_format(&client, RowFormat::Bf16)).filter(|format| *format != RowFormat::F32),
        );
        for format in formats {
            let halves = format == RowFormat::Bf16;
            let rounded = |x: &Vec<f32>| -> Vec<f32> {
                x.iter().map(|x| if halves { half::bf16::from_f32(*x).to_f32() } else { *x }).collect()
            };
            let [q, k, v] = numbers.each_ref().map(|x| {
                let to = Rows::empty(&client, format, rows, width);
                let input = Input::Plain { x: &upload(&client, x) };
                write_rows(&client, &Hardware::of(&client), input, &to, rows, width);
                to
            });
            let out = Rows { handle: poisoned(&client, format.bytes(rows, width) / 4), format };
            let buffers = FullBuffers { queries: &q, keys: &k, values: &v, out: &out };
            full_attention(&client, attention, 0.5, buffers);
            let [queries, keys, values] = numbers.each_ref().map(rounded);
            let mut expected = Vec::new();
            for (row, query) in queries.chunks_exact(head_dim).enumerate() {
                let (token, head) = (row / heads, row % heads);
                let query: Vec<f64> = query.iter().map(|q| 0.5 * f64::from(*q)).collect();
                let first = token / tokens * tokens;
                let starts = (first..first + tokens).map(|token| (token * heads + head) * head_dim);
                expected.extend(attended(&query, starts, &keys, &values));
            }
            // f32: weights differ by the rounding of scores up to 10. Halves: weights are rounded to 8 bits, and so
            // is the result, of less than the values' size.
            let tolerance = if halves { 5e-3 + 1.0 / 256.0 } else { 1e-5 };
            let found = values_of(&client, &out, rows, width);
            assert_close(&found, &expected, tolerance, &format!("{format:?}"));
        }
    }

    #[test]
    fn cooperative_matrices_attend_to_the_same() {
        let Some(client) = client() else { return };
        let FullAttention { sequences, tokens, heads, head_dim } =
            FullAttention { sequences: 2, tokens: 37, heads: 3, head_dim: 72 };
        let keys = KeyRows::of_rows(tokens, heads, head_dim);
        let Some(tile) = CooperativeTile::choose(&client, &keys) else { return };
        let mut random = Random::new(51);
        let [queries, keys_of, values] = [(); 3].map(|()| {
            let floats = random.floats(sequences * tokens * heads * head_dim);
            floats.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect::<Vec<_>>()
        });
        let out = poisoned(&client, queries.len());
        let of = [&queries, &keys_of, &values].map(|x| upload(&client, x));
        let shape = CooperativeShape { heads, kv_heads: heads, keys, tile };
        let of = [&of[0], &of[1], &of[2], &out];
        cooperative_full_attention(&client, shape, [sequences, tokens], of, 0.5);
        let mut expected = Vec::new();
        for (row, query) in queries.chunks_exact(head_dim).enumerate() {
            let (token, head) = (row / heads, row % heads);
            let query: Vec<f64> = query.iter().map(|q| 0.5 * f64::from(*q)).collect();
            let first = token / tokens * tokens;
            let starts = (first..first + tokens).map(|token| (token * heads + head) * head_dim);
            expected.extend(attended(&query, starts, &keys_of, &values));
        }
        // Weights are rounded to 11 bits, and their sum is one of rounded weights.
        assert_close(&download(&client, &out), &expected, 1e-3, &format!("{tile:?}"));
    }
}
