//! Attention of consecutive queries of one sequence over its cache, in which their own keys already lie.
//!
//! Every query sees one run of positions (see `ops::visibility`), given as its first and its end; neither moves
//! back from one query to the next. A tile of queries passes over the keys that any of them sees, a block at a
//! time, with a running softmax; what no query of the tile sees is not read.
//!
//! | module | what it knows |
//! |---|---|
//! | `heads` | from the fused projection to queries, keys and values |
//! | `plain` | f32 products on every device, in 16 KiB of shared memory, without plane operations |
//! | `tensor` | products of halves on tensor cores (CUDA); `registers` is its PTX |
//! | `cooperative` | products of halves on cooperative matrices (Vulkan) |

mod cooperative;
mod heads;
mod plain;
#[cfg(test)]
mod rates;
mod registers;
mod tensor;
#[cfg(test)]
mod tests;

use std::ops::Range;

use cubecl::client::Client;
use cubecl::features::Plane;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubecl::server::Handle;
use half::f16;

use super::cache::{CacheFormat, CacheLayout};
use crate::ops::cube::gemm::{RowFormat, Rows};
use cooperative::CooperativeShape;
pub use cooperative::CooperativeTile;
pub use heads::{Chunk, ChunkHeads, norm_rope_cache_chunk};
pub(super) use plain::{KeyRows, PlainShape, full_kernel as plain_full_kernel};
pub use tensor::TensorTile;
use tensor::{Operands, TensorShape};
#[cfg(test)]
pub(super) use tests::attended;

/// A score below all others, where a shading language may lack infinity.
pub(super) const LOWEST: f32 = -1e30;

/// The shape of the attention of a prompt, a constant of its kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrefillAttention {
    /// The cache. Its slots hold, at the same time, everything that any query of a launch sees: for windowed
    /// layers at least the window and the queries of one launch, less one.
    pub cache: CacheLayout,
    /// Query heads; a multiple of the key heads.
    pub heads: usize,
}

/// Buffers of the attention of a prompt.
#[derive(Debug, Clone, Copy)]
pub struct PrefillBuffers<'a> {
    /// Normalized, turned and scaled, f32 \[tokens, heads, head_dim\].
    pub queries: &'a Handle,
    /// The keys of the cache, those of the queries among them; see [`CacheLayout`].
    pub keys: &'a Handle,
    /// The values of the cache.
    pub values: &'a Handle,
    /// First and end of the positions that each query sees, u32 \[tokens, 2\]: see [`visible_ranges`].
    pub visible: &'a Handle,
    /// Receives \[tokens, heads * head_dim\], in the format that [`PrefillPath::row_format`] allows.
    pub out: &'a Rows,
}

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrefillPath {
    /// f32 on every device.
    Plain,
    /// Halves of the cache's format on tensor cores.
    Tensor(TensorTile),
    /// The halves of an f16 cache on cooperative matrices.
    Cooperative(CooperativeTile),
}

impl PrefillPath {
    /// The fastest for a device and a shape. An f32 cache asks for f32 products.
    pub fn choose(client: &Client, attention: &PrefillAttention) -> Self {
        let long = attention.cache.head_dim > 128;
        let tiles = [
            TensorTile {
                sixteens: if long { 1 } else { 2 },
                planes: 4,
                groups: if long { 2 } else { 1 },
                keys: 64,
            },
            TensorTile { sixteens: 1, planes: 4, groups: 1, keys: 32 },
        ];
        if let Some(tile) = tiles.into_iter().find(|tile| tile.runs(client, attention)) {
            return Self::Tensor(tile);
        }
        CooperativeTile::choose(client, attention).map_or(Self::Plain, Self::Cooperative)
    }

    /// The format in which attended rows of `width` numbers are written for products that take `products`: bf16 by
    /// tensor cores and f16 by cooperative matrices, where rows have nothing that they are filled up with; f32 otherwise.
    /// Attended values are no larger than values, so rows of f16 hold them with the factor that those have.
    pub fn row_format(&self, products: RowFormat, width: usize) -> RowFormat {
        match (self, products) {
            (Self::Tensor(_), RowFormat::Bf16) | (Self::Cooperative(_), RowFormat::F16)
                if products.is_full(width) =>
            {
                products
            }
            _ => RowFormat::F32,
        }
    }
}

