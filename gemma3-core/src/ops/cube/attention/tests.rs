use cubecl::client::Client;
use cubecl::prelude::*;

use super::*;
use crate::ops::Precision;
use crate::ops::cube::gemm::{Processor, RowFormat, Rows};
use crate::ops::cube::matvec::Hardware;
use crate::ops::cube::reduce::Groups;
use crate::ops::cube::testing::*;

const EPS: f32 = 1e-6;

fn rounded(x: f64, format: CacheFormat) -> f64 {
    match format {
        CacheFormat::F32 => f64::from(x as f32),
        CacheFormat::F16 => half::f16::from_f64(x).to_f64(),
        CacheFormat::BF16 => half::bf16::from_f64(x).to_f64(),
    }
}

/// How far apart neighbors of a format are, relative to their size.
fn step(format: CacheFormat) -> f64 {
    match format {
        CacheFormat::F32 => 2.0_f64.powi(-23),
        CacheFormat::F16 => 2.0_f64.powi(-10),
        CacheFormat::BF16 => 2.0_f64.powi(-7),
    }
}

/// The numbers of a cache as words, and back.
fn pack(values: &[f64], format: CacheFormat) -> Vec<u32> {
    match format {
        CacheFormat::F32 => values.iter().map(|x| (*x as f32).to_bits()).collect(),
        CacheFormat::F16 => pairs(values, |x| half::f16::from_f64(x).to_bits()),
        CacheFormat::BF16 => pairs(values, |x| half::bf16::from_f64(x).to_bits()),
    }
}

fn pairs(values: &[f64], bits: impl Fn(f64) -> u16) -> Vec<u32> {
    values.chunks_exact(2).map(|pair| u32::from(bits(pair[0])) | u32::from(bits(pair[1])) << 16).collect()
}

fn unpack(words: &[u32], format: CacheFormat) -> Vec<f32> {
    match format {
        CacheFormat::F32 => words.iter().map(|word| f32::from_bits(*word)).collect(),
        CacheFormat::F16 => halves(words).map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        CacheFormat::BF16 => halves(words).map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
    }
}

fn halves(words: &[u32]) -> impl Iterator<Item = u16> {
    words.iter().flat_map(|word| [*word as u16, (word >> 16) as u16])
}

