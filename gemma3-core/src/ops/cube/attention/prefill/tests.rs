use std::ops::Range;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::*;
use crate::ops::cube::gemm::Cells;
use crate::ops::cube::matvec::Hardware;
use crate::ops::cube::testing::*;

fn rounded(x: f32, format: CacheFormat) -> f32 {
    match format {
        CacheFormat::F32 => x,
        CacheFormat::F16 => half::f16::from_f32(x).to_f32(),
        CacheFormat::BF16 => half::bf16::from_f32(x).to_f32(),
    }
}

/// A cache in device memory.
pub(super) fn upload_cache(client: &Client, values: &[f32], format: CacheFormat) -> Handle {
    let bits = |x: f32| match format {
        CacheFormat::F16 => half::f16::from_f32(x).to_bits(),
        _ => half::bf16::from_f32(x).to_bits(),
    };
    if format == CacheFormat::F32 {
        return upload(client, values);
    }
    let pair = |pair: &[f32]| u32::from(bits(pair[0])) | u32::from(bits(pair[1])) << 16;
    let words: Vec<u32> = values.chunks_exact(2).map(pair).collect();
    client.create_from_slice(u32::as_bytes(&words))
}

pub(super) fn upload_words(client: &Client, words: &[u32]) -> Handle {
    client.create_from_slice(u32::as_bytes(words))
}

/// A prompt's part, at the positions `queries` of the second of two sequences.
#[derive(Debug, Clone)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    slots: usize,
    window: Option<usize>,
    images: Vec<Range<usize>>,
    queries: Range<usize>,
    /// By how much keys grow from one position to the next, of the first one's size.
    growth: f32,
}

impl Case {
    fn attention(&self, format: CacheFormat) -> PrefillAttention {
        let (kv_heads, slots, head_dim) = (self.kv_heads, self.slots, self.head_dim);
        let cache = CacheLayout { sequences: 2, kv_heads, slots, head_dim, format };
        PrefillAttention { cache, heads: self.heads }
    }

    fn check(&self, client: &Client, format: CacheFormat, path: PrefillPath) {
        let attention = self.attention(format);
        let tokens = self.queries.len();
        let visible = visible_ranges(self.queries.clone(), self.window, &self.images);
        let mut random = Random::new(40);
        let queries = random.floats(tokens * self.heads * self.head_dim);
        // What was never written, and the other sequence, is no number.
        let mut keys = vec![f32::NAN; attention.cache.quads() * 4];
        let mut values = keys.clone();
        for head in 0..self.kv_heads {
            for position in visible[0] as usize..self.queries.end {
                let start = self.start(head, position);
                let size = 1.0 + self.growth * (position - visible[0] as usize) as f32;
                for at in start..start + self.head_dim {
                    keys[at] = rounded(size * random.unit(), format);
                    values[at] = rounded(random.unit(), format);
                }
            }
        }
        let out = poisoned(client, queries.len());
        let buffers = PrefillBuffers {
            queries: &upload(client, &queries),
            keys: &upload_cache(client, &keys, format),
            values: &upload_cache(client, &values, format),
            visible: &upload_words(client, &visible),
            out: &Rows::f32(&out),
        };
        prefill_attention(client, attention, 1, tokens, buffers, path);
        let halves = path != PrefillPath::Plain;
        let mut expected = Vec::new();
        for (row, query) in queries.chunks_exact(self.head_dim).enumerate() {
            let (token, head) = (row / self.heads, row % self.heads);
            let query: Vec<f64> =
                query.iter().map(|q| f64::from(if halves { rounded(*q, format) } else { *q })).collect();
            let kv_head = head / (self.heads / self.kv_heads);
            let starts = (visible[2 * token]..visible[2 * token + 1])
                .map(|position| self.start(kv_head, position as usize));
            expected.extend(attended(&query, starts, &keys, &values));
        }
        // f32: weights differ by the rounding of scores up to 20. Halves: weights are rounded to 8 or 11 bits, their
        // sum isn't on tensor cores, and is on cooperative matrices.
        let tolerance = match (path, format) {
            (PrefillPath::Plain, _) => 1e-5,
            (PrefillPath::Cooperative(_), _) => 1e-3,
            (_, CacheFormat::F16) => 6e-4,
            _ => 5e-3,
        };
        assert_close(&download(client, &out), &expected, tolerance, &format!("{self:?} {format:?} {path:?}"));
    }

