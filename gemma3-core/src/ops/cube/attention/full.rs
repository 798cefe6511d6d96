//! Attention of an image encoder: every position of a sequence attends to all of it.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::cache::{CacheFormat, CacheLayout};
use super::prefill::{
    CooperativeTile, KeyRows, PlainShape, PrefillAttention, PrefillPath, cooperative_full_attention,
    plain_full_kernel, tensor_full_attention,
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
    /// Keys and values as if cached.
    const fn as_cached(&self, format: CacheFormat) -> PrefillAttention {
        let cache = CacheLayout {
            sequences: self.sequences,
            kv_heads: self.heads,
            slots: self.tokens,
            head_dim: self.head_dim,
            format,
        };
        PrefillAttention { cache, heads: self.heads }
    }

    /// What multiplies rows of a format: those of an encoder may exceed f16, and have factors there.
    fn path(&self, client: &Client, rows: RowFormat) -> PrefillPath {
        let path = match rows {
            RowFormat::F32 => None,
            RowFormat::Bf16 => Some(PrefillPath::choose(client, &self.as_cached(CacheFormat::BF16))),
            RowFormat::F16 => CooperativeTile::choose(client, &self.as_cached(CacheFormat::F16))
                .map(PrefillPath::Cooperative),
        };
        path.unwrap_or(PrefillPath::Plain)
    }

    /// The rows that the fastest kernel of a device takes: bf16 for tensor cores and f16 for cooperative matrices, if the
    /// products before it have such rows (`products`), f32 otherwise.
    pub fn row_format(&self, client: &Client, products: RowFormat) -> RowFormat {
        self.path(client, products).row_format(products, self.heads * self.head_dim)
    }
}

/// `softmax(factor * q kᵀ) v` of each sequence and head.
///
/// On tensor cores queries, keys, values and weights are rounded to bf16: a score is off by at most `2^-7` of
/// `factor * sum |q_i k_i|`, and a result by about as much of `sum weight |v|` again. Rows of f16 are multiplied as they
/// are; weights are rounded to f16, and so is the result, which is off by at most `2^-9` of `sum weight |v|`, and by
/// `2^-14` of the largest value.
///
/// # Panics
/// Rows of halves where [`FullAttention::row_format`] did not ask for them, and rows of different formats. `factor` has
/// to be positive.
pub fn full_attention(client: &Client, attention: FullAttention, factor: f32, buffers: FullBuffers<'_>) {
    let FullAttention { sequences, tokens, heads, head_dim } = attention;
    let quads = sequences * tokens * heads * head_dim / 4;
    let FullBuffers { queries, keys, values, out } = buffers;
    let formats = [queries, keys, values, out].map(|rows| rows.format);
    assert!(formats.iter().all(|format| *format == formats[0]), "rows of one format: {formats:?}");
    if formats[0] != RowFormat::F32 {
        let of = [queries, keys, values, out].map(|rows| &rows.handle);
        match attention.path(client, formats[0]) {
            PrefillPath::Plain => panic!("rows of halves are for tensor cores"),
            PrefillPath::Tensor(tile) => {
                tensor_full_attention(client, attention.as_cached(CacheFormat::BF16), of, factor, tile)
            }
            PrefillPath::Cooperative(tile) => {
                cooperative_full_attention(client, attention.as_cached(CacheFormat::F16), of, factor, tile)
            }
        }
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
    use super::super::prefill::attended;
    use super::*;
    use crate::ops::cube::gemm::write_rows;
    use crate::ops::cube::matvec::{Hardware, Input};
    use crate::ops::cube::testing::{values as values_of, *};

    /// Queries, keys and values in each format that the device's kernels take, and what they attend to.
    fn check(client: &Client, attention: FullAttention, numbers: &[Vec<f32>; 3]) {
        let FullAttention { sequences, tokens, heads, head_dim } = attention;
        let (rows, width) = (sequences * tokens, heads * head_dim);
        let mut formats = vec![RowFormat::F32];
        formats.extend([RowFormat::Bf16, RowFormat::F16].map(|format| attention.row_format(client, format)));
        formats.dedup();
        for format in formats {
            let [q, k, v] = numbers.each_ref().map(|x| {
                let to = Rows::empty(client, format, rows, width);
                let input = Input::Plain { x: &upload(client, x) };
                write_rows(client, &Hardware::of(client), input, &to, rows, width);
                to
            });
            let out = Rows { handle: poisoned(client, format.bytes(rows, width) / 4), format };
            let buffers = FullBuffers { queries: &q, keys: &k, values: &v, out: &out };
            full_attention(client, attention, 0.5, buffers);
            let [queries, keys, values] = [&q, &k, &v].map(|x| values_of(client, x, rows, width));
            let mut expected = Vec::new();
            for (row, query) in queries.chunks_exact(head_dim).enumerate() {
                let (token, head) = (row / heads, row % heads);
                let query: Vec<f64> = query.iter().map(|q| 0.5 * f64::from(*q)).collect();
                let first = token / tokens * tokens;
                let starts = (first..first + tokens).map(|token| (token * heads + head) * head_dim);
                expected.extend(attended(&query, starts, &keys, &values));
            }
            // f32: weights differ by the rounding of scores up to 10. Halves: weights are rounded to 8 bits, and so is
            // the result, of less than the values' size; or they, their sum and the result to 11.
            let tolerance = match format {
                RowFormat::F32 => 1e-5,
                RowFormat::Bf16 => 5e-3 + 1.0 / 256.0,
                RowFormat::F16 => 2e-3,
            };
            let found = values_of(client, &out, rows, width);
            assert_close(&found, &expected, tolerance, &format!("{format:?}"));
        }
    }

    #[test]
    fn every_position_attends_to_all_of_its_sequence() {
        let Some(client) = client() else { return };
        // Two sequences whose tokens fill neither tiles nor blocks; rows of whole tiles, as tensor cores ask for.
        let attention = FullAttention { sequences: 2, tokens: 37, heads: 8, head_dim: 72 };
        let mut random = Random::new(50);
        let numbers = [(); 3].map(|()| random.floats(2 * 37 * 8 * 72));
        check(&client, attention, &numbers);
        // One whose tokens fill both, as those of an image do.
        let attention = FullAttention { sequences: 1, tokens: 128, ..attention };
        let numbers = [(); 3].map(|()| random.floats(128 * 8 * 72));
        check(&client, attention, &numbers);
    }

    #[test]
    fn tokens_of_different_sizes_attend_to_each_other() {
        let Some(client) = client() else { return };
        // More tokens than a tile has rows; each of a size of its own, far beyond f16 and far below it.
        let attention = FullAttention { sequences: 1, tokens: 150, heads: 4, head_dim: 80 };
        let mut random = Random::new(52);
        let [queries, keys, values] = [(-30, 1), (29, 4), (28, 8)].map(|(first, powers)| {
            let size = |token: usize| 2.0_f32.powi(first + (token * 7 % powers) as i32);
            let numbers = random.floats(150 * 320).into_iter().enumerate();
            numbers.map(|(at, x)| x * size(at / 320)).collect()
        });
        check(&client, attention, &[queries, keys, values]);
    }
}