fn one_plane(client: &Client) -> Groups {
    Hardware::of(client).groups(1)
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

/// What a step is tested on.
struct Case {
    /// The sums of the parts.
    qkv: Vec<f32>,
    qkv_parts: Vec<f32>,
    q_scale: Vec<f32>,
    k_scale: Vec<f32>,
    inv_freq: Vec<f32>,
    positions: [u32; 2],
    /// Keys and values, as the cache holds them.
    cache: [Vec<f64>; 2],
}

impl Case {
    fn new(attention: &DecodeAttention, positions: [u32; 2]) -> Self {
        let CacheLayout { sequences, kv_heads, head_dim, format, .. } = attention.cache;
        let mut random = Random::new(21);
        let width = (attention.heads + 2 * kv_heads) * head_dim;
        let mut cache = || {
            let numbers = 0..attention.cache.quads() * 4;
            numbers.map(|_| rounded(f64::from(random.unit()), format)).collect::<Vec<_>>()
        };
        let cache = [cache(), cache()];
        let (count, parts) = (sequences * width, attention.parts);
        let qkv_parts = random.floats(parts * count);
        Self {
            qkv: (0..count).map(|i| qkv_parts.iter().skip(i).step_by(count).sum()).collect(),
            qkv_parts,
            q_scale: random.floats(head_dim),
            k_scale: random.floats(head_dim),
            inv_freq: (0..head_dim / 2).map(|j| 1e4_f32.powf(-2.0 * j as f32 / head_dim as f32)).collect(),
            positions,
            cache,
        }
    }
}

const QUERY_FACTOR: f32 = 0.25;

/// Attends to the cache; gives the attended values and the words of keys and values afterwards.
fn attend(client: &Client, attention: DecodeAttention, case: &Case) -> (Vec<f32>, [Vec<u32>; 2]) {
    let format = attention.cache.format;
    let caches =
        case.cache.each_ref().map(|cache| client.create_from_slice(u32::as_bytes(&pack(cache, format))));
    let partial = poisoned(client, attention.partial_floats());
    let step = DecodeInputs {
        qkv: &upload(client, &case.qkv_parts),
        q_scale: &upload(client, &case.q_scale),
        k_scale: &upload(client, &case.k_scale),
        inv_freq: &upload(client, &case.inv_freq),
        positions: &client.create_from_slice(u32::as_bytes(&case.positions)),
        keys: &caches[0],
        values: &caches[1],
        partial: &partial,
        query_factor: QUERY_FACTOR,
        eps: EPS,
    };
    decode_attention(client, attention, step, None);
    let width = attention.heads * attention.cache.head_dim;
    let out = poisoned(client, attention.cache.sequences * width);
    combine_splits(client, attention, &partial, &Rows::f32(&out));
    if combines_at_once(client) {
        let [at_once, counters] =
            [poisoned(client, attention.cache.sequences * width), zeros(client, &attention)];
        let combined = Combined { counters: &counters, out: &Rows::f32(&at_once) };
        decode_attention(client, attention, step, Some(combined));
        // In another order, of which the rounding of a sum of the splits is.
        for (found, expected) in download(client, &at_once).iter().zip(download(client, &out)) {
            assert!(
                (found - expected).abs() <= 1e-6,
                "combined at once: {found}, not {expected}: {attention:?}"
            );
        }
    }
    let words = caches.map(|cache| u32::from_bytes(&client.read_one_unchecked(cache)).to_vec());
    (download(client, &out), words)
}

fn zeros(client: &Client, attention: &DecodeAttention) -> cubecl::server::Handle {
    let counters = attention.cache.sequences * attention.cache.kv_heads;
    client.create_from_slice(u32::as_bytes(&vec![0; counters]))
}

/// Writes keys and values of the tokens into the cache, and gives what they attend to.
fn reference(case: &mut Case, attention: &DecodeAttention) -> Vec<(f64, f64)> {
    let CacheLayout { kv_heads, slots, head_dim, format, .. } = attention.cache;
    let mut out = Vec::new();
    let width = (attention.heads + 2 * kv_heads) * head_dim;
    for (sequence, position) in case.positions.iter().enumerate() {
        let own: Vec<&[f32]> = case.qkv[sequence * width..][..width].chunks_exact(head_dim).collect();
        let start =
            |kv_head: usize, key: usize| ((sequence * kv_heads + kv_head) * slots + key % slots) * head_dim;
        for kv_head in 0..kv_heads {
            let normed = rms_norm(&to_f64(own[attention.heads + kv_head]), &case.k_scale, f64::from(EPS));
            let key = rotate(&normed, *position, &case.inv_freq);
            let value = to_f64(own[attention.heads + kv_heads + kv_head]);
            for (cache, vector) in case.cache.iter_mut().zip([key, value]) {
                for (cell, x) in cache[start(kv_head, *position as usize)..].iter_mut().zip(vector) {
                    *cell = rounded(x, format);
                }
            }
        }
        let end = *position as usize + 1;
        let first = end.saturating_sub(attention.window.unwrap_or(end));
        for (head, own) in own[..attention.heads].iter().enumerate() {
            let kv_head = head / (attention.heads / kv_heads);
            let normed = rms_norm(&to_f64(own), &case.q_scale, f64::from(EPS));
            let query = rotate(&normed, *position, &case.inv_freq);
            let vector = |part: usize, key: usize| &case.cache[part][start(kv_head, key)..][..head_dim];
            let score = |key| {
                let dot: f64 = vector(0, key).iter().zip(&query).map(|(k, q)| k * q).sum();
                dot * f64::from(QUERY_FACTOR)
            };
            let weights: Vec<f64> = (first..end).map(|key| score(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..head_dim {
                let weighted = (first..end).zip(&weights).map(|(key, weight)| weight * vector(1, key)[d]);
                out.push((weighted.sum::<f64>() / sum, 1.0));
            }
        }
    }
    out
}

#[test]
fn a_token_joins_the_cache_and_attends_to_the_positions_it_sees() {
    let Some(client) = client() else { return };
    let groups = one_plane(&client);
    // 12 quads: units have no equal shares.
    let (sequences, head_dim) = (2, 48);
    for (heads, kv_heads, slots, window) in [(4, 1, 64, None), (4, 2, 40, Some(24)), (2, 2, 30, Some(30))] {
        for (format, splits, keys_at_once, heads_at_once, parts) in
            [(CacheFormat::F32, 3, 1, 1, 1), (CacheFormat::BF16, 20, 2, 3, 3), (CacheFormat::F16, 1, 3, 2, 1)]
        {
            let cache = CacheLayout { sequences, kv_heads, slots, head_dim, format };
            let heads_at_once = heads_at_once.min(heads / kv_heads);
            let attention =
                DecodeAttention { cache, heads, window, splits, keys_at_once, groups, heads_at_once, parts };
            // The very first position, few, and one whose ring has come round (where it may).
            for positions in [[0_u32, 1], [5, 29], [if window.is_some() { 77 } else { 63 }, 38]] {
                let mut case = Case::new(&attention, positions);
                let (out, words) = attend(&client, attention, &case);
                let expected = reference(&mut case, &attention);
                // In f32, weights differ by the rounding of scores up to 10 or so; the values are below 1. The
                // token's own key and value may round to a neighbor of what they should, and a weight with it.
                let what = format!("{positions:?} {attention:?}");
                let neighbors = if format == CacheFormat::F32 { 0.0 } else { 0.5 * step(format) };
                assert_close(&out, &expected, 5e-6 + neighbors, &what);
                for (words, expected) in words.iter().zip(&case.cache) {
                    for (found, expected) in unpack(words, format).iter().zip(expected) {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(
                            error <= 2e-6 + step(format) * expected.abs(),
                            "{found}, not {expected}: {what}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_step_needs_no_more_shared_memory_than_there_is_everywhere() {
    const EVERYWHERE: usize = 16 << 10;
    for lanes in [4, 8, 16, 32, 64, 128] {
        for plane_operations in [true, false] {
            for (kv_heads, heads, head_dim) in
                [(1, 4, 256), (4, 8, 256), (8, 16, 256), (16, 32, 128), (1, 8, 256)]
            {
                let hardware = Hardware {
                    lanes,
                    plane_operations,
                    shared_bytes: EVERYWHERE,
                    units: 64 * 1024,
                    max_cubes: 65_535,
                    integer_dots: false,
                    native_halves: false,
                    whole_blocks: false,
                };
                let cache =
                    CacheLayout { sequences: 1, kv_heads, slots: 4096, head_dim, format: CacheFormat::F16 };
                let attention = DecodeAttention::choose(&hardware, cache, heads, None);
                let DecodeAttention { groups, heads_at_once, .. } = attention;
                let queries = heads / kv_heads;
                let held = (queries + 2).max(groups.groups * heads_at_once) * head_dim;
                // Largest scores and sums of every group; sums over planes, or over units where planes don't sum.
                let scratch = match plane_operations {
                    true => groups.planes * groups.groups * attention.keys_at_once * queries,
                    false => groups.cube_units(),
                };
                let bytes = (held + 2 * groups.groups * queries + scratch) * size_of::<f32>();
                assert!(bytes <= EVERYWHERE, "{bytes} of {attention:?}");
            }
        }
    }
}

#[test]
fn positions_beyond_all_reason_stay_within_the_buffers() {
    let Some(client) = client() else { return };
    let cache = CacheLayout { sequences: 2, kv_heads: 1, slots: 12, head_dim: 32, format: CacheFormat::F32 };
    let groups = one_plane(&client);
    let attention = DecodeAttention::choose(&Hardware::of(&client), cache, 2, Some(8));
    let attention = DecodeAttention { splits: 3, groups, ..attention };
    let case = Case::new(&attention, [u32::MAX, 1 << 31]);
    let (out, _) = attend(&client, attention, &case);
    assert!(out.iter().all(|value| value.abs() <= 1.0), "{out:?}");
}

#[test]
fn who_combines_the_splits_sees_all_of_them() {
    let Some(client) = client() else { return };
    if !combines_at_once(&client) {
        println!("skipped: cubes don't see what others have written");
        return;
    }
    // As many cubes as a device runs at once; every launch attends to other queries.
    let cache =
        CacheLayout { sequences: 2, kv_heads: 4, slots: 2048, head_dim: 256, format: CacheFormat::F16 };
    let attention = DecodeAttention::choose(&Hardware::of(&client), cache, 8, None);
    let case = Case::new(&attention, [2000, 1500]);
    let caches =
        case.cache.each_ref().map(|x| client.create_from_slice(u32::as_bytes(&pack(x, cache.format))));
    let width = attention.heads * cache.head_dim;
    let [q_scale, k_scale, inv_freq] =
        [&case.q_scale, &case.k_scale, &case.inv_freq].map(|values| upload(&client, values));
    let positions = client.create_from_slice(u32::as_bytes(&case.positions));
    let partial = poisoned(&client, attention.partial_floats());
    let counters = zeros(&client, &attention);
    let mut random = Random::new(24);
    for round in 0..100 {
        let qkv = upload(&client, &random.floats(case.qkv_parts.len()));
        let step = DecodeInputs {
            qkv: &qkv,
            q_scale: &q_scale,
            k_scale: &k_scale,
            inv_freq: &inv_freq,
            positions: &positions,
            keys: &caches[0],
            values: &caches[1],
            partial: &partial,
            query_factor: QUERY_FACTOR,
            eps: EPS,
        };
        let [at_once, after] = [(); 2].map(|()| poisoned(&client, cache.sequences * width));
        // Twice: what the first has left must not do for the second.
        for _ in 0..2 {
            let combined = Combined { counters: &counters, out: &Rows::f32(&at_once) };
            decode_attention(&client, attention, step, Some(combined));
        }
        combine_splits(&client, attention, &partial, &Rows::f32(&after));
        for (found, expected) in download(&client, &at_once).iter().zip(download(&client, &after)) {
            assert!((found - expected).abs() <= 1e-6, "round {round}: {found}, not {expected}");
        }
    }
    assert!(u32::from_bytes(&client.read_one_unchecked(counters)).iter().all(|counter| *counter == 0));
}

#[test]
fn attended_values_become_rows_of_products() {
    let Some(client) = client() else { return };
    let format = Processor::of(&client).row_format(Precision::Fast);
    let cache = CacheLayout { sequences: 2, kv_heads: 2, slots: 24, head_dim: 32, format: CacheFormat::F32 };
    let attention = DecodeAttention::choose(&Hardware::of(&client), cache, 4, None);
    // One part, and several that rows of units share.
    for splits in [1, 9] {
        let attention = DecodeAttention { splits, ..attention };
        let mut random = Random::new(23);
        let (count, width) = (2 * 4 * splits, cache.head_dim + 4);
        let numbers = random.floats(count * width);
        let partial = numbers.chunks_exact(width).flat_map(|part| {
            let statistic = [part[width - 4], 1.5 + part[width - 3], 0.0, 0.0];
            [&part[..width - 4], &statistic].concat()
        });
        let partial = upload(&client, &partial.collect::<Vec<_>>());
        let (rows, cols) = (cache.sequences, attention.heads * cache.head_dim);
        let empty =
            |format: RowFormat| Rows { handle: poisoned(&client, format.bytes(rows, cols) / 4), format };
        let [plain, out] = [RowFormat::F32, format].map(|format| {
            let out = empty(format);
            combine_splits(&client, attention, &partial, &out);
            values(&client, &out, rows, cols)
        });
        let expected: Vec<_> = plain.iter().map(|x| (f64::from(*x), f64::from(x.abs()))).collect();
        // Rounded to 8 bits where products take bf16: by half of the 2^-7 between neighbors, of the size of a 1. f16 has
        // more.
        let tolerance = if format == RowFormat::F32 { 0.0 } else { 1.0 / 256.0 };
        assert_close(&out, &expected, tolerance, &format!("{splits} splits"));
    }
}

#[test]
fn nothing_is_written_for_nobody() {
    let Some(client) = client() else { return };
    for format in [CacheFormat::F32, CacheFormat::F16] {
        let cache = CacheLayout { sequences: 2, kv_heads: 1, slots: 12, head_dim: 8, format };
        let attention =
            DecodeAttention { parts: 1, ..DecodeAttention::choose(&Hardware::of(&client), cache, 2, None) };
        let mut case = Case::new(&attention, [9, NOBODY]);
        let (out, caches) = attend(&client, attention, &case);
        let of_nobody = case.cache.each_ref().map(|all| pack(&all[all.len() / 2..], format));
        for (cache, expected) in caches.iter().zip(&of_nobody) {
            assert_eq!(cache[cache.len() / 2..], expected[..], "{format:?}");
        }
        // The other is computed as ever.
        case.positions = [9, 3];
        let (beside, _) = attend(&client, attention, &case);
        assert_eq!(out[..out.len() / 2], beside[..beside.len() / 2], "{format:?}");
    }
}