    /// Where the entry of a position begins.
    fn start(&self, kv_head: usize, position: usize) -> usize {
        ((self.kv_heads + kv_head) * self.slots + position % self.slots) * self.head_dim
    }
}

/// Attention of one query over the entries at `starts`, and the weighted sizes of the values.
pub(in crate::ops::cube::attention) fn attended(
    query: &[f64],
    starts: impl Iterator<Item = usize>,
    keys: &[f32],
    values: &[f32],
) -> Vec<(f64, f64)> {
    let starts: Vec<usize> = starts.collect();
    let score =
        |start: &usize| -> f64 { keys[*start..].iter().zip(query).map(|(k, q)| f64::from(*k) * q).sum() };
    let scores: Vec<f64> = starts.iter().map(score).collect();
    let largest = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let column = |d: usize| {
        let terms = starts.iter().zip(&weights).map(|(start, weight)| weight * f64::from(values[start + d]));
        let (total, size) = terms.fold((0.0, 0.0), |(total, size), term| (total + term, size + term.abs()));
        (total / sum, size / sum)
    };
    (0..query.len()).map(column).collect()
}

/// The plain path, and tiles for tensor cores where the device has them.
fn paths(client: &Client, attention: &PrefillAttention) -> Vec<PrefillPath> {
    let tile = |sixteens, groups, keys| TensorTile { sixteens, planes: 2, groups, keys };
    let tiles = [tile(1, 1, 32), tile(1, 2, 64), tile(2, 1, 64)].into_iter();
    let tiles = tiles.filter(|tile| tile.runs(client, attention)).map(PrefillPath::Tensor);
    let cooperative = cooperative_tiles(client, attention).into_iter().map(PrefillPath::Cooperative);
    [PrefillPath::Plain].into_iter().chain(tiles).chain(cooperative).collect()
}

/// Tiles of cooperative matrices that differ in everything, where the device has them.
fn cooperative_tiles(client: &Client, attention: &PrefillAttention) -> Vec<CooperativeTile> {
    let plane_units = client.properties().hardware.plane_size_max as usize;
    let tile = |sixteens, planes, keys, [holds, apart, ahead]: [bool; 3]| CooperativeTile {
        plane_units,
        sixteens,
        planes,
        keys,
        holds,
        apart,
        ahead,
        together: false,
        cells: Cells::longest(client),
    };
    let mut tiles = vec![
        tile(1, 2, 32, [true, false, true]),
        tile(2, 1, 48, [false, true, false]),
        tile(1, 3, 32, [true, true, false]),
        CooperativeTile { together: true, ..tile(2, 2, 32, [true, true, true]) },
    ];
    tiles.extend(CooperativeTile::choose(client, attention));
    tiles.retain(|tile| tile.runs(client, attention));
    tiles
}

fn base() -> Case {
    let (heads, kv_heads, head_dim, slots) = (2, 1, 32, 80);
    Case { heads, kv_heads, head_dim, slots, window: None, images: vec![], queries: 0..41, growth: 0.0 }
}

#[test]
fn queries_attend_to_the_run_of_positions_they_see() {
    let Some(client) = client() else { return };
    let base = base();
    let cases = [
        // More rows than a tile, and the first tokens of all.
        base.clone(),
        // Later tokens of a prompt, one head of keys a head, a width that no group of columns divides.
        Case { heads: 2, kv_heads: 2, head_dim: 72, queries: 29..63, ..base.clone() },
        // A ring that has come round, and windows whose edges cross blocks; few slots beyond what is seen.
        Case { heads: 4, kv_heads: 1, window: Some(20), slots: 39, queries: 95..115, ..base.clone() },
        // Images over the borders of tiles, one beginning at the first query, with a window shorter than they.
        Case {
            window: Some(9),
            images: vec![10..31, 31..40],
            slots: 64,
            queries: 10..47,
            head_dim: 48,
            ..base.clone()
        },
        Case { heads: 1, head_dim: 128, queries: 7..8, ..base.clone() },
        Case { heads: 2, head_dim: 256, queries: 30..38, ..base },
    ];
    // A format a case: each is a kernel to compile.
    use CacheFormat::{BF16, F16, F32};
    for (case, format) in cases.iter().zip([F32, BF16, F16, BF16, F32, F16]) {
        for path in paths(&client, &case.attention(format)) {
            case.check(&client, format, path);
        }
    }
}