impl TensorTile {
    /// Whether a device can run it.
    pub fn runs(&self, client: &Client, attention: &PrefillAttention) -> bool {
        let kind = match attention.cache.format {
            CacheFormat::F32 => return false,
            CacheFormat::F16 => FloatKind::F16,
            CacheFormat::BF16 => FloatKind::BF16,
        };
        let multiply = MmaConfig {
            a_type: ElemType::Float(kind),
            b_type: ElemType::Float(kind),
            cd_type: ElemType::Float(FloatKind::F32),
            m: 16,
            n: 8,
            k: 16,
        };
        let hardware = &client.properties().hardware;
        let (operands, out) = (Operands::Cached, RowFormat::F32);
        let shape = TensorShape { attention: *attention, tile: *self, operands, out };
        // The kernel is PTX: asynchronous copies are what only CUDA has.
        client.features().copy_async
            && client.features().matmul.mma.contains(&multiply)
            && client.features().plane.contains(Plane::Ops)
            && hardware.plane_size_min == 32
            && hardware.plane_size_max == 32
            && shape.shared_bytes() <= hardware.max_shared_memory_size
    }
}

/// The visible positions of queries: of those at `queries`, `window` positions up to itself (`None`: all), and
/// the whole of the image that it lies in. Two numbers a query.
pub fn visible_ranges(queries: Range<usize>, window: Option<usize>, images: &[Range<usize>]) -> Vec<u32> {
    let last = queries.end;
    queries
        .flat_map(|query| {
            let first = window.map_or(0, |window| (query + 1).saturating_sub(window));
            let image = images.iter().find(|image| image.contains(&query));
            [first as u32, image.map_or(query + 1, |image| image.end.min(last)) as u32]
        })
        .collect()
}

/// Attention of `tokens` queries of a sequence of the cache.
///
/// # Panics
/// The heads must be a multiple of the key heads, the sequence one of the cache, and the output in a format that the
/// path writes.
pub fn prefill_attention(
    client: &Client,
    attention: PrefillAttention,
    sequence: usize,
    tokens: usize,
    buffers: PrefillBuffers<'_>,
    path: PrefillPath,
) {
    let CacheLayout { sequences, kv_heads, head_dim, format, .. } = attention.cache;
    assert!(attention.heads.is_multiple_of(kv_heads) && sequence < sequences && head_dim.is_multiple_of(8));
    let out = buffers.out.format;
    assert_eq!(path.row_format(out, attention.heads * head_dim), out);
    if tokens == 0 {
        return;
    }
    let rows = tokens * (attention.heads / kv_heads);
    let numbers = tokens * attention.heads * head_dim;
    // SAFETY: the lengths are those of the shapes; the kernels keep rows below their number, and slots below
    // theirs by the remainder, whatever the ranges hold.
    let buffer = |handle: &Handle, len| unsafe { BufferArg::from_raw_parts(handle.clone(), len) };
    match path {
        // SAFETY: as above.
        PrefillPath::Plain => unsafe {
            let shape =
                PlainShape { heads: attention.heads, kv_heads, keys: KeyRows::of_cache(&attention.cache) };
            plain::visible_kernel::launch_unchecked(
                client,
                shape.cubes(tokens, 1),
                shape.dim(),
                format.quad_words(),
                buffer(buffers.queries, numbers / 4),
                BufferArg::from_raw_parts(buffers.keys.clone(), attention.cache.quads()),
                BufferArg::from_raw_parts(buffers.values.clone(), attention.cache.quads()),
                buffer(buffers.visible, 2 * tokens),
                buffer(&buffers.out.handle, numbers / 4),
                tokens as u32,
                sequence as u32,
                shape,
            );
        },
        // SAFETY: as above.
        PrefillPath::Tensor(tile) => unsafe {
            let shape = TensorShape { attention, tile, operands: Operands::Cached, out };
            tensor::visible_kernel::launch_unchecked(
                client,
                CubeCount::Static(rows.div_ceil(shape.rows()) as u32, kv_heads as u32, 1),
                shape.dim(),
                out.words_of_quad() / 2,
                buffer(buffers.queries, numbers / 4),
                buffer(buffers.keys, attention.cache.quads() / 2),
                buffer(buffers.values, attention.cache.quads() / 2),
                buffer(buffers.visible, 2 * tokens),
                buffer(&buffers.out.handle, numbers / 2),
                tokens as u32,
                sequence as u32,
                1.0,
                shape,
            );
        },
        // SAFETY: as above.
        PrefillPath::Cooperative(tile) => unsafe {
            let shape = CooperativeShape { attention, tile, operands: Operands::Cached, out };
            let launch = match tile.cells.are_words() {
                true => cooperative::visible_kernel::launch_unchecked::<u32>,
                false => cooperative::visible_kernel::launch_unchecked::<f16>,
            };
            launch(
                client,
                shape.cubes(tokens, 1),
                shape.dim(),
                tile.cells.vector_size(),
                out.words_of_quad(),
                buffer(buffers.queries, numbers / 4),
                buffer(buffers.keys, attention.cache.quads() / 2),
                buffer(buffers.values, attention.cache.quads() / 2),
                buffer(buffers.visible, 2 * tokens),
                buffer(&buffers.out.handle, tokens * out.row_elements(attention.heads * head_dim)),
                tokens as u32,
                sequence as u32,
                shape,
            );
        },
    }
}