#[test]
fn cooperative_matrices_attend_to_the_same() {
    let Some(client) = client() else { return };
    let cases = [
        // One head of keys a head, in blocks that aren't full; a width between 16s.
        Case { heads: 2, kv_heads: 2, head_dim: 72, queries: 29..63, ..base() },
        // A ring that has come round, and windows whose edges cross blocks.
        Case { heads: 4, head_dim: 64, window: Some(20), slots: 39, queries: 95..115, ..base() },
        // Images over the borders of tiles and blocks, with a window shorter than they.
        Case { window: Some(9), images: vec![3..70, 70..75], slots: 96, queries: 3..90, ..base() },
        // Eight heads over one; as many queries as fill tiles; a prompt's beginning.
        Case { heads: 8, head_dim: 128, queries: 0..48, ..base() },
        // One query; few of the tile's rows.
        Case { heads: 1, head_dim: 256, queries: 78..79, ..base() },
        Case { heads: 8, kv_heads: 4, head_dim: 256, window: Some(33), queries: 30..47, ..base() },
        Case { heads: 4, head_dim: 256, slots: 200, queries: 0..150, ..base() },
        // Scores that grow beyond every reference, up to some hundreds.
        Case { heads: 4, growth: 0.5, ..base() },
        Case { heads: 2, head_dim: 256, growth: 0.1, slots: 150, queries: 90..140, ..base() },
    ];
    for case in cases {
        for tile in cooperative_tiles(&client, &case.attention(CacheFormat::F16)) {
            case.check(&client, CacheFormat::F16, PrefillPath::Cooperative(tile));
        }
    }
}

#[test]
fn a_query_beyond_f16_gives_no_number_and_others_theirs() {
    let Some(client) = client() else { return };
    let cache = CacheLayout { sequences: 1, kv_heads: 1, slots: 40, head_dim: 64, format: CacheFormat::F16 };
    let attention = PrefillAttention { cache, heads: 2 };
    let mut random = Random::new(3);
    let [keys, values] =
        [(); 2].map(|()| upload_cache(&client, &random.floats(cache.quads() * 4), CacheFormat::F16));
    let mut queries = random.floats(40 * 128);
    // The head of one token each.
    for (row, number) in [(9, 65505.0), (20, -1e9), (33, f32::INFINITY), (64, f32::NAN)] {
        queries[row * 64 + 5] = number;
    }
    for tile in cooperative_tiles(&client, &attention) {
        let out = poisoned(&client, 40 * 128);
        let buffers = PrefillBuffers {
            queries: &upload(&client, &queries),
            keys: &keys,
            values: &values,
            visible: &upload_words(&client, &visible_ranges(0..40, None, &[])),
            out: &Rows::f32(&out),
        };
        prefill_attention(&client, attention, 0, 40, buffers, PrefillPath::Cooperative(tile));
        for (row, found) in download(&client, &out).chunks_exact(64).enumerate() {
            let expected = ![9, 20, 33, 64].contains(&row);
            assert!(found.iter().all(|x| x.is_finite() == expected), "{row} {tile:?}: {found:?}");
        }
    }
}