/// Every query of each sequence over all its keys, from and to rows of halves \[sequences * tokens, heads * head_dim\],
/// as the shape of a cache that holds just them has it; the queries are multiplied by `factor`.
pub(super) fn tensor_full_attention(
    client: &Client,
    attention: PrefillAttention,
    [queries, keys, values, out]: [&Handle; 4],
    factor: f32,
    tile: TensorTile,
) {
    let CacheLayout { sequences, kv_heads, slots: tokens, head_dim, .. } = attention.cache;
    let out_format = RowFormat::Bf16;
    let shape = TensorShape { attention, tile, operands: Operands::Rows, out: out_format };
    let numbers = sequences * tokens * attention.heads * head_dim;
    // SAFETY: the lengths are those of the shapes; the kernel keeps rows and slots below the tokens.
    unsafe {
        tensor::full_kernel::launch_unchecked(
            client,
            CubeCount::Static(tokens.div_ceil(shape.rows()) as u32, kv_heads as u32, sequences as u32),
            shape.dim(),
            out_format.words_of_quad() / 2,
            BufferArg::from_raw_parts(queries.clone(), numbers / 8),
            BufferArg::from_raw_parts(keys.clone(), numbers / 8),
            BufferArg::from_raw_parts(values.clone(), numbers / 8),
            BufferArg::from_raw_parts(out.clone(), numbers / 2),
            tokens as u32,
            factor,
            shape,
        );
    }
}

/// The same for rows of f16 with their factors, multiplied by cooperative matrices.
pub(super) fn cooperative_full_attention(
    client: &Client,
    attention: PrefillAttention,
    [queries, keys, values, out]: [&Handle; 4],
    factor: f32,
    tile: CooperativeTile,
) {
    let CacheLayout { sequences, slots: tokens, head_dim, .. } = attention.cache;
    let out_format = RowFormat::F16;
    let shape = CooperativeShape { attention, tile, operands: Operands::Rows, out: out_format };
    let words = sequences * tokens * out_format.row_words(attention.heads * head_dim);
    let launch = match tile.cells.are_words() {
        true => cooperative::full_kernel::launch_unchecked::<u32>,
        false => cooperative::full_kernel::launch_unchecked::<f16>,
    };
    // SAFETY: the lengths are those of the shapes; the kernel keeps rows and slots below the tokens.
    unsafe {
        launch(
            client,
            shape.cubes(tokens, sequences),
            shape.dim(),
            tile.cells.vector_size(),
            out_format.words_of_quad(),
            BufferArg::from_raw_parts(queries.clone(), words / 4),
            BufferArg::from_raw_parts(keys.clone(), words / 4),
            BufferArg::from_raw_parts(values.clone(), words / 4),
            BufferArg::from_raw_parts(out.clone(), words / out_format.words_of_quad()),
            tokens as u32,
            factor,
            shape,
        );
    }
}