#[test]
fn attended_values_are_rounded_for_the_next_product() {
    let Some(client) = client() else { return };
    let cache = CacheLayout { sequences: 1, kv_heads: 2, slots: 64, head_dim: 64, format: CacheFormat::F16 };
    let (attention, tokens) = (PrefillAttention { cache, heads: 4 }, 37);
    let width = attention.heads * cache.head_dim;
    let mut random = Random::new(48);
    let numbers = cache.quads() * 4;
    let [keys, values] = [(); 2].map(|()| upload_cache(&client, &random.floats(numbers), cache.format));
    let queries = upload(&client, &random.floats(tokens * width));
    let visible = upload_words(&client, &visible_ranges(0..tokens, Some(20), &[]));
    for path in paths(&client, &attention) {
        let products = match path {
            PrefillPath::Cooperative(_) => RowFormat::F16,
            _ => RowFormat::Bf16,
        };
        let [floats, rounded] = [RowFormat::F32, path.row_format(products, width)].map(|format| {
            let out = Rows { handle: poisoned(&client, format.bytes(tokens, width) / 4), format };
            let (queries, visible) = (&queries, &visible);
            let buffers = PrefillBuffers { queries, keys: &keys, values: &values, visible, out: &out };
            prefill_attention(&client, attention, 0, tokens, buffers, path);
            crate::ops::cube::testing::values(&client, &out, tokens, width)
        });
        // The smallest of f16 are multiples of 2^-24.
        let expected: Vec<_> =
            floats.iter().map(|x| (f64::from(*x), f64::from(x.abs().max(2.0_f32.powi(-14))))).collect();
        // Rounded to 8 or 11 bits: by half of the 2^-7 or 2^-10 between neighbors, of the size of a 1.
        let tolerance = match path {
            PrefillPath::Plain => 0.0,
            PrefillPath::Tensor(_) => 1.0 / 256.0,
            PrefillPath::Cooperative(_) => 1.0 / 2048.0,
        };
        assert_close(&rounded, &expected, tolerance, &format!("{path:?}"));
    }
}

#[test]
fn ranges_of_any_content_stay_inside_the_cache() {
    let Some(client) = client() else { return };
    for format in [CacheFormat::BF16, CacheFormat::F16] {
        let cache = CacheLayout { sequences: 1, kv_heads: 1, slots: 40, head_dim: 32, format };
        let attention = PrefillAttention { cache, heads: 1 };
        let ones = vec![1.0; cache.quads() * 4];
        for path in paths(&client, &attention) {
            let out = poisoned(&client, 2 * 32);
            let buffers = PrefillBuffers {
                queries: &upload(&client, &[0.5; 64]),
                keys: &upload_cache(&client, &ones, cache.format),
                values: &upload_cache(&client, &ones, cache.format),
                visible: &upload_words(&client, &[u32::MAX, 7, 5, u32::MAX]),
                out: &Rows::f32(&out),
            };
            prefill_attention(&client, attention, 0, 2, buffers, path);
            let found = download(&client, &out);
            // Nothing visible gives zeros; otherwise the weights' sum is 1.
            assert!(found.iter().all(|x| *x == 0.0 || (x - 1.0).abs() < 1e-2), "{path:?}: {found:?}");
        }
    }
}

#[test]
fn visible_positions_follow_windows_and_images() {
    assert_eq!(visible_ranges(2..4, None, &[]), [0, 3, 0, 4]);
    assert_eq!(visible_ranges(7..9, Some(3), &[]), [5, 8, 6, 9]);
    assert_eq!(visible_ranges(0..4, Some(2), std::slice::from_ref(&(1..4))), [0, 1, 0, 4, 1, 4, 2, 4]);
    // The part of an image that has not been given yet isn't there to be seen.
    assert_eq!(visible_ranges(1..3, None, std::slice::from_ref(&(1..4))), [0, 3, 0, 3]);
}

#[test]
fn a_prompts_heads_are_normalized_turned_and_cached() {
    let Some(client) = client() else { return };
    let groups = Hardware::of(&client).groups(1);
    // 12 quads in the second case: units have no equal shares. More tokens than a cube has groups.
    for (heads, kv_heads, head_dim, formats) in
        [(4, 1, 32, vec![CacheFormat::BF16]), (2, 2, 48, vec![CacheFormat::F32, CacheFormat::F16])]
    {
        for format in formats {
            let cache = CacheLayout { sequences: 2, kv_heads, slots: 19, head_dim, format };
            for (chunk, positions, tokens) in [
                (Chunk::Prompt { sequence: 1, tokens: 18 }, vec![90_001_u32], 18),
                (Chunk::Batch, vec![13, 90_001], 2),
            ] {
                let mut random = Random::new(20);
                let width = (heads + 2 * kv_heads) * head_dim;
                let qkv = random.floats(tokens * width);
                let (q_scale, k_scale) = (random.floats(head_dim), random.floats(head_dim));
                let inv_freq: Vec<f32> =
                    (0..head_dim / 2).map(|j| 1e4_f32.powf(-2.0 * j as f32 / head_dim as f32)).collect();
                let mark = vec![7.0; cache.quads() * 4];
                let queries = poisoned(&client, tokens * heads * head_dim);
                let (keys, values) =
                    (upload_cache(&client, &mark, format), upload_cache(&client, &mark, format));
                let step = ChunkHeads {
                    qkv: &upload(&client, &qkv),
                    q_scale: &upload(&client, &q_scale),
                    k_scale: &upload(&client, &k_scale),
                    inv_freq: &upload(&client, &inv_freq),
                    positions: &upload_words(&client, &positions),
                    queries: &queries,
                    keys: &keys,
                    values: &values,
                    query_factor: 0.25,
                    eps: 1e-6,
                };
                norm_rope_cache_chunk(&client, step, chunk, heads, cache, groups);

                let mut expected_queries = Vec::new();
                let (mut expected_keys, mut expected_values) = (mark.clone(), mark);
                for (token, qkv) in qkv.chunks_exact(width).enumerate() {
                    let (sequence, position) = match chunk {
                        Chunk::Prompt { sequence, .. } => (sequence, positions[0] + token as u32),
                        Chunk::Batch => (token, positions[token]),
                    };
                    let all: Vec<&[f32]> = qkv.chunks_exact(head_dim).collect();
                    for head in &all[..heads] {
                        let turned = rotate(&rms_norm(&to_f64(head), &q_scale, 1e-6), position, &inv_freq);
                        expected_queries.extend(turned.iter().map(|x| (0.25 * x, 1.0)));
                    }
                    for kv_head in 0..kv_heads {
                        let normed = rms_norm(&to_f64(all[heads + kv_head]), &k_scale, 1e-6);
                        let slot = position as usize % cache.slots;
                        let at = ((sequence * kv_heads + kv_head) * cache.slots + slot) * head_dim;
                        let key = rotate(&normed, position, &inv_freq);
                        let key: Vec<f32> = key.into_iter().map(|x| x as f32).collect();
                        expected_keys[at..at + head_dim].copy_from_slice(&key);
                        expected_values[at..at + head_dim].copy_from_slice(all[heads + kv_heads + kv_head]);
                    }
                }
                assert_close(&download(&client, &queries), &expected_queries, 2e-6, "queries");
                for (handle, expected) in [(&keys, expected_keys), (&values, expected_values)] {
                    let found = download_cache(&client, handle, format);
                    // An error of some 2^-22 in f32 may carry a number to the neighbor of the nearest.
                    let step = [0.0, 2.0_f64.powi(-10), 2.0_f64.powi(-7)][format as usize];
                    let sized: Vec<_> = expected
                        .iter()
                        .map(|x| (f64::from(rounded(*x, format)), 2e-6 + step * f64::from(x.abs())))
                        .collect();
                    assert_close(&found, &sized, 1.0, &format!("{format:?} {chunk:?}"));
                }
            }
        }
    }
}

fn download_cache(client: &Client, handle: &Handle, format: CacheFormat) -> Vec<f32> {
    if format == CacheFormat::F32 {
        return download(client, handle);
    }
    let bytes = client.read_one_unchecked(handle.clone());
    let halves = u32::from_bytes(&bytes).iter().flat_map(|word| [*word as u16, (word >> 16) as u16]);
    halves
        .map(|bits| match format {
            CacheFormat::F16 => half::f16::from_bits(bits).to_f32(),
            _ => half::bf16::from_bits(bits).to_f32(),
        })
        .collect()
}

/// Turns a head by the angles of a position.
fn rotate(head: &[f64], position: u32, inv_freq: &[f32]) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = head.to_vec();
    for j in 0..half {
        // The angle is rounded to f32, as the reference does.
        let (sin, cos) = f64::from(position as f32 * inv_freq[j]).sin_cos();
        out[j] = head[j] * cos - head[j + half] * sin;
        out[j + half] = head[j + half] * cos + head[j] * sin;
    }
    out
}
